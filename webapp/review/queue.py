"""The review queue: which of the scans that are shared with the reviewers should be read next.

Inconclusive ones come first, then those on which people disagree with each other or one person with
the model, then a random sample of all others. Scans that people choose to read are not
representative, so figures from them alone would be biased: each opinion stores the probability with
which the queue selected its scan, and site figures are weighted by it.

Whether a scan is in the random sample depends on its id, which is random, so the selection needs no
row and is the same for every reviewer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flask import current_app
from sqlalchemy import ColumnElement, Row, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import joinedload

from webapp.extensions import db
from webapp.models import JobStatus, Opinion, Scan, User, votes
from webapp.review.sharing import shared_with_reviewers

UNCERTAIN, DISAGREEMENT, RANDOM = REASONS = ("uncertain", "disagreement", "random share")
INCONCLUSIVE, SUSPECTED, NOT_FOUND = "inconclusive", "suspected", "not found"
DIGITS = 8
"""How many leading hexadecimal digits of an id, which are random, decide."""


@dataclass(frozen=True)
class Due:
    """A scan in the queue, and the reason (one of `REASONS`)."""

    scan: Scan
    reason: str


def sampling_of(scan_id: str, state: str | None) -> float | None:
    """Return the probability with which the queue selects a scan, whose prediction is in this
    state, for its first opinion; None if it does not select it.
    """
    if state == INCONCLUSIVE:
        return 1.0
    share = random_share()
    return share if share > 0 and scan_id < _bound(share) else None


def sampling_for(reviewer: User, scan: Scan) -> float | None:
    """Return the probability with which the queue selected a scan that it currently offers this
    user for its first opinion; None if it does not offer it, whatever the user claims.
    """
    if not reviewer.is_reviewer:
        return None
    rows, _ = queue_rows(reviewer.id)
    offered = db.session.execute(rows.where(Scan.id == scan.id)).one_or_none()
    if offered is None or REASONS[offered.rank] == DISAGREEMENT:
        return None
    return sampling_of(scan.id, scan.verdict_state)


def random_share() -> float:
    """Return the fraction of all scans that are reviewed at random, 0..1."""
    return float(min(current_app.config["REVIEW_PERCENT"], 100) / 100)


def in_random_share() -> ColumnElement[bool]:
    """Return the condition for scans in the random sample."""
    return Scan.id < _bound(random_share())


def queue_of(reviewer_id: str, limit: int) -> list[Due]:
    """Return the first scans that this reviewer should read, in order."""
    rows, order = queue_rows(reviewer_id)
    return due_of(db.session.execute(rows.order_by(*order).limit(limit)))


def due_of(rows: Iterable[Row[Any]]) -> list[Due]:
    """Return the scans of these queue rows, without those that were deleted meanwhile."""
    ids = {row.id: REASONS[row.rank] for row in rows}
    rows_of_scans = db.session.scalars(
        select(Scan).where(Scan.id.in_(ids)).options(joinedload(Scan.user))
    )
    scans = {scan.id: scan for scan in rows_of_scans}
    return [Due(scans[each], reason) for each, reason in ids.items() if each in scans]


def next_in_queue(reviewer_id: str) -> str | None:
    """Return the id of the scan that this reviewer should read next; None if there is none."""
    rows, order = queue_rows(reviewer_id)
    row = db.session.execute(rows.order_by(*order).limit(1)).one_or_none()
    return None if row is None else str(row.id)


def neighbors_in_queue(reviewer_id: str, scan_id: str) -> tuple[str | None, str | None]:
    """Return the ids of the scans before and after one in this reviewer's queue; None at the ends.
    After a scan that is not, or no longer, in the queue comes the first one.
    """
    rows, order = queue_rows(reviewer_id)
    before, after = (
        beside(Scan.id).over(order_by=order).label(name)
        for name, beside in (("before", func.lag), ("after", func.lead))
    )
    queued = rows.add_columns(before, after).subquery()
    of_scan = select(queued.c.before, queued.c.after).where(queued.c.id == scan_id)
    row = db.session.execute(of_scan).one_or_none()
    return (None, next_in_queue(reviewer_id)) if row is None else (row.before, row.after)


def counts_for(reviewer_id: str) -> dict[str, int]:
    """Return how many scans this reviewer should read, by reason."""
    queued = queue_rows(reviewer_id)[0].subquery()
    each = select(queued.c.rank, func.count().label("scans")).group_by(queued.c.rank)
    counts = {row.rank: row.scans for row in db.session.execute(each)}
    return {reason: counts.get(rank, 0) for rank, reason in enumerate(REASONS)}


def queue_rows(reviewer_id: str) -> tuple[Select[Any], tuple[ColumnElement[Any], ...]]:
    """Return the statement for id and rank (in `REASONS`) of the scans in a reviewer's queue, and
    the columns to sort them by.
    """
    voted = votes()
    present, absent = func.coalesce(voted.c.present, 0), func.coalesce(voted.c.absent, 0)
    nobody_decided = present + absent == 0
    against_model = or_(
        and_(present == 1, absent == 0, Scan.verdict_state == NOT_FOUND),
        and_(present == 0, absent == 1, Scan.verdict_state == SUSPECTED),
    )
    undecided = and_(present == absent, present > 0)
    rank = case(
        (and_(Scan.verdict_state == INCONCLUSIVE, nobody_decided), 0),
        (or_(undecided, against_model), 1),
        (and_(in_random_share(), nobody_decided), 2),
    )
    has_opinion = exists().where(
        Opinion.scan_id == Scan.id,
        Opinion.author_id == reviewer_id,
        Opinion.slice_index.is_(None),
    )
    rows = (
        select(Scan.id, rank.label("rank"))
        .outerjoin(voted, voted.c.scan_id == Scan.id)
        .where(
            Scan.id.in_(shared_with_reviewers()),
            Scan.status == JobStatus.DONE,
            Scan.user_id != reviewer_id,
            rank.is_not(None),
            ~has_opinion,
        )
    )
    return rows, (rank, case((rank == 0, Scan.margin), else_=0.0), Scan.id.expression)


def _bound(share: float) -> str:
    """Return the text below which this fraction of all ids lies."""
    return "g" if share >= 1 else f"{int(share * 16**DIGITS):0{DIGITS}x}"
