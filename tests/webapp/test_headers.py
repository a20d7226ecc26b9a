"""What files say of themselves, read in small steps; pydicom and Pillow are the judges."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import IO

import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from webapp.headers import BLOCK, MAX_PARTS, DamagedFile, read_dicom_header, read_jpeg_size, read_png_size

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
PYDICOMS_OWN = sorted(path for path in TEST_FILES.rglob("*.dcm") if path.read_bytes()[128:132] == b"DICM")


class Watched(io.BytesIO):
    """A file that notes the largest piece that was asked of it."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.largest = max(self.largest, len(content))
        return content


def as_file(picture: Image.Image, kind: str, **options: object) -> IO[bytes]:
    """Return a picture as a file at its start."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG's chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_the_size_of_a_png(mode: str) -> None:
    assert read_png_size(as_file(Image.new(mode, (40, 70)), "PNG")) == (40, 70)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": Image.Exif()}, {"comment": b"x" * 60_000}])
def test_the_size_of_a_jpeg(options: dict[str, object]) -> None:
    assert read_jpeg_size(as_file(Image.new("RGB", (40, 70)), "JPEG", **options)) == (40, 70)


def test_fill_bytes_before_a_jpegs_marker_are_skipped() -> None:
    content = as_file(Image.new("L", (40, 70)), "JPEG").read()
    assert read_jpeg_size(io.BytesIO(content[:2] + b"\xff\xff\xff" + content[2:])) == (40, 70)


def test_every_flipped_byte_of_a_png_is_noticed() -> None:
    content = as_file(Image.linear_gradient("L").resize((8, 8)), "PNG").read()
    for at in range(8, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        with pytest.raises(DamagedFile):
            read_png_size(io.BytesIO(damaged))


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk(b"IDAT", b"x"), chunk(b"IEND", b"")],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)), chunk(b"IEND", b"")],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 0, 0, 0, 0)), chunk(b"IDAT", b"x"), chunk(b"IEND", b"")],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)), *[chunk(b"IDAT", b"")] * MAX_PARTS, chunk(b"IEND", b"")],
    ],
    ids=["nothing", "no header", "no pixels", "no width", "too many chunks"],
)
def test_a_png_of_odd_chunks_is_damaged(chunks: list[bytes]) -> None:
    with pytest.raises(DamagedFile):
        read_png_size(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)))


def test_a_large_chunk_is_read_in_small_pieces() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    file = Watched(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", bytes(5_000_000)) + chunk(b"IEND", b""))
    assert read_png_size(file) == (4, 4)
    assert file.largest <= BLOCK


def test_every_cut_of_a_jpegs_header_is_noticed() -> None:
    content = as_file(Image.new("L", (40, 70)), "JPEG").read()
    for end in range(2, content.index(b"\xff\xc0") + 9):
        with pytest.raises(DamagedFile):
            read_jpeg_size(io.BytesIO(content[:end]))


@pytest.mark.parametrize("path", PYDICOMS_OWN, ids=lambda path: path.name)
def test_dicom_headers_are_read_as_pydicom_reads_them(path: Path) -> None:
    with path.open("rb") as file:
        header = read_dicom_header(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Some of these files are odd on purpose.
        judge = pydicom.dcmread(path)
        assert header.transfer_syntax == str(judge.file_meta.get("TransferSyntaxUID", ""))
        if header.is_deflated or not header.transfer_syntax:
            return
        assert header.sop_class == str(judge.get("SOPClassUID", ""))
        assert header.modality == str(judge.get("Modality") or "")
        assert header.frames == str(judge.get("NumberOfFrames") or "")
        assert (header.rows, header.columns) == (judge.get("Rows") or 0, judge.get("Columns") or 0)
        assert header.samples == (judge.get("SamplesPerPixel") or 1)
        assert header.has_pixels == ("PixelData" in judge)


def nested_dicom(syntax: str, *, undefined: bool) -> bytes:
    """Return a file whose sequences hold misleading rows and pixels, two levels deep, before its own."""
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
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_stands_in_a_sequence_is_not_the_files(syntax: str, undefined: bool) -> None:
    header = read_dicom_header(io.BytesIO(nested_dicom(syntax, undefined=undefined)))
    assert (header.modality, header.rows, header.columns, header.has_pixels) == ("CT", 64, 65, True)


def test_a_sequence_that_never_ends_is_damage_and_takes_no_time() -> None:
    start = nested_dicom(ExplicitVRLittleEndian, undefined=True)
    start = start[: start.index(struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF))]
    bottomless = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) * 400_000
    with pytest.raises(DamagedFile):
        read_dicom_header(io.BytesIO(start + bottomless))


def test_a_large_value_is_not_read() -> None:
    start = nested_dicom(ExplicitVRLittleEndian, undefined=True)
    at = start.index(struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF))
    large = struct.pack("<HH2sHI", 0x0008, 0x0001, b"UT", 0, 5_000_000) + bytes(5_000_000)
    file = Watched(start[:at] + large + start[at:])
    assert read_dicom_header(file).has_pixels
    assert file.largest <= BLOCK
