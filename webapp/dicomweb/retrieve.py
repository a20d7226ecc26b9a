"""WADO-RS: objects as files, their metadata as JSON, their pixels, and rendered images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flask import Response
from sqlalchemy import ColumnElement, select
from werkzeug.exceptions import NotAcceptable, NotFound, ServiceUnavailable

from webapp.dicomweb.access import (
    DICOM,
    EXPLICIT_VR_LITTLE_ENDIAN,
    OCTETS,
    accepted,
    address_of,
    as_dicom_json,
    blueprint,
    has_sop_instance_uid,
    objects,
    require_json_accepted,
    require_uid,
    visible_scans,
)
from webapp.dicomweb.related import response_of
from webapp.dicomweb.search import metadata_of
from webapp.extensions import db
from webapp.models import JobStatus, Report, ReportKind, Scan
from webapp.storage import storage

STUDY = "/studies/<study_uid>"
SERIES = f"{STUDY}/series/<series_uid>"
INSTANCE = f"{SERIES}/instances/<instance_uid>"
BEING_MADE_S = 5
PICTURES = {"image/jpeg": ".jpg", "image/png": ".png"}


@blueprint.get(STUDY)
@blueprint.get(SERIES)
@blueprint.get(INSTANCE)
def retrieve(study_uid: str, series_uid: str = "", instance_uid: str = "") -> Response:
    """Send the objects of a study or of a series, or one of them."""
    objects = required(study_uid, series_uid, instance_uid)
    content_type = f"{DICOM}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"
    for media in accepted():
        if not (media.includes(DICOM) and media.includes_our_syntax):
            continue
        if media.is_multipart or media.media_type == "*/*":
            return response_of(_files(objects, content_type), DICOM)
        if len(objects) == 1:
            return Response(storage.get(objects[0].file_key), content_type=content_type)
    raise NotAcceptable(
        f'Objects are sent as multipart/related; type="{DICOM}", in Explicit VR Little Endian.'
    )


@blueprint.get(f"{STUDY}/metadata")
@blueprint.get(f"{SERIES}/metadata")
@blueprint.get(f"{INSTANCE}/metadata")
def retrieve_metadata(study_uid: str, series_uid: str = "", instance_uid: str = "") -> Response:
    """Send the metadata of objects, without their pixels, as JSON."""
    require_json_accepted()
    listed = []
    for report in required(study_uid, series_uid, instance_uid):
        metadata = dict(metadata_of(report))
        if _pixel_bytes(metadata):
            bulk = f"{address_of(report)}/bulkdata"
            metadata["7FE00010"] = {"vr": "OW", "BulkDataURI": bulk}
        listed.append(metadata)
    return as_dicom_json(listed)


@blueprint.get(f"{INSTANCE}/bulkdata")
def retrieve_bulkdata(study_uid: str, series_uid: str, instance_uid: str) -> Response:
    """Send all pixels of an object."""
    (report,) = required(study_uid, series_uid, instance_uid)
    return _octets([_pixels(report, metadata_of(report))])


@blueprint.get(f"{INSTANCE}/frames/<frames>")
def retrieve_frames(study_uid: str, series_uid: str, instance_uid: str, frames: str) -> Response:
    """Send some frames of an object, numbered from 1 and separated by commas."""
    (report,) = required(study_uid, series_uid, instance_uid)
    metadata = metadata_of(report)
    numbers = _frame_numbers(frames, metadata)
    pixels = _pixels(report, metadata)
    return _octets([_frame(pixels, number - 1, metadata) for number in numbers])


@blueprint.get(f"{INSTANCE}/rendered")
@blueprint.get(f"{INSTANCE}/thumbnail")
@blueprint.get(f"{INSTANCE}/frames/<frames>/rendered")
def retrieve_rendered(
    study_uid: str, series_uid: str, instance_uid: str, frames: str = "1"
) -> Response:
    """Send an image object as JPEG or PNG."""
    (report,) = required(study_uid, series_uid, instance_uid)
    if report.kind != ReportKind.SECONDARY_CAPTURE:
        raise NotAcceptable("Only secondary captures are rendered.")
    _frame_numbers(frames, metadata_of(report))
    for acceptable in accepted():
        for media_type, suffix in PICTURES.items():
            if acceptable.includes(media_type) and not acceptable.is_multipart:
                key = next(key for key in report.file_keys if key.endswith(suffix))
                return Response(storage.get(key), content_type=media_type)
    raise NotAcceptable("Images are sent as image/jpeg or image/png.")


def required(study_uid: str, series_uid: str = "", instance_uid: str = "") -> Sequence[Report]:
    """Return the objects of a study, optionally only those of a series or with a UID.

    Raises:
        NotFound: the token's owner may not see any.
        ServiceUnavailable: they are still being generated.
    """
    which: list[ColumnElement[bool]] = [Scan.study_uid == require_uid(study_uid)]
    if series_uid:
        which.append(Report.series_uid == require_uid(series_uid))
    if instance_uid:
        which.append(has_sop_instance_uid(require_uid(instance_uid)))
    reports = db.session.scalars(objects(*which)).all()
    if not reports:
        raise _nothing(study_uid, is_study=not series_uid)
    # No transaction is open while files are read and sent.
    db.session.commit()
    return reports


def _nothing(study_uid: str, *, is_study: bool) -> NotFound | ServiceUnavailable:
    scans = visible_scans(study_uid)
    if not scans:
        return NotFound("There is no such study.")
    if not is_study:
        return NotFound("There is no such object in this study.")
    if any(not scan.status.is_final for scan in scans) or _is_being_made(scans):
        return ServiceUnavailable(
            "The results of this study are still being created. Please try again in a few seconds.",
            retry_after=BEING_MADE_S,
        )
    return NotFound("This study has no results as DICOM objects.")


def _is_being_made(scans: Sequence[Scan]) -> bool:
    open_ones = Report.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
    of_scans = Report.scan_id.in_([scan.id for scan in scans])
    pending = select(Report.id).where(of_scans, open_ones, Report.kind != ReportKind.PDF)
    return db.session.scalar(pending.limit(1)) is not None


def _files(reports: Sequence[Report], content_type: str) -> Iterator[tuple[str, bytes]]:
    first = storage.get(
        reports[0].file_key
    )  # Errors can still be reported, because nothing has been sent yet.

    def rest() -> Iterator[tuple[str, bytes]]:
        yield content_type, first
        for report in reports[1:]:
            yield content_type, storage.get(report.file_key)

    return rest()


def _octets(parts: Sequence[bytes]) -> Response:
    content_type = f"{OCTETS}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"
    for media in accepted():
        if not (media.includes(OCTETS) and media.includes_our_syntax):
            continue
        if media.is_multipart or media.media_type == "*/*":
            return response_of([(content_type, part) for part in parts], OCTETS)
        if len(parts) == 1:
            return Response(parts[0], content_type=content_type)
    raise NotAcceptable(
        f'Pixels are sent as multipart/related; type="{OCTETS}", in Explicit VR Little Endian.'
    )


def _number(metadata: Mapping[str, Any], tag: str, otherwise: int = 0) -> int:
    values = metadata.get(tag, {}).get("Value") or [otherwise]
    return int(values[0])


def _bits_of_frame(metadata: Mapping[str, Any]) -> int:
    rows, columns = _number(metadata, "00280010"), _number(metadata, "00280011")
    samples, allocated = _number(metadata, "00280002", 1), _number(metadata, "00280100")
    return rows * columns * samples * allocated


def _pixel_bytes(metadata: Mapping[str, Any]) -> int:
    """Return the length of an object's pixels in bytes; 0 if it has none."""
    bits = _bits_of_frame(metadata) * _number(metadata, "00280008", 1)
    whole = -(-bits // 8)
    return whole + whole % 2


def _pixels(report: Report, metadata: Mapping[str, Any]) -> bytes:
    """Return the pixels of an object, which are at the end of its file.

    Raises:
        NotFound: it has no pixels.
    """
    size = _pixel_bytes(metadata)
    if not size:
        raise NotFound("This object has no pixels.")
    return storage.get(report.file_key)[-size:]


def _frame(pixels: bytes, index: int, metadata: Mapping[str, Any]) -> bytes:
    """Return a frame. In a segmentation, where a pixel is one bit, it may begin within a byte."""
    bits = _bits_of_frame(metadata)
    first, last = index * bits, (index + 1) * bits
    if bits % 8 == 0:
        return pixels[first // 8 : last // 8]
    some = int.from_bytes(pixels[first // 8 : -(-last // 8)], "little") >> first % 8
    return (some & ((1 << bits) - 1)).to_bytes(-(-bits // 8), "little")


def _frame_numbers(text: str, metadata: Mapping[str, Any]) -> list[int]:
    """Return the frame numbers in a request.

    Raises:
        NotFound: the object has no such frame.
    """
    count = _number(metadata, "00280008", 1) if _pixel_bytes(metadata) else 0
    numbers = [
        int(number) if re.fullmatch("[0-9]{1,6}", number) else 0 for number in text.split(",")
    ]
    if not all(1 <= number <= count for number in numbers):
        have = "1 frame" if count == 1 else f"{count} frames"
        raise NotFound(f"This object has {have}; frames are numbered from 1.")
    return numbers
