"""Computes the performance of the live versions on this site's confirmed scans, by month."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, select

from ml.evaluation.site_figures import (
    ConfirmedScan,
    FiguresOfSite,
    Stratum,
    sampling_weights,
    site_figures,
)
from ml.typed_json import to_json
from webapp.extensions import db
from webapp.learning.confirmed import studies_learned_from
from webapp.models import (
    Finding,
    JobStatus,
    ModelVersion,
    Opinion,
    Prediction,
    Scan,
    SiteFigures,
    live_version,
    votes,
)
from webapp.review.queue import random_share, sampling_of
from webapp.review.sharing import shared_with_reviewers
from worker import leases
from worker.heartbeat import heartbeat
from worker.leases import LeaseLost
from worker.retries import in_transaction

log = logging.getLogger(__name__)

FAILED = "An unexpected error occurred while computing the figures; see the log for details."


def compute_next_figures() -> bool:
    """Claim a queued computation of the site figures and carry it out; return False if none was
    queued.
    """
    mine = heartbeat()
    claimed = in_transaction(lambda: leases.claim(SiteFigures, mine.owner))
    if not claimed:
        return False
    row = claimed[0]
    with mine.holding(SiteFigures, [row.id]):
        try:
            answered = in_transaction(_answered)
            figures = [_figures_of(version) for version in answered]
            finished = in_transaction(
                lambda: leases.finish(SiteFigures, mine.owner, [row.id], figures=figures)
            )
            if not finished:
                raise LeaseLost
            log.info("site_figures=%s done", row.id)
        except LeaseLost:
            log.warning("site_figures=%s was lost to another worker", row.id)
        except Exception:
            log.error("site_figures=%s failed unexpectedly", row.id)
            in_transaction(lambda: leases.fail(SiteFigures, mine.owner, {row.id: FAILED}))
            raise
    return True


@dataclass(frozen=True)
class Answered:
    """The scans that a live version analyzed.

    Attributes:
        version: the version.
        scans: the confirmed scans that it was not trained on.
        drawn: how many scans the review queue selected in each stratum, reviewed or not.
        seen: how many confirmed scans are excluded because it was trained on their patients.
        unconfirmed: how many others it analyzed.
    """

    version: ModelVersion
    scans: list[ConfirmedScan]
    drawn: Mapping[Stratum, int]
    seen: int
    unconfirmed: int


def _answered() -> list[Answered]:
    versions = [live_version(reads) for reads in ("series", "slice")]
    return [_answered_by(version) for version in versions if version is not None]


def _answered_by(version: ModelVersion) -> Answered:
    sampling = _sampling_of_first()
    learned = studies_learned_from(version)
    voted = votes()
    rows = db.session.execute(
        select(
            Scan.id,
            Scan.created_at,
            Scan.study_id,
            Scan.verdict_state,
            Prediction.probability,
            Prediction.positive,
            func.coalesce(voted.c.present, 0).label("present"),
            func.coalesce(voted.c.absent, 0).label("absent"),
        )
        .join(Scan.prediction)
        .outerjoin(voted, voted.c.scan_id == Scan.id)
        .where(
            Scan.id.in_(shared_with_reviewers()),
            Scan.status == JobStatus.DONE,
            Prediction.model_version_id == version.id,
        )
        .order_by(Scan.created_at, Scan.id)
    )
    scans: list[ConfirmedScan] = []
    drawn = Counter[Stratum]()
    seen = unconfirmed = 0
    for row in rows:
        month = f"{row.created_at:%Y-%m}"
        is_confirmed = row.present != row.absent
        if row.study_id in learned:
            seen += is_confirmed
            continue
        # A scan that somebody had already chosen to read does not count as drawn.
        share = sampling[row.id] if row.id in sampling else sampling_of(row.id, row.verdict_state)
        if share is not None:
            drawn[month, share] += 1
        if not is_confirmed:
            unconfirmed += 1
            continue
        label = int(row.present > row.absent)
        scans.append(
            ConfirmedScan(month, label, row.probability, row.positive, row.study_id, share)
        )
    return Answered(version, scans, drawn, seen, unconfirmed)


def _sampling_of_first() -> dict[str, float | None]:
    """Return the sampling probability of each scan with a decisive opinion; None if the author of
    the first one chose to read it.
    """
    first: dict[str, float | None] = {}
    opinions = (
        select(Opinion.scan_id, Opinion.sampling)
        .where(Opinion.slice_index.is_(None), Opinion.finding != Finding.UNCLEAR)
        .order_by(Opinion.created_at, Opinion.id)
    )
    for scan_id, sampling in db.session.execute(opinions):
        first.setdefault(scan_id, sampling)
    return first


def _figures_of(answered: Answered) -> dict[str, Any]:
    """Return the entry of a version in `SiteFigures.figures`."""
    scans = answered.scans
    weights = sampling_weights(scans, answered.drawn)
    months = sorted({scan.month for scan in scans}, reverse=True)
    return {
        "version_id": answered.version.id,
        "card_id": answered.version.card_id,
        "architecture": answered.version.architecture,
        "reads": answered.version.reads,
        "all": to_json(site_figures(scans, weights)),
        "months": [{"month": month, **_of_month(month, scans, weights)} for month in months],
        "notes": _notes(answered),
    }


def _of_month(month: str, scans: Sequence[ConfirmedScan], weights: np.ndarray) -> dict[str, Any]:
    here = [at for at, scan in enumerate(scans) if scan.month == month]
    figures: FiguresOfSite = site_figures([scans[at] for at in here], weights[here])
    return dict(to_json(figures))


def _notes(answered: Answered) -> list[str]:
    """Return notes for readers of the figures."""
    notes = []
    reviewed = Counter(
        (scan.month, scan.sampling) for scan in answered.scans if scan.sampling is not None
    )
    by_choice = sum(scan.sampling is None for scan in answered.scans)
    missing = sorted(
        month
        for (month, share), count in answered.drawn.items()
        if share < 1 and count and not reviewed[month, share]
    )
    if missing:
        notes.append(
            "No scan from the random sample has been reviewed yet for"
            f" {', '.join(missing)}, so these figures describe only unusual scans."
        )
    if by_choice:
        notes.append(
            f"{by_choice} of the {len(answered.scans)} confirmed scans were chosen by readers and"
            " count once. Scans from the random sample also stand for those that were not drawn."
        )
    if answered.seen:
        notes.append(
            f"{answered.seen} confirmed scans are excluded because this version, or the one it"
            " was initialized from, was trained on them."
        )
    if answered.unconfirmed:
        notes.append(
            f"{answered.unconfirmed} scans that this version analyzed and that are shared with the"
            f" reviewers are not confirmed. The random sample is {random_share():.0%} of them."
        )
    return notes
