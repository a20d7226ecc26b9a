"""What is shown of processing is what training computes, and the autoencoder is the model's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml.artifacts.folder import write_model
from ml.errors import ArtifactError
from ml.exploration.processing import NO_HEAD, NO_UNITS, STEPS, processing_steps, with_outline
from ml.inference.restructuring import Restructuring
from ml.networks.autoencoder import build
from ml.networks.autoencoder import random_weights as random_autoencoder
from ml.networks.convolutions import to_onnx
from ml.networks.weights import random_weights
from ml.preprocessing.augmentation import augmented_copies
from ml.preprocessing.model_input import NOT_STRIPPED, InputSpec, to_input
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice, gray_of
from tests.ml.conftest import a_card, features_graph, head_graph


def head(seed: int = 1) -> Slice:
    """Return a phantom."""
    return Slice(phantom(seed, hemorrhage=True, size=96).astype(np.float32), "hu")


def test_each_step_is_the_input_with_one_change() -> None:
    slice_, spec = head(), InputSpec(size=64, window_level=50, normalisation="percentile")
    steps = processing_steps(slice_, spec, seed=3)
    for name, changes in STEPS.items():
        expected = to_input(slice_, replace(spec, **changes))[0][..., 0]  # type: ignore[arg-type]
        np.testing.assert_array_equal(steps[name]().pictures[0], expected)
    np.testing.assert_array_equal(steps["original"]().pictures[0], gray_of(slice_, 50, 80))
    own = to_input(slice_, spec)[0]
    np.testing.assert_array_equal(
        np.stack(steps["augmentation"]().pictures), augmented_copies(own, 10, 3)[..., 0]
    )


def test_what_does_not_work_is_noted() -> None:
    dark = Slice(np.full((64, 64), -1000, np.float32), "hu")
    steps = processing_steps(dark, InputSpec(size=32), seed=0)
    assert steps["head crop"]().notes == (NO_HEAD,)
    picture = Slice(gray_of(dark), "display")
    assert processing_steps(picture, InputSpec(size=32), seed=0)["original"]().notes == (NO_UNITS,)
    assert steps["original"]().notes == ()
    assert steps["skull stripping"]().notes == (NO_HEAD, NOT_STRIPPED)


def test_an_outline_is_drawn_around_a_mask() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = with_outline(np.full((20, 20), 0.5, np.float32), mask)
    assert (drawn[5, 5:15] == (255, 196, 61)).all() and (drawn[8:12, 8:12] == 128).all()


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_autoencoder_of_a_model_is_run_by_itself(tmp_path: Path, both_ways: bool) -> None:
    size, weights = 96, random_autoencoder(0)
    spec = InputSpec(size=size)
    features = to_onnx(random_weights(0), "conv5", size, both_ways=both_ways, restructuring=weights)
    files = {"features.onnx": features, "head.onnx": head_graph()}
    write_model(tmp_path / "model", a_card(preprocessing=spec.to_dict()), files)

    given, drawn = Restructuring(tmp_path / "model").of(head())

    expected = to_input(head(), spec)[0]
    np.testing.assert_array_equal(given, expected[..., 0])
    stored = {name: np.float16(values).astype(np.float32) for name, values in weights.items()}
    whole = np.asarray(build(stored, size)(expected[np.newaxis]))
    np.testing.assert_allclose(drawn, whole[0, ..., 0], atol=1e-5)


def test_a_model_without_an_autoencoder_says_so(tmp_path: Path) -> None:
    plain = {"features.onnx": features_graph(), "head.onnx": head_graph()}
    write_model(tmp_path / "plain", a_card(), plain)
    with pytest.raises(ArtifactError, match="does not restructure"):
        Restructuring(tmp_path / "plain")
