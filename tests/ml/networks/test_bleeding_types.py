"""The head that tells types of bleeding, on maps in which each type has a channel of its own."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.examples import UNKNOWN
from ml.networks.bleeding_types import TypesHead, fit_types, of_scan
from ml.networks.convolutions import pooled

GROUPS = 8  # of each type, and of slices without blood; two slices a group


def lit(types: np.ndarray) -> np.ndarray:
    """Return maps (n, 2, 3, 5) in which one cell of the channel of each type that a slice shows is
    1.
    """
    maps = np.zeros((len(types), 2, 3, len(BLEEDING_TYPES)), np.float32)
    maps[:, 1, 2] = types == 1
    return maps


@pytest.fixture
def types() -> np.ndarray:
    """Slices that each show one type or, the last, none, (96, 5); neighbors are a group."""
    kind = np.repeat(np.arange(6), 2 * GROUPS)
    return (kind[:, np.newaxis] == np.arange(5)).astype(np.int8)


def fitted(types: np.ndarray, learn: np.ndarray | None = None) -> TypesHead:
    groups = np.arange(len(types)) // 2
    return fit_types(
        pooled(lit(types), "both"), types, groups, np.arange(len(types)) if learn is None else learn
    )


def test_each_type_is_recognized_by_its_channel_and_none_is_likelier_than_a_hemorrhage(
    types: np.ndarray,
) -> None:
    head = fitted(types)
    assert head.names == BLEEDING_TYPES
    result = head.of_slices(pooled(lit(types), "both"), np.full(len(types), 0.8))
    bleeding = types.any(axis=1)
    assert (result[bleeding].argmax(axis=1) == types[bleeding].argmax(axis=1)).all()
    assert (result < 0.8).all() and result[types == 1].min() > result[bleeding][
        types[bleeding] == 0
    ].max()


def test_the_mean_answer_is_the_share_of_bleeding_slices_that_show_the_type(
    types: np.ndarray,
) -> None:
    types[:6, 1] = 1  # three groups show two types
    bleeding = np.flatnonzero(types.any(axis=1))
    result = fitted(types).of_slices(pooled(lit(types), "both"), np.ones(len(types)))[bleeding]
    np.testing.assert_allclose(result.mean(axis=0), types[bleeding].mean(axis=0), atol=1e-3)


def test_slices_without_blood_of_unknown_types_and_of_others_teach_nothing(
    types: np.ndarray,
) -> None:
    learn = np.arange(len(types) - 20)
    expected = fitted(types, learn)
    more = np.concatenate([types, np.full((4, 5), UNKNOWN, np.int8)])
    more[len(types) - 20 : len(types)] = 1 - more[len(types) - 20 : len(types)]
    again = fitted(more, np.concatenate([learn, np.arange(len(types), len(types) + 4)]))
    np.testing.assert_array_equal(again.weights, expected.weights)
    np.testing.assert_array_equal(again.offsets, expected.offsets)


def test_a_type_that_two_groups_show_or_that_two_groups_bleed_without_is_not_reported(
    types: np.ndarray,
) -> None:
    of_two = types[:36]  # epidural, subdural, and two groups with subarachnoid bleeding
    assert fitted(of_two).names == ("epidural", "subdural")
    assert fitted(types[:20]).names == (), "two groups are all that bleed otherwise"
    probabilities = fitted(of_two).of_slices(pooled(lit(of_two), "both"), np.ones(36))
    assert np.isfinite(probabilities[:, :2]).all() and np.isnan(probabilities[:, 2:]).all()
    assert np.isnan(fitted(types[-8:]).of_slices(np.zeros((1, 10), np.float32), np.ones(1))).all()


def test_a_scan_has_the_largest_of_its_slices_and_no_more_than_its_own_probability() -> None:
    slices = np.array([[0.1, 0.6, np.nan], [0.3, 0.2, np.nan]])
    np.testing.assert_array_equal(of_scan(slices, 0.5), [0.3, 0.5, np.nan])


@pytest.mark.parametrize("slices", [1, 7])
def test_the_exported_graph_answers_as_the_head(types: np.ndarray, slices: int) -> None:
    head = fitted(types[:36])
    random = np.random.default_rng(0)
    maps = random.random((slices, 2, 3, 5), np.float32)
    probabilities, scan = random.random(slices, np.float32), np.array([0.2], np.float32)
    expected = head.of_slices(pooled(maps, "both"), probabilities)
    graph = onnxruntime.InferenceSession(head.to_onnx())
    given = {"maps": maps, "slice_probability": probabilities, "scan_probability": scan}
    of_slices, of_whole = graph.run(["slice_types", "scan_types"], given)
    np.testing.assert_allclose(of_slices, expected[:, :2], atol=1e-6)
    np.testing.assert_allclose(of_whole, of_scan(expected, float(scan[0]))[:2], atol=1e-6)
