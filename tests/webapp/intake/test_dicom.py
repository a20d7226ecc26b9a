"""DICOM files: what they say of themselves, with pydicom as the judge, and what a copy does not say
any more.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ml.scans import dicom as workers
from tests.webapp.intake.made import SERIES, Watched, dicom_file, planted_everywhere
from webapp.intake.dicom import CT_SOP_CLASSES, DEFLATED, READ_SYNTAXES, DicomFile
from webapp.intake.streams import BLOCK, DamagedFile

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
PYDICOMS_OWN = sorted(
    path for path in TEST_FILES.rglob("*.dcm") if path.read_bytes()[128:132] == b"DICM"
)
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


def new_uid(uid: str) -> str:
    """Return a UID that stands for another, and tells that it does."""
    return f"2.25.{sum(uid.encode())}"


def cleaned(content: bytes | IO[bytes]) -> bytes:
    """Return the clean copy of a file."""
    copy = io.BytesIO()
    DicomFile(io.BytesIO(content) if isinstance(content, bytes) else content).write(copy, new_uid)
    return copy.getvalue()


@pytest.mark.parametrize("path", PYDICOMS_OWN, ids=lambda path: path.name)
def test_dicom_headers_are_read_as_pydicom_reads_them(path: Path) -> None:
    with path.open("rb") as stream:
        header = DicomFile(stream).header
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Some of these files are odd on purpose.
        judge = pydicom.dcmread(path)
        assert header.transfer_syntax == str(judge.file_meta.get("TransferSyntaxUID", ""))
        if header.is_deflated or not header.transfer_syntax:
            return
        assert header.modality == str(judge.get("Modality") or "")
        assert header.series == str(judge.get("SeriesInstanceUID") or "")
        assert header.frames == str(judge.get("NumberOfFrames") or "")
        assert (header.rows, header.columns) == (judge.get("Rows") or 0, judge.get("Columns") or 0)
        assert header.samples == (judge.get("SamplesPerPixel") or 1)
        assert header.has_pixels == ("PixelData" in judge)


def test_what_is_accepted_is_what_the_workers_read() -> None:
    # Two lists, since a web process may not load what `ml.scans` needs.
    assert set(READ_SYNTAXES) == workers.NATIVE | workers.COMPRESSED
    assert set(CT_SOP_CLASSES) == workers.CT_SOP_CLASSES
    assert not set(DEFLATED) & set(READ_SYNTAXES)


@pytest.mark.parametrize("path", PYDICOMS_OWN, ids=lambda path: path.name)
def test_a_copy_has_the_same_pixels_and_geometry(path: Path) -> None:
    with path.open("rb") as stream:
        header = DicomFile(stream).header
        if header.is_deflated or not header.has_pixels:
            return
        try:
            copy = cleaned(stream)
        except DamagedFile:
            return  # Some of them end within their pixels, on purpose.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = pydicom.dcmread(path), pydicom.dcmread(io.BytesIO(copy))
        assert after.PixelData == before.PixelData
        assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
        for name in (
            "Rows",
            "Columns",
            "BitsAllocated",
            "BitsStored",
            "HighBit",
            "PixelRepresentation",
            "PhotometricInterpretation",
        ):
            assert after.get(name) == before.get(name), name
        for name in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
            "InstanceNumber",
        ):
            assert after.get(name) == before.get(name), name


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_is_planted_anywhere_is_in_no_copy(syntax: str, undefined: bool) -> None:
    content, planted = planted_everywhere(syntax, undefined=undefined)
    assert len(planted) >= 60
    assert all(secret in content for secret in planted)
    copy = cleaned(content)
    assert [secret for secret in planted if secret in copy] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = pydicom.dcmread(io.BytesIO(copy))
    assert (after.PatientIdentityRemoved, after.Modality, after.Rows) == ("YES", "CT", 64)
    assert after.DeidentificationMethod.startswith("Hemoscan")
    assert (after.pixel_array == pydicom.dcmread(io.BytesIO(content)).pixel_array).all()


def test_uids_are_replaced_and_stay_those_of_one_series() -> None:
    one, two = (
        pydicom.dcmread(io.BytesIO(content))
        for content in (dicom_file(SOPInstanceUID="1.2.3"), dicom_file(SOPInstanceUID="1.2.4"))
    )
    first, second = (
        pydicom.dcmread(io.BytesIO(cleaned(dicom_file(SOPInstanceUID=uid))))
        for uid in ("1.2.3", "1.2.4")
    )
    assert (
        first.SeriesInstanceUID
        == second.SeriesInstanceUID
        != one.SeriesInstanceUID
        == two.SeriesInstanceUID
    )
    assert (
        first.SOPInstanceUID
        == first.file_meta.MediaStorageSOPInstanceUID
        == new_uid("1.2.3")
        != second.SOPInstanceUID
    )


def test_a_sequence_of_many_large_values_is_not_held_in_memory() -> None:
    item = Dataset()
    position = Dataset()
    position.add_new((0x0020, 0x0032), "DS", "1\\" * 30_000)
    item.PlanePositionSequence = [position]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom finds the value long, too.
        content = dicom_file(ImplicitVRLittleEndian, PerFrameFunctionalGroupsSequence=[item] * 200)
    with pytest.raises(DamagedFile):
        DicomFile(io.BytesIO(content))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_numbers_of_another_representation_are_kept_as_the_usual_one(syntax: str) -> None:
    file = pydicom.dcmread(io.BytesIO(dicom_file(syntax, without=("Rows",))))
    for name, vr, value in (
        ("RescaleIntercept", "FD", -1000.0),
        ("RescaleSlope", "US", 1),
        ("ImagePositionPatient", "FL", [-120.5, 0.25, 12.0]),
        ("InstanceNumber", "SL", -3),
        ("SliceThickness", "DS", ["5.0", ""]),
        ("Rows", "UL", 64),
    ):
        # An implicit file does not tell the representation.
        if syntax != ImplicitVRLittleEndian or vr == "DS":
            file.add_new(name, vr, value)
    content = io.BytesIO()
    file.save_as(content)
    header = DicomFile(content).header
    copy = pydicom.dcmread(io.BytesIO(cleaned(content)))
    assert copy.SliceThickness == header.thickness == 5
    if syntax == ImplicitVRLittleEndian:
        return
    assert (copy.RescaleIntercept, copy.RescaleSlope, copy.Rows) == (-1000, 1, 64)
    assert copy.ImagePositionPatient == [*header.position] == [-120.5, 0.25, 12]
    assert copy.InstanceNumber == header.number == -3
    assert {copy[name].VR for name in ("RescaleIntercept", "ImagePositionPatient")} == {"DS"}


def test_words_are_known_in_any_case_and_with_spaces() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = dicom_file(Modality="ct", ImageType=["ORIGINAL", "PRIMARY", "Localizer ", " CT"])
    header = DicomFile(io.BytesIO(content)).header
    assert (header.modality, header.image_type[2:]) == ("CT", ("LOCALIZER", "CT"))
    copy = pydicom.dcmread(io.BytesIO(cleaned(content)))
    assert (copy.Modality, copy.ImageType[2]) == ("CT", "LOCALIZER")


def test_a_kernel_is_kept_only_under_a_makers_name() -> None:
    for kernel, expected in (
        ("H60s", "H60s"),
        ("BONEPLUS", "BONEPLUS"),
        ("FC23", "FC23"),
        ("JOHN DOE", None),
        ("Doe", None),
    ):
        assert (
            pydicom.dcmread(io.BytesIO(cleaned(dicom_file(ConvolutionKernel=kernel)))).get(
                "ConvolutionKernel"
            )
            == expected
        )


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_each_frame_of_an_enhanced_file_says_of_its_place_is_kept(
    syntax: str, undefined: bool
) -> None:
    frames = []
    for number, z in enumerate((0.0, 5.0, 10.0), start=1):
        plane, frame, place = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, z]
        place.FrameComments = "Doe^John"
        place.InStackPositionNumber = place.TemporalPositionIndex = number
        place.DimensionIndexValues = [number]
        frame.PlanePositionSequence = [plane]
        frame.FrameContentSequence = [place]
        frame.is_undefined_length_sequence_item = undefined
        frames.append(frame)
    values, shared = Dataset(), Dataset()
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = -1024, 1, "HU"
    shared.PixelValueTransformationSequence = [values]
    content = dicom_file(
        syntax,
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=3,
        PixelData=np.arange(
            3 * 64 * 64, dtype=">i2" if syntax == ExplicitVRBigEndian else "<i2"
        ).tobytes(),
        PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=[shared],
        undefined=("PerFrameFunctionalGroupsSequence",) if undefined else (),
    )
    assert b"Doe^John" in content
    copy = cleaned(content)
    assert b"Doe" not in copy
    after = pydicom.dcmread(io.BytesIO(copy))
    assert [
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        for frame in after.PerFrameFunctionalGroupsSequence
    ] == [0, 5, 10]
    places = [frame.FrameContentSequence[0] for frame in after.PerFrameFunctionalGroupsSequence]
    for name in ("InStackPositionNumber", "TemporalPositionIndex", "DimensionIndexValues"):
        assert [place[name].value for place in places] == [1, 2, 3]
    assert (
        after.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleIntercept
        == -1024
    )
    assert after.pixel_array.shape == (3, 64, 64)


def nested_dicom(syntax: str, *, undefined: bool) -> bytes:
    """Return a file whose sequences hold misleading rows and pixels, two levels deep, before its
    own.
    """
    inner = Dataset()
    inner.Rows, inner.Modality = 7, "MR"
    inner.add_new("PixelData", "OW", bytes(98))
    middle = Dataset()
    middle.Columns = 9
    middle.IconImageSequence = [inner, inner]
    middle.is_undefined_length_sequence_item = undefined
    outer = Dataset()
    outer.Modality = "CT"
    outer.ReferencedImageSequence = [middle, middle]
    outer["ReferencedImageSequence"].is_undefined_length = undefined
    outer.Rows, outer.Columns = 64, 65
    outer.add_new("PixelData", "OW", bytes(64 * 65 * 2))
    outer.BitsAllocated = 16
    outer.file_meta = FileMetaDataset()
    outer.file_meta.TransferSyntaxUID = syntax
    outer.file_meta.MediaStorageSOPClassUID = outer.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = io.BytesIO()
    outer.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_stands_in_a_sequence_is_not_the_files(syntax: str, undefined: bool) -> None:
    header = DicomFile(io.BytesIO(nested_dicom(syntax, undefined=undefined))).header
    assert (header.modality, header.rows, header.columns, header.has_pixels) == ("CT", 64, 65, True)


@pytest.mark.parametrize("tag", [(0x0008, 0x1140), (0x5200, 0x9230)], ids=["skipped", "kept"])
def test_a_sequence_that_never_ends_is_damage_and_takes_no_time(tag: tuple[int, int]) -> None:
    start = nested_dicom(ExplicitVRLittleEndian, undefined=True)
    start = start[: start.index(struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF))]
    bottomless = struct.pack("<HH2sHI", *tag, b"SQ", 0, 0xFFFFFFFF) * 400_000
    with pytest.raises(DamagedFile):
        DicomFile(io.BytesIO(start + bottomless))


def test_a_large_value_is_not_read() -> None:
    start = nested_dicom(ExplicitVRLittleEndian, undefined=True)
    at = start.index(struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF))
    large = struct.pack("<HH2sHI", 0x0008, 0x0001, b"UT", 0, 5_000_000) + bytes(5_000_000)
    file = Watched(start[:at] + large + start[at:])
    assert DicomFile(file).header.has_pixels
    assert file.largest <= BLOCK


def test_every_cut_of_a_file_is_noticed() -> None:
    content = dicom_file()
    for end in [*range(132, len(content) - 64 * 64 * 2, 7), len(content) - 1]:
        file = io.BytesIO(content[:end])
        with pytest.raises(DamagedFile):
            DicomFile(file).write(io.BytesIO(), new_uid)


def test_an_enhanced_file_of_a_thousand_frames_is_no_damage() -> None:
    plane, frame = Dataset(), Dataset()
    for number in range(90):
        plane.add_new((0x0021, 0x1000 + number), "UN", b"x ")
    plane.ImagePositionPatient = [0, 0, 5]
    frame.PlanePositionSequence = [plane]
    content = dicom_file(
        NumberOfFrames=1000, PerFrameFunctionalGroupsSequence=[frame] * 1000, PixelData=bytes(2)
    )
    assert DicomFile(io.BytesIO(content)).header.has_pixels


def test_a_series_whose_uid_is_made_of_letters_is_one() -> None:
    content = dicom_file().replace(
        SERIES.encode(), b"ANONYMOUS SERIES NUMBER ONE!!!"[: len(SERIES)]
    )
    assert (
        DicomFile(io.BytesIO(content)).header.series
        == "ANONYMOUS SERIES NUMBER ONE!!!"[: len(SERIES)]
    )
    assert b"ANONYMOUS" not in cleaned(content)
