"""Settings as people type them."""

from __future__ import annotations

import pytest

from ml.catalogue import ARCHITECTURES, SettingError, architecture_named

ALEXNET_SVM = architecture_named("alexnet_svm")


def test_defaults_fill_what_is_not_given_and_texts_become_numbers() -> None:
    found = ALEXNET_SVM.parse_settings({"folds": "3", "target_sensitivity": "0.9"})
    assert found["folds"] == 3 and found["target_sensitivity"] == 0.9
    assert found["kernel"] == "linear" and found["fine_tune_epochs"] == 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"folds": "many"}, "folds must be a whole number, not 'many'."),
        ({"folds": 1}, "folds must lie between 2 and 10, not 1."),
        ({"folds": 2.5}, "folds must be a whole number, not 2.5."),
        ({"target_sensitivity": "high"}, "target_sensitivity must be a number, not 'high'."),
        ({"target_sensitivity": "nan"}, "target_sensitivity must lie between 0.5 and 0.999, not nan."),
        ({"kernel": "poly"}, "kernel must be one of linear, rbf, not 'poly'."),
    ],
)
def test_a_wrong_setting_is_said_in_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        ALEXNET_SVM.parse_settings(given)
    assert str(caught.value) == sentence


def test_an_unknown_setting_names_those_that_exist() -> None:
    with pytest.raises(SettingError, match="alexnet_svm has no setting 'layers'; it has layer, pooling"):
        ALEXNET_SVM.parse_settings({"layers": "conv3"})


def test_an_unknown_architecture_names_those_that_exist() -> None:
    with pytest.raises(SettingError, match="There is no architecture 'resnet'; there is alexnet_svm"):
        architecture_named("resnet")


def test_every_default_is_allowed() -> None:
    for architecture in ARCHITECTURES.values():
        assert architecture.parse_settings({}) == {setting.name: setting.default for setting in architecture.settings}
