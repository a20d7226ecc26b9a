"""The results of a batch of scans, and the rows that they become: predictions, or errors, and what
follows from them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, case, insert, literal, select

from ml.inference.predictor import ScanResult
from ml.scans.slices import Series
from ml.scans.volume import has_volume
from ml.verdict import State
from webapp.accounts.notifications import queue_notifications
from webapp.extensions import database_now, db
from webapp.models import Heatmap, Prediction, Scan, new_id, queue_for_shadows
from webapp.models.reports import queue_dicom_results
from webapp.routing import queue_deliveries
from worker import leases
from worker.heartbeat import heartbeat
from worker.scan_files import is_passing, sentence_for


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
