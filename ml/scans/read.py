"""Read what a user submits: PNG, JPEG, DICOM and NIfTI files become slices in anatomical order.

What a file is, is decided by its first bytes, never by its name. Every file is hostile until it is
read: sizes are checked before anything is decoded, and whatever goes wrong becomes an `ImageError`
whose text is one sentence for the user.
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
    require_contrast,
    require_fewer_slices,
)
from ml.scans.nifti import is_nifti, read_nifti
from ml.scans.ordering import arrange, of_one_size
from ml.scans.pictures import read_picture
from ml.scans.sheets import slices_on
from ml.scans.slices import Series, Slice

ORDER_GIVEN = "Pictures have no position; they were read in the order given."

DARK = 0.5  # of white, for the brightest hundredth of a picture: bone is white in the brain window

# by which a file is known; the header of a packed NIfTI file is among them whatever its packer
# writes first
HEAD_BYTES = 16 * 1024

DARK_NOTE = (
    "The picture is darker than a CT slice in a brain window; the models were not trained on"
    " such pictures."
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

    That is PNG or JPEG pictures, which have no position and stay in the order given, a film sheet
    cut into its slices; or DICOM
    files of one series, single-frame or multi-frame, which are put in order by their position along
    its normal; or one NIfTI file. Of several files, damaged ones are left out with a warning, up to
    a fifth of them, and so is what is no axial slice.

    Args:
        paths: the files; their names mean nothing, but what is said of one file among several
            begins with its name.
        max_bytes: the largest file that is opened.
        max_pixels: the largest picture (height x width) that is decoded.
        max_slices: the longest series.
        crops: False leaves a single picture as large as it is; True cuts a wide margin or the
            window of a program off it.
        cuts: False reads a film sheet as a single slice.
        may_be_bare: True reads what shows next to nothing; it must belong to a scan that shows
            more.

    Raises:
        ImageError: a file is not readable as a head CT, too large, of an unclear range of values,
            or does not belong to the others.
    """
    if not paths:
        raise ImageError("There is no file to read.")
    if len(paths) > max_slices:
        raise ImageError(f"The scan has {len(paths)} files; at most {max_slices} are supported.")
    left_out = LeftOut(len(paths))
    kinds: list[tuple[Path, str]] = []
    for path in paths:
        with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
            kinds.append((path, _kind(file.read(HEAD_BYTES))))
    if len(different := sorted({kind for _, kind in kinds})) > 1:
        raise ImageError(
            f"The scan mixes {' and '.join(different)} files; all files of a scan must have the"
            " same format."
        )
    if different == ["DICOM"]:
        planes = []
        for path, _ in kinds:
            with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
                planes += read_planes(
                    file, max_pixels=max_pixels, max_slices=max_slices, name=path.name
                )
                require_fewer_slices(len(planes), planes[-1].stored.size, max_slices)
        left_out.require_others(planes)
        series = arrange(planes)
    elif different == ["NIfTI"]:
        if len(kinds) > 1:
            raise ImageError(
                f"There are {len(kinds)} NIfTI files; each contains a whole scan, so please"
                " send them separately."
            )
        with opened(kinds[0][0], max_bytes) as file:
            series = read_nifti(file, max_pixels=max_pixels, max_slices=max_slices)
    else:
        series = _read_pictures(
            [path for path, _ in kinds],
            left_out,
            max_bytes,
            max_pixels,
            max_slices,
            {"crops": crops and len(paths) == 1, "cuts": cuts},
        )
    if not may_be_bare:
        require_contrast(series)
    return replace(series, warnings=(*left_out.notes(), *series.warnings))


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
            slice, of_slice = read_picture(file, max_pixels)
            require_fewer_slices(len(slices) + 1, slice.pixels.size, max_slices)
            shown, of_sheet = [slice.pixels], list[str]()
            if slice.unit == "display":
                shown, of_sheet = slices_on(slice.pixels, **cutting)
            slices += [replace(slice, pixels=pixels) for pixels in shown]
            names += [path.name] * len(shown)
            notes += [*of_slice, *of_sheet]
    left_out.require_others(slices)
    sizes = [(slice.pixels.shape[0], slice.pixels.shape[1]) for slice in slices]
    slices = [slices[index] for index in of_one_size(sizes, names, notes)]
    if len(slices) > 1 and len(paths) > 1:
        notes.append(ORDER_GIVEN)
    if all(slice.unit == "display" and np.percentile(slice.pixels, 99) < DARK for slice in slices):
        notes.append(DARK_NOTE)
    if len({slice.unit for slice in slices}) > 1:
        raise ImageError(
            "Some pictures of the scan have Hounsfield units and some do not; please send them as"
            " separate scans."
        )
    return Series(tuple(slices), tuple(dict.fromkeys(notes)))


def _kind(head: bytes) -> str:
    """Return what a file is by its first `HEAD_BYTES`."""
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
