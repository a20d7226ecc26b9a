"""What stands beside the head is covered, and the head is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ml.decode import PIXELS, respond_to
from ml.preprocessing.model_input import InputSpec, to_input
from ml.preprocessing.redaction import COVERED, covered
from ml.scans.phantoms import phantom, write_dicom
from ml.scans.slices import Series, Slice, window


def written(hu: np.ndarray) -> np.ndarray:
    """Return a slice with a name burned into its corners, as bright as a scanner can."""
    text = np.zeros(hu.shape, np.uint8)
    for place in ((5, 24), (330, 24), (5, 500), (330, 500)):
        cv2.putText(text, "DOE JOHN", place, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 2)
    return np.where(text > 0, 3000, hu).astype(np.float32)


@pytest.mark.parametrize("unit", ["hu", "display"])
def test_text_beside_the_head_is_gone_and_the_head_is_as_it_was(unit: str) -> None:
    clean = phantom(1, hemorrhage=True)
    pixels = written(clean)
    assert (pixels == 3000).sum() > 1000
    given = pixels if unit == "hu" else window(pixels, 40, 80)
    series = covered(Series((Slice(given, unit),)))  # type: ignore[arg-type]
    after = series.slices[0].pixels
    # The head has a rim of some pixels.
    beside = cv2.dilate((clean > -500).astype(np.uint8), np.ones((61, 61), np.uint8)) == 0
    assert (pixels[beside] == 3000).any()
    assert (after[beside] == (-1000 if unit == "hu" else 0)).all()
    _, bodies, sizes, _ = cv2.connectedComponentsWithStats((clean > 0).astype(np.uint8))
    inside = bodies == 1 + np.argmax(sizes[1:, cv2.CC_STAT_AREA])  # Without the holder of the head.
    same = clean.astype(np.float32) if unit == "hu" else window(clean.astype(np.float32), 40, 80)
    assert (after[inside & (pixels != 3000)] == same[inside & (pixels != 3000)]).mean() > 0.995
    assert series.warnings == (COVERED,)


def test_the_models_see_the_same() -> None:
    slice = Slice(phantom(1, hemorrhage=True).astype(np.float32), "hu")
    np.testing.assert_allclose(
        to_input(covered(Series((slice,))).slices[0], InputSpec())[0],
        to_input(slice, InputSpec())[0],
        atol=0.02,
    )


def test_a_slice_without_a_head_is_left_and_noted() -> None:
    head, air = (
        phantom(1, hemorrhage=False).astype(np.float32),
        np.full((512, 512), -1000, np.float32),
    )
    series = covered(Series((Slice(head, "hu"), Slice(air, "hu"))))
    assert series.slices[1].pixels is air
    assert series.warnings == (
        COVERED,
        "In 1 of 2 slices no head was found, so nothing was covered there.",
    )


def test_it_is_done_by_the_decoder_where_that_is_asked_for(tmp_path: Path) -> None:
    write_dicom(written(phantom(1, hemorrhage=False)).astype(np.int16), tmp_path / "named.dcm")
    request = {"paths": [tmp_path / "named.dcm"], "folder": tmp_path, "limits": {}}
    for redact in (False, True):
        assert "error" not in respond_to({**request, "redact": redact})
        assert (np.load(tmp_path / PIXELS) == 3000).any() != redact
