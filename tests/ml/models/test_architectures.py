"""What holds for every architecture of the catalogue: the graphs are what was judged, an
interruption changes nothing, nothing leaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ml.catalogue import ARCHITECTURES
from ml.evaluation.calibration import Platt
from ml.models import features
from ml.models.contract import Fitted, fit_of
from ml.networks.convolutions import pooled
from ml.training.export_check import check_export
from ml.training.progress import TrainingStopped
from tests.ml.tasks import largest_difference, task_of

pytestmark = pytest.mark.usefixtures("untraced")

QUICK: Mapping[str, dict[str, object]] = {
    "alexnet_svm": {
        "layer": "auto",
        "kernel": "auto",
        "pca": "auto",
        "restructure": "autoencoder",
        "augmentation": 2,
    },
    "alexnet": {
        "epochs": 2,
        "fully_connected": 16,
        "restructure": "autoencoder",
        "augmentation": 2,
    },
    "cnn_lstm": {
        "epochs": 2,
        "units": 4,
        "projection": 4,
        "restructure": "autoencoder",
        "augmentation": 2,
    },
    "cnn_gru": {"epochs": 2, "units": 4, "projection": 4, "fine_tune_epochs": 1},
    "autoencoder": {"epochs": 2, "kernel": "rbf", "augmentation": 2},
    "alexnet_cells": {"epochs": 2},
    "alexnet_cells_series": {"epochs": 2},
    "googlenet_cells": {"epochs": 1},
    "googlenet_cells_series": {"epochs": 1},
    "googlenet_unet": {"epochs": 1},
    "googlenet_unet_series": {"epochs": 1},
}


@pytest.fixture(autouse=True)
def few_pictures_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PICTURES_TO_RECONSTRUCT", 1)
    monkeypatch.setattr(features, "FEWEST_EPOCHS", 2)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fitted]:
    """The fits that other tests compare with, made when they are asked for."""
    return {}


def fit(name: str, folder: Path, fitted: dict[str, Fitted]) -> Fitted:
    if name not in fitted:
        fitted[name] = fit_of(name)(task_of(name, folder, QUICK[name]))
    return fitted[name]


def test_every_architecture_is_tested() -> None:
    assert set(QUICK) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", QUICK)
def test_the_exported_graphs_answer_as_what_was_judged(
    name: str, fitted: dict[str, Fitted], tmp_path: Path
) -> None:
    result = fit(name, tmp_path, fitted)
    task = task_of(name, tmp_path)
    assert largest_difference(result, [task.images[:1], task.images[:5]]) < 1e-4
    graph = onnxruntime.InferenceSession(result.export(Platt(1, 0), Platt(1, 0))["features.onnx"])
    # Some architectures do not ask for negative slices that they have learned from.
    positions = np.flatnonzero(np.isfinite(result.decisions))[:5]
    maps = graph.run(["maps"], {"images": task.images[positions]})[0]
    np.testing.assert_allclose(
        result.descriptions[positions],
        pooled(maps, "both"),
        rtol=1e-3,
        atol=1e-3 * float(np.abs(maps).max()),
    )
    named = {output.name for output in graph.get_outputs()}
    assert ("outline" in named) == (result.outlines is not None) == ("unet" in name)
    if result.outlines is not None:
        outlined = graph.run(["outline"], {"images": task.images[positions]})[0]
        np.testing.assert_allclose(result.outlines[positions], outlined, atol=1e-3)
    assert result.descriptions.shape == (32, 2 * maps.shape[-1])
    assert result.decisions.shape == result.scan_decisions.shape == (32,)
    assert set(result.held_out.slices.tolist()) <= set(range(24)) and set(
        task.labels[result.held_out.slices]
    ) == {0, 1}


def test_the_export_check_looks_at_outlines(fitted: dict[str, Fitted], tmp_path: Path) -> None:
    result = fit("googlenet_unet", tmp_path, fitted)
    platt, images = Platt(1, 0), task_of("googlenet_unet", tmp_path).images[:3]
    files = result.export(platt, platt)
    assert check_export(files, result, platt, platt, None, images).passed
    right = result.reference_outlines
    assert right is not None
    wrong = replace(result, reference_outlines=lambda images: right(images) + 0.01)
    assert not check_export(files, wrong, platt, platt, None, images).passed


@pytest.mark.parametrize("name", QUICK)
def test_an_interrupted_fit_ends_with_the_same_numbers(
    name: str, fitted: dict[str, Fitted], tmp_path: Path
) -> None:
    expected = fit(name, tmp_path / "straight", fitted)

    def stop(share: float, figures: Mapping[str, float]) -> None:
        if share > 0.6:
            raise TrainingStopped

    task = task_of(name, tmp_path / "interrupted", QUICK[name])
    with pytest.raises(TrainingStopped):
        fit_of(name)(replace(task, report=stop))
    continued = fit_of(name)(task)
    np.testing.assert_allclose(continued.decisions, expected.decisions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        continued.held_out.decisions, expected.held_out.decisions, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", QUICK)
def test_held_out_images_do_not_change_the_fit(
    name: str, fitted: dict[str, Fitted], tmp_path: Path
) -> None:
    """Neither their pixels, which an autoencoder and augmented copies could take, nor their labels
    and outlines.
    """
    expected = fit(name, tmp_path / "one", fitted)
    task = task_of(name, tmp_path / "other", QUICK[name])
    images, labels, masks = task.images.copy(), task.labels.copy(), task.masks.copy()
    images[24:], labels[24:], masks[24:] = 1 - images[24:], 1 - labels[24:], 1
    other = fit_of(name)(replace(task, images=images, labels=labels, masks=masks))
    np.testing.assert_allclose(other.decisions[:24], expected.decisions[:24], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        other.held_out.decisions, expected.held_out.decisions, rtol=1e-4, atol=1e-5
    )
