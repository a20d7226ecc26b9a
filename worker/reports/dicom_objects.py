"""The result of a scan as objects for a DICOM archive, created with highdicom: a structured report
(TID 1500), a secondary capture and a segmentation.

They belong to the study of the submitted files, by the UIDs of the de-identified copies, and state
that their content is for research only.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence, SOPClass
from highdicom.sc import SCImage
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from ml.verdict import State
from webapp import __version__
from webapp.display import STATE_TITLES, percent
from webapp.models import ReportKind, ReportRefused
from webapp.models.reports import FACTS, NOT_LOCATED, NOT_OUTLINED, uid_of
from worker.reports.content import LIMITS, RESEARCH, Content
from worker.reports.fonts import BOLD, REGULAR
from worker.reports.sources import Source, directions_of, in_order, located, new_uid

MAKER = "Hemoscan"
HEMORRHAGE = Code("1386000", "SCT", "Intracranial hemorrhage")
MILLILITER = Code("ml", "UCUM", "milliliter")
OWN_SCHEME = "99HEMOSCAN"
STATE_CODES: dict[State, Code] = {
    "suspected": Code("415684004", "SCT", "Suspected"),
    "inconclusive": Code("82334004", "SCT", "Indeterminate"),
    # Not “absent”, which nobody has shown.
    "not found": Code("not-found", OWN_SCHEME, "Not found"),
}
CT_HEAD = Code("24725-4", "LN", "CT Head Report")
REPLACES = "Replaces an earlier result of this series."
STRIP_PX, LINE_PX = 64, 19
"""Height of the text strip below the image of a secondary capture, and of its lines."""


def structured_report(
    content: Content,
    headers: Sequence[pydicom.Dataset],
    instance_uid: str,
    predecessors: Sequence[tuple[str, str]] = (),
) -> bytes:
    """Return the result as a Comprehensive 3D SR file: TID 1500 with one group of measurements for
    the scan, and one for each slice to look at first, if it is known which file holds it.

    Args:
        headers: of all files of the scan (`worker.reports.sources.read_headers`).
        instance_uid: the new object's SOP instance UID.
        predecessors: the series and instance UIDs of the reports that it replaces.
    """
    algorithm = AlgorithmIdentification(
        name=content.architecture,
        version=content.model_card,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MAKER,
        parameters=[f"Model version {content.model_version}"],
    )
    groups = [_group_of_scan(content, algorithm)]
    if (ordered := in_order(headers, len(content.slices))) is not None:
        groups += [
            _group_of_slice(content, index, ordered[index], algorithm)
            for index in content.first_slices
        ]
    observer = DeviceObserverIdentifyingAttributes(
        uid=UID(uid_of(content.model_version)),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=content.architecture,
        serial_number=content.model_version,
    )
    report = MeasurementReport(
        ObservationContext(ObserverContext(codes.DCM.Device, observer)), CT_HEAD, groups
    )
    document = Comprehensive3DSR(
        evidence=list(headers),
        content=report,
        series_instance_uid=new_uid(),
        series_number=FACTS[ReportKind.STRUCTURED_REPORT].series_number,
        sop_instance_uid=instance_uid,
        instance_number=1,
        manufacturer=MAKER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=[_earlier(headers, *each) for each in predecessors] or None,
        **_maker(content),
    )
    document.SeriesDescription = FACTS[ReportKind.STRUCTURED_REPORT].series_description
    document.CodingSchemeIdentificationSequence = [_own_scheme()]
    return _as_file(document, headers)


def _group_of_scan(
    content: Content, algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    verdict = content.verdict
    group = MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=new_uid(), identifier=f"Scan {content.scan_id}"),
        finding_type=HEMORRHAGE,
        algorithm_id=algorithm,
        measurements=[
            Measurement(codes.DCM.Probability, verdict.probability, codes.UCUM.NoUnits),
            Measurement(codes.DCM.ThresholdValue, verdict.threshold, codes.UCUM.NoUnits),
            *(
                Measurement(codes.SCT.Volume, volume, MILLILITER)
                for volume in (content.volume_ml,)
                if volume is not None
            ),
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(HEMORRHAGE, STATE_CODES[verdict.state]),
        ],
    )
    sentences = [verdict.sentence, RESEARCH, LIMITS, *content.replaces, *content.warnings]
    group[0].ContentSequence.append(
        TextContentItem(codes.DCM.Comment, " ".join(sentences), RelationshipTypeValues.CONTAINS)
    )
    return group


def _group_of_slice(
    content: Content, index: int, source: Source, algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    frames = None if source.frame is None else [source.frame]
    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=new_uid(), identifier=f"Slice {index + 1}"),
        finding_type=HEMORRHAGE,
        algorithm_id=algorithm,
        measurements=[
            Measurement(codes.DCM.Probability, content.slices[index], codes.UCUM.NoUnits)
        ],
        source_images=[SourceImageForMeasurementGroup.from_source_image(source.file, frames)],
    )


def secondary_capture(
    content: Content, headers: Sequence[pydicom.Dataset], instance_uid: str
) -> bytes:
    """Return the slice that represents the scan, with its overlay, as a Secondary Capture file. A
    text strip below the image describes it.

    The arguments are the same as for `structured_report`.
    """
    capture = SCImage.from_ref_dataset(
        headers[0],
        np.asarray(captioned(content)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=new_uid(),
        series_number=FACTS[ReportKind.SECONDARY_CAPTURE].series_number,
        sop_instance_uid=instance_uid,
        instance_number=1,
        manufacturer=MAKER,
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **_maker(content),
    )
    capture.BodyPartExamined = "HEAD"
    capture.SeriesDescription = FACTS[ReportKind.SECONDARY_CAPTURE].series_description
    capture.ImageComments = RESEARCH
    ordered = in_order(headers, len(content.slices))
    if ordered is not None:
        capture.SourceImageSequence = [_reference(ordered[content.index])]
    return _as_file(capture, headers)


def captioned(content: Content) -> Image.Image:
    """Return the slice with its overlay, RGB, above a text strip that describes it."""
    picture = content.overlaid
    width = max(picture.width, 512)
    strip_px = STRIP_PX + LINE_PX * bool(content.replaces)
    shown = Image.new("RGB", (width, picture.height + strip_px))
    shown.paste(picture, ((width - picture.width) // 2, 0))
    pen, verdict = ImageDraw.Draw(shown), content.verdict
    place = f", slice {content.index + 1} of {len(content.slices)}" if content.slices[1:] else ""
    lines = [
        f"{MAKER}: {STATE_TITLES[verdict.state]}, probability {percent(verdict.probability)}",
        f"{RESEARCH} {content.architecture} {content.model_card}{place}",
        f"{content.overlay_says}." if content.overlay else "",
        *([REPLACES] if content.replaces else ()),
    ]
    for line, text in enumerate(lines):
        top = picture.height + 5 + line * LINE_PX
        font = ImageFont.truetype(REGULAR if line else BOLD, 10 if line else 13)
        pen.text((8, top), text, "white", font)
    return shown


def segmentation(
    content: Content,
    headers: Sequence[pydicom.Dataset],
    outline: NDArray[np.bool_],
    instance_uid: str,
) -> bytes:
    """Return the outline of a hemorrhage as a binary Segmentation file.

    Args:
        content, headers, instance_uid: as in `structured_report`.
        outline: the outlined pixels (n, height, width), for the slices of the scan from inferior to
            superior, upright and in square pixels as read by `ml.scans`, at any size.

    Raises:
        ReportRefused: nothing is outlined, or the files do not state the positions of their slices.
    """
    ordered = located(headers, len(outline))
    if ordered is None:
        raise ReportRefused(NOT_LOCATED)
    if not outline.any():
        raise ReportRefused(NOT_OUTLINED)
    mask = np.stack(
        [in_grid_of(plane, source.header) for plane, source in zip(outline, ordered, strict=True)]
    )
    sources = [source.file for source in ordered]
    if ordered[0].frame is None:
        _give_thickness(sources)
    else:
        mask = mask[np.argsort([source.frame or 0 for source in ordered])]
        sources = [ordered[0].file]
    segmentation_object = Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(content)],
        series_instance_uid=new_uid(),
        series_number=FACTS[ReportKind.SEGMENTATION].series_number,
        sop_instance_uid=instance_uid,
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=content.architecture,
        software_versions=__version__,
        device_serial_number=content.model_version,
        content_description=RESEARCH,
        content_label="HEMORRHAGE",
    )
    segmentation_object.SeriesDescription = FACTS[ReportKind.SEGMENTATION].series_description
    return _as_file(segmentation_object, headers)


def _segment(content: Content) -> SegmentDescription:
    """Return a description of the outlined finding, and of the model."""
    algorithm = AlgorithmIdentificationSequence(
        name=content.architecture,
        family=codes.cid7162.ArtificialIntelligence,
        version=content.model_card,
    )
    return SegmentDescription(
        segment_number=1,
        segment_label="Suspected hemorrhage",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Hemorrhage,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=new_uid(),
        tracking_id=f"Scan {content.scan_id}",
        anatomic_regions=[codes.SCT.Brain],
    )


def _give_thickness(sources: Sequence[pydicom.Dataset]) -> None:
    """Set the thickness of slices that do not state it, which a segmentation requires: the distance
    to the next slice.
    """
    if all(header.get("SliceThickness") for header in sources):
        return
    places = np.asarray([header.ImagePositionPatient for header in sources], float)
    distance = float(np.median(np.linalg.norm(np.diff(places, axis=0), axis=1)))
    for header in sources:
        header.SliceThickness = header.get("SliceThickness") or round(distance, 3)


def in_grid_of(mask: NDArray[np.bool_], header: pydicom.Dataset) -> NDArray[np.bool_]:
    """Convert a mask of an upright slice in square pixels to the orientation and pixels of the
    file: the inverse of `ml.scans.geometry.turned_upright` and `in_square_pixels`.

    Args:
        mask: (height, width).
        header: the tags of the slice.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    directions = directions_of(header)
    across, down = np.eye(3)[:2] if directions is None else directions
    lies_across = abs(across[1]) > abs(across[0])
    height, width = (columns, rows) if lies_across else (rows, columns)
    stored = mask.astype(np.uint8)
    if stored.shape != (height, width):
        stored = np.asarray(cv2.resize(stored, (width, height), interpolation=cv2.INTER_NEAREST))
    if lies_across:
        across, down = down, across
    if down[1] < 0:
        stored = stored[::-1]
    if across[0] < 0:
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored.T if lies_across else stored).astype(bool)


def _earlier(headers: Sequence[pydicom.Dataset], series: str, instance: str) -> pydicom.Dataset:
    """Return a reference to an earlier structured report of the study."""
    report = pydicom.Dataset()
    report.StudyInstanceUID = headers[0].StudyInstanceUID
    report.SeriesInstanceUID, report.SOPInstanceUID = series, instance
    report.SOPClassUID = FACTS[ReportKind.STRUCTURED_REPORT].sop_class_uid
    return report


def _maker(content: Content) -> dict[str, Any]:
    return {
        "manufacturer_model_name": content.architecture,
        "software_versions": __version__,
        "device_serial_number": content.model_version,
    }


def _reference(source: Source) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = source.file.SOPClassUID
    item.ReferencedSOPInstanceUID = source.file.SOPInstanceUID
    if source.frame is not None:
        item.ReferencedFrameNumber = source.frame
    return item


def _own_scheme() -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodingSchemeDesignator = OWN_SCHEME
    item.CodingSchemeName = "Hemoscan"
    item.CodingSchemeResponsibleOrganization = "Hemoscan"
    return item


def _as_file(dataset: SOPClass, headers: Sequence[pydicom.Dataset]) -> bytes:
    """Return an object as a file; it is as de-identified as the files that it was made from."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name in ("PatientIdentityRemoved", "DeidentificationMethod"):
        if name in headers[0]:
            dataset[name] = headers[0][name]
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
