"""The result of a scan as DICOM objects, judged by readers that others wrote."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from ml.scans.geometry import in_square_pixels, turned_upright
from tests.ml.made_scans import change, one_file_of, write_series
from tests.worker.reports.made import content
from tests.worker.reports.readers import dumped_by_dcmtk, require_valid
from webapp.models import ReportRefused
from worker.reports.dicom_objects import (
    in_grid_of,
    secondary_capture,
    segmentation,
    structured_report,
)
from worker.reports.sources import in_order, located, read_headers

UID = "2.25.1"
FRAME_OF_REFERENCE = generate_uid()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Four slices from foot to head, in files whose names are in the other order."""
    written = write_series(
        tmp_path / "series", 4, FrameOfReferenceUID=FRAME_OF_REFERENCE, StudyInstanceUID="1.2.3"
    )
    return written[::-1]


def saved(made: bytes, folder: Path) -> Path:
    """Write an object to a file."""
    path = folder / "made.dcm"
    path.write_bytes(made)
    return path


def groups_of(path: Path) -> list[Any]:
    """Return the groups of measurements of a structured report, as highdicom finds them."""
    document = highdicom.sr.srread(path)
    return list(document.content.get_image_measurement_groups())


def test_a_structured_report_tells_the_state_the_figures_and_the_slices(
    paths: list[Path], tmp_path: Path
) -> None:
    path = saved(structured_report(content(), read_headers(paths), UID), tmp_path)
    require_valid(path)

    of_scan, *of_slices = groups_of(path)
    evaluated = {one.name.value: one.value for one in of_scan.get_qualitative_evaluations()}
    assert evaluated["1386000"].meaning == "Suspected"
    figures = {one.name.meaning: one.value for one in of_scan.get_measurements()}
    assert figures == {"Probability": 0.873, "Threshold Value": 0.512}
    uids = {file.name: str(pydicom.dcmread(file).SOPInstanceUID) for file in paths}
    items = [
        (group.source_images[0].referenced_sop_instance_uid, group.get_measurements()[0].value)
        for group in of_slices
    ]
    assert items == [(uids["03.dcm"], 0.873), (uids["04.dcm"], 0.4)]
    document = pydicom.dcmread(path)
    assert document.StudyInstanceUID == "1.2.3"
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_dcmtk_reads_the_structured_report(paths: list[Path], tmp_path: Path) -> None:
    path = saved(structured_report(content(), read_headers(paths), UID), tmp_path)
    dump = dumped_by_dcmtk("dsrdump", path, "+Pl")
    assert "Imaging Measurement Report" in dump and "Suspected" in dump
    assert "Research use only, never a diagnosis." in dump


def test_frames_of_one_file_are_named_by_their_numbers(paths: list[Path], tmp_path: Path) -> None:
    whole = one_file_of(paths, tmp_path / "whole.dcm", functional_groups=True)
    path = saved(structured_report(content(), read_headers([whole]), UID), tmp_path)

    _, *of_slices = groups_of(path)
    # The files were given from head to foot.
    assert [group.source_images[0].referenced_frame_numbers for group in of_slices] == [[2], [1]]


def test_without_places_of_the_slices_a_report_tells_of_the_scan_alone(
    paths: list[Path], tmp_path: Path
) -> None:
    headers = read_headers([change(path, ImagePositionPatient=None) for path in paths])
    path = saved(structured_report(content(), headers, UID), tmp_path)

    require_valid(path)
    assert len(groups_of(path)) == 1
    with pytest.raises(ReportRefused, match="do not say where each slice lies"):
        segmentation(content(), headers, np.ones((4, 64, 64), bool), UID)


@pytest.mark.parametrize(
    "missing",
    ["FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"],
)
def test_a_segmentation_needs_places_also_of_one_slice(paths: list[Path], missing: str) -> None:
    assert located(read_headers(paths), 4) is not None
    assert located(read_headers(paths[:1]), 1) is not None
    headers = read_headers([change(paths[0], **{missing: None})])
    assert located(headers, 1) is None
    if missing != "FrameOfReferenceUID":  # One number in place of two, three or six, as a file had.
        for slices in (1, 4):
            one_number = [change(path, **{missing: "0.5"}) for path in paths[:slices]]
            assert located(read_headers(one_number), slices) is None
    with pytest.raises(ReportRefused, match="do not say where each slice lies"):
        segmentation(content(), headers, np.ones((1, 64, 64), bool), UID)


def test_a_scan_that_was_read_of_some_files_only_names_no_slices(paths: list[Path]) -> None:
    headers = read_headers(paths)
    assert in_order(headers, 3) is None and in_order(headers, 4) is not None


def test_a_secondary_capture_shows_the_heat_map_and_says_what_it_is(
    paths: list[Path], tmp_path: Path
) -> None:
    headers = read_headers(paths)
    path = saved(secondary_capture(content(), headers, UID), tmp_path)
    require_valid(path)

    read = pydicom.dcmread(path)
    pixels = read.pixel_array
    assert pixels.shape == (256 + 64, 512, 3)
    red, green, blue = pixels[128, 256]  # In the middle of the picture: gray under orange.
    assert red > green > blue
    assert pixels[256:].max() == 255 and pixels[256 + 62 :].max() == 0  # White letters on black.
    assert read.SourceImageSequence[0].ReferencedSOPInstanceUID == next(
        header.SOPInstanceUID for header in headers if header.InstanceNumber == 3
    )
    without = pydicom.dcmread(
        BytesIO(secondary_capture(content(overlay=None), headers, UID))
    ).pixel_array
    assert len(set(without[128, 256])) == 1


def test_dcmtk_reads_the_secondary_capture(paths: list[Path], tmp_path: Path) -> None:
    path = saved(secondary_capture(content(), read_headers(paths), UID), tmp_path)
    dump = dumped_by_dcmtk("dcmdump", path)
    assert "SecondaryCaptureImageStorage" in dump and "[1.2.3]" in dump


def test_a_segmentation_lies_on_the_slices_that_it_outlines(
    paths: list[Path], tmp_path: Path
) -> None:
    outline = np.zeros((4, 64, 64), bool)
    outline[2, 10:20, 30:50] = True
    path = saved(segmentation(content(), read_headers(paths), outline, UID), tmp_path)
    require_valid(path)

    read = highdicom.seg.segread(path)
    third = str(pydicom.dcmread(next(one for one in paths if one.name == "03.dcm")).SOPInstanceUID)
    (mask,) = read.get_pixels_by_source_instance([third], combine_segments=True)
    assert (np.asarray(mask) == outline[2]).all()
    assert read.get_segment_description(1).segmented_property_type.meaning == "Hemorrhage"
    with pytest.raises(ReportRefused, match="No hemorrhage is outlined"):
        segmentation(content(), read_headers(paths), np.zeros((4, 64, 64), bool), UID)


def test_slices_that_do_not_say_how_thick_they_are_are_as_thick_as_they_lie_apart(
    paths: list[Path],
) -> None:
    headers = read_headers(paths)
    for header in headers:
        header.pop("SliceThickness", None)
    outline = np.ones((4, 64, 64), bool)
    made = pydicom.dcmread(BytesIO(segmentation(content(), headers, outline, UID)))
    shared = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert shared.SliceThickness == 5
    with pytest.raises(ReportRefused):
        headers[0].pop("SliceThickness")
        segmentation(content(slices=[0.9]), headers[:1], outline[:1], UID)


@pytest.mark.parametrize(
    "directions",
    [
        (1, 0, 0, 0, 1, 0),
        (-1, 0, 0, 0, -1, 0),
        (0, 1, 0, 1, 0, 0),
        (0, -1, 0, 1, 0, 0),
        (0, 1, 0, -1, 0, 0),
    ],
)
def test_a_mask_goes_back_to_the_grid_of_its_file(directions: tuple[int, ...]) -> None:
    header = pydicom.Dataset()
    header.Rows, header.Columns = 24, 20
    header.ImageOrientationPatient = list(directions)
    stored = np.zeros((24, 20), np.float32)
    stored[4:12, 2:8] = 1
    spacing = (0.5, 1.0)
    upright, spacing_mm = turned_upright(stored, spacing, np.reshape(directions, (2, 3)))
    square, _ = in_square_pixels(upright, spacing_mm)

    assert square.shape != upright.shape
    assert (in_grid_of(square > 0.5, header) == (stored > 0.5)).all()
