"""The models of a worker process."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask

from ml.artifacts.folder import read_card
from ml.errors import ArtifactError
from tests.worker.conftest import install_model
from webapp.storage import Storage, storage
from worker.predictors import model_folder, predictor_for


def test_a_version_is_loaded_once_and_two_are_kept(worker_app: Flask) -> None:
    first, second, third = (install_model(gain=gain) for gain in (1.0, 2.0, 3.0))
    loaded = predictor_for(first)
    assert predictor_for(first) is loaded
    predictor_for(second)
    assert predictor_for(first) is loaded
    predictor_for(third)
    assert predictor_for(first) is loaded  # The second was the one not used for longest.


def test_a_model_is_fetched_once_a_machine(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = install_model()
    folder = model_folder(version)
    assert read_card(folder).id == version.card_id
    monkeypatch.setattr(Storage, "fetch", None)
    assert model_folder(version) == folder


def test_a_cached_model_that_was_damaged_is_fetched_again(worker_app: Flask) -> None:
    version = install_model()
    folder = model_folder(version)
    (folder / "head.onnx").write_bytes(b"cut sh")
    assert read_card(model_folder(version)).id == version.card_id


def test_a_stored_model_that_is_not_the_versions_is_refused_and_leaves_nothing(
    worker_app: Flask,
) -> None:
    version, other = install_model(), install_model(gain=3.0)
    storage.delete(version.storage_prefix)
    for key in storage.keys(other.storage_prefix):
        storage.put(f"{version.storage_prefix}/{Path(key).name}", storage.get(key))
    with pytest.raises(ArtifactError, match="belong to another model"):
        model_folder(version)
    assert list((Path(worker_app.config["HEMOSCAN_HOME"]) / "cache" / "models").iterdir()) == []
