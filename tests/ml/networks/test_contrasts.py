"""The picture in other contrasts: its soft tissue leveled, and the same without bone."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest

from ml.artifacts.card import FEATURES
from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.networks.contrasts import contrasts
from ml.networks.googlenet import GoogLeNet
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice
from tests.ml.networks.test_convolutions import TARGET, head


def test_soft_tissue_gets_the_level_and_the_spread() -> None:
    picture = np.zeros((1, 20, 20, 1), np.float32)
    # mean 0.3, standard deviation 0.1; bone
    picture[0, :8, :, 0], picture[0, 8:16, :, 0], picture[0, 16:, :, 0] = 0.2, 0.4, 0.9
    result = np.asarray(contrasts(keras.ops.convert_to_tensor(picture), TARGET)[0])
    assert (
        np.allclose(result[0, :8], 0.28, atol=2e-3)
        and np.allclose(result[0, 8:16], 0.52, atol=2e-3)
        and (result[0, 16:] == 1).all()
    )


def test_black_stays_black_and_an_empty_picture_is_no_division_by_zero() -> None:
    result = np.asarray(contrasts(keras.ops.zeros((2, 8, 8, 1)), TARGET)[0])
    assert (result == 0).all()


def test_the_levelled_picture_hardly_depends_on_the_window() -> None:
    picture = head()
    darker = np.clip(0.75 * picture - 0.02, 0, 1)
    one, other = (
        np.asarray(contrasts(keras.ops.convert_to_tensor(each), TARGET)[0])
        for each in (picture, darker)
    )
    inside = (picture > 0.2) & (picture < 0.8)
    assert np.abs(one - other)[inside].mean() < 0.01 < np.abs(picture - darker)[inside].mean()


def test_without_bone_a_thin_bleed_stands_alone() -> None:
    picture = np.full((1, 32, 32, 1), 0.4, np.float32)
    picture[0, ::2] = 0.42  # brain is not of one gray
    # blood, bone, air
    picture[0, :, 20:24], picture[0, :, 24:28], picture[0, :, 28:] = 0.6, 1.0, 0.0
    leveled, boneless = (
        np.asarray(each)[0, :, :, 0]
        for each in contrasts(keras.ops.convert_to_tensor(picture), TARGET)
    )
    assert (leveled[:, 24:28] == 1).all() and not leveled[:, 28:].any()
    # bone, the pixel beside it, and air
    np.testing.assert_allclose(boneless[:, 23:], TARGET[0], atol=1e-6)
    np.testing.assert_array_equal(boneless[:, :23], leveled[:, :23])
    assert (boneless[:, 20:23] > boneless[:, :20].max() + 0.1).all()


def test_bone_that_is_shown_gray_is_bone() -> None:
    boneless = [
        np.asarray(contrasts(keras.ops.convert_to_tensor(share * head()), TARGET)[1])
        for share in (1.0, 0.7)
    ]
    assert np.abs(boneless[0] - boneless[1]).mean() < 0.02
    assert (
        np.abs(
            boneless[1]
            - np.asarray(contrasts(keras.ops.convert_to_tensor(0.7 * head()), TARGET)[0])
        ).mean()
        > 0.02
    )


def test_older_weights_get_the_contrasts_they_were_trained_with() -> None:
    leveled, again = contrasts(keras.ops.convert_to_tensor(head()), TARGET[:2])
    np.testing.assert_array_equal(np.asarray(leveled), np.asarray(again))


@pytest.mark.parametrize(
    "folder", [STARTER_DIR, STARTER_SERIES_DIR], ids=["starter", "starter_series"]
)
def test_a_model_that_ships_is_rebuilt_from_its_weights_as_it_is_served(folder: Path) -> None:
    card = read_card(folder)
    pixels = phantom(3, hemorrhage=True, size=256).astype(np.float32)
    pictures = to_input(Slice(pixels, "hu"), InputSpec.from_settings(card.settings))[0][np.newaxis]
    encoder = GoogLeNet()
    rebuilt = encoder.to_onnx(encoder.initial(folder, 0), pictures.shape[1])
    wanted, result = (
        onnxruntime.InferenceSession(each).run(["maps"], {"images": pictures})[0]
        for each in (folder / FEATURES, rebuilt)
    )
    np.testing.assert_allclose(result, wanted, atol=1e-4 * float(np.abs(wanted).max()))
