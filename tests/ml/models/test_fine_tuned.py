"""Fine-tuning that several architectures share, and the folder that spares doing it twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.models import fine_tuned
from ml.models.contract import FitTask, HeldOut, fit_of
from ml.models.fine_tuned import alexnet_of, tuned_convolutions
from ml.networks.fine_tuning import Tuned, computed_by
from ml.networks.weights import load_weights, random_weights, rounded
from tests.ml.tasks import task_of

pytestmark = pytest.mark.usefixtures("untraced")

SHARING: dict[str, dict[str, object]] = {
    "alexnet_cells": {"epochs": 1},
    "alexnet_cells_series": {"epochs": 1},
    "alexnet_svm": {"fine_tune_epochs": 1, "pooling": "average"},
    "cnn_lstm": {"fine_tune_epochs": 1, "epochs": 1, "units": 4, "projection": 4},
    "cnn_gru": {"fine_tune_epochs": 1, "epochs": 1, "units": 4, "projection": 4},
}


@pytest.fixture
def tunings(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images that each fine-tuning learned from, in the order in which they began."""
    result: list[np.ndarray] = []
    fine_tune: Callable[..., Tuned] = fine_tuned.fine_tune

    def counted(*given: Any, **named: Any) -> Tuned:
        result.append(given[2].learn)
        return fine_tune(*given, **named)

    monkeypatch.setattr(fine_tuned, "fine_tune", counted)
    return result


def test_architectures_share_one_fine_tuning_and_it_changes_no_number(
    tunings: list[np.ndarray], tmp_path: Path
) -> None:
    alone = {
        name: fit_of(name)(task_of(name, tmp_path / name, settings))
        for name, settings in SHARING.items()
    }
    assert len(tunings) == len(SHARING) and all(
        np.array_equal(learn, tunings[0]) for learn in tunings
    )
    tunings.clear()
    for name, settings in SHARING.items():
        together = fit_of(name)(
            task_of(name, tmp_path / f"{name}-again", settings, reuse=tmp_path / "kept")
        )
        np.testing.assert_array_equal(together.decisions, alone[name].decisions)
        np.testing.assert_array_equal(together.held_out.decisions, alone[name].held_out.decisions)
    assert len(tunings) == 1 and len(list((tmp_path / "kept").iterdir())) == 1


def test_the_final_model_of_each_learns_from_all(tunings: list[np.ndarray], tmp_path: Path) -> None:
    scans = np.arange(24)
    before = HeldOut(scans, np.linspace(-1, 1, 24), scans, np.linspace(-1, 1, 24))
    chosen = [
        {"layer": "conv5", "pooling": "average", "kernel": "linear", "pca": "no", "C": cost}
        for cost in (0.01, 0.003, 0.01)
    ]
    for name, settings in SHARING.items():
        task = task_of(
            name, tmp_path / name, settings, reuse=tmp_path / "kept", held_out=before, chosen=chosen
        )
        result = fit_of(name)(task)
        assert result.held_out is before
        if name == "alexnet_svm":
            assert result.chosen["C"] == 0.01, "what most folds chose"
    assert len(tunings) == 1 and np.array_equal(tunings[0], np.arange(24))


def kept_after(task: FitTask, epochs: int = 1, layer: str = "conv3") -> int:
    encoder = alexnet_of(task, layer)
    tuned_convolutions(task, encoder, np.arange(20), epochs, lambda share, figures: None)
    assert task.reuse is not None
    return len(list(task.reuse.iterdir()))


def test_whatever_the_fine_tuning_hangs_on_makes_it_another(
    monkeypatch: pytest.MonkeyPatch, tunings: list[np.ndarray], tmp_path: Path
) -> None:
    def instead(start: dict[str, np.ndarray], *given: object, **named: object) -> Tuned:
        return Tuned(start, np.zeros(384, np.float32), 0.0, "a test")

    monkeypatch.setattr(fine_tuned, "fine_tune", instead)
    task = task_of("alexnet_cells", tmp_path, reuse=tmp_path / "kept")
    numbers = iter(range(100))

    def changed(**values: object) -> FitTask:
        return replace(task, folder=tmp_path / f"own-{next(numbers)}", **values)  # type: ignore[arg-type]

    images, labels, masks, sources = (
        values.copy() for values in (task.images, task.labels, task.masks, task.sources)
    )
    assert kept_after(changed()) == kept_after(changed()) == 1
    images[25], labels[25] = 0, 1 - labels[25]
    assert kept_after(changed(images=images, labels=labels)) == 1, "what is not learned from"
    images[3, 0, 0, 0] += 0.1
    assert kept_after(changed(images=images)) == 2
    labels[3] = 1 - labels[3]
    assert kept_after(changed(labels=labels)) == 3
    masks[3, 0, 0] = 255
    assert kept_after(changed(masks=masks)) == 4
    sources[3] = "b"
    assert kept_after(changed(sources=sources)) == 5
    assert kept_after(changed(seed=1)) == 6
    assert kept_after(changed(settings={**task.settings, "precision": "bfloat16"})) == 7
    assert (
        kept_after(changed(settings={**task.settings, "local_response_normalisation": "yes"})) == 8
    )
    assert kept_after(changed(), epochs=2) == 9
    assert kept_after(changed(), layer="conv4") == 10


def test_some_of_the_initial_weights_stay_unless_they_were_random(
    tunings: list[np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "initial.npz", **random_weights(1))  # type: ignore[arg-type]
    initial = load_weights(tmp_path / "initial.npz", 0, "conv3")

    def tuned_with(share: float, init: Path | str = tmp_path / "initial.npz") -> Tuned:
        settings = {"initial_share": share}
        task = task_of(
            "alexnet_cells",
            tmp_path / f"{share} {Path(init).name}",
            settings,
            init=init,
            reuse=tmp_path / "kept",
        )
        encoder = alexnet_of(task, "conv3")
        return tuned_convolutions(task, encoder, np.arange(20), 1, lambda share, figures: None)

    learned, half = tuned_with(0.0), tuned_with(0.5)
    assert len(tunings) == 1, "the share is mixed in afterwards"
    for name, values in half.convolutions.items():
        np.testing.assert_array_equal(
            values, rounded({name: 0.5 * initial[name] + 0.5 * learned.convolutions[name]})[name]
        )
    assert not np.array_equal(half.convolutions["conv3_W"], learned.convolutions["conv3_W"])
    assert np.array_equal(half.cell_weights, learned.cell_weights)
    assert half.by == learned.by == computed_by()
    for name, values in tuned_with(0.0, "random").convolutions.items():
        np.testing.assert_array_equal(values, tuned_with(0.5, "random").convolutions[name])
