"""Settings as people type them."""

from __future__ import annotations

import pytest

from ml.catalogue import (
    ARCHITECTURES,
    CONVOLUTIONS,
    ENRICHMENT,
    EVALUATION_SETTINGS,
    PREPROCESSING,
    architecture_named,
)
from ml.errors import SettingError

ALEXNET_SVM = architecture_named("alexnet_svm")


def test_defaults_fill_what_is_not_given_and_texts_become_numbers() -> None:
    result = ALEXNET_SVM.parse_settings({"folds": "3", "target_sensitivity": "0.9"})
    assert result["folds"] == 3 and result["target_sensitivity"] == 0.9
    assert result["kernel"] == "linear" and result["fine_tune_epochs"] == 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"folds": "many"}, "folds must be a whole number, not 'many'."),
        ({"folds": 1}, "folds must lie between 2 and 10, not 1."),
        ({"folds": 2.5}, "folds must be a whole number, not 2.5."),
        ({"target_sensitivity": "high"}, "target_sensitivity must be a number, not 'high'."),
        (
            {"target_sensitivity": "nan"},
            "target_sensitivity must lie between 0.5 and 0.999, not nan.",
        ),
        (
            {"folds": 10**400},
            "folds must lie between 2 and 10, not 1000000000000000000000000000000000000000.",
        ),
        ({"kernel": "poly"}, "kernel must be one of linear, rbf, auto, not 'poly'."),
    ],
)
def test_a_wrong_setting_is_reported_in_one_sentence(
    given: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SettingError) as caught:
        ALEXNET_SVM.parse_settings(given)
    assert str(caught.value) == sentence


def test_an_unknown_setting_names_those_that_exist() -> None:
    with pytest.raises(
        SettingError, match="alexnet_svm has no setting 'layers'; it has layer, pooling"
    ):
        ALEXNET_SVM.parse_settings({"layers": "conv3"})


def test_an_unknown_architecture_names_those_that_exist() -> None:
    with pytest.raises(
        SettingError, match="There is no architecture 'resnet'; choose one of alexnet_svm"
    ):
        architecture_named("resnet")


def test_every_default_is_allowed() -> None:
    for architecture in ARCHITECTURES.values():
        assert architecture.parse_settings({}) == {
            setting.name: setting.default for setting in architecture.settings
        }


def test_every_architecture_of_the_paper_is_there_and_the_quick_one_is_first() -> None:
    reads = {name: architecture.reads for name, architecture in ARCHITECTURES.items()}
    assert reads == {
        "alexnet_svm": "slice",
        "alexnet": "slice",
        "cnn_lstm": "series",
        "cnn_gru": "series",
        "autoencoder": "slice",
        "alexnet_cells": "slice",
        "alexnet_cells_series": "series",
        "googlenet_cells": "slice",
        "googlenet_cells_series": "series",
        "googlenet_unet": "slice",
        "googlenet_unet_series": "series",
    }
    assert next(iter(ARCHITECTURES)) == "alexnet_svm", "the form of the browser begins with it"


OURS = ("_cells", "_unet", "_series")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_of_settings_are_taken_whole_and_no_name_twice(name: str) -> None:
    settings = ARCHITECTURES[name].settings
    assert {*EVALUATION_SETTINGS, *PREPROCESSING} <= set(settings)
    assert len({setting.name for setting in settings}) == len(settings)
    if ARCHITECTURES[name].encoder == "alexnet":
        assert set(CONVOLUTIONS) <= set(settings)
    if name != "autoencoder" and not name.endswith(OURS):
        assert set(ENRICHMENT) <= set(settings), (
            "the paper restructures and augments for every architecture"
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_default_is_among_its_choices_or_in_its_range(name: str) -> None:
    for setting in ARCHITECTURES[name].settings:
        assert setting.help.endswith((".", "none.")) and (setting.kind == "choice") == bool(
            setting.choices
        )
        assert setting.kind == "choice" or (setting.low is not None and setting.high is not None)
