"""Predictions: the first task of a predict worker. Never loads TensorFlow."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import floor
from typing import Any

from flask import current_app
from sqlalchemy import ColumnElement, ScalarSelect, case, insert, literal, select

from ml.inference.predictor import Predictor, ScanResult, Stopped
from ml.scans.slices import Series
from ml.scans.volume import has_volume
from ml.verdict import State
from webapp.accounts.notifications import queue_notifications
from webapp.extensions import database_now, db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    Heatmap,
    ModelVersion,
    Prediction,
    Scan,
    answering_versions,
    new_id,
    queue_for_shadows,
)
from webapp.models.reports import queue_dicom_results
from webapp.routing import queue_deliveries
from webapp.storage import StorageUnavailable
from worker import leases
from worker.heartbeat import heartbeat
from worker.made_with import here, settings_of
from worker.predictors import LOAD_AGAIN_S, all_load, is_any_broken, loads, predictor_for
from worker.reports.making import can_be_segmented
from worker.retries import in_transaction
from worker.scan_files import (
    discard_pictures_of_deleted,
    is_passing,
    read_original,
    sentence_for,
    shown_slice,
    store_outlines,
    store_pictures,
)

log = logging.getLogger(__name__)

MOST_SLICES = 64
"""Maximum slices in a batch of scans; a longer series is analyzed alone."""
PROGRESS_S = 1.0
NOT_HEAD_CT = "This does not look like a head CT, so it was not analyzed."
NO_MODEL = "No model is live. Ask an administrator to promote one."


def answer_next_scans() -> bool:
    """Claim a batch of queued scans and write a result or an error for each, or return them to the
    queue; return False if none was queued.
    """
    worker = heartbeat()
    if is_any_broken() and not some_live_version_loads():
        return False

    def claim() -> tuple[list[Scan], ModelVersion | None, ModelVersion | None]:
        scans = leases.claim(Scan, worker.owner, current_app.config["PREDICT_BATCH"])
        # Looked up for every claim, so that a promotion needs no restart.
        return scans, *(answering_versions() if scans else (None, None))

    scans, of_slices, of_series = in_transaction(claim)
    if not scans:
        return False
    scans = _limit_to_memory(scans)
    ids = [scan.id for scan in scans]
    with worker.holding(Scan, ids):
        # Each kind of model can replace the other, so if one is missing, both are.
        if of_slices is None or of_series is None:
            in_transaction(lambda: leases.fail(Scan, worker.owner, dict.fromkeys(ids, NO_MODEL)))
            return True
        try:
            if is_any_broken():
                scans = _answerable(scans, of_slices, of_series)
            if scans:
                answer(scans, of_slices, of_series)
        except StorageUnavailable:
            in_transaction(lambda: leases.hand_back(Scan, worker.owner, ids))
            log.warning("scans=%s returned to the queue: the storage is unavailable", ",".join(ids))
    return True


def some_live_version_loads() -> bool:
    """True if this worker can load a live version for slices or for series; else nothing is
    claimed.
    """
    versions = in_transaction(answering_versions)
    live = {version.id: version for version in versions if version is not None}.values()
    return all_load(live) or any(loads(version) for version in live)


def _answerable(scans: list[Scan], of_slices: ModelVersion, of_series: ModelVersion) -> list[Scan]:
    """Return the scans whose version can be loaded here, and return the others to the queue for
    other workers, or until another version is live.
    """
    waiting = [
        scan for scan in scans if not loads(of_series if scan.slice_count > 1 else of_slices)
    ]
    hand_back_for_later([scan.id for scan in waiting])
    return [scan for scan in scans if scan not in waiting]


def hand_back_for_later(scan_ids: Collection[str]) -> None:
    """Return scans whose version cannot be loaded on this worker to the queue."""
    if not scan_ids:
        return
    owner = heartbeat().owner
    in_transaction(lambda: leases.put_off(Scan, owner, scan_ids, LOAD_AGAIN_S))
    log.error(
        "scans=%s returned to the queue: the live model cannot be loaded on this worker",
        ",".join(scan_ids),
    )


def _limit_to_memory(scans: list[Scan]) -> list[Scan]:
    """Return the first of these scans that fit into MOST_SLICES, at least one, and return the
    others to the queue for another worker.

    STAT scans come first, then the oldest scan of each user in turn, beginning after the user whose
    scan was analyzed last. If they were ordered by age alone, one user's older series would
    displace the scans of all others again and again.
    """
    worker = heartbeat()
    counts = Counter[tuple[str, bool]]()
    turns: dict[str, int] = {}
    for scan in scans:
        counts[scan.user_id, scan.stat] += 1
        turns[scan.id] = counts[scan.user_id, scan.stat]
    scans = sorted(
        scans,
        key=lambda scan: (
            not scan.stat,
            turns[scan.id],
            scan.user_id <= worker.last_read_for,
            scan.user_id,
        ),
    )
    slices = list(accumulate(scan.slice_count for scan in scans))
    fitting = max(1, sum(count <= MOST_SLICES for count in slices))
    worker.last_read_for = scans[fitting - 1].user_id
    if beyond := [scan.id for scan in scans[fitting:]]:
        in_transaction(lambda: leases.hand_back(Scan, worker.owner, beyond))
        nudge(PREDICT_SCANS)
    return scans[:fitting]


@dataclass
class Outcome:
    """The state of one scan of a batch.

    Attributes:
        series: its slices, None if unreadable.
        version_id: the model version that analyzed it.
        made_with: environment and settings of its result, columns of a prediction.
        result: the output of that version, None if the scan gets no result.
        error: message for the user; None if there is a result or the scan was canceled.
        retry_later: the error may be temporary, so the scan is queued again later.
        not_head_ct: the score of a scan that is rejected because it does not look like a head CT.
        wants_heat_maps: its model gives no outlines, so heat maps are computed instead.
        can_be_segmented: as in `Prediction`.
    """

    scan: Scan
    series: Series | None = None
    version_id: str | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)
    result: ScanResult | None = None
    error: str | None = None
    retry_later: bool = False
    not_head_ct: float | None = None
    wants_heat_maps: bool = True
    can_be_segmented: bool | None = None

    def fail(self, sentence: str) -> None:
        """Record an error message instead of a result."""
        self.result, self.error = None, sentence

    def fail_for(self, err: Exception) -> None:
        """Record `err` as the scan's error, or mark it for retry if it may be temporary.

        Raises:
            StorageUnavailable: `err` is one, which is not an error of this scan.
        """
        self.fail(sentence_for(err, self.scan))
        self.retry_later = is_passing(err)


def answer(scans: list[Scan], of_slices: ModelVersion, of_series: ModelVersion) -> None:
    """Read, score and render a batch of scans, then write all results in one transaction. Single
    slices and series are scored by the version for their kind.

    Raises:
        StorageUnavailable: the storage is unavailable; no result was written.
    """
    outcomes = [read(scan) for scan in scans]
    started = time.monotonic()
    for version, reads_series in ((of_slices, False), (of_series, True)):
        chosen = [
            (outcome, outcome.series)
            for outcome in outcomes
            if outcome.series is not None and (len(outcome.series.slices) > 1) is reads_series
        ]
        if chosen:
            ask(version, chosen)
    answered = [outcome for outcome in outcomes if outcome.result is not None]
    seconds = (time.monotonic() - started) / max(len(answered), 1)

    for outcome in answered:
        refuse_other_images(outcome)
    head_scans = [outcome for outcome in answered if outcome.result is not None]
    for outcome in head_scans:
        render(outcome)

    owned = in_transaction(lambda: write_verdicts(outcomes, seconds))
    discard_pictures_of_deleted({outcome.scan.id for outcome in head_scans} - owned)
    versions = {outcome.version_id for outcome in outcomes if outcome.version_id is not None}
    log.info(
        "scans=%d done=%d version=%s seconds_each=%.3f",
        len(scans),
        len(owned),
        ",".join(sorted(versions)),
        seconds,
    )


def read(scan: Scan) -> Outcome:
    """Read a scan's series; the scan fails if it cannot be read."""
    outcome = Outcome(scan)
    try:
        outcome.series = read_original(scan)
    except Exception as err:  # noqa: BLE001 - one scan must not fail the rest of its batch.
        outcome.fail_for(err)
    return outcome


def ask(version: ModelVersion, chosen: Sequence[tuple[Outcome, Series]]) -> None:
    """Analyze these scans with the version; return them to the queue if it cannot be loaded."""
    ids = [outcome.scan.id for outcome, _ in chosen]
    if not loads(version):
        hand_back_for_later(ids)  # the next claim raises the alarm
        return
    predictor = predictor_for(version)
    score(predictor, chosen, Watch(ids))
    made_with = {"environment_id": here(), "settings": settings_of(version)}
    for outcome, _ in chosen:
        outcome.version_id, outcome.made_with = version.id, made_with
        outcome.wants_heat_maps = not predictor.gives_outlines


def refuse_other_images(outcome: Outcome) -> None:
    """Reject a scan that does not look like a head CT, unless its owner wants it analyzed
    anyway.
    """
    result = outcome.result
    if result is not None and result.refused and outcome.scan.forced_at is None:
        outcome.not_head_ct = result.not_head_ct
        outcome.fail(NOT_HEAD_CT)


def render(outcome: Outcome) -> None:
    """Store the images of a scan with a result; if that fails, the scan fails."""
    if outcome.series is None or outcome.result is None:
        return
    try:
        store_pictures(outcome.scan.id, outcome.series, shown_slice(outcome.result.first_slices))
        store_outlines(outcome.scan.id, outcome.series, outcome.result.outlines.masks)
        if outcome.scan.kind == "dicom" and outcome.result.outlines.outlined_slices:
            slices = len(outcome.series.slices)
            outcome.can_be_segmented = can_be_segmented(outcome.scan, slices)
    except Exception as err:  # noqa: BLE001 - one scan must not fail the rest of its batch.
        outcome.fail_for(err)


class Watch:
    """Writes the progress of scans being scored, at most once a second, and notices when they no
    longer belong to this worker.

    This is the case if all were canceled or deleted, or lost their leases. A worker that is asked
    to stop returns its scans to the queue, because a series may take longer than the time left.
    """

    def __init__(self, scan_ids: list[str]) -> None:
        self._scan_ids, self._last_reported, self._is_over = scan_ids, time.monotonic(), False

    def on_progress(self, done: int, total: int) -> None:
        """Write the fraction of slices done; all scans of a batch show the progress of the
        batch.
        """
        if time.monotonic() - self._last_reported < PROGRESS_S:
            return
        self._last_reported = time.monotonic()
        stage = (
            f"Analyzing slice {done} of {total}"
            if len(self._scan_ids) == 1
            else "Analyzing slices of several scans"
        )
        columns = {"progress": done / total, "stage": stage}
        worker = heartbeat()
        if worker.stopping() and in_transaction(
            lambda: leases.hand_back(Scan, worker.owner, self._scan_ids)
        ):
            self._is_over = True
        else:
            self._is_over = not in_transaction(
                lambda: leases.write(Scan, worker.owner, self._scan_ids, **columns)
            )

    def is_over(self) -> bool:
        """Return whether none of the scans belong to this worker any longer."""
        return self._is_over


def score(predictor: Predictor, chosen: Sequence[tuple[Outcome, Series]], watch: Watch) -> None:
    """Score these scans; those on which the model fails get an error. If the batch is interrupted,
    the scans get neither result nor error.
    """
    all_series = [series for _, series in chosen]
    try:
        results = list(predictor.predict_many(all_series, watch.on_progress, watch.is_over))
        answered = list(zip(chosen, results, strict=True))
    except Stopped:
        return
    except Exception as err:  # noqa: BLE001 - scoring one by one shows which scan failed.
        log.warning(
            "scans=%s the batch failed and is scored one by one: %s",
            ",".join(outcome.scan.id for outcome, _ in chosen),
            type(err).__name__,
        )
    else:
        for (outcome, _), result in answered:
            outcome.result = result
        return
    for outcome, series in chosen:
        try:
            outcome.result = predictor.predict(series)
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            outcome.fail_for(err)


def write_verdicts(outcomes: Sequence[Outcome], seconds: float) -> frozenset[str]:
    """Write the results of scans that this worker still holds and queue their heat maps and DICOM
    objects; return the ids of these scans.

    The number of SQL statements does not depend on the number of scans.

    Args:
        seconds: time in the model per scan.
    """
    owner = heartbeat().owner
    results = {
        outcome.scan.id: outcome.result for outcome in outcomes if outcome.result is not None
    }
    with_volume = [
        outcome.scan.id
        for outcome in outcomes
        if outcome.result is not None and outcome.series is not None and has_volume(outcome.series)
    ]
    outlined = [scan_id for scan_id, result in results.items() if result.outlines.outlined_slices]
    owned = leases.finish(
        Scan,
        owner,
        results.keys(),
        image_key=literal("images/") + Scan.id + ".png",
        thumbnail_key=literal("thumbnails/") + Scan.id + ".png",
        volume_key=key_where("volumes", with_volume),
        outline_key=key_where("outlines", outlined),
        risk=by_scan({scan_id: result.probability for scan_id, result in results.items()}),
        margin=by_scan(
            {
                scan_id: abs(result.probability - result.threshold)
                for scan_id, result in results.items()
            }
        ),
        verdict_state=by_scan({scan_id: result.state for scan_id, result in results.items()}),
    )
    predictions = [
        prediction_of(outcome, outcome.result, seconds)
        for outcome in outcomes
        if outcome.result is not None and outcome.scan.id in owned
    ]
    if predictions:
        db.session.execute(insert(Prediction).values(predictions))
        queue_follow_ups(predictions, {outcome.scan.id: outcome for outcome in outcomes})
    write_errors(owner, outcomes)
    return owned


def queue_follow_ups(
    predictions: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Outcome]
) -> None:
    """Queue heat maps, reports, notifications and deliveries of these results.

    Args:
        outcomes: by scan.
    """
    scan_ids = [str(prediction["scan_id"]) for prediction in predictions]
    wanting_heat_maps = [scan_id for scan_id in scan_ids if outcomes[scan_id].wants_heat_maps]
    from_dicom = [scan_id for scan_id in scan_ids if outcomes[scan_id].scan.kind == "dicom"]
    heat_maps = [
        {
            "id": new_id(),
            "prediction_id": prediction["id"],
            "user_id": _owner_of(str(prediction["scan_id"])),
        }
        for prediction in predictions
        if prediction["scan_id"] in wanting_heat_maps
    ]
    if heat_maps:
        db.session.execute(insert(Heatmap).values(heat_maps))
    queue_notifications(scan_ids)
    queue_for_shadows(predictions)
    if from_dicom:  # No other scan has DICOM objects, or came from a PACS.
        queue_dicom_results(from_dicom, wanting_heat_maps)
        queue_deliveries(from_dicom)


def write_errors(owner: str, outcomes: Sequence[Outcome]) -> None:
    """Fail the scans without a result; those with an error that may be temporary are retried."""
    not_head_scores = {
        outcome.scan.id: outcome.not_head_ct
        for outcome in outcomes
        if outcome.not_head_ct is not None
    }
    if not_head_scores:
        leases.write(Scan, owner, not_head_scores, not_head_ct=by_scan(not_head_scores))
    leases.fail(Scan, owner, _errors(outcomes, retry_later=False))
    leases.retry_after_storage_error(Scan, owner, _errors(outcomes, retry_later=True))


def _errors(outcomes: Sequence[Outcome], *, retry_later: bool) -> dict[str, str]:
    return {
        outcome.scan.id: outcome.error
        for outcome in outcomes
        if outcome.error is not None and outcome.retry_later is retry_later
    }


def key_where(kind: str, scan_ids: Collection[str]) -> ColumnElement[Any] | None:
    """Return an SQL expression for the storage key of a NIfTI file, which is NULL for all scans
    except these.
    """
    if not scan_ids:
        return None
    return case((Scan.id.in_(scan_ids), literal(f"{kind}/") + Scan.id + ".nii.gz"), else_=None)


def prediction_of(outcome: Outcome, result: ScanResult, seconds: float) -> dict[str, Any]:
    """Return the columns of the prediction of a scan."""
    return {
        "id": new_id(),
        "scan_id": outcome.scan.id,
        "model_version_id": outcome.version_id,
        # Not by this machine's clock: it decides to which promotion the result counts.
        "created_at": database_now(),
        "probability": result.probability,
        "threshold": result.threshold,
        "positive": result.positive,
        "uncertain": result.uncertain,
        "warnings": list(result.warnings),
        "doubts": list(result.doubts),
        "slices": list(result.slice_probabilities),
        "first_slices": list(result.first_slices),
        "types": types_of(result),
        **outlines_of(result),
        "can_be_segmented": outcome.can_be_segmented,
        "seconds": seconds,
        **outcome.made_with,
    }


def outlines_of(result: ScanResult) -> dict[str, Any]:
    """Return the columns of a prediction about its outlines."""
    outlines = result.outlines
    return {
        "outlined_slices": list(outlines.outlined_slices) if outlines.masks else None,
        "areas_mm2": [round(area, 1) for area in outlines.areas_mm2] or None,
        "volume_ml": None if outlines.volume_ml is None else round(outlines.volume_ml, 2),
        "no_volume_because": outlines.no_volume_because or None,
    }


def types_of(result: ScanResult) -> dict[str, dict[str, Any]]:
    """Return the value of `Prediction.types` with four digits, because a series has a thousand such
    numbers and no page shows more digits.

    They are rounded down, because no type may be more probable than hemorrhage itself, whose
    probability is not rounded.
    """
    return {
        name: {
            "probability": _rounded(probability),
            "slices": [_rounded(value) for value in result.slice_types[name]],
        }
        for name, probability in result.types.items()
    }


def _rounded(probability: float) -> float:
    return floor(probability * 10_000) / 10_000


def by_scan(values: Mapping[str, float] | Mapping[str, State]) -> ColumnElement[Any] | None:
    """Return an SQL expression for each scan's value, to update many scans in one statement."""
    return case(dict(values), value=Scan.id) if values else None


def _owner_of(scan_id: str) -> ScalarSelect[str]:
    return select(Scan.user_id).where(Scan.id == scan_id).scalar_subquery()


def warm_up() -> None:
    """Load the live models before the first scan arrives; each scores a phantom."""
    versions = [version for version in answering_versions() if version is not None]
    db.session.commit()
    if not versions:
        log.warning("no model is live yet")
    all_load(versions)
    here()
