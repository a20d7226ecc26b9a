"""STOW-RS: studies are submitted like uploads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from flask import Response, g, url_for
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ServiceUnavailable

from webapp import intake
from webapp.api.access import require_bearer_still
from webapp.api.idempotency import idempotent
from webapp.deletion import discard
from webapp.dicomweb.access import (
    DICOM_JSON,
    address,
    as_dicom_json,
    blueprint,
    element,
    require_model_accepted,
    require_uid,
    warn,
)
from webapp.dicomweb.arriving import Stored, stored_scans, taken_along
from webapp.dicomweb.related import received_parts
from webapp.intake.completing import Changed, NothingNew, uids_of
from webapp.intake.dicom import CT_SOP_CLASSES, READ_SYNTAXES, DicomFile, Meta, meta_of
from webapp.intake.streams import Budget, DamagedFile, TooMuchWork
from webapp.models import Scan

CANNOT_UNDERSTAND, OTHER_STUDY = 0xC000, 0xA900
UNKNOWN_CLASS, UNKNOWN_SYNTAX = 0x0122, 0xC122
"""Failure reasons (PS3.18, I.2.2)."""
TRIES, BUSY_S = 10, 2
BUSY = "Another request for the same study is being stored. Please resend this one."
NO_DICOM = "A part is not a DICOM file."
NOT_OF_STUDY = "The instance does not belong to the study of the address."


@dataclass
class Part:
    """A part of the request; `refusal` says why it is refused, or is "" if it is accepted. `meta`
    is its file meta information, None if it is not a DICOM file; `study`, `series` and `instance`
    are its UIDs, later replaced by the new ones.
    """

    content: IO[bytes]
    meta: Meta | None
    study: str = ""
    series: str = ""
    instance: str = ""
    refusal: str = ""
    reason: int = CANNOT_UNDERSTAND

    def refuse(self, sentence: str) -> None:
        """Record that the part is refused."""
        self.refusal = sentence
        if self.meta is None:
            self.reason = CANNOT_UNDERSTAND
        elif sentence == NOT_OF_STUDY:
            self.reason = OTHER_STUDY
        elif self.meta.sop_class not in CT_SOP_CLASSES:
            self.reason = UNKNOWN_CLASS
        elif self.meta.transfer_syntax not in READ_SYNTAXES:
            self.reason = UNKNOWN_SYNTAX


@blueprint.post("/studies")
@blueprint.post("/studies/<study_uid>")
@intake.within_rate
@partial(idempotent, streams=True, media_type=DICOM_JSON)
def store(study_uid: str = "") -> Response:
    """Submit the DICOM files of a request; each series becomes a scan, and DICOM objects are made
    from its results.
    """
    require_model_accepted()
    parts = [Part(content, meta_of(content)) for content in received_parts()]
    for part in parts:
        if part.meta is None:
            part.refuse(NO_DICOM)
            continue
        part.study, part.series = _study_and_series_of(part.content)
        if study_uid and part.study != require_uid(study_uid):
            part.refuse(NOT_OF_STUDY)
    scans = _taken_in([part for part in parts if not part.refusal])
    return _answer(parts, scans)


def _study_and_series_of(content: IO[bytes]) -> tuple[str, str]:
    """Return the study and the series of a file; "" if it states none."""
    try:
        header = DicomFile(content, Budget()).header
    except (DamagedFile, TooMuchWork):
        return "", ""
    return header.study, header.series


def _taken_in(parts: Sequence[Part]) -> Sequence[Scan]:
    """Submit these parts, together with what had arrived of their studies, and return the scans;
    record why parts were refused. Instances that are already part of a scan count as accepted.

    Raises:
        ServiceUnavailable: other requests for the same study are being processed.
    """
    user_id = g.token_owner_id
    uids = uids_of(user_id, "DICOMweb")
    for part in parts:
        part.study, part.series = (uid and uids(uid) for uid in (part.study, part.series))
        part.instance = uids(part.meta.sop_instance) if part.meta else ""
    for _ in range(TRIES):
        stored = stored_scans(user_id, [part.study for part in parts if part.study])
        known = {uid for scan in stored if scan.counts for uid in scan.instances}
        fresh = [part for part in parts if part.instance not in known]
        if not fresh:
            return []
        scans: Sequence[Scan] = []
        try:
            receipt = _submitted(user_id, fresh, uids, stored)
        except Changed:
            continue
        except intake.NothingTaken as err:
            refused = err.refused
        except intake.UploadRejected as err:
            refused = dict.fromkeys(range(len(fresh)), str(err))
        else:
            scans, refused = receipt.scans, receipt.refused
        for place, sentence in refused.items():
            if place < len(fresh):
                fresh[place].refuse(sentence)
        return scans
    raise ServiceUnavailable(BUSY, retry_after=BUSY_S)


def _submitted(
    user_id: str, parts: Sequence[Part], uids: intake.NewUids, stored: Sequence[Stored]
) -> intake.Receipt:
    """Submit these parts as an upload, which replaces the waiting scans of their studies and the
    scans that they extend.

    Raises:
        UploadRejected: they are refused.
        Changed: another request or a worker changed a scan of their studies meanwhile.
    """
    instances = {part.instance for part in parts}
    series = {part.series for part in parts} - {""}
    grows = [
        scan
        for scan in stored
        if scan.series & series and not (scan.is_whole and scan.instances.isdisjoint(instances))
    ]
    try:
        return _submitted_with(user_id, parts, uids, stored, grows)
    except NothingNew:
        return _submitted_with(user_id, parts, uids, stored, [])


def _submitted_with(
    user_id: str,
    parts: Sequence[Part],
    uids: intake.NewUids,
    stored: Sequence[Stored],
    grows: Sequence[Stored],
) -> intake.Receipt:
    """Submit these parts with the copies of waiting scans and of the stored scans to be extended.
    Raises the same exceptions as `_submitted`, and `NothingNew` if they add nothing to the stored
    scans.
    """
    studies = [part.study for part in parts if part.study]
    instances = {part.instance for part in parts}
    with taken_along(user_id, studies, instances, stored, grows) as earlier:
        receipt = intake.accept_upload(
            user_id,
            [*(FileStorage(part.content, "") for part in parts), *earlier.files],
            "",
            intake.Choices(reports_each_file=True, dicom_results=True),
            require_access=require_bearer_still,
            uids=uids,
            before_commit=lambda scans, series: earlier.replace_by(scans, series, uids),
        )
    discard(earlier.gone)
    return receipt


def _answer(parts: Sequence[Part], scans: Sequence[Scan]) -> Response:
    """Return the Store Instances Response (PS3.18, 10.5.3 and I.2)."""
    accepted = [part for part in parts if not part.refusal]
    refused = [part for part in parts if part.refusal]
    response: dict[str, Any] = {}
    studies = {part.study for part in accepted} - {""}
    if len(studies) == 1:
        response["00081190"] = element("UR", address("studies", *studies))
    if failed := [part for part in refused if part.meta and part.meta.sop_instance]:
        response["00081198"] = element(
            "SQ", *({**_named(part), **_reason(part)} for part in failed)
        )
    if accepted:
        response["00081199"] = element("SQ", *(_named(part) for part in accepted))
    if others := [part for part in refused if part not in failed]:
        response["0008119A"] = element("SQ", *(_reason(part) for part in others))
    answer = as_dicom_json(response, 409 if not accepted else 202 if refused else 200)
    for sentence in list(dict.fromkeys(part.refusal for part in refused))[:5]:
        warn(answer, sentence)
    for scan in scans:
        followed = url_for("api.show", scan_id=scan.id, _external=True)
        answer.headers.add("Link", f'<{followed}>; rel="related"; type="application/json"')
    return answer


def _named(part: Part) -> dict[str, Any]:
    meta = part.meta or Meta()
    return {
        "00081150": element("UI", meta.sop_class),
        "00081155": element("UI", meta.sop_instance),
    }


def _reason(part: Part) -> dict[str, Any]:
    return {"00081197": element("US", part.reason)}
