"""Write a series, or its outlines, as one NIfTI file that a viewer loads as a whole and a server
reads slice by slice.

The file is an ordinary .nii.gz. As in a dictzip file, its compressor restarts at every slice, and
an extra field of the gzip header (RFC 1952, 2.3.1.1) with the id "HS" contains the offsets: a
little-endian uint32 for each slice, from the start of the file. A raw inflate from there yields
that slice alone.

The description ends with the names of the distances that were measured, since a ruler must not
treat an assumed distance as measured: "pixels", and "slices" if these are evenly spaced.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.geometry import EVEN
from ml.scans.slices import BoolArray, Series, Slice, rendered_size

LONGEST_SIDE_PX = 512
LEVEL = 1
CHUNK = 16  # slices compressed before they are written; determines the memory usage
HEADER_BYTES = 352  # including the four bytes that say that no extension follows
INDEX = b"HS"
NAME = "Hemoscan; measured:"
DISPLAY_STEP = 0.001  # relative to white, if there are no Hounsfield units
UNKNOWN_SPACING_MM, UNKNOWN_DISTANCE_MM = 1.0, 5.0
# codes of nifti1.h: the voxels' type, the frame of the affine, the unit
UINT8, INT16, SCANNER, MILLIMETERS = 2, 4, 1, 2

Stored = TypeVar("Stored")


def write_volume(series: Series, path: Path) -> None:
    """Write a series as NIfTI-1, int16, gzipped: HU, or 1000 times a display value with a slope of
    0.001.

    All slices have the size of the first, at most 512 pixels per side. Voxels run to the right, the
    front and the head (RAS), so a stored slice is the displayed one rotated by 180 degrees. If
    unknown, pixels are 1 mm in size and slices 5 mm apart.
    """
    size = rendered_size(series.slices[0].pixels.shape, LONGEST_SIDE_PX)
    _write(
        path, _header(series, size), series.slices, lambda slice_: _voxels(slice_, size).tobytes()
    )


def write_masks(series: Series, masks: Sequence[BoolArray | None], path: Path) -> None:
    """Write the outlines in a series as NIfTI-1, uint8, gzipped: 1 inside, 0 elsewhere.

    The frame, the size and the order of the slices are as in `write_volume`.

    Args:
        series: the scan.
        masks: of each slice, bool (height, width) in its own pixels; None if nothing is outlined.
        path: the file.
    """
    size = rendered_size(series.slices[0].pixels.shape, LONGEST_SIDE_PX)
    empty = bytes(size[0] * size[1])

    def stored(mask: BoolArray | None) -> bytes:
        return empty if mask is None else resized_mask(mask, size)[::-1, ::-1].tobytes()

    _write(path, _header(series, size, of_masks=True), masks, stored)


def read_masks(content: bytes) -> BoolArray:
    """Read what `write_masks` wrote: bool (slices, height, width), each slice as displayed, from
    foot to head. Both sides of a slice have at most 512 pixels.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        stored = gzip.decompress(content)
        _, width, height, slices = struct.unpack_from("<4h", stored, 40)
        (datatype,) = struct.unpack_from("<h", stored, 70)
    except (OSError, EOFError, zlib.error, struct.error) as err:
        raise ValueError("The outlines are damaged.") from err
    if datatype != UINT8 or len(stored) != HEADER_BYTES + width * height * slices:
        raise ValueError("The outlines are damaged.")
    voxels = np.frombuffer(stored, np.uint8, offset=HEADER_BYTES).reshape(slices, height, width)
    return np.asarray(voxels[:, ::-1, ::-1] > 0)


def resized_mask(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """Return a mask (height, width) at another size (width, height); regions smaller than a new
    pixel do not vanish.
    """
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    way = cv2.INTER_AREA if size[0] < mask.shape[1] else cv2.INTER_LINEAR
    share = cv2.resize(mask.astype(np.float32), size, interpolation=way)
    return np.asarray((share > 0) & (share >= min(0.5, float(share.max()))))


def _write(
    path: Path, header: bytes, slices: Sequence[Stored], stored_of: Callable[[Stored], bytes]
) -> None:
    """Write a header and the bytes that `stored_of` makes of each slice."""

    def stored_and_deflated(values: Stored) -> tuple[bytes, bytes]:
        stored = stored_of(values)
        return stored, _deflated(stored)

    deflated_header = _deflated(header)
    # zlib releases the global interpreter lock
    with ThreadPoolExecutor(os.cpu_count()) as pool, path.open("wb") as file:
        file.write(_gzip_header([0] * len(slices)) + deflated_header)
        checksum, length, starts = zlib.crc32(header), len(header), []
        for start in range(0, len(slices), CHUNK):
            chunk = slices[start : start + CHUNK]
            for stored, deflated in pool.map(stored_and_deflated, chunk):
                starts.append(file.tell())
                file.write(deflated)
                checksum, length = zlib.crc32(stored, checksum), length + len(stored)
        # an empty last block
        file.write(zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush())
        file.write(struct.pack("<2I", checksum, length & 0xFFFFFFFF))
        file.seek(0)
        file.write(_gzip_header(starts))


def _voxels(slice_: Slice, size: tuple[int, int]) -> NDArray[np.int16]:
    """Return the stored voxels of a slice, int16 (height, width): rows to the front, columns to the
    right.
    """
    pixels = slice_.pixels
    if (pixels.shape[1], pixels.shape[0]) != size:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.float32)
    values = pixels if slice_.unit == "hu" else pixels / np.float32(DISPLAY_STEP)
    return np.clip(np.round(values), -32768, 32767).astype("<i2")[::-1, ::-1]


def _deflated(content: bytes) -> bytes:
    """Return the content compressed as a block that can be decompressed by itself, with more blocks
    to follow.
    """
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush(zlib.Z_FULL_FLUSH)


def _gzip_header(starts: Sequence[int]) -> bytes:
    index = struct.pack(f"<{len(starts)}I", *starts)
    extra = INDEX + struct.pack("<H", len(index)) + index
    has_extra, no_date, fastest, any_system = 4, 0, 4, 255
    return (
        struct.pack(
            "<2s2BIBBH",
            b"\x1f\x8b",
            zlib.DEFLATED,
            has_extra,
            no_date,
            fastest,
            any_system,
            len(extra),
        )
        + extra
    )


def _description(series: Series) -> str:
    is_known = {
        "pixels": series.slices[0].spacing_mm is not None,
        "slices": series.distance_mm is not None and _is_even(series.steps_mm),
    }
    return " ".join([NAME, *(what for what, known in is_known.items() if known)])


def _is_even(steps_mm: Sequence[float]) -> bool:
    return not steps_mm or max(steps_mm) <= EVEN * min(steps_mm)


def has_volume(series: Series) -> bool:
    """Return whether a viewer has more to show than one image: several slices, or Hounsfield
    units.
    """
    return len(series.slices) > 1 or series.slices[0].unit == "hu"


def _header(series: Series, size: tuple[int, int], *, of_masks: bool = False) -> bytes:
    first, (width, height), slices = series.slices[0], size, len(series.slices)
    spacing = first.spacing_mm or (UNKNOWN_SPACING_MM, UNKNOWN_SPACING_MM)
    steps = (
        spacing[1] * first.pixels.shape[1] / width,
        spacing[0] * first.pixels.shape[0] / height,
        series.distance_mm or UNKNOWN_DISTANCE_MM,
    )
    corner = tuple(
        -step * (count - 1) / 2 for step, count in zip(steps, (width, height, slices), strict=True)
    )
    slope, shown = (1.0, (0.0, 80.0)) if first.unit == "hu" else (DISPLAY_STEP, (0.0, 1.0))
    datatype, bits = (UINT8, 8) if of_masks else (INT16, 16)
    if of_masks:
        slope, shown = 1.0, (0.0, 1.0)
    header = bytearray(HEADER_BYTES)
    for at, layout, values in (
        (0, "i", (348,)),
        (40, "8h", (3, width, height, slices, 1, 1, 1, 1)),
        (70, "2h", (datatype, bits)),
        (76, "8f", (1.0, *steps, 0, 0, 0, 0)),
        (108, "3f", (HEADER_BYTES, slope, 0.0)),
        (123, "B", (MILLIMETERS,)),
        (124, "2f", shown[::-1]),
        (148, "80s", (_description(series).encode(),)),
        (252, "2h", (SCANNER, SCANNER)),
        (256, "6f", (0, 0, 0, *corner)),
        (
            280,
            "12f",
            (steps[0], 0, 0, corner[0], 0, steps[1], 0, corner[1], 0, 0, steps[2], corner[2]),
        ),
        (344, "4s", (b"n+1\0",)),
    ):
        struct.pack_into(f"<{layout}", header, at, *values)
    return bytes(header)
