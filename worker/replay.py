"""Recomputes predictions with the same model version, and reports whether they are
bit-identical.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.inference.predictor import Predictor, ScanResult, Stopped
from ml.scans.slices import BoolArray, Series
from ml.scans.volume import read_masks, write_masks
from webapp import logs
from webapp.extensions import db
from webapp.models import EarlierAnswer, Environment, Prediction, Replay
from webapp.storage import MissingFile, StorageUnavailable, storage
from worker import leases
from worker.background import gives_way
from worker.heartbeat import heartbeat
from worker.made_with import changes, here
from worker.predictors import CannotLoad, loaded
from worker.retries import in_transaction, retry_disk, retry_storage
from worker.scan_files import is_passing, read_original, sentence_for
from worker.verdicts import outlines_of, types_of

log = logging.getLogger(__name__)

MOST_SLICES_NAMED = 20


def replay_next() -> bool:
    """Claim a prediction and compute it again; return False if none was queued, or the storage is
    unavailable.
    """
    mine = heartbeat()

    def claim() -> Replay | None:
        claimed = leases.claim(Replay, mine.owner)
        if not claimed:
            return None
        parts = (Replay.scan, Replay.version, Replay.prediction, Replay.earlier)
        return db.session.scalar(
            select(Replay)
            .where(Replay.id == claimed[0].id)
            .options(*(joinedload(part) for part in parts))
            .execution_options(populate_existing=True)
        )

    row = in_transaction(claim)
    if row is None:
        return False
    with mine.holding(Replay, [row.id]), logs.about(scan_ids=[row.scan_id]):
        return _carry_through(row)


def _carry_through(row: Replay) -> bool:
    mine, ids = heartbeat(), [row.id]
    try:
        result = _result_of(row)
    except Stopped:
        in_transaction(lambda: leases.hand_back(Replay, mine.owner, ids))
    except StorageUnavailable:
        in_transaction(lambda: leases.hand_back(Replay, mine.owner, ids))
        return False
    except CannotLoad as err:
        sentences = {row.id: str(err)}
        in_transaction(lambda: leases.fail(Replay, mine.owner, sentences))
    except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
        sentences = {row.id: sentence_for(err, row)}
        end = leases.retry_after_storage_error if is_passing(err) else leases.fail
        in_transaction(lambda: end(Replay, mine.owner, sentences))
    else:
        is_same = not result["differs"]
        columns = {"is_same": is_same, "result": result}
        in_transaction(lambda: leases.finish(Replay, mine.owner, ids, **columns))
        log.log(
            logging.INFO if is_same else logging.WARNING,
            "replay=%s version=%s is %s",
            row.id,
            row.version_id,
            "the same" if is_same else "different",
        )
    return True


def _result_of(row: Replay) -> dict[str, Any]:
    """Return the recorded prediction, the new one, and what has changed since."""
    answer = row.prediction or row.earlier
    if answer is None:
        raise MissingFile("The result was replaced in the meantime.")
    redact = None if answer.settings is None else answer.settings["masks_outside_head"]
    series = read_original(row.scan, redact=redact)
    predictor = _as_it_was(row, answer, series)
    result = predictor.predict(series, should_stop=gives_way(Replay, row.id))
    differences = _compared(row, answer, result, series, predictor.gives_outlines)
    known = answer.environment_id and in_transaction(
        lambda: db.session.get(Environment, answer.environment_id)
    )
    now = in_transaction(lambda: db.session.get_one(Environment, here()))
    return {
        **differences,
        "probability": [answer.probability, result.probability],
        "threshold": [answer.threshold, result.threshold],
        "changes": changes(known.content, now.content) if known else None,
        "settings_known": answer.settings is not None,
    }


def _as_it_was(row: Replay, answer: Prediction | EarlierAnswer, series: Series) -> Predictor:
    """Return the version with the thresholds of that prediction; for older predictions, only the
    threshold for this kind of scan is known.
    """
    if answer.settings is not None:
        chosen = answer.settings["slice_threshold"], answer.settings["scan_threshold"]
    elif len(series.slices) > 1:
        chosen = None, answer.threshold
    else:
        chosen = answer.threshold, None
    return loaded(row.version).with_thresholds(*chosen)


def _compared(
    row: Replay,
    answer: Prediction | EarlierAnswer,
    result: ScanResult,
    series: Series,
    gives_outlines: bool,
) -> dict[str, Any]:
    """Return what `differs`, in which `slices`, and what of the prediction was `not_kept`.

    An `EarlierAnswer` keeps neither types nor outlines; a model that gives none lacks nothing.
    """
    differs, not_kept = [], []

    def compare(name: str, is_same: bool | None) -> None:
        if is_same is None:
            not_kept.append(name)
        elif not is_same:
            differs.append(name)

    compare("probability", answer.probability == result.probability)
    compare(
        "state",
        (answer.threshold, answer.positive, answer.uncertain)
        == (result.threshold, result.positive, result.uncertain),
    )
    slices = _slices_apart(answer.slices, result)
    compare("slices", None if slices is None else not slices)
    if isinstance(answer, Prediction):
        compare("types", (answer.types or {}) == types_of(result))
        # Types also depend on the threshold for slices.
        is_known = answer.settings is not None or len(result.slice_probabilities) == 1
        compare("outlines", _same_outlines(row, answer, result, series) if is_known else None)
    else:
        if result.types:
            not_kept.append("types")
        if gives_outlines:
            not_kept.append("outlines")
    return {
        "differs": differs,
        "not_kept": not_kept,
        "slices": (slices or [])[:MOST_SLICES_NAMED],
        "slices_apart": len(slices or ()),
        "of_slices": len(result.slice_probabilities),
    }


def _slices_apart(before: list[float] | None, result: ScanResult) -> list[dict[str, Any]] | None:
    """Return index and both probabilities of the slices that differ; None if they were not
    stored.
    """
    if before is None:
        return None
    now = result.slice_probabilities
    if len(before) != len(now):
        return [{"index": index, "before": None, "now": value} for index, value in enumerate(now)]
    return [
        {"index": index, "before": was, "now": value}
        for index, (was, value) in enumerate(zip(before, now, strict=True))
        if was != value
    ]


def _same_outlines(
    row: Replay, answer: Prediction, result: ScanResult, series: Series
) -> bool | None:
    """Return whether the same pixels are outlined with the same areas and volume; None if the file
    is gone.
    """
    before = {name: getattr(answer, name) for name in outlines_of(result)}
    if before != outlines_of(result):
        return False
    masks = result.outlines.masks
    if row.scan.outline_key is None:
        return all(mask is None for mask in masks)
    key = row.scan.outline_key
    try:
        stored = read_masks(retry_storage(lambda: storage.get(key)))
    except MissingFile:
        return None
    return np.array_equal(stored, _as_stored(series, masks))


def _as_stored(series: Series, masks: tuple[BoolArray | None, ...]) -> BoolArray:
    with heartbeat().work_folder() as folder:
        path = folder / "outlines"
        retry_disk(lambda: write_masks(series, masks, path))
        return read_masks(path.read_bytes())
