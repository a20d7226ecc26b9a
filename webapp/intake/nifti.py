"""NIfTI files: reading the header, and writing a copy with geometry and voxels only.

The header is written anew from the numbers that viewer and models need; texts, file names and
extensions are dropped. The copy is a single file, compressed if the original was; no voxel is
decoded. Source: the headers nifti1.h and nifti2.h of the NIH.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import pack_into, unpack_from
from typing import IO, cast

from ml.files.first_voxel import EXTENDER_BYTES, FURTHEST, first_voxel
from webapp.intake.streams import (
    Budget,
    DamagedFile,
    Unpacked,
    copy_exactly,
)

GZIP = b"\x1f\x8b"
BYTES_OF_TYPE = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
"""Bytes of a voxel by datatype: integers and floats, but neither colors nor complex numbers."""
UNKNOWN_TYPE, BYTES_OF_UNKNOWN = 0, {8: 1, 16: 2, 32: 4, 64: 8}
"""The datatype of files that do not state it, by the number of bits of a voxel."""
PAIRS = (b"ni1\0", b"ni2\0")


@dataclass(frozen=True)
class _Layout:
    """The offsets of the fields of a version, and the ranges (first, end) that are copied, which
    exclude texts.
    """

    magic: tuple[int, bytes]
    dim: tuple[int, str]
    datatype: int
    pixdim: tuple[int, str]
    voxel_offset: tuple[int, str]
    kept: tuple[tuple[int, int], ...]


# Copied, by version: size and dimensions, type, pixdim, slope and intercept, units, orientation.
LAYOUTS = {
    348: _Layout(
        (344, b"n+1\0"),
        (40, "8h"),
        70,
        (76, "8f"),
        (108, "f"),
        ((0, 4), (40, 56), (70, 74), (76, 108), (112, 120), (123, 124), (252, 328)),
    ),
    540: _Layout(
        (4, b"n+2\0\r\n\x1a\n"),
        (16, "8q"),
        12,
        (104, "8d"),
        (168, "q"),
        ((0, 80), (104, 168), (176, 192), (344, 496), (500, 504)),
    ),
}


@dataclass(frozen=True)
class NiftiHeader:
    """The facts that decide whether a NIfTI file is accepted: its size in voxels, and the number of
    volumes; `is_grey` is False for colors.
    """

    columns: int
    rows: int
    slices: int
    volumes: int
    is_grey: bool


def is_nifti(start: bytes) -> bool:
    """True if a file that begins with these 352 bytes (after inflation) is a single-file NIfTI of
    either version.
    """
    return _read_layout(start) is not None


def is_half_of_pair(start: bytes, size: int) -> bool:
    """True if a file of `size` bytes that begins with these bytes is the header of a pair (.hdr and
    .img), in NIfTI or in the older Analyze format.
    """
    is_marked = start[344:348] in PAIRS or start[4:8] in PAIRS
    is_pair = is_marked and (0 < size <= max(LAYOUTS) + EXTENDER_BYTES or not is_nifti(start))
    is_analyze = size == 348 and any(unpack_from(f"{order}i", start)[0] == 348 for order in "<>")
    return is_pair or is_analyze


@contextmanager
def inflated(stream: IO[bytes], budget: Budget | None = None) -> Iterator[IO[bytes]]:
    """Yield the content of a file that may be compressed; it is inflated only as far as it is read.

    Raises:
        DamagedFile: the part that is read cannot be inflated.
        TooMuchWork: it inflates to more than is left of the budget.
    """
    start = stream.read(len(GZIP))
    stream.seek(0)
    if start != GZIP:
        yield stream
        return
    try:
        with gzip.GzipFile(fileobj=stream, mode="rb") as content:
            yield cast(IO[bytes], Unpacked(cast(IO[bytes], content), budget or Budget()))
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise DamagedFile from err


class NiftiFile:
    """A NIfTI file with its header; `write` writes the clean copy."""

    def __init__(self, content: IO[bytes]) -> None:
        """Read the header at the start of `content`, which is inflated.

        Raises:
            DamagedFile: it does not follow the format.
        """
        start = content.read(max(LAYOUTS))
        size_and_order = _read_layout(start)
        if size_and_order is None or len(start) < size_and_order[0]:
            raise DamagedFile
        size, self._order = size_and_order
        layout = LAYOUTS[size]
        number, *dimensions = unpack_from(f"{self._order}{layout.dim[1]}", start, layout.dim[0])
        dimensions[3:] = [size or 1 for size in dimensions[3:]]  # Some write 0 for one volume.
        datatype, bits = unpack_from(f"{self._order}2h", start, layout.datatype)
        (offset,) = unpack_from(
            f"{self._order}{layout.voxel_offset[1]}", start, layout.voxel_offset[0]
        )
        if not 2 <= number <= 7 or min(dimensions[:number]) < 1:
            raise DamagedFile
        columns, rows, slices, *more = (*dimensions[:number], 1, 1)[: max(number, 3)]
        volumes = 1
        for count in more:
            volumes *= count
        self._bytes_of_voxel = (
            BYTES_OF_UNKNOWN.get(bits, 0)
            if datatype == UNKNOWN_TYPE
            else BYTES_OF_TYPE.get(datatype, 0)
        )
        self.header = NiftiHeader(columns, rows, slices, volumes, is_grey=self._bytes_of_voxel > 0)
        self._dimensions = number
        self._content, self._start, self._layout, self._size, self._offset = (
            content,
            start,
            layout,
            size,
            offset,
        )

    def write(self, target: IO[bytes], *, compress: bool) -> None:
        """Write the copy to `target`: header, geometry and voxels; data after the voxels is
        dropped.

        Raises:
            DamagedFile: voxels are missing, or where they begin is unknown.
        """
        about = self.header
        voxel_bytes = (
            about.columns * about.rows * about.slices * about.volumes * self._bytes_of_voxel
        )
        begin = first_voxel(self._content, self._size, self._offset, voxel_bytes, self._order)
        if begin is None:
            raise DamagedFile
        self._content.seek(begin)
        if not compress:
            self._write(target, voxel_bytes)
            return
        with gzip.GzipFile(
            filename="", fileobj=target, mode="wb", compresslevel=1, mtime=0
        ) as compressed:
            self._write(cast(IO[bytes], compressed), voxel_bytes)

    def _write(self, target: IO[bytes], voxel_bytes: int) -> None:
        header = bytearray(self._size + EXTENDER_BYTES)
        for first, end in self._layout.kept:
            header[first:end] = self._start[first:end]
        pack_into(f"{self._order}i", header, 0, self._size)
        # The fields of unused dimensions could hold text.
        for (first, form), unused in ((self._layout.dim, 1), (self._layout.pixdim, 0)):
            values = unpack_from(f"{self._order}{form}", header, first)[: self._dimensions + 1]
            pack_into(
                f"{self._order}{form}", header, first, *values, *[unused] * (7 - self._dimensions)
            )
        at, magic = self._layout.magic
        header[at : at + len(magic)] = magic
        pack_into(
            f"{self._order}{self._layout.voxel_offset[1]}",
            header,
            self._layout.voxel_offset[0],
            len(header),
        )
        target.write(header)
        copy_exactly(self._content, target, voxel_bytes)
        self._content.read(1)  # Verifies the checksum at the end of a compressed file.


def _read_layout(start: bytes) -> tuple[int, str] | None:
    """Return the header's size and byte order; None if it is not the header of a NIfTI file.

    Some programs write another size; then the number of dimensions shows the byte order.
    """
    for size, layout in LAYOUTS.items():
        at, magic = layout.magic
        if start[at : at + len(magic)] != magic and not _is_marked_as_pair(start, layout):
            continue
        for order in "<>":
            if unpack_from(f"{order}i", start)[0] == size:
                return size, order
        for order in "<>":
            if 1 <= unpack_from(f"{order}{layout.dim[1]}", start, layout.dim[0])[0] <= 7:
                return size, order
    return None


def _is_marked_as_pair(start: bytes, layout: _Layout) -> bool:
    """True for a single file whose header says that it is one of a pair, but also that its voxels
    begin after the header.
    """
    if layout is not LAYOUTS[348] or start[344:348] != PAIRS[0]:
        return False
    first = layout.voxel_offset[0]
    return any(
        348 + EXTENDER_BYTES <= unpack_from(f"{order}f", start, first)[0] <= FURTHEST
        for order in "<>"
    )
