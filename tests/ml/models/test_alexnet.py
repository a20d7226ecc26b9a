"""The paper's network: softmax, fully connected layers, frozen and learning convolutions, both
layouts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ml.evaluation.calibration import Platt
from ml.evaluation.metrics import auroc
from ml.models import alexnet, features
from tests.ml.tasks import largest_difference, learning_pictures, task_of

SMALL: dict[str, object] = {"epochs": 1, "fully_connected": 16}


def test_the_network_learns_the_labels_of_the_pictures(tmp_path: Path) -> None:
    task = task_of(
        "alexnet", tmp_path, {"epochs": 8, "fully_connected": 32, "learning_rate": 0.001}
    )
    result = alexnet.fit(task)
    assert auroc(task.labels[24:], result.decisions[24:]) > 0.9
    assert (
        result.learned_features
        and result.chosen["learnt_from"] + result.chosen["calibrated_on"] == 24
    )


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("frozen", [0, 3, 5])
@pytest.mark.parametrize("restructure", ["none", "autoencoder"])
def test_the_graphs_match_the_evaluated_model_however_much_is_frozen(
    frozen: int, restructure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "PICTURES_TO_RECONSTRUCT", 1)
    monkeypatch.setattr(features, "FEWEST_EPOCHS", 1)
    task = task_of("alexnet", tmp_path, {**SMALL, "frozen": frozen, "restructure": restructure})
    result = alexnet.fit(task)
    assert largest_difference(result, [task.images[:1], task.images[:3]]) < 1e-4
    assert result.learned_features is (frozen < 5 or restructure == "autoencoder")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("groups", [1, 2])
def test_the_layout_of_2012_with_its_normalization_and_groups(groups: int, tmp_path: Path) -> None:
    pictures = np.pad(learning_pictures()[0], ((0, 0), (8, 8), (8, 8), (0, 0)))
    task = task_of(
        "alexnet",
        tmp_path,
        {**SMALL, "frozen": 1, "layout": "original", "groups": groups},
        images=pictures,
    )
    result = alexnet.fit(task)
    assert result.chosen["layout"] == "original"
    assert largest_difference(result, [task.images[:1], task.images[:3]]) < 1e-4
    operators = result.export(Platt(1, 0), Platt(1, 0))["features.onnx"]
    assert b"LRN" in operators


@pytest.mark.usefixtures("untraced")
def test_frozen_convolutions_stay_as_they_were(tmp_path: Path) -> None:
    task = task_of("alexnet", tmp_path, {**SMALL, "frozen": 3})
    alexnet.fit(task)
    trained = dict(np.load(task.folder / "trained.npz"))
    start = alexnet.initial_weights(task, "conv5")
    assert all(
        np.array_equal(trained[f"conv{number}_W"], start[f"conv{number}_W"]) for number in (1, 2, 3)
    )
    assert not np.array_equal(trained["conv4_W"], start["conv4_W"])


def test_half_the_bits_learn_too(tmp_path: Path) -> None:
    task = task_of("alexnet", tmp_path, {**SMALL, "precision": "bfloat16"})
    assert largest_difference(alexnet.fit(task), [task.images[:2]]) < 1e-4
