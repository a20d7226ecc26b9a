"""What users can do with their scans, one or many, for the pages and the API: each change is
committed together with its record in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

from werkzeug.datastructures import FileStorage

from webapp.audit import record
from webapp.deletion import FILES_S, discard, heatmaps_of
from webapp.extensions import db
from webapp.intake import Choices
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    Act,
    EarlierAnswer,
    Prediction,
    Scan,
    cancel,
    force,
    request_replay,
    retry,
    score_again,
    set_stat,
)
from webapp.review.sharing import SharingRefused, share
from webapp.storage import storage

MOST_SELECTED = 500
"""Maximum number of scans that are changed or exported at once."""
NOT_REJECTED = (
    "This scan was not rejected by the head CT check, or it is already being analyzed anyway."
)
ALREADY_FINISHED = "This scan has already finished."
NOT_UNANSWERED = "Only failed or canceled scans can be retried."
NOT_ANSWERED = "Only scans that have a result can be analyzed again."
IS_COMPUTED = "It is already being computed."
NO_SHEET = "This scan is not a film sheet, or its file is no longer stored."


def cancel_scan(scan: Scan) -> bool:
    """Cancel a queued or running scan; False if it has ended."""
    return _recorded(cancel(Scan, Scan.id == scan.id), Act.SCAN_CANCELLED, scan)


def retry_scan(scan: Scan) -> bool:
    """Queue a failed or canceled scan again; False if it is neither, or its file is gone."""
    return _recorded(retry(scan.id), Act.SCAN_RETRIED, scan)


def score_scan_again(scan: Scan) -> bool:
    """Queue an analyzed scan for the live model; False if it has no result, or its file is gone.
    The heat maps of the earlier result are deleted.
    """
    heatmaps = _heatmaps_of(scan)
    queued = _queue_again(scan)
    if queued:
        discard(heatmaps, FILES_S)
    return queued


def _heatmaps_of(scan: Scan) -> list[str]:
    return heatmaps_of(Scan.id == scan.id)


def _queue_again(scan: Scan) -> bool:
    return _recorded(score_again(scan.id), Act.SCAN_SCORED_AGAIN, scan)


def reproduce_answer(scan: Scan, answer: Prediction | EarlierAnswer) -> bool:
    """Queue a prediction of a scan to be computed again; False if that is already queued, or the
    file is gone. The caller notifies a worker.
    """
    return _recorded(request_replay(scan, answer), Act.REPLAY_REQUESTED, scan)


def score_scan_anyway(scan: Scan) -> bool:
    """Queue a scan that was rejected because it is not a head CT; False if it was not, or its file
    is gone.
    """
    return _recorded(force(scan.id, scan.user_id), Act.SCAN_FORCED, scan)


def _make_stat(scan: Scan) -> bool:
    return _recorded(set_stat(scan.id, scan.user_id, True), Act.SCAN_MADE_STAT, scan)


def _make_routine(scan: Scan) -> bool:
    return _recorded(set_stat(scan.id, scan.user_id, False), Act.SCAN_MADE_ROUTINE, scan)


def _share(scan: Scan) -> bool:
    try:
        share(scan, None)
    except SharingRefused:
        db.session.rollback()
        return False
    db.session.commit()
    return True


@dataclass(frozen=True)
class Change:
    """An action on many scans.

    Attributes:
        apply: applies it to one of them; returns whether it changed the scan.
        done: the message about the scans that were changed.
        otherwise: the message about the others.
        queues: whether a worker has to be notified.
        files_of: returns the keys of the files that a changed scan no longer needs.
    """

    apply: Callable[[Scan], bool]
    done: str
    otherwise: str
    queues: bool = False
    files_of: Callable[[Scan], list[str]] = lambda scan: []


CHANGES = {
    "cancel": Change(cancel_scan, "canceled", "had already finished"),
    "retry": Change(
        retry_scan,
        "queued again",
        "cannot be retried: only failed or canceled scans whose file is still stored can",
        queues=True,
    ),
    "again": Change(
        _queue_again,
        "queued again",
        "had no result to replace, or their file is no longer stored",
        queues=True,
        files_of=_heatmaps_of,
    ),
    "stat": Change(
        _make_stat,
        "made STAT",
        "stay as they are: they are STAT already, or too many STAT scans are waiting",
    ),
    "share": Change(_share, "shared with the reviewers", "were shared with the reviewers already"),
    "routine": Change(_make_routine, "made routine", "were routine already"),
}


@dataclass(frozen=True)
class Changed:
    """The scans that were changed, those that were not, and whether a worker could be notified."""

    changed: list[Scan]
    unchanged: list[Scan]
    reachable: bool


def change_scans(scans: Sequence[Scan], action: str) -> Changed:
    """Apply `action`, a name in `CHANGES`, to each of these scans of one user, and notify a worker
    if that queued any. Files that remain after `FILES_S` are left to `worker.orphaned_files`.
    """
    change = CHANGES[action]
    # Each separately: no transaction locks several scans, which workers would lock in another
    # order.
    outcome = [(scan, change.files_of(scan), change.apply(scan)) for scan in scans]
    changed = [scan for scan, _, was in outcome if was]
    reachable = not (change.queues and changed) or nudge(PREDICT_SCANS)
    discard([key for _, keys, was in outcome if was for key in keys], FILES_S)
    return Changed(changed, [scan for scan, _, was in outcome if not was], reachable)


def other_reading(scan: Scan) -> tuple[FileStorage, Choices] | None:
    """Return the film sheet that a scan is, and the options with which it is submitted again: cut
    into slices if it was read as one slice, and vice versa; None if it is not a film sheet.
    """
    if scan.sheet_may_be is None:
        return None
    sheet = FileStorage(BytesIO(storage.get(scan.original_key)))
    return sheet, Choices(stat=scan.stat, uncut=not scan.uncut)


def _recorded(changed: bool, act: Act, scan: Scan) -> bool:
    if changed:
        record(act, scan.id)
    db.session.commit()
    return changed
