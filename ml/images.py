"""Read what a user submits: PNG, JPEG and DICOM files become slices in anatomical order.

What a file is, is decided by its first bytes, never by its name. Every file is hostile until it is read: sizes are checked
before anything is decoded, and whatever goes wrong becomes an `ImageError` whose text is one sentence for the user.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ml.repairs import hounsfield_in_16_bits, on_black, soft_tissue_share

FloatArray = NDArray[np.float32]

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 16_000_000  # 4000 x 4000; a CT slice has 512 x 512
MAX_SLICES = 2_000
MIN_SIDE_PX = 32
MOST_ELONGATED = 4  # a slice is about square, and every picture is padded to a square: a thin one would take its length in both ways

IMAGES_OF_A_FOLDER = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".gz", ""}
ORDER_GIVEN = "Pictures carry no position; they were read in the order given."

FEWEST_GREYS = 16  # a drawing, a mask or a fax has fewer; the plainest slice of ours has 81
DARK = 0.5  # of white, for the brightest hundredth of a picture: bone is white in the brain window
LEAST_SOFT_TISSUE = 0.05  # of what is not air, in the slice of a scan that shows most of it

DARK_NOTE = "The picture is darker than a CT slice in a brain window; the models have not learnt such pictures."

COLOUR_SPREAD = 24  # of 255 between a pixel's channels; JPEG chroma noise stays below it
COLOUR_SHARE = 0.001  # of all pixels: a colour cast or a coloured mark, not three stray pixels


class ImageError(ValueError):
    """A file cannot be read as a CT image; its text is one sentence for the user."""


class BareImageError(ImageError):
    """A scan shows too little to be read, though each of its slices might stand in a scan that shows more."""


@dataclass(frozen=True)
class Slice:
    """One CT slice.

    Attributes:
        pixels: float32 (height, width): Hounsfield units if `unit` is "hu", grey 0..1 as a viewer shows it if "display".
        unit: what `pixels` holds.
        spacing_mm: distance of neighbouring rows and columns in mm, None where the file does not say.
    """

    pixels: FloatArray
    unit: Literal["hu", "display"]
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """The slices of one scan from foot to head; a single slice is a series of one.

    `warnings` are sentences for the user about what had to be assumed or removed.
    """

    slices: tuple[Slice, ...]
    warnings: tuple[str, ...] = ()


def window(values_hu: FloatArray, level: float, width: float) -> FloatArray:
    """Map Hounsfield units linearly to float32 0..1 and clip: level - width/2 becomes 0, level + width/2 becomes 1.

    The brain window 40/80 maps 0 HU to 0, 40 HU to 0.5 and 80 HU to 1.
    """
    lowest = level - width / 2
    shown: FloatArray = np.clip((np.asarray(values_hu, np.float32) - np.float32(lowest)) / np.float32(width), 0, 1)
    return shown


def rendered_size(shape: tuple[int, ...], max_px: int) -> tuple[int, int]:
    """Return (width, height) of an array of that shape (height, width) shown with its longer side at most `max_px`, never enlarged."""
    height, width = shape[:2]
    scale = min(1.0, max_px / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def render(slice: Slice, max_px: int, window_level: float = 40, window_width: float = 80) -> Image.Image:
    """Return the slice as an 8-bit grey picture for a page: aspect kept, longer side at most `max_px`, never enlarged.

    Hounsfield units are shown through the window (HU); display values are shown as they are.
    """
    grey = window(slice.pixels, window_level, window_width) if slice.unit == "hu" else np.clip(slice.pixels, 0, 1)
    picture = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    size = rendered_size(grey.shape, max_px)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BOX if max_px < 128 else Image.Resampling.LANCZOS)


def read_series(
    paths: Sequence[Path],
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_slices: int = MAX_SLICES,
    may_be_bare: bool = False,
) -> Series:
    """Read the files of one scan.

    One PNG, JPEG or single-frame CT DICOM is a series of one. Several DICOM files must belong to one series and are put in
    order by their position along its normal; several pictures carry no position and stay in the order given.

    Args:
        paths: the files; their names mean nothing, but the error of one file among several begins with its name.
        max_bytes: the largest file that is opened.
        max_pixels: the largest picture (height x width) that is decoded.
        max_slices: the longest series.
        may_be_bare: True reads what shows next to nothing; it must belong to a scan that shows more.

    Raises:
        ImageError: a file is not readable as a head CT, too large, of an unclear range of values, or does not belong to the others.
    """
    if not paths:
        raise ImageError("There is no file to read.")
    if len(paths) > max_slices:
        raise ImageError(f"The scan has {len(paths)} files; at most {max_slices} are read.")
    names = [path.name if len(paths) > 1 else None for path in paths]
    contents, kinds = [], set()
    for path, name in zip(paths, names, strict=True):
        with errors_naming(name):
            contents.append(_read_bytes(path, max_bytes))
            kinds.add(_kind(contents[-1]))
    if len(kinds) > 1:
        raise ImageError(f"The scan mixes {' and '.join(sorted(kinds))} files; one scan is of one kind.")
    if kinds == {"DICOM"}:
        from ml.dicom import read_dicom_series  # here: it needs the types above, and a PNG does not need pydicom

        series = read_dicom_series(contents, names, max_pixels=max_pixels)
        if not may_be_bare:
            _require_contrast(series)
        return series
    pictures = []
    for content, name in zip(contents, names, strict=True):
        with errors_naming(name):
            pictures.append(_read_picture(content, max_pixels))
    notes = [note for _, picture_notes in pictures for note in picture_notes]
    if len(pictures) > 1:
        notes.append(ORDER_GIVEN)
    slices = tuple(slice for slice, _ in pictures)
    if all(slice.unit == "display" and np.percentile(slice.pixels, 99) < DARK for slice in slices):
        notes.append(DARK_NOTE)
    if len({slice.unit for slice in slices}) > 1:
        raise ImageError("Some pictures of the scan hold Hounsfield units and some do not; one scan is of one kind.")
    series = Series(slices, tuple(dict.fromkeys(notes)))
    if not may_be_bare:
        _require_contrast(series)
    return series


@contextmanager
def errors_naming(name: str | None) -> Iterator[None]:
    """Begin the sentence of an `ImageError` raised inside with the file's name; None leaves it as it is."""
    try:
        yield
    except ImageError as err:
        if name is None:
            raise
        raise ImageError(f"{name}: {err}") from err


def require_a_picture(pixels: FloatArray) -> None:
    """Refuse what cannot be a slice.

    Raises:
        ImageError: the picture is smaller than 32 px on a side, far from square, or holds values that are no numbers.
    """
    height, width = pixels.shape
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(f"The picture is too small: {width} x {height} pixels, at least {MIN_SIDE_PX} x {MIN_SIDE_PX} are needed.")
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ImageError(f"The picture is {width} x {height} pixels; a slice is at most {MOST_ELONGATED} times as long as it is wide.")
    if not np.isfinite(pixels).all():
        raise ImageError("The picture holds values that are no numbers.")


def require_fewer_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by its declared size, before it is decoded.

    Raises:
        ImageError: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise ImageError(f"The picture is too large: {width} x {height} pixels, at most {max_pixels / 1e6:g} million are read.")


def _require_contrast(series: Series) -> None:
    """Refuse a scan that shows nothing. A single slice of a series may: those above the crown hold air only."""
    if all(slice.pixels.min() == slice.pixels.max() for slice in series.slices):
        raise BareImageError("The picture is blank: all its pixels have the same value.")
    lowest, highest = min(float(slice.pixels.min()) for slice in series.slices), max(float(slice.pixels.max()) for slice in series.slices)
    if series.slices[0].unit == "display":
        if len(set().union(*(np.unique(np.round(slice.pixels * 65535)) for slice in series.slices))) < FEWEST_GREYS:
            raise BareImageError(f"The picture has fewer than {FEWEST_GREYS} shades of grey, so it is no CT slice.")
    elif highest < 0 or lowest > 80:
        raise BareImageError(f"The scan shows no brain: its values run from {lowest:g} to {highest:g} HU.")
    elif lowest >= 0 and highest <= 255:
        raise ImageError(f"The scan holds no Hounsfield units: its values run from {lowest:g} to {highest:g}, like those of a picture.")
    elif max(soft_tissue_share(slice.pixels) for slice in series.slices) < LEAST_SOFT_TISSUE:
        raise BareImageError("The scan shows no soft tissue: next to none of its values lies between -20 and 100 HU.")


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as err:
        raise ImageError("The file cannot be opened.") from err
    if not content:
        raise ImageError("The file is empty.")
    if len(content) > max_bytes:
        raise ImageError(f"The file is too large: more than {max_bytes / 2**20:g} MiB.")
    return content


def _kind(content: bytes) -> str:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content[128:132] == b"DICM":
        return "DICOM"
    raise ImageError("The file is not a PNG, JPEG or DICOM image.")


def _read_picture(content: bytes, max_pixels: int) -> tuple[Slice, list[str]]:
    """Return a PNG or JPEG as display values, and notes about what was removed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of large pictures; the size is checked below
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
                require_fewer_pixels(*picture.size, max_pixels)
                frames = int(getattr(picture, "n_frames", 1))
                if frames > 1 and picture.format == "PNG":
                    raise ImageError(f"The picture is animated: it holds {frames} pictures; give each slice as a file of its own.")
                pixels, unit, notes = _to_slice(ImageOps.exif_transpose(picture))
                if frames > 1:  # cameras add a preview or a map of brightness
                    notes.append("The picture holds further pictures; only the first was read.")
    except ImageError:
        raise
    except Image.DecompressionBombError as err:
        raise ImageError(f"The picture is too large: at most {max_pixels / 1e6:g} million pixels are read.") from err
    except Exception as err:  # a damaged file makes a decoder raise anything from SyntaxError to struct.error
        raise ImageError("The picture is damaged or incomplete and cannot be decoded.") from err
    require_a_picture(pixels)
    return Slice(pixels, unit), notes


def _to_slice(picture: Image.Image) -> tuple[FloatArray, Literal["hu", "display"], list[str]]:
    """Return a Pillow picture's pixels as HU, where its 16 bits hold such, or else as grey 0..1 on a black background; and notes.

    Raises:
        ImageError: its values or its background can be read in two ways.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values_hu, is_ct = hounsfield_in_16_bits(np.asarray(picture).astype(np.int64))
        if values_hu is not None:
            return values_hu, "hu", ["The 16-bit picture holds CT values; they were read as Hounsfield units."]
        if is_ct:
            raise ImageError("The 16-bit picture holds CT values, but not where their zero lies; give the DICOM file.")
    grey, notes = _to_grey(picture)
    shown, note = on_black(grey)
    if shown is None:
        raise ImageError("The picture has a white background; CT slices are read with black air around the head.")
    return shown, "display", [*notes, note] if note else notes


def _to_grey(picture: Image.Image) -> tuple[FloatArray, list[str]]:
    """Return any Pillow picture as float32 grey 0..1: transparency over black (air), colours by their luminance."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float32)
        if values.max(initial=0) < 256:
            return values / np.float32(255), ["The 16-bit picture uses only 8 bits; they were read as its full range."]
        # CT has 12 bits; a 16-bit file that uses only these would be black if its full range were shown.
        if values.max(initial=0) < 4096:
            return values / np.float32(4095), ["The 16-bit picture uses only 12 bits; they were read as its full range."]
        return np.clip(values / np.float32(65535), 0, 1), []
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        return np.asarray(picture.convert("L")).astype(np.float32) / np.float32(255), []
    notes = []
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("The picture has transparent parts; they were made black.")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    rgb = picture.convert("RGB")
    channels = np.asarray(rgb)
    spread = channels.max(axis=2) - channels.min(axis=2)
    if np.count_nonzero(spread > COLOUR_SPREAD) > COLOUR_SHARE * spread.size:
        notes.append("The picture has colours; they were removed.")
    return np.asarray(rgb.convert("L")).astype(np.float32) / np.float32(255), notes


def files_of_series(path: Path) -> list[Path]:
    """Return the images of a folder that is one series, in the order of the numbers in their names; of a file, itself."""
    if not path.is_dir():
        return [path]
    images = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in IMAGES_OF_A_FOLDER)
    # A DICOMDIR is the table of contents of a disc.
    return sorted((p for p in images if p.name.upper() != "DICOMDIR"), key=place_in_series)


def place_in_series(path: Path) -> tuple[int, list[tuple[int, str]], str]:
    """Return what puts a picture in its place: the last number in its name, then the name with its numbers read as numbers.

    So slice_2 comes before slice_10, and 2_of_30 before 10_of_30. DICOM files are ordered by position later, whatever their names.
    """
    numbers = re.findall(r"\d+", path.stem)
    words = [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", path.stem) if word]
    return int(numbers[-1]) if numbers else -1, words, path.as_posix()
