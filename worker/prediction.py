"""Predictions: the first task of a predict worker. Never loads TensorFlow."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import floor
from typing import Any

from flask import current_app
from sqlalchemy import ColumnElement, ScalarSelect, case, insert, literal, select

from ml.inference.predictor import Finding, Predictor, Stopped
from ml.scans.slices import Series
from ml.scans.volume import has_volume
from ml.verdict import State
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import Heatmap, ModelVersion, Prediction, Scan, answering_versions, new_id
from webapp.notifications import queue_notifications
from webapp.storage import StorageAway
from worker import leases
from worker.heartbeat import presence
from worker.predictors import LOAD_AGAIN_S, all_load, is_any_broken, loads, predictor_for
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
"""Maximum slices of a batch of scans; a longer series is analyzed alone."""
PROGRESS_S = 1.0
NOT_HEAD_CT = "This does not look like a head CT, so it was not analyzed."
NO_MODEL = "No model is live. Ask an administrator to promote one."


def answer_next_scans() -> bool:
    """Claim a batch of queued scans and write a result or an error for each, or hand them back;
    return False if none was queued.
    """
    mine = presence()
    if is_any_broken() and not some_live_version_loads():
        return False

    def claim() -> tuple[list[Scan], ModelVersion | None, ModelVersion | None]:
        scans = leases.claim(Scan, mine.owner, current_app.config["PREDICT_BATCH"])
        # Looked up for every claim, so that a promotion needs no restart.
        return scans, *(answering_versions() if scans else (None, None))

    scans, of_slices, of_series = in_transaction(claim)
    if not scans:
        return False
    scans = _as_many_as_memory_holds(scans)
    ids = [scan.id for scan in scans]
    with mine.holding(Scan, ids):
        # Each kind of model can replace the other, so if one is missing, both are.
        if of_slices is None or of_series is None:
            in_transaction(lambda: leases.fail(Scan, mine.owner, dict.fromkeys(ids, NO_MODEL)))
            return True
        try:
            if is_any_broken():
                scans = _those_that_can_be_answered(scans, of_slices, of_series)
            if scans:
                answer(scans, of_slices, of_series)
        except StorageAway:
            in_transaction(lambda: leases.hand_back(Scan, mine.owner, ids))
            log.warning("scans=%s handed back: the storage is away", ",".join(ids))
    return True


def some_live_version_loads() -> bool:
    """True if this worker can answer for slices or for series; if not, nothing need be claimed."""
    versions = in_transaction(answering_versions)
    live = {version.id: version for version in versions if version is not None}.values()
    return all_load(live) or any(loads(version) for version in live)


def _those_that_can_be_answered(
    scans: list[Scan], of_slices: ModelVersion, of_series: ModelVersion
) -> list[Scan]:
    """Return the scans whose version loads here, and hand the others back for other workers, or
    until another version is live.
    """
    waiting = [
        scan for scan in scans if not loads(of_series if scan.slice_count > 1 else of_slices)
    ]
    hand_back_for_later([scan.id for scan in waiting])
    return [scan for scan in scans if scan not in waiting]


def hand_back_for_later(scan_ids: Collection[str]) -> None:
    """Hand scans back that a version which does not load here should answer."""
    if not scan_ids:
        return
    owner = presence().owner
    in_transaction(lambda: leases.put_off(Scan, owner, scan_ids, LOAD_AGAIN_S))
    log.error(
        "scans=%s handed back: the live model cannot be loaded on this worker",
        ",".join(scan_ids),
    )


def _as_many_as_memory_holds(scans: list[Scan]) -> list[Scan]:
    """Return the first of these scans that fit into MOST_SLICES, at least one, and hand back the
    others for another worker to claim.

    STAT scans come first, then the oldest scan of each person in turn, beginning after the person
    whose scan came last. By age alone, one person's older series would displace everybody else's
    scans again and again.
    """
    mine = presence()
    people = Counter[tuple[str, bool]]()
    turns: dict[str, int] = {}
    for scan in scans:
        people[scan.user_id, scan.stat] += 1
        turns[scan.id] = people[scan.user_id, scan.stat]
    scans = sorted(
        scans,
        key=lambda scan: (
            not scan.stat,
            turns[scan.id],
            scan.user_id <= mine.last_read_for,
            scan.user_id,
        ),
    )
    slices = list(accumulate(scan.slice_count for scan in scans))
    held = max(1, sum(count <= MOST_SLICES for count in slices))
    mine.last_read_for = scans[held - 1].user_id
    if beyond := [scan.id for scan in scans[held:]]:
        in_transaction(lambda: leases.hand_back(Scan, mine.owner, beyond))
        nudge(PREDICT_SCANS)
    return scans[:held]


@dataclass
class Outcome:
    """The state of one scan of a batch.

    Attributes:
        series: its slices, None where they cannot be read.
        version_id: the model version that was asked.
        finding: what that version answered, None where the scan gets no verdict.
        refusal: the sentence why it gets none; None with a finding, and where nobody waits for the
            scan any more.
        refused_by_storage: the refusal is one that may pass by itself, so the scan is put off.
        not_head_ct: the score of one that is refused because it does not look like a head CT.
        wants_heat_maps: its model gives no outlines, which take their place.
    """

    scan: Scan
    series: Series | None = None
    version_id: str | None = None
    finding: Finding | None = None
    refusal: str | None = None
    refused_by_storage: bool = False
    not_head_ct: float | None = None
    wants_heat_maps: bool = True

    def refuse(self, sentence: str) -> None:
        """Fail for this reason."""
        self.finding, self.refusal = None, sentence

    def refuse_for(self, err: Exception) -> None:
        """End without a verdict for what went wrong, or be put off where it may pass by itself.

        Raises:
            StorageAway: that is what went wrong, and no failure of this scan.
        """
        self.refuse(sentence_for(err, self.scan))
        self.refused_by_storage = is_passing(err)


def answer(scans: list[Scan], of_slices: ModelVersion, of_series: ModelVersion) -> None:
    """Read, score and render a batch of scans, then write all results in one transaction. Single
    slices and series are scored by the version for their kind.

    Raises:
        StorageAway: nothing was written for any of them.
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
    answered = [outcome for outcome in outcomes if outcome.finding is not None]
    seconds = (time.monotonic() - started) / max(len(answered), 1)

    for outcome in answered:
        refuse_other_images(outcome)
    shown = [outcome for outcome in answered if outcome.finding is not None]
    for outcome in shown:
        render(outcome)

    owned = in_transaction(lambda: write_verdicts(outcomes, seconds))
    discard_pictures_of_deleted({outcome.scan.id for outcome in shown} - owned)
    versions = {outcome.version_id for outcome in outcomes if outcome.version_id is not None}
    log.info(
        "scans=%d done=%d version=%s seconds_each=%.3f",
        len(scans),
        len(owned),
        ",".join(sorted(versions)),
        seconds,
    )


def read(scan: Scan) -> Outcome:
    """Read a scan's series; refuse the scan if it cannot be read."""
    outcome = Outcome(scan)
    try:
        outcome.series = read_original(scan)
    except Exception as err:  # noqa: BLE001 - one scan must not take its batch mates with it.
        outcome.refuse_for(err)
    return outcome


def ask(version: ModelVersion, chosen: Sequence[tuple[Outcome, Series]]) -> None:
    """Have the version answer these scans; where it cannot be loaded, they are handed back."""
    ids = [outcome.scan.id for outcome, _ in chosen]
    if not loads(version):
        hand_back_for_later(ids)  # The next look for work raises the alarm.
        return
    predictor = predictor_for(version)
    score(predictor, chosen, Watch(ids))
    for outcome, _ in chosen:
        outcome.version_id = version.id
        outcome.wants_heat_maps = not predictor.gives_outlines


def refuse_other_images(outcome: Outcome) -> None:
    """Refuse a scan that does not look like a head CT, unless its owner wants it scored anyway."""
    finding = outcome.finding
    if finding is not None and finding.refused and outcome.scan.forced_at is None:
        outcome.not_head_ct = finding.not_head_ct
        outcome.refuse(NOT_HEAD_CT)


def render(outcome: Outcome) -> None:
    """Store the images of a scan with a result; refuse the scan if that fails."""
    if outcome.series is None or outcome.finding is None:
        return
    try:
        store_pictures(outcome.scan.id, outcome.series, shown_slice(outcome.finding.first_slices))
        store_outlines(outcome.scan.id, outcome.series, outcome.finding.outlines.masks)
    except Exception as err:  # noqa: BLE001 - one scan must not take its batch mates with it.
        outcome.refuse_for(err)


class Watch:
    """Writes the progress of scans being scored, at most once a second, and notices when they no
    longer belong to this worker.

    That is the case when all were canceled or deleted, or lost their leases. A worker that is asked
    to stop hands its scans back, since series may take longer than the time it has left.
    """

    def __init__(self, scan_ids: list[str]) -> None:
        self._scan_ids, self._told, self._is_over = scan_ids, time.monotonic(), False

    def on_progress(self, done: int, total: int) -> None:
        """Write how many slices are done; scans of a batch all show the progress of the batch."""
        if time.monotonic() - self._told < PROGRESS_S:
            return
        self._told = time.monotonic()
        stage = (
            f"Analyzing slice {done} of {total}"
            if len(self._scan_ids) == 1
            else "Analyzing slices of several scans"
        )
        columns = {"progress": done / total, "stage": stage}
        mine = presence()
        if mine.stopping() and in_transaction(
            lambda: leases.hand_back(Scan, mine.owner, self._scan_ids)
        ):
            self._is_over = True
        else:
            self._is_over = not in_transaction(
                lambda: leases.write(Scan, mine.owner, self._scan_ids, **columns)
            )

    def is_over(self) -> bool:
        """Return whether none of the scans belong to this worker any longer."""
        return self._is_over


def score(predictor: Predictor, chosen: Sequence[tuple[Outcome, Series]], watch: Watch) -> None:
    """Score these scans; refuse those on which the model fails. If the batch is stopped, the scans
    get neither result nor refusal.
    """
    all_series = [series for _, series in chosen]
    try:
        findings = list(predictor.predict_many(all_series, watch.on_progress, watch.is_over))
        answered = list(zip(chosen, findings, strict=True))
    except Stopped:
        return
    except Exception as err:  # noqa: BLE001 - scoring one by one shows which scan it was.
        log.warning(
            "scans=%s the batch failed and is scored one by one: %s",
            ",".join(outcome.scan.id for outcome, _ in chosen),
            type(err).__name__,
        )
    else:
        for (outcome, _), finding in answered:
            outcome.finding = finding
        return
    for outcome, series in chosen:
        try:
            outcome.finding = predictor.predict(series)
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            outcome.refuse_for(err)


def write_verdicts(outcomes: Sequence[Outcome], seconds: float) -> frozenset[str]:
    """Write the results of scans that this worker still holds and queue their heat maps; return the
    ids of these scans.

    The number of SQL statements does not depend on the number of scans.

    Args:
        seconds: each scan's share of the time in the model.
    """
    owner = presence().owner
    findings = {one.scan.id: one.finding for one in outcomes if one.finding is not None}
    with_volume = [
        one.scan.id
        for one in outcomes
        if one.finding is not None and one.series is not None and has_volume(one.series)
    ]
    outlined = [
        scan_id for scan_id, finding in findings.items() if finding.outlines.outlined_slices
    ]
    owned = leases.finish(
        Scan,
        owner,
        findings.keys(),
        image_key=literal("images/") + Scan.id + ".png",
        thumbnail_key=literal("thumbnails/") + Scan.id + ".png",
        volume_key=key_where("volumes", with_volume),
        outline_key=key_where("outlines", outlined),
        risk=by_scan({scan_id: finding.probability for scan_id, finding in findings.items()}),
        margin=by_scan(
            {
                scan_id: abs(finding.probability - finding.threshold)
                for scan_id, finding in findings.items()
            }
        ),
        verdict_state=by_scan({scan_id: finding.state for scan_id, finding in findings.items()}),
    )
    predictions = [
        prediction_of(outcome, outcome.finding, seconds)
        for outcome in outcomes
        if outcome.finding is not None and outcome.scan.id in owned
    ]
    wanting = {outcome.scan.id for outcome in outcomes if outcome.wants_heat_maps}
    if predictions:
        db.session.execute(insert(Prediction).values(predictions))
        heatmaps = [
            {
                "id": new_id(),
                "prediction_id": prediction["id"],
                "user_id": _owner_of(str(prediction["scan_id"])),
            }
            for prediction in predictions
            if prediction["scan_id"] in wanting
        ]
        if heatmaps:
            db.session.execute(insert(Heatmap).values(heatmaps))
        queue_notifications(owned)
    odd = {one.scan.id: one.not_head_ct for one in outcomes if one.not_head_ct is not None}
    if odd:
        leases.write(Scan, owner, odd, not_head_ct=by_scan(odd))
    for end, is_put_off in ((leases.fail, False), (leases.refuse, True)):
        refusals = {
            one.scan.id: one.refusal
            for one in outcomes
            if one.refusal is not None and one.refused_by_storage is is_put_off
        }
        end(Scan, owner, refusals)
    return owned


def key_where(kind: str, scan_ids: Collection[str]) -> ColumnElement[Any] | None:
    """Return an SQL expression for the storage key of a NIfTI file that these scans have and others
    have not.
    """
    if not scan_ids:
        return None
    return case((Scan.id.in_(scan_ids), literal(f"{kind}/") + Scan.id + ".nii.gz"), else_=None)


def prediction_of(outcome: Outcome, finding: Finding, seconds: float) -> dict[str, Any]:
    """Return the columns of the prediction of a scan."""
    return {
        "id": new_id(),
        "scan_id": outcome.scan.id,
        "model_version_id": outcome.version_id,
        "probability": finding.probability,
        "threshold": finding.threshold,
        "positive": finding.positive,
        "uncertain": finding.uncertain,
        "warnings": list(finding.warnings),
        "doubts": list(finding.doubts),
        "slices": list(finding.slice_probabilities),
        "first_slices": list(finding.first_slices),
        "types": types_of(finding),
        **outlines_of(finding),
        "seconds": seconds,
    }


def outlines_of(finding: Finding) -> dict[str, Any]:
    """Return the columns of a prediction that tell what is outlined."""
    found = finding.outlines
    return {
        "outlined_slices": list(found.outlined_slices) if found.masks else None,
        "areas_mm2": [round(area, 1) for area in found.areas_mm2] or None,
        "volume_ml": None if found.volume_ml is None else round(found.volume_ml, 2),
        "no_volume_because": found.no_volume_because or None,
    }


def types_of(finding: Finding) -> dict[str, dict[str, Any]]:
    """Return the value of `Prediction.types`, with four digits, because a series has a thousand
    such numbers and no page shows more.

    They are rounded down, since no type may be more probable than hemorrhage itself, whose
    probability is not rounded.
    """
    return {
        name: {
            "probability": _rounded(probability),
            "slices": [_rounded(value) for value in finding.slice_types[name]],
        }
        for name, probability in finding.types.items()
    }


def _rounded(probability: float) -> float:
    return floor(probability * 10_000) / 10_000


def by_scan(values: Mapping[str, float] | Mapping[str, State]) -> ColumnElement[Any] | None:
    """Return an SQL expression for each scan's value, to update many scans in one statement."""
    return case(dict(values), value=Scan.id) if values else None


def _owner_of(scan_id: str) -> ScalarSelect[str]:
    return select(Scan.user_id).where(Scan.id == scan_id).scalar_subquery()


def warm_up() -> None:
    """Load the live models before the first scan comes; each scores a phantom."""
    versions = [version for version in answering_versions() if version is not None]
    db.session.commit()
    if not versions:
        log.warning("no model is live yet")
    all_load(versions)
