"""Read one CT volume from a NIfTI-1 or NIfTI-2 file, packed by gzip or not: axial slices from foot
to head, Hounsfield units.

The headers are those of nifti.nimh.nih.gov (nifti1.h, nifti2.h): few fields at fixed places, so
nothing more than numpy is needed, and nothing is inflated or allocated before its size is known.
World coordinates have x to the right, y to the front, z to the head.
"""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.scans.limits import require_a_picture, require_fewer_pixels, require_fewer_slices
from ml.scans.ordering import AXIAL, FURTHEST_MM, NOT_AXIAL, tilt_note
from ml.scans.repairs import hounsfield_in_16_bits
from ml.scans.slices import FloatArray, Series, Slice

GZIP = b"\x1f\x8b"
HEADER_BYTES = {1: 348, 2: 540}
MAGIC = {1: (344, b"n+1\0"), 2: (4, b"n+2\0\r\n\x1a\n")}
PAIR = {b"ni1\0", b"ni2\0"}
FURTHEST_DATA = 16 * 2**20  # bytes of extensions before the voxels; more is no header of a CT
TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
# meters, millimeters, micrometers; unknown units are millimeters in practice
TO_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
ACROSS = 2.0  # the axis of the slices has larger steps than the others by this factor, if one has

# values that are never negative and reach it may be HU with something added
LEAST_WITH_OFFSET = 1000.0
LOWEST_HU, HIGHEST_HU = -1024.0, 4095.0
AIR_HU = -1000.0
DAMAGED = "The NIfTI file is damaged or incomplete and cannot be decoded."


@dataclass(frozen=True)
class Header:
    """What is read of a header. `affine` (4, 4) takes a voxel (i, j, k, 1) to mm; `says_where` is
    False where it was assumed.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    says_where: bool


def is_nifti(head: bytes) -> bool:
    """True if a file that begins so is NIfTI, packed or not."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEADER_BYTES[2])
        except zlib.error:
            return False
    return head[344:348] in PAIR or _version_of(head) is not None


def read_nifti(file: BinaryIO, *, max_pixels: int, max_slices: int) -> Series:
    """Return the slices of one volume as radiologists see them: foot to head, forehead at the top,
    the patient's left on the right.

    Args:
        file: the open file, at its beginning.
        max_pixels: the largest slice (height x width) that is read.
        max_slices: the most slices that are read.

    Raises:
        ImageError: the file is damaged, too large, or holds no volume of axial CT slices.
    """
    packed = file.read(2) == GZIP
    file.seek(0)
    stream: BinaryIO = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
    try:
        header = _read_header(stream)
        axes, signs = _axes(header.affine)
        columns, rows, slices = (header.shape[axis] for axis in axes)
        require_fewer_pixels(columns, rows, max_pixels)
        require_fewer_slices(slices, rows * columns, max_slices)
        voxels = _read_voxels(stream, header)
    except (EOFError, OSError, zlib.error, struct.error) as err:
        raise ImageError(DAMAGED) from err
    # To (slices, rows, columns), toward the head, the back and the left: what NIfTI calls +z, -y
    # and -x.
    stacked = voxels.transpose(axes[::-1])[
        tuple(np.s_[::sign] for sign in (signs[2], -signs[1], -signs[0]))
    ]
    steps = header.affine[:3, axes]
    spacing = np.linalg.norm(steps, axis=0)
    normal = np.cross(steps[:, 0], steps[:, 1])
    normal /= np.linalg.norm(normal)
    notes = (
        []
        if header.says_where
        else ["The NIfTI file does not say how the patient lies; it was assumed to lie as usual."]
    )
    if slices > 1:
        notes += tilt_note(steps[:, 2], normal)
    unit = _unit(voxels, header, notes)
    if unit == "hu":
        header = replace(
            header,
            intercept=header.intercept - _added(stacked[len(stacked) // 2], voxels, header, notes),
        )
    found = tuple(
        Slice(_values(plane, header, unit), unit, (float(spacing[1]), float(spacing[0])))
        for plane in stacked
    )
    require_a_picture(found[0].pixels)
    return Series(
        found, tuple(notes), float(abs(np.dot(steps[:, 2], normal))) if slices > 1 else None
    )


def _version_of(head: bytes) -> int | None:
    return next(
        (version for version, (at, magic) in MAGIC.items() if head[at : at + len(magic)] == magic),
        None,
    )


def _read_header(stream: BinaryIO) -> Header:
    head = stream.read(HEADER_BYTES[1])
    if head[344:348] in PAIR:
        raise ImageError(
            "The NIfTI file is the header of a pair (.hdr and .img); give a single .nii or .nii.gz"
            " file."
        )
    version = _version_of(head)
    if version is None:
        raise ImageError(DAMAGED)
    head += stream.read(HEADER_BYTES[version] - len(head))
    order = next(
        (
            order
            for order in "<>"
            if struct.unpack_from(f"{order}i", head)[0] == HEADER_BYTES[version]
        ),
        None,
    )
    if order is None:
        raise ImageError(DAMAGED)

    def get(layout: str, first: int, second: int) -> tuple[float, ...]:
        """Return a field that lies at `first` in NIfTI-1; NIfTI-2 has it at `second`, floats as
        doubles and counts as longs.
        """
        wide = layout.translate(str.maketrans("fh", "dq")) if version == 2 else layout
        return struct.unpack_from(order + wide, head, second if version == 2 else first)

    dims = [int(value) for value in get("8h", 40, 16)]
    if not 2 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise ImageError(DAMAGED)
    shape = [*dims[1 : dims[0] + 1], 1][:3]
    if (volumes := int(np.prod([float(size) for size in dims[4 : dims[0] + 1]]))) > 1:
        raise ImageError(f"The NIfTI file holds {volumes} volumes; one scan is one volume.")
    (code,) = struct.unpack_from(f"{order}h", head, 70 if version == 1 else 12)
    if code not in TYPES:
        raise ImageError("The NIfTI file's voxels are colors or complex numbers, not CT values.")
    (offset,) = get("f", 108, 0) if version == 1 else struct.unpack_from(f"{order}q", head, 168)
    if not HEADER_BYTES[version] <= offset <= FURTHEST_DATA:
        raise ImageError(DAMAGED)
    stream.read(int(offset) - len(head))
    slope, intercept = get("2f", 112, 176)
    # 0 means that the values are not scaled
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        slope, intercept = 1.0, 0.0
    pixdim = np.array(get("8f", 76, 104))
    forms = (
        struct.unpack_from(f"{order}2h", head, 252)
        if version == 1
        else struct.unpack_from(f"{order}2i", head, 344)
    )
    units = head[123] if version == 1 else struct.unpack_from(f"{order}i", head, 500)[0]
    with np.errstate(all="ignore"):  # a damaged header holds numbers of any size
        affine, says_where = _affine(
            pixdim,
            forms,
            np.array(get("6f", 256, 352)),
            np.array(get("12f", 280, 400)).reshape(3, 4),
        )
    affine[:3] *= TO_MM.get(units & 7, 1.0)
    return Header(
        (shape[0], shape[1], shape[2]),
        np.dtype(order + TYPES[code]),
        int(offset),
        slope,
        intercept,
        affine,
        says_where,
    )


def _affine(
    pixdim: NDArray[np.float64],
    forms: tuple[int, ...],
    quaternion: NDArray[np.float64],
    rows: NDArray[np.float64],
) -> tuple[NDArray[np.float64], bool]:
    """Return the affine (4, 4) and whether the file gives one: the standard form before the
    quaternion's, as nifti1.h advises.
    """
    sizes = np.where((pixdim[1:4] > 0) & (pixdim[1:4] < FURTHEST_MM), pixdim[1:4], 1.0)
    affine = np.eye(4)
    affine[:3] = rows
    if forms[1] > 0 and _is_usable(affine):
        return affine, True
    b, c, d = quaternion[:3]
    a = np.sqrt(max(1 - b * b - c * c - d * d, 0.0))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine[:3, :3] = turn * sizes * np.array([1, 1, -1 if pixdim[0] < 0 else 1])
    affine[:3, 3] = quaternion[3:]
    if forms[0] > 0 and _is_usable(affine):
        return affine, True
    # the older format's habit: x runs to the left
    return np.diag([-sizes[0], sizes[1], sizes[2], 1.0]), False


def _is_usable(affine: NDArray[np.float64]) -> bool:
    if not (np.abs(affine) < FURTHEST_MM).all():  # nor is NaN
        return False
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(min(sizes) > 1e-6 and abs(np.linalg.det(affine[:3, :3] / sizes)) > 0.1)


def _axes(affine: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Return which voxel axis runs along x, y and z of the world, and whether it runs up (1) or
    down (-1).

    Raises:
        ImageError: the slices are not axial.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / sizes
    axes = list(
        max(
            itertools.permutations(range(3)),
            key=lambda chosen: float(sum(abs(cosines[w, v]) for w, v in enumerate(chosen))),
        )
    )
    across = int(np.argmax(sizes))
    is_thick = sizes[across] > ACROSS * np.median(sizes)
    if (is_thick and across != axes[2]) or abs(
        np.cross(cosines[:, axes[0]], cosines[:, axes[1]])[2]
    ) < AXIAL:
        raise ImageError(f"The NIfTI file's slices are {NOT_AXIAL}")
    return axes, [1 if cosines[world, axis] >= 0 else -1 for world, axis in enumerate(axes)]


def _read_voxels(stream: BinaryIO, header: Header) -> NDArray[np.generic]:
    """Return all voxels as they are stored, indexed (i, j, k)."""
    voxels = np.empty(header.shape, header.dtype, order="F")
    rest = voxels.reshape(-1, order="F").view(np.uint8).data
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise ImageError(DAMAGED)
        rest = rest[got:]
    stream.read(1)  # at its end gzip compares its checksum
    return voxels


def _unit(
    voxels: NDArray[np.generic], header: Header, notes: list[str]
) -> Literal["hu", "display"]:
    # fmin and fmax pass over what is no number.
    low, high = (
        float(find.reduce(voxels, axis=None)) * header.slope + header.intercept
        for find in (np.fmin, np.fmax)
    )
    if (
        header.dtype.kind == "u"
        and header.dtype.itemsize == 1
        and (header.slope, header.intercept) == (1.0, 0.0)
    ):
        notes.append(
            "The NIfTI file has 8-bit voxels, so it was read as pictures without Hounsfield units."
        )
        return "display"
    # a slope is a float: 1000 thousandths are a little more than 1
    if min(low, high) >= 0 and max(low, high) < 1.001:
        notes.append(
            "The NIfTI file's values run from 0 to 1, so it was read as pictures without Hounsfield"
            " units."
        )
        return "display"
    return "hu"


def _added(
    middle: NDArray[np.generic], voxels: NDArray[np.generic], header: Header, notes: list[str]
) -> float:
    """Return what a program added to the HU without saying so; in nearly all files, nothing. A
    slice of the middle tells.

    Raises:
        ImageError: something was added, and it cannot be told how much.
    """
    low, high = (
        float(find.reduce(voxels, axis=None)) * header.slope + header.intercept
        for find in (np.fmin, np.fmax)
    )
    if low < 0 or high < LEAST_WITH_OFFSET or not np.isfinite(high):
        return 0.0
    stored = (
        np.nan_to_num(middle.astype(np.float64) * header.slope + header.intercept)
        .round()
        .astype(np.int64)
    )
    values_hu, is_offset = hounsfield_in_16_bits(stored)
    if values_hu is None:
        if is_offset:
            raise ImageError(
                "The NIfTI file holds CT values, but not where their zero lies; give the DICOM"
                " files."
            )
        return 0.0
    brightest = int(stored.argmax())
    added = float(stored.flat[brightest]) - float(values_hu.flat[brightest])
    if added:
        notes.append(
            f"The NIfTI file's values are Hounsfield units with {added:g} added, which was taken"
            " off."
        )
    return added


def _values(plane: NDArray[np.generic], header: Header, unit: str) -> FloatArray:
    # what is too large for a float is clipped below
    with np.errstate(over="ignore", invalid="ignore"):
        values = plane.astype(np.float32) * np.float32(header.slope) + np.float32(header.intercept)
    if unit == "display":
        return np.ascontiguousarray(
            np.clip(np.nan_to_num(values) / (255 if header.dtype.itemsize == 1 else 1), 0, 1),
            np.float32,
        )
    if header.dtype.kind == "f":
        values = np.nan_to_num(values, nan=AIR_HU)  # outside the scanned circle
    return np.ascontiguousarray(np.clip(values, LOWEST_HU, HIGHEST_HU), np.float32)
