"""The loaded models: downloaded once per machine, loaded once per process."""

from __future__ import annotations

import ctypes
import logging
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from flask import current_app

from ml.artifacts.folder import read_card
from ml.errors import ArtifactError
from ml.inference.predictor import Predictor
from webapp.models import ModelVersion
from webapp.storage import StorageError, StorageUnavailable, storage
from worker.canary import require_same_answer
from worker.heartbeat import heartbeat, models_of
from worker.retries import retry_storage

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
ANSWERS = (PREDICTIONS, "types.csv")
"""The out-of-fold predictions of a training run, stored next to its model but not part of it; the
first file is for comparisons, the second for people.
"""

MISTAKE = "mistake-"
"""The prefix of the names of images that are stored next to a model (`ml.training.mistakes`)."""

MOST_LOADED = 4
"""The live models for slices and for series, a candidate in shadow, and a previous one with heat
maps still to be drawn.
"""

LOAD_AGAIN_S = 30.0

_loaded: OrderedDict[str, Predictor] = OrderedDict()

_broken: dict[str, tuple[float, str]] = {}
"""By card: when a version could not be loaded here, and the reason as a sentence."""


class CannotLoad(Exception):
    """A version cannot be loaded here, or does not reproduce its score; the message is a
    sentence.
    """


def predictor_for(version: ModelVersion) -> Predictor:
    """Return the predictor of a model version at its operating point, loading it on first use.

    Raises:
        StorageUnavailable, CannotLoad: see `loaded`.
    """
    return loaded(version).with_thresholds(version.slice_threshold, version.scan_threshold)


def loaded(version: ModelVersion) -> Predictor:
    """Return the predictor of a model version as trained, loading it on first use.

    One that could not be loaded is not retried for `LOAD_AGAIN_S`; meanwhile this worker raises an
    alarm.

    Raises:
        StorageUnavailable: the storage cannot be reached.
        CannotLoad: its files cannot be downloaded, are not those that were stored, or do not
            reproduce their score for a phantom (`worker.canary`).
    """
    predictor = _loaded.get(version.card_id)
    if predictor is None:
        tried_at, sentence = _broken.get(version.card_id, (float("-inf"), ""))
        if time.monotonic() - tried_at < LOAD_AGAIN_S:
            raise CannotLoad(sentence)
        try:
            predictor = load_model(model_folder(version))
            require_same_answer(version, predictor)
            _return_freed_memory()
        except StorageUnavailable:
            raise
        except (ArtifactError, StorageError, OSError) as err:
            known = isinstance(err, ArtifactError | StorageError)
            sentence = f"Model version {version.card_id} cannot be loaded: " + (
                str(err) if known else f"{type(err).__name__}."
            )
            _broken[version.card_id] = time.monotonic(), sentence
            log.error("version=%s cannot be loaded on this worker: %s", version.id, sentence)
            raise CannotLoad(sentence) from err
        _broken.pop(version.card_id, None)
        _loaded[version.card_id] = predictor
        if len(_loaded) > MOST_LOADED:
            _loaded.popitem(last=False)
        log.info("version=%s model loaded", version.id)
    _loaded.move_to_end(version.card_id)
    return predictor


def _return_freed_memory() -> None:
    """Return the memory freed after loading a model, about 30 MB, to the system; glibc keeps it
    otherwise: see malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def loads(version: ModelVersion) -> bool:
    """True if this worker can analyze scans with this version.

    Raises:
        StorageUnavailable: the storage cannot be reached.
    """
    try:
        predictor_for(version)
    except CannotLoad:
        return False
    return True


def all_load(versions: Collection[ModelVersion]) -> bool:
    """True if this worker can analyze scans with each of these versions; otherwise it raises an
    alarm for operators (`webapp.health`).
    """
    try:
        broken = {version.card_id for version in versions if not loads(version)}
    except StorageUnavailable:
        return True  # Handled by `worker.retries`.
    sentences = [sentence for card_id, (_, sentence) in _broken.items() if card_id in broken]
    heartbeat().alarm = " ".join(sentences) or None
    return not broken


def is_any_broken() -> bool:
    """True if the last attempt to load a version failed."""
    return bool(_broken)


def load_model(folder: Path) -> Predictor:
    """Return the model in a folder, configured by this worker's settings.

    Raises:
        ArtifactError: it cannot be used.
    """
    config = current_app.config
    return Predictor(
        folder, threads=config["PREDICT_THREADS"], checks_head_ct=config["CHECK_HEAD_CT"]
    )


def model_folder(version: ModelVersion) -> Path:
    """Return the local folder of a model version, downloading it if it is missing or its files do
    not match its card.

    Raises:
        StorageError: its files cannot be downloaded.
        ArtifactError: the downloaded files are not that model.
    """
    folder = models_of(current_app) / version.card_id
    if folder.is_dir():
        try:
            if read_card(folder).id == version.card_id:
                return folder
        except ArtifactError as err:
            log.warning(
                "version=%s the cached model is damaged and is downloaded again: %s",
                version.id,
                err,
            )
        shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix=".fetched-", dir=folder.parent))
    try:
        fetch_model(version, fetched)
        try:
            fetched.rename(folder)
        except OSError:
            # Another worker on this machine was faster; its folder is used.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return folder


def fetch_model(version: ModelVersion, folder: Path) -> None:
    """Download the files of that version to `folder`.

    Raises:
        StorageError: they cannot be downloaded.
        ArtifactError: the downloaded files are not that model.
    """
    for key in retry_storage(lambda: _files_of(version)):
        name = key.rsplit("/", 1)[-1]
        if name not in ANSWERS and not name.startswith(MISTAKE):
            retry_storage(lambda key=key, name=name: storage.fetch(key, folder / name))  # type: ignore[misc]
    if read_card(folder).id != version.card_id:
        raise ArtifactError(
            f"The stored files of model version {version.id} belong to another model."
        )


def _files_of(version: ModelVersion) -> list[str]:
    """Return the storage keys of a version's files; finding none is an error, because an unmounted
    folder looks empty.
    """
    keys = storage.keys(version.storage_prefix)
    if not keys:
        raise StorageError(f"The storage has no files of model version {version.id}.")
    return keys
