"""What holds of every file that could come in, not of those alone that somebody thought of;
hypothesis thinks of them.
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.ml.made_scans import nifti, packed
from tests.webapp.intake.made import dicom_file, zip_of
from webapp.intake.archives import ArchiveRefused, members
from webapp.intake.clean_copy import Taken, UploadRejected, take

# The application is the same for all examples, and a slow machine is no failure.
often = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
STARTS = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    bytes(128) + b"DICM",
    b"\x1f\x8b\x08",
    b"PK\x03\x04",
    b"\x5c\x01\0\0".ljust(344, b"\0") + b"n+1\0",
)
SIDES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@pytest.fixture(autouse=True)
def context(app: Flask) -> Iterator[None]:
    """The settings that limits are read from."""
    with app.app_context():
        yield


def taken(content: bytes) -> tuple[Taken, bytes]:
    """Return what a file is taken for, and its clean copy."""
    with tempfile.TemporaryDirectory() as folder:
        file = take(
            io.BytesIO(content), Path(folder) / "1", lambda uid: "2.25.1", number=1, name=""
        )
        return file, file.path.read_bytes()


@often
@given(SIDES.flatmap(lambda side: arrays(np.uint8, side)), st.booleans())
def test_any_png_and_jpeg_keeps_its_pixels(pixels: np.ndarray, as_png: bool) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if as_png else "JPEG")
    copied, copy = taken(file.getvalue())
    assert (copied.kind, copied.pixels) == ("png" if as_png else "jpeg", pixels.size)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(copy))), np.asarray(Image.open(file))
    )


@often
@given(
    SIDES.flatmap(lambda side: arrays(np.int16, side)),
    st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]),
)
def test_any_dicom_slice_keeps_its_pixels(pixels: np.ndarray, syntax: str) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    coded = pixels.astype(f"{order}i2").tobytes()
    copied, copy = taken(
        dicom_file(syntax, Rows=pixels.shape[0], Columns=pixels.shape[1], PixelData=coded)
    )
    assert (copied.kind, copied.pixels) == ("dicom", pixels.size)
    np.testing.assert_array_equal(pydicom.dcmread(io.BytesIO(copy)).pixel_array, pixels)


@often
@given(
    st.tuples(*[st.integers(1, 9)] * 3).flatmap(lambda shape: arrays(np.int16, shape)),
    st.sampled_from([1, 2]),
    st.sampled_from("<>"),
    st.booleans(),
)
def test_any_nifti_volume_keeps_its_voxels(
    voxels: np.ndarray, version: int, order: str, as_gzip: bool
) -> None:
    content = nifti(voxels, np.diag([1.0, 1.0, 5.0, 1.0]), version=version, order=order)
    copied, copy = taken(packed(content) if as_gzip else content)
    inside = gzip.decompress(copy) if as_gzip else copy
    assert (copied.kind, copied.pixels) == ("nifti", voxels.size)
    assert inside[-2 * voxels.size :] == voxels.astype(f"{order}i2").tobytes(order="F")


TEXTS = (
    "PatientName",
    "PatientID",
    "PatientComments",
    "InstitutionName",
    "StudyDescription",
    "RescaleType",
    "ImageComments",
    "StationName",
)


@often
@given(st.sampled_from(TEXTS), st.text("ABCDEFGHJKLMNOPQRSTUVWXYZ ", min_size=8, max_size=14))
def test_no_text_outlives_the_copy(tag: str, secret: str) -> None:
    secret = f"Q{secret.strip()}Q"
    content = dicom_file(**{tag: secret})
    assert secret.encode() in content
    assert secret.encode() not in taken(content)[1]


@often
@given(st.sampled_from(STARTS), st.binary(max_size=2000))
def test_any_bytes_are_taken_or_refused_with_a_sentence(start: bytes, rest: bytes) -> None:
    try:
        taken(start + rest)
    except UploadRejected as refusal:
        assert str(refusal).endswith(".")


@often
@given(st.text(max_size=40), st.binary(max_size=50))
def test_no_name_in_an_archive_leads_out_of_its_folder(name: str, inner: bytes) -> None:
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "inside"
        folder.mkdir()
        try:
            content = zip_of({name: inner}, zipfile.ZIP_STORED)
        except (UnicodeEncodeError, IndexError):
            return  # zipfile does not write such a name.
        try:
            for member_name, member, is_sound in members(
                io.BytesIO(content), len(content), most_files=5, most_bytes=10**6, folder=folder
            ):
                assert ".." not in member_name.replace("\\", "/").split("/")
                assert not member_name.startswith(("/", "\\"))
                assert is_sound and member.read() == inner
        except ArchiveRefused as refusal:
            assert str(refusal).endswith(".")
        assert list(Path(outer).rglob("*")) == [folder]
