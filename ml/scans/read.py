"""Read submitted files: PNG, JPEG, DICOM and NIfTI files become slices in anatomical order.

The format is determined by a file's first bytes, never by its name. Files are untrusted: sizes are
checked before anything is decoded, and every failure becomes an `ImageError` whose message is one
sentence for the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ml.errors import ImageError
from ml.scans.dicom import read_planes, start_of_data
from ml.scans.files import LeftOut, opened
from ml.scans.limits import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SLICES,
    require_a_picture,
    require_contrast,
    require_fewer_slices,
)
from ml.scans.nifti import is_nifti, read_nifti
from ml.scans.ordering import arrange, of_one_size
from ml.scans.pictures import read_picture
from ml.scans.sheets import slices_on
from ml.scans.slices import Series, Slice

ORDER_GIVEN = "PNG and JPEG images have no position, so they were read in the order given."

DARK = 0.5  # 99th percentile relative to white; bone is white in the brain window

# enough to determine the format, and to unpack the header of a compressed NIfTI file
HEAD_BYTES = 16 * 1024

DARK_NOTE = (
    "The image is darker than a CT slice in a brain window; the models were not trained on"
    " such images."
)


def read_series(
    paths: Sequence[Path],
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_slices: int = MAX_SLICES,
    may_be_bare: bool = False,
    crops: bool = True,
    cuts: bool = True,
) -> Series:
    """Read the files of one scan.

    The files are one of these: PNG or JPEG images, which have no position and are read in the order
    given, with film sheets cut into slices; DICOM files of one series, single-frame or multi-frame,
    which are ordered by position along the normal; or one NIfTI file. If there are several files,
    damaged ones are left out with a warning, up to a fifth of them, and so are images that are not
    axial slices.

    Args:
        paths: the files; names have no meaning, but notes about one of several files begin with its
            name.
        max_bytes: maximum size of a file that is opened.
        max_pixels: maximum size (height x width) of an image that is decoded.
        max_slices: maximum number of slices.
        crops: whether a wide margin or a program's window is cropped from a single image.
        cuts: whether a film sheet is cut into its slices.
        may_be_bare: accept a scan with almost no content, such as one slice of a larger scan.

    Raises:
        ImageError: a file is not readable as a head CT, too large, of an ambiguous range of values,
            or does not belong to the others.
    """
    if not paths:
        raise ImageError("There is no file to read.")
    if len(paths) > max_slices:
        raise ImageError(f"The scan has {len(paths)} files; at most {max_slices} are supported.")
    left_out = LeftOut(len(paths))
    readable, kind = _of_one_kind(paths, left_out, max_bytes)
    if kind == "DICOM":
        series = _read_dicom(readable, left_out, max_bytes, max_pixels, max_slices)
    elif kind == "NIfTI":
        if len(readable) > 1:
            raise ImageError(
                f"There are {len(readable)} NIfTI files; each contains a whole scan, so please"
                " send them separately."
            )
        with opened(readable[0], max_bytes) as file:
            series = read_nifti(file, max_pixels=max_pixels, max_slices=max_slices)
    else:
        cutting = {"crops": crops and len(paths) == 1, "cuts": cuts}
        series = _read_pictures(readable, left_out, max_bytes, max_pixels, max_slices, cutting)
    if not may_be_bare:
        require_contrast(series)
    return replace(series, warnings=(*left_out.notes(), *series.warnings))


def _of_one_kind(
    paths: Sequence[Path], left_out: LeftOut, max_bytes: int
) -> tuple[list[Path], str]:
    """Return the files that can be read so far, and their format.

    Raises:
        ImageError: there are several formats, or too few files can be read.
    """
    kinds: list[tuple[Path, str]] = []
    for path in paths:
        with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
            kinds.append((path, _kind(file.read(HEAD_BYTES))))
    if len(different := sorted({kind for _, kind in kinds})) > 1:
        raise ImageError(
            f"The scan mixes {' and '.join(different)} files; all files of a scan must have the"
            " same format."
        )
    return [path for path, _ in kinds], "".join(different)


def _read_dicom(
    paths: Sequence[Path], left_out: LeftOut, max_bytes: int, max_pixels: int, max_slices: int
) -> Series:
    planes = []
    for path in paths:
        with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
            planes += read_planes(
                file, max_pixels=max_pixels, max_slices=max_slices, name=path.name
            )
            require_fewer_slices(len(planes), planes[-1].stored.size, max_slices)
    left_out.require_others(planes)
    return arrange(planes)


def _read_pictures(
    paths: Sequence[Path],
    left_out: LeftOut,
    max_bytes: int,
    max_pixels: int,
    max_slices: int,
    cutting: Mapping[str, bool],
) -> Series:
    slices: list[Slice] = []
    names: list[str] = []
    notes: list[str] = []
    for path in paths:
        with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
            slice_, of_slice = read_picture(file, max_pixels)
            require_fewer_slices(len(slices) + 1, slice_.pixels.size, max_slices)
            shown, of_sheet = [slice_.pixels], list[str]()
            if slice_.unit == "display":
                shown, of_sheet = slices_on(slice_.pixels, **cutting)
            for pixels in shown:
                require_a_picture(pixels)
            slices += [replace(slice_, pixels=pixels) for pixels in shown]
            names += [path.name] * len(shown)
            notes += [*of_slice, *of_sheet]
    left_out.require_others(slices)
    sizes = [(slice_.pixels.shape[0], slice_.pixels.shape[1]) for slice_ in slices]
    slices = [slices[index] for index in of_one_size(sizes, names, notes)]
    if len(slices) > 1 and len(paths) > 1:
        notes.append(ORDER_GIVEN)
    if all(
        slice_.unit == "display" and np.percentile(slice_.pixels, 99) < DARK for slice_ in slices
    ):
        notes.append(DARK_NOTE)
    if len({slice_.unit for slice_ in slices}) > 1:
        raise ImageError(
            "Some images of the scan have Hounsfield units and some do not; please send them as"
            " separate scans."
        )
    return Series(tuple(slices), tuple(dict.fromkeys(notes)))


def _kind(head: bytes) -> str:
    """Return the format of a file from its first `HEAD_BYTES`."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[128:132] == b"DICM":
        return "DICOM"
    if is_nifti(head):
        return "NIfTI"
    if start_of_data(head) is not None:
        return "DICOM"
    raise ImageError("The file is not a PNG, JPEG, DICOM or NIfTI image.")
