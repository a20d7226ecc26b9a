"""Read one CT volume from a NIfTI-1 or NIfTI-2 file, optionally gzipped: axial slices from foot to
head in Hounsfield units.

The headers are defined by nifti.nimh.nih.gov (nifti1.h, nifti2.h). They have few fields at fixed
offsets, so numpy suffices, and nothing is inflated or allocated before its size is known. World
coordinates have x to the right, y to the front and z to the head.
"""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.files.first_voxel import FURTHEST, first_voxel
from ml.scans.geometry import factor_of_sizes, in_square_pixels, scaled
from ml.scans.hounsfield import NIFTI, Claim, scale_of
from ml.scans.limits import require_a_picture, require_fewer_pixels, require_fewer_slices
from ml.scans.ordering import AXIAL, NOT_AXIAL, tilt_note
from ml.scans.planes import FURTHEST_MM
from ml.scans.slices import Series, Slice

GZIP = b"\x1f\x8b"
HEADER_BYTES = {1: 348, 2: 540}
MAGIC = {1: (344, b"n+1\0"), 2: (4, b"n+2\0\r\n\x1a\n")}
PAIR = {b"ni1\0", b"ni2\0"}
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
# by the bits of a voxel, for files that do not specify a type
UNKNOWN_TYPE, TYPE_OF_BITS = 0, {8: 2, 16: 4, 32: 16, 64: 64}
# meters, millimeters, micrometers; unknown units are millimeters in practice
TO_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
# the axis of the slices has larger steps than the others by this factor, if any axis does
ACROSS = 2.0

# relative to the range from air to bone; to the length of a line of voxels; to the head's width
HEAD_LEVEL, HEAD_SHARE, LONGER = 0.2, 0.05, 1.05
# rows run to the back and columns to the left, in coordinates to the right, the front and the head
ROWS_FIRST = np.array(
    [[0.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
DAMAGED = "The NIfTI file is damaged or incomplete and cannot be decoded."


@dataclass(frozen=True)
class Header:
    """The fields of a header that are used. `offset` is where the voxels begin according to it, 0
    if it does not say. `affine` (4, 4) maps a voxel (i, j, k, 1) to mm;
    `says_where` is False if it was assumed; `is_bare` is True for a diagonal without an origin,
    which programs write that know the size of a voxel at most; `forms_differ` is True if the two
    orientations in the header contradict each other.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    header_bytes: int
    offset: float
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    says_where: bool
    is_bare: bool
    forms_differ: bool


def is_nifti(head: bytes) -> bool:
    """Return whether a file with these first bytes is NIfTI, gzipped or not."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEADER_BYTES[2])
        except zlib.error:
            return False
    return head[344:348] in PAIR or _version_of(head) is not None


@np.errstate(invalid="ignore")  # A damaged float may be a signaling NaN: air, like other NaNs.
def read_nifti(file: BinaryIO, *, max_pixels: int, max_slices: int) -> Series:
    """Return the slices of one volume in radiological orientation: foot to head, forehead at the
    top, the patient's left on the right.

    Args:
        file: the open file, at its beginning.
        max_pixels: maximum size (height x width) of a slice.
        max_slices: maximum number of slices.

    Raises:
        ImageError: the file is damaged, too large, or does not contain a volume of axial CT slices.
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
        if header.is_bare and _rows_come_first(voxels):
            header = replace(header, affine=ROWS_FIRST @ header.affine, says_where=False)
            axes, signs = _axes(header.affine)
    except (EOFError, OSError, zlib.error, struct.error) as err:
        raise ImageError(DAMAGED) from err
    # To (slices, rows, columns), toward the head, the back and the left: NIfTI's +z, -y and -x.
    directions = signs[2], -signs[1], -signs[0]
    stacked = voxels.transpose(axes[::-1])[tuple(np.s_[::sign] for sign in directions)]
    steps = header.affine[:3, axes]
    spacing = np.linalg.norm(steps, axis=0)
    normal = np.cross(steps[:, 0], steps[:, 1])
    normal /= np.linalg.norm(normal)
    notes = _notes_of(header)
    if slices > 1:
        notes += tilt_note(steps[:, 2], normal)
    scale, of_values = scale_of(
        list(stacked),
        [None] * len(stacked),
        Claim(
            NIFTI,
            header.slope,
            header.intercept,
            8 * header.dtype.itemsize,
            signed=header.dtype.kind != "u",
        ),
    )
    across, step_mm = (float(spacing[1]), float(spacing[0])), float(abs(steps[:, 2] @ normal))
    factor, size_notes = factor_of_sizes(NIFTI, across, (rows, columns), step_mm, slices)
    knows_sizes, notes = factor is not None, [*notes, *size_notes]
    across, step_mm = scaled(across, factor or 1.0), (factor or 1.0) * step_mm
    read_slices = []
    for plane in stacked:
        pixels, spacing_mm = in_square_pixels(scale.pixels(plane), across if knows_sizes else None)
        read_slices.append(Slice(pixels, scale.unit, spacing_mm))
    require_a_picture(read_slices[0].pixels)
    return Series(
        tuple(read_slices), (*notes, *of_values), step_mm if slices > 1 and knows_sizes else None
    )


def _notes_of(header: Header) -> list[str]:
    """Return notes for the user about the orientation in the header."""
    notes = []
    if not header.says_where:
        notes.append(
            "The NIfTI file does not give the patient's orientation; the usual one was assumed."
        )
    if header.forms_differ:
        notes.append(
            "The NIfTI file gives two orientations that contradict each other; the standard one"
            " (sform) was used. Check left and right."
        )
    return notes


def _version_of(head: bytes) -> int | None:
    """Return the version of a NIfTI file; None if it is none. Some programs mark a single file as
    the header of a pair, although its voxels follow.
    """
    if head[344:348] == b"ni1\0" and any(
        HEADER_BYTES[1] + 4 <= struct.unpack_from(f"{order}f", head, 108)[0] <= FURTHEST
        for order in "<>"
    ):
        return 1
    return next(
        (version for version, (at, magic) in MAGIC.items() if head[at : at + len(magic)] == magic),
        None,
    )


def _order_of(head: bytes, version: int) -> str | None:
    """Return the byte order of a header, by its size or else by the number of dimensions: some
    programs write another size.
    """
    sizes = {order: struct.unpack_from(f"{order}i", head)[0] for order in "<>"}
    form, at = ("h", 40) if version == 1 else ("q", 16)
    dimensions = {order: struct.unpack_from(order + form, head, at)[0] for order in "<>"}
    by_size = (order for order, size in sizes.items() if size == HEADER_BYTES[version])
    by_dimensions = (order for order, count in dimensions.items() if 1 <= count <= 7)
    return next(itertools.chain(by_size, by_dimensions), None)


def _read_header(stream: BinaryIO) -> Header:
    """Return the checked header of a NIfTI file.

    One function, because each field is read and checked once, in the order of the header.

    Raises:
        ImageError: it is not the header of a volume of slices that can be read.
    """
    head = stream.read(HEADER_BYTES[1])
    if head[344:348] in PAIR and _version_of(head) is None:
        raise ImageError(
            "The NIfTI file is the header of a pair (.hdr and .img); give a single .nii or .nii.gz"
            " file."
        )
    version = _version_of(head)
    if version is None:
        raise ImageError(DAMAGED)
    head += stream.read(HEADER_BYTES[version] - len(head))
    order = _order_of(head, version)
    if order is None:
        raise ImageError(DAMAGED)

    def get(layout: str, first: int, second: int) -> tuple[float, ...]:
        """Return a field at offset `first` in NIfTI-1 and `second` in NIfTI-2, which has doubles
        for floats and longs for counts.
        """
        wide = layout.translate(str.maketrans("fh", "dq")) if version == 2 else layout
        return struct.unpack_from(order + wide, head, second if version == 2 else first)

    dims = [int(value) for value in get("8h", 40, 16)]
    dims[4:] = [size or 1 for size in dims[4:]]  # some programs write 0 volumes for one
    if not 2 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise ImageError(DAMAGED)
    shape = [*dims[1 : dims[0] + 1], 1][:3]
    if (volumes := int(np.prod([float(size) for size in dims[4 : dims[0] + 1]]))) > 1:
        raise ImageError(f"The NIfTI file holds {volumes} volumes; a scan is a single volume.")
    (code,) = struct.unpack_from(f"{order}h", head, 70 if version == 1 else 12)
    (bits,) = struct.unpack_from(f"{order}h", head, 72 if version == 1 else 14)
    if code == UNKNOWN_TYPE:
        code = TYPE_OF_BITS.get(bits, code)
    if code not in TYPES:
        raise ImageError("The NIfTI file's voxels are colors or complex numbers, not CT values.")
    (offset,) = get("f", 108, 0) if version == 1 else struct.unpack_from(f"{order}q", head, 168)
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
    unit_mm = TO_MM.get(units & 7, 1.0)
    furthest = FURTHEST_MM / min(unit_mm, 1.0)  # large enough for mm in a file that claims meters
    with np.errstate(all="ignore"):  # a damaged header may contain any numbers
        fields = (
            pixdim,
            np.array(get("6f", 256, 352)),
            np.array(get("12f", 280, 400)).reshape(3, 4),
        )
        affine, says_where = _affine(forms, *fields, furthest)
        by_quaternion, has_both = _affine((forms[0], 0), *fields, furthest)
    # scripts that do not know the affine write np.eye(4), perhaps multiplied by the voxel size
    is_identity = says_where and bool(np.array_equal(affine, np.eye(4)))
    is_bare = bool(np.array_equal(affine, np.diag(np.abs(np.diag(affine))))) and says_where
    forms_differ = has_both and bool(((affine * by_quaternion)[:3, :3].sum(axis=0) < 0).any())
    affine[:3] *= unit_mm
    return Header(
        (shape[0], shape[1], shape[2]),
        np.dtype(order + TYPES[code]),
        HEADER_BYTES[version],
        offset,
        slope,
        intercept,
        affine,
        says_where and not is_identity,
        is_bare,
        forms_differ,
    )


def _affine(
    forms: tuple[int, ...],
    pixdim: NDArray[np.float64],
    quaternion: NDArray[np.float64],
    rows: NDArray[np.float64],
    furthest: float,
) -> tuple[NDArray[np.float64], bool]:
    """Return the affine (4, 4) and whether the file contains one: the sform takes precedence over
    the quaternion (qform), as nifti1.h advises, unless it is an identity and the qform is not.
    """
    sizes = np.abs(pixdim[1:4])
    sizes = np.where((sizes > 0) & (sizes < furthest), sizes, 1.0)
    affine = np.eye(4)
    affine[:3] = rows
    is_placeholder = forms[0] > 0 and np.array_equal(affine, np.eye(4))
    if forms[1] > 0 and _is_usable(affine, furthest) and not is_placeholder:
        return affine, True
    b, c, d = quaternion[:3] / max(float(np.linalg.norm(quaternion[:3])), 1.0)
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
    if forms[0] > 0 and _is_usable(affine, furthest):
        return affine, True
    # as in the older format, x runs to the left
    return np.diag([-sizes[0], sizes[1], sizes[2], 1.0]), False


def _is_usable(affine: NDArray[np.float64], furthest: float) -> bool:
    if not (np.abs(affine) < furthest).all():  # also excludes NaN
        return False
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(min(sizes) > 1e-6 and abs(np.linalg.det(affine[:3, :3] / sizes)) > 0.1)


def _axes(affine: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Return the voxel axis that runs along x, y and z of the world, and whether it runs in the
    positive (1) or the negative (-1) direction.

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


def _rows_come_first(voxels: NDArray[np.generic]) -> bool:
    """Return whether the head is longer along the first axis of the voxels (i, j, k) than along the
    second: then these axes are rows and columns, as in an image, and not columns and rows.
    """
    middle = np.nan_to_num(voxels[:, :, voxels.shape[2] // 2].astype(np.float64))
    low, high = np.percentile(middle, [1, 99])
    head = middle > low + HEAD_LEVEL * (high - low)
    lengths = [int((head.mean(axis=axis) > HEAD_SHARE).sum()) for axis in (1, 0)]
    return lengths[0] > LONGER * lengths[1]


def _read_voxels(stream: BinaryIO, header: Header) -> NDArray[np.generic]:
    """Return all voxels as stored, indexed (i, j, k).

    Raises:
        ImageError: where they begin is unknown, or some are missing.
    """
    voxel_bytes = header.dtype.itemsize * int(np.prod(header.shape, dtype=np.int64))
    order = ">" if header.dtype.str.startswith(">") else "<"
    begin = first_voxel(stream, header.header_bytes, header.offset, voxel_bytes, order)
    if begin is None:
        raise ImageError(DAMAGED)
    stream.seek(begin)
    voxels = np.empty(header.shape, header.dtype, order="F")
    rest = voxels.reshape(-1, order="F").view(np.uint8).data
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise ImageError(DAMAGED)
        rest = rest[got:]
    stream.read(1)  # at the end of the data, gzip verifies its checksum
    return voxels
