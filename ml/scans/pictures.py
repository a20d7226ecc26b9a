"""Read PNG and JPEG images of slices: gray on a black background, without colors and transparency,
or HU from 16-bit values.
"""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ml.errors import ImageError
from ml.scans.hounsfield import scale_from_air_in
from ml.scans.limits import require_fewer_pixels, require_sound_pixels
from ml.scans.repairs import on_black
from ml.scans.slices import FloatArray, Slice

# maximum difference, of 255, between a pixel's channels in gray; JPEG chroma noise stays below it
COLOR_SPREAD = 24
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow's
BIT_DEPTH_AT = 24  # in a PNG; the color type follows
OPAQUE = 65535  # of 16 bits
TRANSPARENT = "The image had transparent parts, which were made black."
# minimum share of pixels: a color cast or a colored mark, not a few stray pixels
COLOR_SHARE = 0.001


def read_picture(file: BinaryIO, max_pixels: int) -> tuple[Slice, list[str]]:
    """Return a PNG or JPEG as a slice, or as a sheet of slices of any proportions, and notes about
    what was removed.

    Raises:
        ImageError: the file is damaged, animated or too large, cannot be a slice, or has an
            ambiguous range of values.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about unusual metadata and large images; the size is checked below
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("PNG", "JPEG")) as picture:
                require_fewer_pixels(*picture.size, max_pixels)
                frames = int(getattr(picture, "n_frames", 1))
                if frames > 1 and picture.format == "PNG":
                    raise ImageError(
                        f"The image is animated: it contains {frames} images; please send each"
                        " slice as a separate file."
                    )
                picture.load()
                gray, notes = _gray_of_16_bits(file, picture)
                pixels, unit, more = _to_slice(ImageOps.exif_transpose(gray or picture))
                notes += more
                if frames > 1:  # cameras add a preview or a brightness map
                    notes.append("The file contains several images; only the first was read.")
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as err:
        raise ImageError(
            f"The image is too large: at most {max_pixels / 1e6:g} million pixels are supported."
        ) from err
    # a damaged file can make a decoder raise anything from SyntaxError to struct.error
    except Exception as err:
        raise ImageError("The image is damaged or incomplete and cannot be decoded.") from err
    require_sound_pixels(pixels)
    return Slice(pixels, unit), notes


def _gray_of_16_bits(file: BinaryIO, picture: Image.Image) -> tuple[Image.Image | None, list[str]]:
    """Return the luminance of a 16-bit PNG with colors or transparency as a 16-bit image, and
    notes; None for any other image. Pillow would keep only the upper 8 bits.
    """
    file.seek(BIT_DEPTH_AT)
    depth, color_type = file.read(2)
    if picture.format != "PNG" or depth != 16 or color_type == 0:
        return None, []
    file.seek(0)
    channels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if channels is None or channels.dtype != np.uint16 or channels.ndim != 3:
        return None, []
    colors, notes = channels[..., :3], list[str]()
    values = colors @ np.array(LUMINANCE[::-1])
    if channels.shape[2] == 4 and (opacity := channels[..., 3]).min() < OPAQUE:
        values *= opacity / OPAQUE
        notes.append(TRANSPARENT)
    gray = Image.fromarray(values.round().astype(np.uint16))
    gray.getexif().update(picture.getexif())
    return gray, notes + _color_note(colors, max(int(colors.max()), 1))


def _color_note(channels: NDArray[Any], white: int) -> list[str]:
    """Return a note if an image (height, width, 3) with values up to `white` is in color."""
    spread = channels.max(axis=2) - channels.min(axis=2)
    is_colored = np.count_nonzero(spread > COLOR_SPREAD / 255 * white) > COLOR_SHARE * spread.size
    return ["The image was in color and was converted to gray."] if is_colored else []


def _to_slice(picture: Image.Image) -> tuple[FloatArray, Literal["hu", "display"], list[str]]:
    """Return the pixels of a Pillow image as HU if its 16-bit values are HU, or else as gray 0..1
    on a black background; and notes.

    Raises:
        ImageError: its values or its background are ambiguous.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        stored = np.asarray(picture).astype(np.int64)
        fit = scale_from_air_in(stored)
        if fit.scale is not None:
            return (
                fit.scale.pixels(stored),
                "hu",
                ["The 16-bit image contains CT values; they were read as Hounsfield units."],
            )
        if fit.is_ambiguous:
            raise ImageError(
                "The 16-bit image contains CT values with an unknown offset; send the DICOM file."
            )
    gray, notes = _to_gray(picture)
    shown, note = on_black(gray)
    if shown is None:
        raise ImageError(
            "The image has a white background; CT slices must have black air around the head, and"
            " must not be inverted."
        )
    return shown, "display", [*notes, note] if note else notes


def _to_gray(picture: Image.Image) -> tuple[FloatArray, list[str]]:
    """Return a Pillow image as float32 gray 0..1, with transparency over black (air) and the
    luminance of colors.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float32)
        if values.max(initial=0) < 256:
            return values / np.float32(255), [
                "The 16-bit image uses only 8 bits; they were read as its full range."
            ]
        # CT has 12 bits; a 16-bit file that uses only these would be black if its full range were
        # shown.
        if values.max(initial=0) < 4096:
            return values / np.float32(4095), [
                "The 16-bit image uses only 12 bits; they were read as its full range."
            ]
        return np.clip(values / np.float32(65535), 0, 1), []
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        return np.asarray(picture.convert("L")).astype(np.float32) / np.float32(255), []
    notes = []
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append(TRANSPARENT)
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    rgb = picture.convert("RGB")
    notes += _color_note(np.asarray(rgb), 255)
    return np.asarray(rgb.convert("L")).astype(np.float32) / np.float32(255), notes
