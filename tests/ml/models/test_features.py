"""Features of pictures and of their augmented copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ml.models import features
from ml.models.features import (
    Extractor,
    augmented_copy,
    extractor_of,
    features_of,
    restructuring_of,
)
from ml.networks.weights import random_weights
from tests.ml.tasks import SIZE, task_of


def averages(maps: np.ndarray) -> np.ndarray:
    return maps.mean(axis=(1, 2))


def quiet(share: float, figures: object) -> None:
    """Take a report and do nothing with it."""


def test_copy_number_zero_is_the_picture_and_the_others_are_not(tmp_path: Path) -> None:
    task = task_of("alexnet_svm", tmp_path)
    assert np.array_equal(augmented_copy(task, 3, 0, 3), task.images[3])
    assert not np.array_equal(augmented_copy(task, 3, 1, 3), task.images[3])
    assert np.array_equal(
        augmented_copy(task, 3, 1, 3), augmented_copy(task, 3, 1, 3)
    ) and not np.array_equal(augmented_copy(task, 3, 1, 3), augmented_copy(task, 3, 2, 3))


def test_slices_of_a_scan_are_changed_alike(tmp_path: Path) -> None:
    same = np.repeat(task_of("alexnet_svm", tmp_path).images[3:4], 32, axis=0)
    task = task_of("alexnet_svm", tmp_path, images=same)
    assert np.array_equal(augmented_copy(task, 3, 1, 7), augmented_copy(task, 4, 1, 7))
    assert not np.array_equal(augmented_copy(task, 3, 1, 7), augmented_copy(task, 4, 1, 8))


def test_copies_are_made_of_the_training_part_only_where_something_learned(tmp_path: Path) -> None:
    task = task_of("alexnet_svm", tmp_path)
    extractor = Extractor(random_weights(0), "conv3", SIZE, None, None, learned=True)
    result = features_of(task, extractor.build, averages, 3, quiet, learned=extractor.learned)
    assert result.shape == (3, 32, 384) and (result[0].sum(axis=1) > 0).all()
    assert (result[1:, :24].sum(axis=2) > 0).all() and (result[1:, 24:] == 0).all()
    assert sorted(path.name for path in task.folder.iterdir()) == [
        "features-0.npz",
        "features-1.npz",
        "features-2.npz",
    ]


def test_frozen_features_are_shared_by_all_fits(tmp_path: Path) -> None:
    labels = task_of("alexnet_svm", tmp_path).labels
    labels[30] = -1
    task = task_of("alexnet_svm", tmp_path, {"layer": "conv3"}, labels=labels)
    extractor = extractor_of(task, "conv3", task.train, quiet)
    result = features_of(task, extractor.build, averages, 2, quiet, learned=extractor.learned)
    assert not extractor.learned and not task.folder.exists()
    assert (result[1, :30].sum(axis=1) > 0).all() and (result[1, 30] == 0).all(), (
        "nobody learns from an unknown label"
    )

    def must_not_be_built() -> None:
        raise AssertionError

    again = features_of(task, must_not_be_built, averages, 2, quiet, learned=False)  # type: ignore[arg-type]
    assert np.array_equal(again, result)


def test_several_layers_are_seen_in_one_pass_as_each_alone(tmp_path: Path) -> None:
    task = task_of("alexnet_svm", tmp_path)
    weights = random_weights(0)
    together = (
        Extractor(weights, "pool5", SIZE, None, None)
        .build_several(["conv3", "pool5"])
        .predict_on_batch(task.images[:2])
    )
    for layer in ("conv3", "pool5"):
        alone = Extractor(weights, layer, SIZE, None, None)
        np.testing.assert_allclose(
            together[layer], alone.build().predict_on_batch(task.images[:2]), rtol=1e-5, atol=1e-5
        )
        assert together[layer].shape[2:] == alone.shape


def test_the_autoencoder_learns_from_the_training_part_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "PICTURES_TO_RECONSTRUCT", 1)
    monkeypatch.setattr(features, "FEWEST_EPOCHS", 3)
    settings: dict[str, object] = {"restructure": "autoencoder"}
    task = task_of("alexnet_svm", tmp_path / "one", settings)
    other = task.images.copy()
    other[24:] = 1 - other[24:]
    first = restructuring_of(task, task.train, quiet)
    second = restructuring_of(
        task_of("alexnet_svm", tmp_path / "two", settings, images=other), task.train, quiet
    )
    third = restructuring_of(
        task_of("alexnet_svm", tmp_path / "three", settings, images=1 - task.images),
        task.train,
        quiet,
    )
    assert first is not None and second is not None and third is not None
    unseen, seen = (
        max(float(np.abs(other[name] - first[name]).max()) for name in first)
        for other in (second, third)
    )
    assert unseen < 1e-3 < seen, (
        "what it may not learn from changes nothing, what it learns from does"
    )
    assert restructuring_of(task_of("alexnet_svm", tmp_path / "four"), task.train, quiet) is None
    joined = extractor_of(task, "conv3", task.train, quiet)
    assert joined.learned and joined.shape[1] == 2 * 384 == joined.build().output_shape[-1]
