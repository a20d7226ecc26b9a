"""NIfTI files: what a copy keeps, with nibabel as the judge, and what it does not."""

from __future__ import annotations

import gzip
import io
import struct
from typing import Any

import nibabel
import numpy as np
import pytest

from ml.scans.nifti import TYPES
from tests.ml.made_scans import BEGINNINGS, begins_otherwise
from tests.webapp.intake.made import nifti_file
from webapp.intake.nifti import NiftiFile, NiftiHeader, inflated, is_half_of_pair, is_nifti
from webapp.intake.streams import Budget, DamagedFile, TooMuchWork


def copied(content: bytes, *, compress: bool) -> bytes:
    """Return the clean copy of a file."""
    copy = io.BytesIO()
    with inflated(io.BytesIO(content)) as stream:
        NiftiFile(stream).write(copy, compress=compress)
    return copy.getvalue()


def read(content: bytes, version: int) -> Any:
    """Return what nibabel reads."""
    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    return (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image).from_bytes(plain)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [1, 2])
def test_a_copy_has_the_same_voxels_in_the_same_place_and_no_text(
    version: int, order: str, packed: bool
) -> None:
    content = nifti_file(version=version, order=order, packed=packed, secrets=True)
    copy = copied(content, compress=packed)
    before, after = read(content, version), read(copy, version)
    assert (np.asarray(after.dataobj) == np.asarray(before.dataobj)).all()
    assert (after.affine == before.affine).all()
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    plain = gzip.decompress(copy) if packed else copy
    assert b"PLANT" in content or packed
    assert b"PLANT" not in plain + copy
    assert len(plain) == (352 if version == 1 else 544) + 64 * 64 * 5 * 2


@pytest.mark.parametrize("version", [1, 2])
def test_what_decides_is_read(version: int) -> None:
    assert NiftiFile(io.BytesIO(nifti_file((60, 64, 5), version))).header == NiftiHeader(
        60, 64, 5, volumes=1, is_grey=True
    )
    assert NiftiFile(io.BytesIO(nifti_file((60, 64, 5, 3), version))).header.volumes == 3
    assert NiftiFile(io.BytesIO(nifti_file((60, 64), version))).header.slices == 1
    assert is_nifti(nifti_file(version=version)[:352])


def test_colors_are_noticed() -> None:
    content = bytearray(nifti_file())
    content[70:74] = struct.pack("<2h", 128, 24)
    assert not NiftiFile(io.BytesIO(content)).header.is_grey


@pytest.mark.parametrize("packed", [False, True])
def test_every_cut_is_noticed(packed: bool) -> None:
    content = nifti_file(packed=packed)
    for end in (4, 100, 347, 349, len(content) // 2, len(content) - 1):
        with pytest.raises(DamagedFile):
            copied(content[:end], compress=packed)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (40, struct.pack("<h", 0)),
        (40, struct.pack("<h", 9)),
        (42, struct.pack("<h", -4)),
        (108, struct.pack("<f", 1e9)),
    ],
    ids=[
        "no dimensions",
        "nine dimensions",
        "less than nothing",
        "voxels far away",
    ],
)
def test_a_header_that_contradicts_itself_is_damage(at: int, value: bytes) -> None:
    content = bytearray(nifti_file())
    content[at : at + len(value)] = value
    with pytest.raises(DamagedFile):
        copied(bytes(content), compress=False)


@pytest.mark.parametrize("version", [1, 2])
def test_no_volumes_are_one_volume(version: int) -> None:
    content = bytearray(nifti_file(version=version))
    form, at = ("<8h", 40) if version == 1 else ("<8q", 16)
    struct.pack_into(form, content, at, 4, 64, 64, 5, 0, 0, 0, 0)
    assert NiftiFile(io.BytesIO(content)).header.volumes == 1
    assert read(copied(bytes(content), compress=False), version).shape[:3] == (64, 64, 5)


def test_a_place_of_the_voxels_that_is_no_number_is_damage() -> None:
    content = bytearray(nifti_file())
    content[108:112] = struct.pack("<f", float("nan"))
    with pytest.raises(DamagedFile):
        copied(bytes(content), compress=False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("begins", BEGINNINGS)
def test_voxels_are_copied_from_where_they_begin(begins: str, packed: bool) -> None:
    content = begins_otherwise(nifti_file(), begins)
    copy = copied(gzip.compress(content) if packed else content, compress=packed)
    assert np.asarray(read(copy, 1).dataobj).tobytes(order="F") == content[-64 * 64 * 5 * 2 :]
    assert read(copy, 1).shape == (64, 64, 5)


def test_a_packed_bomb_is_inflated_as_far_as_its_header_says() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            self.taken += len(content)
            return content

    bomb = gzip.compress(nifti_file() + bytes(200_000_000), 1)
    file = Counting(bomb)
    with inflated(file) as stream:
        NiftiFile(stream).write(io.BytesIO(), compress=False)
    assert file.taken < len(bomb) / 2


@pytest.mark.parametrize("version", [1, 2])
def test_the_room_of_unused_dimensions_holds_no_text(version: int) -> None:
    content = bytearray(nifti_file(version=version))
    for at, text in (
        ((48, b"PLANT00X"), (96, b"PLANT01XPLAN"))
        if version == 1
        else ((16 + 32, b"PLANT00X" * 4), (104 + 40, b"PLANT01X" * 2))
    ):
        content[at : at + len(text)] = text
    copy = copied(bytes(content), compress=False)
    assert b"PLANT" in content
    assert b"PLANT" not in copy
    assert read(copy, version).shape == (64, 64, 5)


@pytest.mark.parametrize("kind", sorted(TYPES.values()))
def test_every_type_that_the_workers_read_is_taken(kind: str) -> None:
    image = nibabel.Nifti1Image(np.ones((4, 4, 3), kind), np.eye(4), dtype=kind)
    content = image.to_bytes()
    assert NiftiFile(io.BytesIO(content)).header.is_grey
    np.testing.assert_array_equal(
        np.asanyarray(read(copied(content, compress=False), 1).dataobj), 1
    )


def test_what_is_packed_a_thousandfold_is_too_much() -> None:
    content = gzip.compress(nifti_file((512, 512, 200)), 9)
    with pytest.raises(TooMuchWork), inflated(io.BytesIO(content), Budget(1_000)) as stream:
        NiftiFile(stream).write(io.BytesIO(), compress=False)


@pytest.mark.parametrize(("bits", "is_grey"), [(8, True), (16, True), (64, True), (24, False)])
def test_a_type_without_a_name_is_that_of_its_bits(bits: int, is_grey: bool) -> None:
    content = bytearray(nifti_file((8, 8, 3)))
    content[70:74] = struct.pack("<2h", 0, bits)
    assert NiftiFile(io.BytesIO(content)).header.is_grey is is_grey


def test_the_header_of_a_pair_is_known() -> None:
    content = bytearray(nifti_file((8, 8, 3))[:348])
    assert is_half_of_pair(bytes(content), 348)  # as Analyze has it, which names nothing
    assert not is_half_of_pair(bytes(content), 4000)
    content[344:348] = b"ni1\0"
    assert is_half_of_pair(bytes(content), 352)  # as nibabel writes it
    content[108:112] = bytes(4)
    assert is_half_of_pair(bytes(content), 4000)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("at", "value"), [(0, bytes(4)), (0, b"\1\2\3\4"), (344, b"ni1\0")])
def test_a_copy_has_the_size_and_the_mark_that_some_headers_lack(
    order: str, at: int, value: bytes
) -> None:
    plain = nifti_file(order=order)
    content = bytearray(plain)
    content[at : at + 4] = value
    assert is_nifti(bytes(content[:352]))
    assert copied(bytes(content), compress=False) == copied(plain, compress=False)
