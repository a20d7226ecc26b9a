"""Scans to verdicts: what a predict worker does first. It never loads TensorFlow."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from math import floor
from typing import Any

import numpy as np
from flask import current_app
from sqlalchemy import ColumnElement, ScalarSelect, case, insert, literal, select

from ml.errors import ArtifactError
from ml.inference.predictor import Finding, Predictor, Stopped
from ml.scans.slices import Series, Slice
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import Heatmap, ModelVersion, Prediction, Scan, answering_versions, new_id
from webapp.storage import StorageAway, StorageError
from worker import leases
from worker.heartbeat import presence
from worker.predictors import predictor_for
from worker.retries import in_transaction
from worker.scan_files import (
    discard_pictures_of_deleted,
    read_original,
    sentence_for,
    shown_slice,
    store_pictures,
)

log = logging.getLogger(__name__)

MOST_SLICES = 64
"""Slices of the scans that are read together, where it is more than one: a longer series is read
alone.
"""
PROGRESS_S = 1.0
NOT_HEAD_CT = "This does not look like a head CT, so it was not scored."
NO_MODEL = "No model is live; ask an administrator to promote one."


def answer_next_scans() -> bool:
    """Claim a batch of queued scans and end each in a verdict or a sentence, or hand them back;
    False if none was queued.
    """
    mine = presence()

    def claim() -> tuple[list[Scan], ModelVersion | None, ModelVersion | None]:
        scans = leases.claim(Scan, mine.owner, current_app.config["PREDICT_BATCH"])
        # Asked at every claim, so that a promotion needs no restart.
        return scans, *(answering_versions() if scans else (None, None))

    scans, of_slices, of_series = in_transaction(claim)
    if not scans:
        return False
    scans = _as_many_as_memory_holds(scans)
    ids = [scan.id for scan in scans]
    with mine.holding(Scan, ids):
        # Each kind stands in for the other: without one there is none.
        if of_slices is None or of_series is None:
            in_transaction(lambda: leases.fail(Scan, mine.owner, dict.fromkeys(ids, NO_MODEL)))
            return True
        try:
            answer(scans, of_slices, of_series)
        except StorageAway:
            in_transaction(lambda: leases.hand_back(Scan, mine.owner, ids))
            log.warning("scans=%s handed back: the storage is away", ",".join(ids))
    return True


def _as_many_as_memory_holds(scans: list[Scan]) -> list[Scan]:
    """Return the first of these scans, at least one, and hand the others back: another worker may
    have time for them now.

    First are the urgent ones, then the oldest of each person in turn, whose scan was read last
    coming last: by age alone, one's older series would send everybody else's scans back again and
    again.
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


def answer(scans: list[Scan], of_slices: ModelVersion, of_series: ModelVersion) -> None:
    """Read, score and render a batch, each scan by the version for so many slices, then write all
    its verdicts in one transaction.

    Raises:
        StorageAway: nothing was written about any of them.
    """
    refused: dict[str, str] = {}
    series: dict[str, Series] = {}
    for scan in scans:
        try:
            series[scan.id] = read_original(scan)
        except Exception as err:  # noqa: BLE001 - one scan must not take its batch mates with it.
            refused[scan.id] = sentence_for(err, scan)

    findings: dict[str, Finding] = {}
    started = time.monotonic()
    answered_by: dict[str, str] = {}
    for version, reads_series in ((of_slices, False), (of_series, True)):
        chosen = {
            scan_id: scan
            for scan_id, scan in series.items()
            if (len(scan.slices) > 1) is reads_series
        }
        if not chosen:
            continue
        try:
            findings |= score(predictor_for(version), chosen, refused, Watch(list(chosen)))
            answered_by |= dict.fromkeys(chosen, version.id)
        except StorageAway:
            raise
        except (StorageError, ArtifactError) as err:
            log.error("version=%s cannot be loaded: %s", version.id, err)
            refused.update(
                dict.fromkeys(
                    chosen,
                    "The model that is live cannot be loaded; ask an administrator to look at it.",
                )
            )
    seconds = (time.monotonic() - started) / max(len(findings), 1)

    forced = {scan.id for scan in scans if scan.forced_at is not None}
    odd = {
        scan_id: finding.not_head_ct
        for scan_id, finding in findings.items()
        if finding.refused and scan_id not in forced
    }
    refused.update(dict.fromkeys(odd, NOT_HEAD_CT))
    findings = {scan_id: finding for scan_id, finding in findings.items() if scan_id not in odd}
    shown = set(findings)
    for scan in scans:
        if scan.id in shown:
            try:
                store_pictures(
                    scan.id, series[scan.id], shown_slice(findings[scan.id].first_slices)
                )
            except Exception as err:  # noqa: BLE001 - likewise.
                refused[scan.id] = sentence_for(err, scan)
                del findings[scan.id]

    owned = in_transaction(lambda: write_verdicts(answered_by, findings, seconds, refused, odd))
    discard_pictures_of_deleted(shown - owned)
    versions = ",".join(sorted(set(answered_by.values())))
    log.info(
        "scans=%d done=%d version=%s seconds_each=%.3f", len(scans), len(owned), versions, seconds
    )


class Watch:
    """Tells while series are read how far they are, at most once a second, and notices when nobody
    waits for them any more.

    Scans that were cancelled or deleted, or whose lease was lost, are no longer this worker's; a
    worker that is asked to stop hands series back, since they may take longer than the grace that
    it is given.
    """

    def __init__(self, scan_ids: list[str]) -> None:
        self._scan_ids, self._told, self._is_over = scan_ids, time.monotonic(), False

    def on_progress(self, done: int, total: int) -> None:
        """Write how many slices are read; of scans that are read together each is told how far all
        of them are.
        """
        if time.monotonic() - self._told < PROGRESS_S:
            return
        self._told = time.monotonic()
        stage = (
            f"Reading slice {done} of {total}"
            if len(self._scan_ids) == 1
            else "Reading the slices of several scans"
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
        """True if none of the scans is this worker's any more."""
        return self._is_over


def score(
    predictor: Predictor, series: Mapping[str, Series], refused: dict[str, str], watch: Watch
) -> dict[str, Finding]:
    """Return the findings by scan, none where nobody asks any more; a scan on which the model fails
    gets its sentence in `refused`.
    """
    try:
        return dict(
            zip(
                series,
                predictor.predict_many(list(series.values()), watch.on_progress, watch.is_over),
                strict=True,
            )
        )
    except Stopped:
        return {}
    except Exception as err:  # noqa: BLE001 - which scan it was shows below.
        log.warning(
            "scans=%s the batch failed and is scored one by one: %s",
            ",".join(series),
            type(err).__name__,
        )
    findings = {}
    for scan_id, one in series.items():
        try:
            findings[scan_id] = predictor.predict(one)
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            refused[scan_id] = sentence_for(err, scan_id)
    return findings


def write_verdicts(
    answered_by: Mapping[str, str],
    findings: Mapping[str, Finding],
    seconds: float,
    refused: Mapping[str, str],
    odd: Mapping[str, float],
) -> frozenset[str]:
    """Write the verdicts on scans that this worker still holds, and queue their heat maps; return
    these scans' ids.

    `answered_by` are the versions' ids by scan; `refused` are the sentences of scans without a
    verdict; `odd` are those among them that do not look like a head CT, with the score. The number
    of statements does not depend on the number of scans.
    """
    owner = presence().owner
    of_series = [
        scan_id for scan_id, finding in findings.items() if len(finding.slice_probabilities) > 1
    ]
    owned = leases.finish(
        Scan,
        owner,
        findings.keys(),
        image_key=literal("images/") + Scan.id + ".png",
        thumbnail_key=literal("thumbnails/") + Scan.id + ".png",
        volume_key=case(
            (Scan.id.in_(of_series), literal("volumes/") + Scan.id + ".nii.gz"), else_=None
        )
        if of_series
        else None,
        risk=by_scan({scan_id: finding.probability for scan_id, finding in findings.items()}),
        margin=by_scan(
            {
                scan_id: abs(finding.probability - finding.threshold)
                for scan_id, finding in findings.items()
            }
        ),
    )
    predictions = [
        {
            "id": new_id(),
            "scan_id": scan_id,
            "model_version_id": answered_by[scan_id],
            "probability": finding.probability,
            "threshold": finding.threshold,
            "positive": finding.positive,
            "uncertain": finding.uncertain,
            "warnings": list(finding.warnings),
            "slices": list(finding.slice_probabilities),
            "first_slices": list(finding.first_slices),
            "types": types_of(finding),
            "seconds": seconds,
        }
        for scan_id, finding in findings.items()
        if scan_id in owned
    ]
    if predictions:
        db.session.execute(insert(Prediction).values(predictions))
        heatmaps = [
            {
                "id": new_id(),
                "prediction_id": prediction["id"],
                "user_id": _owner_of(str(prediction["scan_id"])),
            }
            for prediction in predictions
        ]
        db.session.execute(insert(Heatmap).values(heatmaps))
    if odd:
        leases.write(Scan, owner, odd, not_head_ct=by_scan(odd))
    leases.fail(Scan, owner, refused)
    return owned


def types_of(finding: Finding) -> dict[str, dict[str, Any]]:
    """Return what `Prediction.types` holds; to four digits, since a series has a thousand of these
    and no page shows more.

    They are rounded down: no type may be likelier than the hemorrhage, whose probability is kept as
    it is.
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


def by_scan(values: Mapping[str, float]) -> ColumnElement[float] | None:
    """Return each scan's value, by the scans' ids, for one statement that writes many."""
    return case(dict(values), value=Scan.id) if values else None


def _owner_of(scan_id: str) -> ScalarSelect[str]:
    return select(Scan.user_id).where(Scan.id == scan_id).scalar_subquery()


def warm_up() -> None:
    """Load the live model before the first scan comes, and run it once."""
    versions = [version for version in answering_versions() if version is not None]
    db.session.commit()
    if not versions:
        log.warning("no model is live yet")
    for version in versions:
        predictor_for(version).predict(Series((Slice(np.zeros((64, 64), np.float32), "display"),)))
