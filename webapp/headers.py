"""What the headers of image files say, read in small steps: no pixel is decoded and nothing large is held in memory.

pydicom and Pillow read more than this, but they bring numpy with them, a quarter of the memory that a web process may have,
and they hold a whole PNG chunk or DICOM value at once, of which a hostile file may have a large one. The workers use them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from struct import unpack
from typing import IO

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PARTS = 50_000
"""Chunks, segments or elements of one file: far more than real ones have, and a bound for the time a hostile one takes."""
BLOCK = 2**16

IMPLICIT_VR, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95")
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_ENDS, SEQUENCE_ENDS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
TRANSFER_SYNTAX, PIXEL_DATA = 0x00020010, 0x7FE00010
READ = {
    TRANSFER_SYNTAX: "transfer_syntax",
    0x00080016: "sop_class",
    0x00080060: "modality",
    0x00280002: "samples",
    0x00280008: "frames",
    0x00280010: "rows",
    0x00280011: "columns",
}
NUMBERS = ("samples", "rows", "columns")


class DamagedFile(ValueError):
    """The file ends too early, or contradicts its own format."""


@dataclass
class DicomHeader:
    """What decides whether a DICOM file is accepted; a file may leave anything out. Of a deflated one only `transfer_syntax` is read."""

    transfer_syntax: str = ""
    sop_class: str = ""
    modality: str = ""
    samples: int = 1
    frames: str = ""
    rows: int = 0
    columns: int = 0
    has_pixels: bool = False

    @property
    def is_deflated(self) -> bool:
        """True if nothing but the transfer syntax can be read without inflating the rest."""
        return self.transfer_syntax in DEFLATED


def read_png_size(stream: IO[bytes]) -> tuple[int, int]:
    """Return (width, height) of the PNG at the start of `stream`, after a check that it is complete and its checksums hold.

    Raises:
        DamagedFile: it is not, or they do not.
    """
    _read(stream, len(PNG_SIGNATURE))
    size = None
    has_pixels = False
    for _ in range(MAX_PARTS):
        length, name = unpack(">I4s", _read(stream, 8))
        crc, left = zlib.crc32(name), length
        if size is None:
            if (length, name) != (13, b"IHDR"):
                raise DamagedFile
            header = _read(stream, 13)
            size = unpack(">II", header[:8])
            crc, left = zlib.crc32(header, crc), 0
        while left:
            block = _read(stream, min(left, BLOCK))
            crc, left = zlib.crc32(block, crc), left - len(block)
        if unpack(">I", _read(stream, 4)) != (crc,):
            raise DamagedFile
        has_pixels |= name == b"IDAT"
        if name == b"IEND":
            break
    else:
        raise DamagedFile
    if not has_pixels or 0 in size:
        raise DamagedFile
    return size[0], size[1]


def read_jpeg_size(stream: IO[bytes]) -> tuple[int, int]:
    """Return (width, height) of the JPEG at the start of `stream`.

    Raises:
        DamagedFile: it ends, or its picture begins, before they are said.
    """
    _read(stream, 2)
    for _ in range(MAX_PARTS):
        start, marker = _read(stream, 2)
        while marker == 0xFF:  # Fill bytes.
            marker = _read(stream, 1)[0]
        if start != 0xFF or marker in (0xD9, 0xDA):
            raise DamagedFile
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue  # These stand alone.
        (length,) = unpack(">H", _read(stream, 2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # A start of frame.
            height, width = unpack(">xHH", _read(stream, 5))
            if 0 in (width, height):
                raise DamagedFile
            return width, height
        stream.seek(max(0, length - 2), 1)
    raise DamagedFile


def read_dicom_header(stream: IO[bytes]) -> DicomHeader:
    """Return what the DICOM file in `stream` says of itself (PS3.10 section 7, PS3.5 section 7), reading up to the pixels.

    Raises:
        DamagedFile: its elements cannot be followed.
    """
    header = DicomHeader()
    stream.seek(132)
    _walk(stream, header, is_implicit=False, order="<", until=lambda tag: tag >> 16 != 2)
    if header.transfer_syntax and not header.is_deflated:
        syntax = header.transfer_syntax
        order = ">" if syntax == BIG_ENDIAN else "<"
        reached = _walk(stream, header, is_implicit=syntax == IMPLICIT_VR, order=order, until=lambda tag: tag >= PIXEL_DATA)
        header.has_pixels = reached == PIXEL_DATA
    return header


def _walk(stream: IO[bytes], header: DicomHeader, *, is_implicit: bool, order: str, until: Callable[[int], bool]) -> int | None:
    """Read elements of a data set into `header` up to the first outermost one for which `until` is true, and return its tag."""
    nested: list[bool] = []  # For each sequence or item of undefined length around us: whether it is implicit.
    for _ in range(MAX_PARTS):
        at = stream.tell()
        start = stream.read(8)
        if not start and not nested:
            return None
        if len(start) < 8:
            raise DamagedFile
        group, element, vr, length = unpack(f"{order}HH2sH", start)
        tag = group << 16 | element
        if not nested and until(tag):
            stream.seek(at)
            return int(tag)
        implicit = nested[-1] if nested else is_implicit
        # Items have no value representation; some writers leave it out elsewhere too.
        if implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
            (length,) = unpack(f"{order}I", start[4:])
        elif vr in LONG_VRS:
            (length,) = unpack(f"{order}I", _read(stream, 4))
        if tag in (ITEM_ENDS, SEQUENCE_ENDS):
            if not nested:
                raise DamagedFile
            nested.pop()
        elif length == UNDEFINED:
            nested.append(implicit or (vr == b"UN" and tag != ITEM))  # PS3.5 6.2.2: what is unknown is implicit.
        elif tag in READ and not nested:
            _keep(header, READ[tag], _read(stream, length) if length <= BLOCK else b"", order)
        else:
            stream.seek(length, 1)
    raise DamagedFile


def _keep(header: DicomHeader, name: str, value: bytes, order: str) -> None:
    if name not in NUMBERS:
        setattr(header, name, value.decode("latin-1").strip(" \0"))
    elif len(value) >= 2:
        setattr(header, name, unpack(f"{order}H", value[:2])[0])


def _read(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise DamagedFile
    return content
