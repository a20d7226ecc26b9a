"""Initial weights: two layouts, groups, and every kind of file they may come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ml.artifacts.card import Card
from ml.artifacts.folder import write_model
from ml.catalogue import STARTER_DIR
from ml.errors import ArtifactError
from ml.models.autoencoder import Bottleneck
from ml.networks.autoencoder import random_weights as random_autoencoder
from ml.networks.convolutions import build, maps_shape, to_onnx
from ml.networks.weights import (
    LAYOUTS,
    ORIGINAL,
    OWT,
    groups_of,
    layout_of,
    load_weights,
    random_weights,
    ungrouped,
)
from tests.ml.networks.test_torch_weights import opcodes, write_archive

SIZE = 79
TORCHVISION_NUMBERS = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}


def save(path: Path, weights: dict[str, np.ndarray]) -> Path:
    np.savez(path, **weights)  # type: ignore[arg-type]
    return path


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return set(one) == set(other) and all(
        np.array_equal(values, other[name]) for name, values in one.items()
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_are_read_back_and_their_graphs_are_those_of_keras(
    layout: str, groups: int, tmp_path: Path
) -> None:
    weights = random_weights(0, layout, groups)
    assert layout_of(weights) is LAYOUTS[layout] and groups_of(weights, "conv2") == groups
    assert same(load_weights(save(tmp_path / "weights.npz", weights), 0, "conv5"), weights)
    pictures = np.random.default_rng(0).random((2, SIZE, SIZE, 1), np.float32)
    expected = build(weights, "conv5", SIZE).predict_on_batch(pictures)
    result = onnxruntime.InferenceSession(to_onnx(weights, "conv5", SIZE)).run(
        ["maps"], {"images": pictures}
    )[0]
    assert result.shape[1:] == (*(maps_shape("conv5", SIZE, LAYOUTS[layout])[:1] * 2), 256)
    assert np.abs(result - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_the_layout_of_2012_normalizes_locally_and_that_of_2014_does_not() -> None:
    pictures = np.random.default_rng(0).random((2, SIZE, SIZE, 1), np.float32)
    assert ORIGINAL.normalizes and not OWT.normalizes
    for weights in (random_weights(0, "original"), random_weights(0, "owt")):
        with_it, without = (
            build(weights, "conv3", SIZE, normalizes=does).predict_on_batch(pictures)
            for does in (True, False)
        )
        as_trained = build(weights, "conv3", SIZE).predict_on_batch(pictures)
        assert not np.allclose(with_it, without)
        assert np.array_equal(as_trained, with_it if layout_of(weights).normalizes else without)


def test_weights_of_two_groups_joined_compute_the_same() -> None:
    weights = random_weights(3, "original", 2)
    pictures = np.random.default_rng(0).random((2, SIZE, SIZE, 1), np.float32)
    joined = ungrouped(weights)
    assert groups_of(joined, "conv4") == 1
    expected = build(weights, "conv5", SIZE).predict_on_batch(pictures)
    assert (
        np.abs(build(joined, "conv5", SIZE).predict_on_batch(pictures) - expected).max()
        <= 1e-4 * np.abs(expected).max()
    )


def test_groups_are_kept_joined_or_refused_as_asked(tmp_path: Path) -> None:
    grouped, whole = (
        save(tmp_path / "grouped.npz", random_weights(0, "original", 2)),
        save(tmp_path / "whole.npz", random_weights(0)),
    )
    assert groups_of(load_weights(grouped, 0, "conv5", groups=None), "conv5") == 2
    assert groups_of(load_weights(grouped, 0, "conv5", groups=2), "conv5") == 2
    assert groups_of(load_weights(grouped, 0, "conv5", groups=1), "conv5") == 1
    with pytest.raises(ArtifactError, match=r"whole.npz are not grouped; choose groups = 1"):
        load_weights(whole, 0, "conv5", groups=2)
    assert layout_of(load_weights("random", 0, "conv5", layout="original", groups=2)) is ORIGINAL


def test_torchvisions_file_is_read(tmp_path: Path) -> None:
    weights = random_weights(5)
    tensors = {}
    for conv, number in TORCHVISION_NUMBERS.items():
        tensors[f"features.{number}.weight"] = np.ascontiguousarray(
            weights[f"{conv}_W"].transpose(3, 2, 0, 1)
        )
        tensors[f"features.{number}.bias"] = weights[f"{conv}_b"]
    path = write_archive(tmp_path / "alexnet.pth", opcodes(tensors), tensors)
    assert same(load_weights(path, 0, "conv5"), weights)
    other = {"layer1.weight": np.zeros(3, np.float32)}
    with pytest.raises(
        ArtifactError, match=r"other.pt has no features.0.weight; it is not torchvision's AlexNet"
    ):
        load_weights(write_archive(tmp_path / "other.pt", opcodes(other), other), 0, "conv5")


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("restructured", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_of_ours_gives_its_convolutions_back(
    layout: str, restructured: bool, both_ways: bool, make_card: Callable[..., Card], tmp_path: Path
) -> None:
    weights = random_weights(2, layout, 2 if layout == "original" else 1)
    before = random_autoencoder(0) if restructured else None
    features = to_onnx(weights, "conv5", SIZE, both_ways=both_ways, restructuring=before)
    write_model(tmp_path / "model", make_card(), {"features.onnx": features, "head.onnx": b""})
    assert same(load_weights(tmp_path / "model", 0, "conv5"), weights)


def test_a_model_without_alexnets_convolutions_says_so(
    make_card: Callable[..., Card], tmp_path: Path
) -> None:
    features = Bottleneck(random_autoencoder(0), 64).to_onnx()
    write_model(
        tmp_path / "model",
        make_card(architecture="autoencoder"),
        {"features.onnx": features, "head.onnx": b""},
    )
    with pytest.raises(
        ArtifactError, match=r"\(autoencoder\) has no AlexNet convolutions to start from"
    ):
        load_weights(tmp_path / "model", 0, "conv5")


def test_a_starter_of_another_encoder_is_refused() -> None:
    with pytest.raises(ArtifactError, match="has no AlexNet convolutions to start from"):
        load_weights(STARTER_DIR, 0, "conv3", groups=1)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weights = random_weights(0)
    weights["conv2_b"][3] = np.nan
    with pytest.raises(
        ArtifactError, match=r"broken.npz has values in conv2_b that are not finite"
    ):
        load_weights(save(tmp_path / "broken.npz", weights), 0, "conv5")
    assert set(load_weights(tmp_path / "broken.npz", 0, "conv1")) == set(weights), (
        "what is not needed is not looked at"
    )


def test_the_files_beside_the_repository_are_read(shared_data: Path) -> None:
    folder = shared_data.parent / "weights"
    for path, layout in (
        (folder / "alexnet_owt_imagenet_conv.npz", OWT),
        (folder / "alexnet_bvlc_imagenet_conv.npz", ORIGINAL),
    ):
        if not path.is_file():
            pytest.skip(f"{path.name} is not here")
        assert layout_of(load_weights(path, 0, "conv5", groups=1)) is layout
