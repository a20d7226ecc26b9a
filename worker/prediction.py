"""Predictions: the first task of a predict worker. Never loads TensorFlow."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate

from flask import current_app

from ml.inference.predictor import Predictor, Stopped
from ml.scans.slices import Series
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import ModelVersion, Scan, answering_versions
from webapp.storage import StorageUnavailable
from worker import leases
from worker.heartbeat import heartbeat
from worker.made_with import here, settings_of
from worker.predictors import LOAD_AGAIN_S, all_load, is_any_broken, loads, predictor_for
from worker.reports.making import can_be_segmented
from worker.retries import in_transaction
from worker.scan_files import (
    discard_pictures_of_deleted,
    read_original,
    shown_slice,
    store_outlines,
    store_pictures,
)
from worker.verdicts import Outcome, write_verdicts

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


def warm_up() -> None:
    """Load the live models before the first scan arrives; each scores a phantom."""
    versions = [version for version in answering_versions() if version is not None]
    db.session.commit()
    if not versions:
        log.warning("no model is live yet")
    all_load(versions)
    here()
