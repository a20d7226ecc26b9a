"""The sample images of scikit-learn, scikit-image and pydicom, in gray.

Each image also gives three crops, since users submit crops, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import skimage
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from ml.errors import ImageError
from ml.scans.dicom import read_planes
from ml.scans.limits import MIN_SIDE_PX, MOST_ELONGATED
from ml.scans.ordering import slices_of
from ml.scans.slices import Slice

CUTS = (
    (0.0, 0.0, 1.0, 1.0),
    (0.05, 0.05, 0.6, 0.6),
    (0.4, 0.1, 0.95, 0.65),
    (0.2, 0.35, 0.75, 0.9),
)
"""Top, left, bottom and right as fractions of the image."""

PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
OBJECTS = ("coins.png", "moon.png", "horse.png", "clock_motion.png", "logo.png", "color.png")
TEXTURES = ("brick.png", "grass.png", "gravel.png", "chessboard_GRAY.png")
DOCUMENTS = ("page.png", "text.png")
MEDICAL = ("retina.jpg", "ihc.png", "cell.png", "microaneurysms.png")
HEADS = ("J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm")
"""Head CT among pydicom's samples, to be excluded."""


def photographs_of_scikit_learn() -> Iterator[Slice]:
    """Yield china.jpg and flower.jpg."""
    for picture in load_sample_images().images:
        yield from _cuts(np.asarray(picture))


def scikit_image(*names: str) -> Callable[[], Iterator[Slice]]:
    """Return a function that yields these sample images of scikit-image, only from its wheel,
    without downloads.
    """

    def images() -> Iterator[Slice]:
        for name in names:
            picture = cv2.imread(
                str(Path(skimage.__file__).parent / "data" / name), cv2.IMREAD_COLOR
            )
            if picture is not None:
                yield from _cuts(picture[..., ::-1])

    return images


def faces() -> Iterator[Slice]:
    """Yield enlarged faces of scikit-image's subset of "Labeled Faces in the Wild"."""
    for face in np.load(Path(skimage.__file__).parent / "data" / "lfw_subset.npy")[:100:4]:
        yield Slice(
            np.clip(
                cv2.resize(face.astype(np.float32), (150, 150), interpolation=cv2.INTER_CUBIC), 0, 1
            ),
            "display",
        )


def dicom() -> Iterator[Slice]:
    """Yield pydicom's images that are not head CT, without duplicates: MR, ultrasound,
    scintigraphy, dose, secondary captures, a crop of a trunk.
    """
    seen: set[bytes] = set()
    for slice_ in _dicom():
        if slice_.pixels.tobytes() not in seen:
            seen.add(slice_.pixels.tobytes())
            yield slice_


def _dicom() -> Iterator[Slice]:
    for path in sorted((Path(pydicom.__file__).parent / "data").glob("*_files/*.dcm")):
        if path.name in HEADS:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many of these files are malformed on purpose
            try:
                with path.open("rb") as file:
                    slices, _ = slices_of(read_planes(file, max_pixels=2_000_000, max_slices=1))
            except ImageError:
                # The reader refuses such a file by its tags, but users may submit its pixels as
                # PNG.
                picture = _pixels(path)
                yield from [] if picture is None else list(_cuts(picture))[:1]
            else:
                yield slices[0]


FAMILIES: dict[str, Callable[[], Iterator[Slice]]] = {
    "scikit_learn_photographs": photographs_of_scikit_learn,
    "scikit_image_photographs": scikit_image(*PHOTOGRAPHS),
    "scikit_image_objects": scikit_image(*OBJECTS),
    "scikit_image_textures": scikit_image(*TEXTURES),
    "scikit_image_documents": scikit_image(*DOCUMENTS),
    "scikit_image_medical": scikit_image(*MEDICAL),
    "scikit_image_faces": faces,
    "pydicom_other": dicom,
}


def _cuts(picture: NDArray[np.generic]) -> Iterator[Slice]:
    """Yield an 8-bit image (height, width) or (height, width, 3) and crops of it as gray display
    values.
    """
    gray = (
        cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
        if picture.ndim == 3
        else picture
    )
    values = gray.astype(np.float32) / np.float32(255)
    rows, columns = values.shape
    for top, left, bottom, right in CUTS:
        cut = values[
            int(top * rows) : int(bottom * rows), int(left * columns) : int(right * columns)
        ]
        if (
            min(cut.shape) >= MIN_SIDE_PX
            and max(cut.shape) <= MOST_ELONGATED * min(cut.shape)
            and np.ptp(cut) > 0
        ):
            yield Slice(np.ascontiguousarray(cut), "display")


def _pixels(path: Path) -> NDArray[np.uint8] | None:
    """Return the first frame of a DICOM file, scaled to 8 bits; None if it has no displayable
    image.
    """
    try:
        values = np.asarray(pydicom.dcmread(path).pixel_array)
    except (
        AttributeError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        pydicom.errors.InvalidDicomError,
    ):
        return None
    frame = (
        values[0] if values.ndim == 4 or (values.ndim == 3 and values.shape[-1] != 3) else values
    )
    low, high = float(frame.min()), float(frame.max())
    return (
        None
        if frame.ndim < 2 or high <= low
        else np.asarray((frame - low) / (high - low) * 255, np.uint8)
    )
