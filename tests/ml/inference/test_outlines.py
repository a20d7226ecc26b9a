"""Outlines of phantoms whose volume is known: the model is a graph that outlines what is as bright
as blood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from ml.artifacts.folder import write_model
from ml.errors import ArtifactError
from ml.inference import outlines
from ml.inference.predictor import NO_PROBABILITIES, Predictor
from ml.networks.onnx_graph import model_of, serialized
from ml.scans.phantoms import BLOOD_HU, FIELD_MM, phantom
from ml.scans.slices import Series, Slice
from tests.ml.conftest import (
    CELLS,
    INPUT_PX,
    a_card,
    head_graph,
)

SIZE_PX = 256
PIXEL_MM = FIELD_MM / SIZE_PX
NOISY = phantom(3, hemorrhage=False, size=SIZE_PX).astype(np.float32)
HEAD = np.where(NOISY < 60, np.minimum(NOISY, 42), NOISY)
"""A head in which no noise is as bright as blood."""
RADII_MM = 24.0, 16.0, 20.0
"""Half axes of the ellipsoid of blood: across, toward the front, toward the head."""
KNOWN_ML = 4 / 3 * np.pi * np.prod(RADII_MM) / 1000
WIDEST_MM2 = np.pi * RADII_MM[0] * RADII_MM[1]

LoadModel = Callable[..., Predictor]


@pytest.fixture
def load(outlining_model: Callable[..., Path]) -> LoadModel:
    """`load(preprocessing, **card)` loads a model that outlines blood."""
    return lambda *given, **card: Predictor(outlining_model(*given, **card), checks_head_ct=False)


def bleeding_head(places_mm: Sequence[float], moved_px: int = 0) -> tuple[Slice, ...]:
    """A head whose slices lie at these places and cut an ellipsoid of blood around place 0."""
    down, across = (np.indices(HEAD.shape) + 0.5) * PIXEL_MM - FIELD_MM / 2
    away = ((across - 12) / RADII_MM[0]) ** 2 + ((down + 8) / RADII_MM[1]) ** 2
    slices = []
    for place in places_mm:
        inside = away + (place / RADII_MM[2]) ** 2 < 1
        pixels = np.where(inside, np.float32(BLOOD_HU), HEAD)
        slices.append(Slice(np.roll(pixels, moved_px, axis=1), "hu", (PIXEL_MM, PIXEL_MM)))
    return tuple(slices)


def evenly(step_mm: float) -> Series:
    """The head from well below the blood to well above."""
    return Series(bleeding_head(np.arange(-40, 40, step_mm) + 0.3 * step_mm), (), step_mm)


@pytest.mark.parametrize("step_mm", [5.0, 1.25, 8.0])
def test_the_volume_of_a_phantom_is_right_within_a_tenth(load: LoadModel, step_mm: float) -> None:
    series = evenly(step_mm)
    result = load().predict(series).outlines
    assert result.volume_ml == pytest.approx(KNOWN_ML, rel=0.1)
    assert result.no_volume_because == ""
    assert len(result.areas_mm2) == len(result.masks) == len(series.slices)
    assert max(result.areas_mm2) == pytest.approx(WIDEST_MM2, rel=0.1)
    assert [area > 0 for area in result.areas_mm2] == [mask is not None for mask in result.masks]


def test_slices_at_uneven_distances_count_as_much_as_they_stand_for(
    load: LoadModel,
) -> None:
    places = np.concatenate([np.arange(-42, 0, 3.0), np.arange(0, 42, 7.0)])
    steps = tuple(np.diff(places))
    series = Series(bleeding_head(places), (), float(np.median(steps)), steps)
    result = load().predict(series).outlines
    assert result.volume_ml == pytest.approx(KNOWN_ML, rel=0.1)
    np.testing.assert_allclose(
        outlines.thicknesses_mm(Series(series.slices[:4], (), 5.0, (4.0, 4.0, 8.0))), [4, 4, 6, 8]
    )


@pytest.mark.parametrize(
    "preprocessing",
    [{}, {"upright": True}, {"crop_to_head": False}],
    ids=["cut", "turned", "whole"],
)
def test_outlines_come_back_to_the_pixels_of_the_slice(
    load: LoadModel, preprocessing: dict[str, object]
) -> None:
    series = Series(bleeding_head([0.0, 5.0], moved_px=14), (), 5.0)
    result = load(preprocessing).predict(series).outlines
    assert result.outlined_slices == (0, 1)
    for mask, slice_ in zip(result.masks, series.slices, strict=True):
        blood = slice_.pixels == np.float32(BLOOD_HU)
        assert mask is not None and mask.shape == blood.shape and mask.dtype == bool
        assert 2 * (mask & blood).sum() / (mask.sum() + blood.sum()) > 0.94


def test_a_volume_that_cannot_be_known_has_a_reason(load: LoadModel) -> None:
    predictor = load()
    slices = bleeding_head(np.arange(-40, 40, 5.0))
    no_sizes = tuple(replace(one, spacing_mm=None) for one in slices)
    no_blood = bleeding_head([40.0, 45.0, 50.0])
    beside_gap = np.delete(np.arange(-40, 40, 5.0), [9, 10])
    of_series = {
        outlines.NO_DISTANCE: Series(slices),
        outlines.NO_PIXEL_SIZE: Series(no_sizes, (), 5.0),
        outlines.ONE_SLICE: Series(slices[8:9]),
        outlines.NOTHING_OUTLINED: Series(no_blood, (), 5.0),
        outlines.NEXT_TO_GAP: Series(
            bleeding_head(beside_gap), (), 5.0, tuple(float(step) for step in np.diff(beside_gap))
        ),
    }
    for reason, series in of_series.items():
        result = predictor.predict(series).outlines
        assert (result.volume_ml, result.no_volume_because) == (None, reason)
        assert bool(result.outlined_slices) is (reason != outlines.NOTHING_OUTLINED)
        assert bool(result.areas_mm2) is (reason != outlines.NO_PIXEL_SIZE)


def test_a_gap_elsewhere_leaves_the_volume(load: LoadModel) -> None:
    places = np.delete(np.arange(-60, 40, 5.0), [2, 3])
    steps = tuple(float(step) for step in np.diff(places))
    result = load().predict(Series(bleeding_head(places), (), 5.0, steps)).outlines
    assert result.volume_ml == pytest.approx(KNOWN_ML, rel=0.1)


def test_a_scan_that_is_not_suspected_has_no_outline(load: LoadModel) -> None:
    series = evenly(8.0)
    above = load(threshold=1.0, uncertain_low=1.0, uncertain_high=1.0)
    clear = above.predict(series)
    assert clear.state == "not found"
    assert clear.outlines == outlines.Outlines(no_volume_because=outlines.NOT_FOUND)
    band = {"scan_threshold": 1.0, "scan_uncertain_low": 0.0, "scan_uncertain_high": 1.0}
    unsure = load(**band).predict(series)
    assert unsure.state == "inconclusive" and unsure.outlines.volume_ml is not None


def test_a_slice_below_the_threshold_has_no_outline_unless_all_are_below(load: LoadModel) -> None:
    series, predictor = evenly(5.0), load()
    every = predictor.predict(series)
    some = predictor.with_thresholds(0.6, None).predict(series)
    positive = {n for n, value in enumerate(every.slice_probabilities) if value >= 0.6}
    assert set(some.outlines.outlined_slices) == positive & set(every.outlines.outlined_slices)
    assert 0 < (some.outlines.volume_ml or 0) < (every.outlines.volume_ml or 0)
    lone = predictor.with_thresholds(0.999, None).predict(series)
    assert lone.positive
    highest = max(lone.slice_probabilities)  # of several slices, which are alike
    most = {n for n, value in enumerate(lone.slice_probabilities) if value == highest}
    assert set(lone.outlines.outlined_slices) == most


def test_specks_beside_an_outline_are_dropped_and_a_small_hemorrhage_alone_is_kept() -> None:
    mask = np.zeros((50, 60), bool)
    mask[5:15, 5:15] = True
    mask[30:35, 40:42] = True  # a tenth of the largest piece
    with_speck = mask.copy()
    with_speck[45:48, 20:23] = True
    np.testing.assert_array_equal(outlines.without_specks(with_speck), mask)

    alone = with_speck & ~mask
    np.testing.assert_array_equal(outlines.without_specks(alone), alone)


def test_a_model_without_outlines_says_so(tiny_model: Callable[..., Path]) -> None:
    predictor = Predictor(tiny_model(), checks_head_ct=False)
    result = predictor.predict(Series((Slice(np.full((64, 64), 0.9, np.float32), "display"),)))
    assert not predictor.gives_outlines
    assert result.outlines == outlines.Outlines(no_volume_because=outlines.NO_OUTLINES)


def test_heat_maps_are_those_of_the_maps_alone(load: LoadModel) -> None:
    predictor = load()
    assert predictor.gives_outlines
    assert predictor.heatmap(evenly(8.0), 5).shape == HEAD.shape


WITH_CHANNELS = ["N", CELLS, CELLS, 1]


def outlining(
    node: str, shape: list[object], element: int = TensorProto.FLOAT, **attributes: object
) -> bytes:
    """A features graph whose outline is made of its maps by one node."""
    described = helper.make_tensor_value_info
    images = described("images", TensorProto.FLOAT, ["N", INPUT_PX, INPUT_PX, 1])
    nodes = [
        helper.make_node("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["nchw"], ["pooled"], kernel_shape=[CELLS] * 2, strides=[CELLS] * 2
        ),
        helper.make_node("Transpose", ["pooled"], ["maps"], perm=[0, 2, 3, 1]),
        helper.make_node(node, ["maps"], ["outline"], **attributes),
    ]
    outputs = [
        described("maps", TensorProto.FLOAT, WITH_CHANNELS),
        described("outline", element, shape),
    ]
    return serialized(model_of(nodes, "odd", [images], outputs, []))


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (outlining("Identity", WITH_CHANNELS), NO_PROBABILITIES),
        (outlining("ReduceSum", [], keepdims=0), NO_PROBABILITIES),
        (
            outlining("Cast", WITH_CHANNELS, TensorProto.DOUBLE, to=TensorProto.DOUBLE),
            "The model's features.onnx must use single precision for 'outline'.",
        ),
    ],
    ids=["with channels", "one number", "double"],
)
def test_an_outline_of_another_kind_is_refused(tmp_path: Path, graph: bytes, sentence: str) -> None:
    write_model(tmp_path / "odd", a_card(), {"features.onnx": graph, "head.onnx": head_graph()})
    with pytest.raises(ArtifactError) as refusal:
        Predictor(tmp_path / "odd", checks_head_ct=False).predict(
            Series((Slice(np.full((64, 64), 0.9, np.float32), "display"),))
        )
    assert str(refusal.value) == sentence
