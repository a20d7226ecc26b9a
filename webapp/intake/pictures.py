"""PNG and JPEG files: reading the size, and writing a copy with the encoded pixels only.

Everything else (comments, Exif, color profiles, thumbnails, data after the end) is dropped, except
the orientation in Exif. Pillow is not used here: it holds a whole chunk in memory, which may be
huge in a hostile file.

Sources: the PNG specification (W3C), ITU-T T.81 for JPEG, and Exif 2.3 section 4.6.
"""

from __future__ import annotations

import re
import zlib
from struct import error as struct_error
from struct import pack, unpack, unpack_from
from typing import IO

from webapp.intake.streams import BLOCK, Budget, DamagedFile, read_exactly

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT_CHUNKS = {b"IHDR": 13, b"PLTE": 768, b"tRNS": 256, b"IDAT": 2**31, b"IEND": 0}
"""The chunks that are kept, with their maximum size: unused space could contain text."""
MOST_CHUNKS, MOST_SEGMENTS = 20_000, 2_000
"""Maximum number of PNG chunks and JPEG segments: encoders write thousands of chunks for a large
image, but at most a few hundred segments.
"""
ANIMATION = b"acTL"
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In entropy-coded data, FF is followed by 00 or by a restart marker; anything else ends the
data.
"""


class AnimatedPicture(ValueError):
    """The file contains several images."""


def copy_png(stream: IO[bytes], target: IO[bytes], budget: Budget | None = None) -> tuple[int, int]:
    """Copy the PNG at the start of `stream`, and return its (width, height); its checksums are
    verified.

    Raises:
        DamagedFile: it is incomplete, or a checksum is wrong.
        AnimatedPicture: it contains several images.
        TooMuchWork: the budget is used up.
    """
    budget = budget or Budget()
    target.write(read_exactly(stream, len(PNG_SIGNATURE)))
    size = None
    has_pixels = False
    for _ in range(MOST_CHUNKS):
        budget.spend_part()
        length, name = unpack(">I4s", read_exactly(stream, 8))
        if size is None:
            if (length, name) != (13, b"IHDR"):
                raise DamagedFile
            header = _png_chunk(stream, name, length, target)
            size = unpack(">II", header[:8])
        else:
            if name == ANIMATION:
                raise AnimatedPicture
            if length > KEPT_CHUNKS.get(name, length):
                raise DamagedFile
            content = _png_chunk(stream, name, length, target if name in KEPT_CHUNKS else None)
            if name == b"eXIf" and (orientation := _orientation(content)) > 1:
                content = _exif(orientation)
                target.write(
                    pack(">I4s", len(content), name)
                    + content
                    + pack(">I", zlib.crc32(name + content))
                )
        has_pixels |= name == b"IDAT"
        if name == b"IEND":
            break
    else:
        raise DamagedFile
    if not has_pixels or 0 in size:
        raise DamagedFile
    return size[0], size[1]


def _png_chunk(stream: IO[bytes], name: bytes, length: int, target: IO[bytes] | None) -> bytes:
    """Read the rest of a chunk, copy it completely to `target` if there is one, and return its
    first block.
    """
    if target:
        target.write(pack(">I4s", length, name))
    crc, left, first = zlib.crc32(name), length, b""
    while left:
        block = read_exactly(stream, min(left, BLOCK))
        first = first or block
        crc, left = zlib.crc32(block, crc), left - len(block)
        if target:
            target.write(block)
    if unpack(">I", read_exactly(stream, 4)) != (crc,):
        raise DamagedFile
    if target:
        target.write(pack(">I", crc))
    return first


def copy_jpeg(
    stream: IO[bytes], target: IO[bytes], budget: Budget | None = None
) -> tuple[int, int]:
    """Copy the JPEG at the start of `stream`, and return its (width, height).

    Raises:
        DamagedFile: it is truncated, or contains no image.
        TooMuchWork: the budget is used up.
    """
    budget = budget or Budget()
    target.write(read_exactly(stream, 2))
    size = None
    for _ in range(MOST_SEGMENTS):
        budget.spend_part()
        start, marker = read_exactly(stream, 2)
        while marker == 0xFF:  # Fill bytes.
            budget.spend_part()
            marker = read_exactly(stream, 1)[0]
        if start != 0xFF:
            raise DamagedFile
        if marker == 0xD9:
            if size is None:
                raise DamagedFile
            target.write(b"\xff\xd9")
            return size
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue  # Markers without content.
        (length,) = unpack(">H", read_exactly(stream, 2))
        if length < 2:
            raise DamagedFile
        content = read_exactly(stream, length - 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # A start of frame.
            if len(content) < 5:
                raise DamagedFile
            height, width = unpack_from(">xHH", content)
            if 0 in (width, height) or size not in (None, (width, height)):
                raise DamagedFile
            size = width, height
        segment = _retained_segment(marker, content)
        if segment is not None:
            target.write(pack(">BBH", 0xFF, marker, len(segment) + 2) + segment)
        if marker == 0xDA:
            if size is None:
                raise DamagedFile
            _copy_scan(stream, target)
    raise DamagedFile


def _retained_segment(marker: int, content: bytes) -> bytes | None:
    """Return the part of a JPEG segment that is kept; None to drop it."""
    if marker == 0xE1 and content.startswith(EXIF):
        orientation = _orientation(content[len(EXIF) :])
        return EXIF + _exif(orientation) if orientation > 1 else None
    if marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14:
        return content[:12] + b"\0\0"  # Without the thumbnail.
    if marker == 0xEE and content.startswith(b"Adobe"):
        return content[:12]  # The color encoding.
    return None if marker == 0xFE or 0xE0 <= marker <= 0xEF else content


def _copy_scan(stream: IO[bytes], target: IO[bytes]) -> None:
    """Copy coded pixels up to the marker that ends them; `stream` is then positioned at that
    marker.
    """
    while True:
        block = stream.read(BLOCK)
        if len(block) < 2:
            raise DamagedFile
        marker = MARKER_IN_SCAN.search(block)
        # A marker may be split between two blocks.
        end = marker.start() if marker else len(block) - (block[-1] == 0xFF)
        target.write(block[:end])
        stream.seek(end - len(block), 1)
        if marker:
            return


def _orientation(tiff: bytes) -> int:
    """Return the orientation in an Exif block: 1 to 8, 1 if there is none."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (at,) = unpack_from(f"{order}4xI", tiff)
        (entries,) = unpack_from(f"{order}H", tiff, at)
        for entry in range(entries):
            tag, kind, count, value = unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
            # Stored with a wider integer type than the standard requires.
            if (tag, kind, count) == (ORIENTATION, 4, 1):
                (value,) = unpack_from(f"{order}I", tiff, at + 2 + 12 * entry + 8)
                kind = 3
            if (tag, kind, count) == (ORIENTATION, 3, 1):
                return int(value) if 1 <= value <= 8 else 1
    except (KeyError, struct_error):
        pass
    return 1


def _exif(orientation: int) -> bytes:
    """Return an Exif block that contains only the orientation."""
    return b"MM\0*" + pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)
