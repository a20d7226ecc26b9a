"""The models of this process: fetched from the storage once a machine, loaded once a process."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

from flask import current_app

from ml.artifacts.folder import read_card
from ml.errors import ArtifactError
from ml.inference.predictor import Predictor
from webapp.models import ModelVersion
from webapp.storage import StorageError, storage
from worker.retries import retry_storage

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
ANSWERS = (PREDICTIONS, "types.csv")
"""What a training answered out of fold, stored beside its model and no part of it; comparisons read
the first, people the second.
"""

MOST_LOADED = 3
"""The live models of slices and of series, and one before, whose heat maps may still be waiting."""

_loaded: OrderedDict[str, Predictor] = OrderedDict()


def predictor_for(version: ModelVersion) -> Predictor:
    """Return the predictor of that version with the thresholds chosen for it, loading it if this
    process has not.

    Raises:
        StorageError: its files cannot be fetched.
        ArtifactError: its files are not those that were stored.
    """
    predictor = _loaded.get(version.card_id)
    if predictor is None:
        config = current_app.config
        predictor = Predictor(
            model_folder(version),
            threads=config["PREDICT_THREADS"],
            checks_head_ct=config["CHECK_HEAD_CT"],
        )
        _loaded[version.card_id] = predictor
        if len(_loaded) > MOST_LOADED:
            _loaded.popitem(last=False)
        log.info("version=%s model loaded", version.id)
    _loaded.move_to_end(version.card_id)
    return predictor.with_thresholds(version.slice_threshold, version.scan_threshold)


def model_folder(version: ModelVersion) -> Path:
    """Return the folder of that version on this machine: its files are those that its card names,
    or are fetched anew.

    Raises:
        StorageError: they cannot be fetched.
        ArtifactError: what was fetched is not that model.
    """
    folder = Path(current_app.config["HEMOSCAN_HOME"]) / "cache" / "models" / version.card_id
    if folder.is_dir():
        try:
            if read_card(folder).id == version.card_id:
                return folder
        except ArtifactError as err:
            log.warning(
                "version=%s the cached model is damaged and is fetched again: %s", version.id, err
            )
        shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix=".fetched-", dir=folder.parent))
    try:
        for key in retry_storage(lambda: _files_of(version)):
            if (name := key.rsplit("/", 1)[-1]) not in ANSWERS:
                retry_storage(lambda key=key, name=name: storage.fetch(key, fetched / name))  # type: ignore[misc]
        if read_card(fetched).id != version.card_id:
            raise ArtifactError(
                f"The stored files of model version {version.id} belong to another model."
            )
        try:
            fetched.rename(folder)
        except OSError:
            # Another worker of this machine was first; its folder is as good.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return folder


def _files_of(version: ModelVersion) -> list[str]:
    """Return the keys of a version's files; none is a failure to read them: a folder that is not
    mounted lists nothing.
    """
    keys = storage.keys(version.storage_prefix)
    if not keys:
        raise StorageError(f"There are no files of model version {version.id} in the storage.")
    return keys
