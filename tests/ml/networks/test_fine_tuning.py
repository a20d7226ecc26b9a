"""Fine-tuning cell by cell, and the architecture that keeps its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml.evaluation.calibration import Platt
from ml.models import alexnet_cells, alexnet_cells_series
from ml.models.contract import FitTask
from ml.networks import fine_tuning
from ml.networks.aggregation import aggregate, smoothed
from ml.networks.convolutions import AlexNet
from ml.networks.fine_tuning import (
    POSITIVE_SHARE,
    LabeledSlices,
    Schedule,
    _bloody_cells,
    balanced_draws,
    fine_tune,
)
from ml.networks.training_loop import _ahead
from ml.networks.weights import random_weights
from tests.ml.tasks import largest_difference, learning_pictures, task_of


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(0)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is two batches of eight pictures: enough where it counts that something learned, not
    how well.
    """
    monkeypatch.setattr(fine_tuning, "BATCH", 8)
    monkeypatch.setattr(fine_tuning, "MOST_BATCHES", 2)


def test_hemorrhages_have_the_same_share_within_each_source() -> None:
    labels = np.array([1] * 5 + [0] * 95 + [1] * 50 + [0] * 50)
    sources = np.array(["a"] * 100 + ["b"] * 100)
    drawn = balanced_draws(labels, sources, 2000, np.random.default_rng(0))
    assert labels[drawn].mean() == POSITIVE_SHARE
    assert labels[drawn][sources[drawn] == "a"].mean() == pytest.approx(POSITIVE_SHARE, abs=0.03)


def test_a_source_of_one_class_is_drawn_for_that_class_only() -> None:
    labels, sources = np.array([1, 1, 1, 0]), np.array(["a", "a", "b", "b"])
    drawn = balanced_draws(labels, sources, 100, np.random.default_rng(1))
    assert labels[drawn].mean() == POSITIVE_SHARE


def test_a_cell_is_bloody_where_enough_of_it_is_outlined() -> None:
    outline = np.zeros((8, 8), np.uint8)
    outline[0:2, 0:2] = 1
    assert _bloody_cells(outline, 1, 4).tolist() == [
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert (_bloody_cells(np.zeros((8, 8), np.uint8), 0, 4) == 0).all()


def test_cells_of_a_hemorrhage_without_an_outline_are_unknown() -> None:
    assert (_bloody_cells(np.full((8, 8), 255, np.uint8), 1, 4) == -1).all()
    assert (_bloody_cells(np.zeros((8, 8), np.uint8), 1, 4) == -1).all(), (
        "its outline was moved out of the picture"
    )


@pytest.mark.usefixtures("untraced", "small_batches")
def test_fine_tuning_that_was_interrupted_ends_with_the_same_weights(
    weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    slices = LabeledSlices(*learning_pictures(), np.arange(32))
    given = weights, AlexNet("conv3"), slices, Schedule(3, 5)

    class Interrupted(Exception):
        pass

    def stop_in_epoch_two(share: float, metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise Interrupted

    straight = fine_tune(*given, tmp_path / "a.npz", lambda share, metrics: None)
    with pytest.raises(Interrupted):
        fine_tune(*given, tmp_path / "b.npz", stop_in_epoch_two)
    continued = fine_tune(*given, tmp_path / "b.npz", lambda share, metrics: None)
    assert all(
        np.array_equal(straight.convolutions[key], continued.convolutions[key]) for key in weights
    )
    assert (
        np.array_equal(straight.cell_weights, continued.cell_weights)
        and straight.cell_bias == continued.cell_bias
    )
    assert not np.array_equal(straight.convolutions["conv1_W"], weights["conv1_W"])
    assert np.array_equal(straight.convolutions["conv5_W"], weights["conv5_W"]), (
        "what the layer does not use is left alone"
    )


@pytest.mark.usefixtures("small_batches")
def test_half_the_bits_learn_too(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    slices = LabeledSlices(*learning_pictures(), np.arange(32))
    how = AlexNet("conv3"), slices, Schedule(1, 5, "bfloat16")
    tuned = fine_tune(weights, *how, tmp_path / "a.npz", lambda share, metrics: None)
    assert tuned.convolutions["conv1_W"].dtype == np.float32
    assert not np.array_equal(tuned.convolutions["conv1_W"], weights["conv1_W"])


def test_an_error_while_drawing_reaches_the_training() -> None:
    def draws() -> Iterator[tuple[int]]:
        yield (1,)
        raise ValueError("no picture")

    ahead = _ahead(draws())
    assert next(ahead) == (1,)
    with pytest.raises(ValueError, match="no picture"):
        next(ahead)


def a_task(tmp_path: Path, scan: int = 2, **changed: object) -> FitTask:
    """Return a task for two epochs of cells, `scan` slices to a scan and group."""
    scans = np.arange(32) // scan
    given: dict[str, object] = {
        "scans": scans,
        "groups": np.array([f"g{number}" for number in scans]),
        **changed,
    }
    return task_of("alexnet_cells", tmp_path, {"epochs": 2}, **given)


@pytest.mark.usefixtures("untraced", "small_batches")
def test_neighboring_slices_count_in_the_evaluated_and_in_the_exported_model(
    tmp_path: Path,
) -> None:
    task = a_task(tmp_path, scan=4, reuse=tmp_path / "kept")
    alone = alexnet_cells.fit(task)
    assert alone.learned_features and set(alone.held_out.slices.tolist()) < set(range(24))
    fitted = alexnet_cells_series.fit(replace(task, folder=tmp_path / "other"))
    expected = smoothed(alone.decisions, task.scans)
    np.testing.assert_allclose(fitted.decisions, expected, atol=1e-6)
    np.testing.assert_allclose(
        fitted.held_out.decisions, expected[fitted.held_out.slices], atol=1e-6
    )
    np.testing.assert_allclose(
        fitted.scan_decisions, [aggregate(part) for part in np.split(expected, 8)], atol=1e-6
    )
    assert not np.allclose(fitted.decisions, alone.decisions, atol=1e-3)
    at = 4 * int(alone.held_out.scans[0])
    first = [task.images[at : at + 1], task.images[at : at + 4]]
    assert largest_difference(fitted, first) < 1e-4
    one, whole = (fitted.reference(images, Platt(1.0, 0.0), Platt(1.0, 0.0)) for images in first)
    np.testing.assert_allclose(
        np.log(one[1] / (1 - one[1])), alone.decisions[at : at + 1], atol=1e-3
    )
    np.testing.assert_allclose(np.log(whole[1] / (1 - whole[1])), expected[at : at + 4], atol=1e-3)


@pytest.mark.usefixtures("untraced", "small_batches")
def test_cells_are_exported_from_initial_weights_of_either_layout(tmp_path: Path) -> None:
    """The maps of 2012's AlexNet have another side than those of 2014's, whatever the setting for
    random weights says.
    """
    np.savez(tmp_path / "initial.npz", **random_weights(0, "original"))  # type: ignore[arg-type]
    task = replace(a_task(tmp_path), init=tmp_path / "initial.npz")
    assert task.settings["layout"] == "owt"
    fitted = alexnet_cells.fit(task)
    assert largest_difference(fitted, [task.images[:1], task.images[:4]]) < 1e-4
