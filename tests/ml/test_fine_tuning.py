"""Fine-tuning cell by cell, and the architecture that keeps its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ml.calibration import Platt
from ml.models import FitTask, alexnet_cells, fine_tuning
from ml.models.fine_tuning import POSITIVE_SHARE, _bloody_cells, balanced_draws, fine_tune
from ml.models.loop import _ahead
from ml.models.weights import random_weights

SIZE = 63


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(0)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is two batches of eight pictures: enough where it counts that something learnt, not how well."""
    monkeypatch.setattr(fine_tuning, "BATCH", 8)
    monkeypatch.setattr(fine_tuning, "MOST_BATCHES", 2)


def learning_pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, labels, sources and outlines: those with label 1 have a bright square in the middle."""
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 16)
    pictures = random.random((32, SIZE, SIZE, 1), np.float32) * 0.2
    pictures[labels == 1, 20:40, 20:40] += 0.7
    outlines = np.zeros((32, 14, 14), np.uint8)
    outlines[labels == 1, 4:9, 4:9] = 1
    return pictures, labels, np.full(32, "a"), outlines


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
    assert _bloody_cells(outline, 1, 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert (_bloody_cells(np.zeros((8, 8), np.uint8), 0, 4) == 0).all()


def test_cells_of_a_hemorrhage_that_nobody_outlined_are_unknown() -> None:
    assert (_bloody_cells(np.full((8, 8), 255, np.uint8), 1, 4) == -1).all()
    assert (_bloody_cells(np.zeros((8, 8), np.uint8), 1, 4) == -1).all(), "its outline was moved out of the picture"


@pytest.mark.usefixtures("untraced", "small_batches")
def test_fine_tuning_that_was_interrupted_ends_with_the_same_weights(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    data = (*learning_pictures(), np.arange(32), "conv3")

    class Interrupted(Exception):
        pass

    def stop_in_epoch_two(share: float, metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise Interrupted

    straight = fine_tune(weights, *data, 3, 5, tmp_path / "a.npz", lambda share, metrics: None)
    with pytest.raises(Interrupted):
        fine_tune(weights, *data, 3, 5, tmp_path / "b.npz", stop_in_epoch_two)
    continued = fine_tune(weights, *data, 3, 5, tmp_path / "b.npz", lambda share, metrics: None)
    assert all(np.array_equal(straight.convolutions[key], continued.convolutions[key]) for key in weights)
    assert np.array_equal(straight.cell_weights, continued.cell_weights) and straight.cell_bias == continued.cell_bias
    assert not np.array_equal(straight.convolutions["conv1_W"], weights["conv1_W"])
    assert np.array_equal(straight.convolutions["conv5_W"], weights["conv5_W"]), "what the layer does not use is left alone"


@pytest.mark.usefixtures("small_batches")
def test_half_the_bits_learn_too(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    data = (*learning_pictures(), np.arange(32), "conv3")
    tuned = fine_tune(weights, *data, 1, 5, tmp_path / "a.npz", lambda share, metrics: None, precision="bfloat16")
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


def a_task(tmp_path: Path, **changed: object) -> FitTask:
    pictures, labels, sources, outlines = learning_pictures()
    given: dict[str, object] = {
        "images": pictures,
        "labels": labels,
        "groups": np.array([f"g{n // 2}" for n in range(32)]),
        "sources": sources,
        "scans": np.repeat(np.arange(16), 2),
        "masks": outlines,
        "unseen": np.ones(32, bool),
        "train": np.arange(24),
        "settings": {"epochs": 2, "precision": "float32"},
        "seed": 0,
        "init": "random",
        "shared": tmp_path / "shared",
        "own": tmp_path / "own",
        "report": lambda share, metrics: None,
        **changed,
    }
    return FitTask(**given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("untraced", "small_batches")
def test_the_exported_cells_answer_as_those_of_keras(tmp_path: Path) -> None:
    task = a_task(tmp_path)
    fitted = alexnet_cells.fit(task)
    assert set(fitted.held_out.slices.tolist()) < set(range(24)) and fitted.learnt_features
    platt, scan_platt = Platt(1.0, 0.0), Platt(0.5, 0.2)
    files = fitted.export(platt, scan_platt)
    for images in (task.images[:1], task.images[:5]):
        maps, slices, scan = fitted.reference(images, platt, scan_platt)
        found_maps = onnxruntime.InferenceSession(files["features.onnx"]).run(["maps"], {"images": images})[0]
        session = onnxruntime.InferenceSession(files["head.onnx"])
        found, found_scan = session.run(["slice_probability", "scan_probability"], {"maps": found_maps})
        assert np.abs(found_maps - maps).max() <= 1e-4 * max(1.0, np.abs(maps).max())
        assert found == pytest.approx(slices, abs=1e-4) and found_scan == pytest.approx([scan], abs=1e-4)


@pytest.mark.usefixtures("untraced", "small_batches")
def test_what_is_not_in_the_training_part_changes_nothing(tmp_path: Path) -> None:
    task = a_task(tmp_path / "one")
    other_labels, other_masks = task.labels.copy(), task.masks.copy()
    other_labels[24:], other_masks[24:] = 1 - other_labels[24:], 1
    first = alexnet_cells.fit(task)
    second = alexnet_cells.fit(
        replace(task, labels=other_labels, masks=other_masks, own=tmp_path / "two" / "own", shared=tmp_path / "two" / "shared")
    )
    np.testing.assert_array_equal(first.decisions, second.decisions)
