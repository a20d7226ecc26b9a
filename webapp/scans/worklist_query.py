"""Queries of a worklist: filters, orders, and the grouping of scans into studies.

An entry of a worklist is a study: the series of one examination, or a single scan. Filters select
scans; a study is sorted by the selected series that comes first. For a user's own scans, one index
(`ix_scan_worklist`) covers all filters and orders, so that only the scans of one page are read from
the table. Shared scans are looked up through the share table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    case,
    false,
    func,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, joinedload
from werkzeug.datastructures import MultiDict

from ml.verdict import STATES, State
from webapp.extensions import db
from webapp.forms import SHARED, WorklistFilterForm
from webapp.keyset import beyond, directed, split
from webapp.models import JobStatus, Order, Scan, User
from webapp.models.scans import IS_OPEN
from webapp.models.totals import totals_of
from webapp.review.sharing import shared_with, visible_to

SCOPE: tuple[str, ...] = ("whose",)
"""Names of the filters that select whose scans are listed; without them, the user's own."""
MOST_SERIES = 8
"""Maximum number of series listed below a study; a link leads to the others."""
_WORKFLOW = (JobStatus.RUNNING, *(status for status in JobStatus if status != JobStatus.RUNNING))
_STATUS_RANK = case({s.value: i for i, s in enumerate(_WORKFLOW)}, value=Scan.status)
_VERDICT_RANK = case({state: rank for rank, state in enumerate(STATES)}, value=Scan.verdict_state)
_STAT = func.max(case((Scan.stat, 1), else_=0))
_NEWEST = (Scan.created_at.desc(), Scan.study_id.asc())
_WORST_VERDICT = func.min(_VERDICT_RANK)
# Rank and risk in one number: 2 x rank dominates because risk <= 1, so the minimum belongs to the
# worst state and, among the series with that state, to the highest risk. `_RISK` recovers it.
_WORST = func.min(2 * _VERDICT_RANK - Scan.risk)
_RISK = 2 * _WORST_VERDICT - _WORST
_WORST_FIRST = (
    _VERDICT_RANK.is_(None),
    _VERDICT_RANK,
    Scan.risk.desc(),
    func.length(Scan.title),  # "Series 9" before "Series 10".
    Scan.title,
    Scan.id,
)


@dataclass(frozen=True)
class Study:
    """An entry of a worklist.

    Attributes:
        scans: the listed series, the worst state first.
        chosen: the number of its series that match the filters.
        total: the number of all its series.
        slice_count: the total of the matching series.
        stat: True if at least one matching series is urgent.
        status: the status of the series that needs attention first: running, waiting, done.
        verdict_state: the worst one; None if there is none.
        risk: the highest probability among the series with that state.
    """

    id: str
    scans: tuple[Scan, ...]
    chosen: int
    total: int
    slice_count: int
    stat: bool
    status: JobStatus
    verdict_state: State | None
    risk: float

    @property
    def created_at(self) -> datetime:
        """When it was submitted."""
        return self.scans[0].created_at

    @property
    def title(self) -> str:
        """The common part of the titles of its series, without their labels."""
        titles = {scan.title.rpartition(" · ")[0] for scan in self.scans}
        return titles.pop() if len(titles) == 1 else ""

    @property
    def version(self) -> str:
        """A hash that changes whenever its row on the page does; each series has its own."""
        values = self.chosen, self.total, self.slice_count, self.stat, self.status
        return _hash(*values, self.verdict_state, self.risk, self.title)


@dataclass(frozen=True)
class Column:
    """A column of the worklist by which it can be sorted.

    Attributes:
        heading: its label.
        value: sort key of scans.
        of_study: sort key of studies.
        missing: condition for scans without a value; they and studies of such scans come last in
            either direction.
        descending: whether the first click on its heading sorts in descending order.
    """

    heading: str
    value: ColumnElement[Any]
    of_study: ColumnElement[Any]
    missing: ColumnElement[bool] | None = None
    descending: bool = False

    def ordered(self, descending: bool) -> tuple[ColumnElement[Any], ...]:
        """Return the ORDER BY columns of scans; equal values are sorted newest first."""
        missing = () if self.missing is None else (self.missing,)
        value = self.value.desc() if descending else self.value.asc()
        return (*missing, value, Scan.created_at.desc(), Scan.id.asc())

    def studies_ordered(self, descending: bool) -> tuple[ColumnElement[Any], ...]:
        """Return the ORDER BY columns of studies; equal values are sorted newest first."""
        missing = () if self.missing is None else (self.of_study.is_(None),)
        return (*missing, self.of_study.desc() if descending else self.of_study.asc(), *_NEWEST)


COLUMNS = {
    "priority": Column("Priority", Scan.stat.expression, _STAT, descending=True),
    "title": Column(
        "Title",
        func.lower(Scan.title),
        func.min(func.nullif(func.lower(Scan.title), "")),
        Scan.title == "",
    ),
    "slices": Column(
        "Slices", Scan.slice_count.expression, func.sum(Scan.slice_count), descending=True
    ),
    "status": Column("Status", _STATUS_RANK, func.min(_STATUS_RANK)),
    "verdict": Column("Hemorrhage", _VERDICT_RANK, _WORST_VERDICT, Scan.verdict_state.is_(None)),
    "probability": Column(
        "Probability", Scan.risk.expression, _RISK, Scan.verdict_state.is_(None), descending=True
    ),
    "submitted": Column(
        "Submitted", Scan.created_at.expression, Scan.created_at.expression, descending=True
    ),
}
"""By the name in the address; a leading minus reverses the order."""


def known_order(name: str) -> str:
    """Return a requested order: a column's name, optionally with a leading minus, or one of
    `Order`; newest first if there is no such order.
    """
    known = name.removeprefix("-") in COLUMNS or name in list(Order)
    return name if known else Order.NEWEST.value


def filters_in(arguments: MultiDict[str, str]) -> tuple[dict[str, Any], str]:
    """Return the valid filters and the order in the parameters of an address."""
    chosen = WorklistFilterForm(arguments).chosen
    return chosen, known_order(arguments.get("order", ""))


def address_of(chosen: Mapping[str, Any], order: str) -> dict[str, Any]:
    """Return filters and order as the parameters of an address."""
    address: dict[str, Any] = {name: str(value) for name, value in chosen.items()}
    return address if order == Order.NEWEST else {**address, "order": order}


def order_columns(order: str) -> tuple[Any, ...]:
    """Return the ORDER BY columns of scans for an order of `known_order`."""
    if order in list(Order):
        return Order(order).columns
    return COLUMNS[order.removeprefix("-")].ordered(descending=order.startswith("-"))


def order_of_studies(order: str) -> tuple[ColumnElement[Any], ...]:
    """Return the ORDER BY columns of studies for an order of `known_order`."""
    if order == Order.RISK:
        return (_STAT.desc(), func.max(Scan.risk).desc(), *_NEWEST)
    if order == Order.UNCERTAINTY:
        return (_STAT.desc(), func.min(Scan.margin), *_NEWEST)
    if order == Order.NEWEST:
        return _NEWEST
    return COLUMNS[order.removeprefix("-")].studies_ordered(descending=order.startswith("-"))


def next_order(name: str, order: str) -> str:
    """Return the order selected by a click on the heading of a column."""
    column = COLUMNS[name]
    if order.removeprefix("-") == name:
        return name if order.startswith("-") else f"-{name}"
    return f"-{name}" if column.descending else name


def direction(name: str, order: str) -> str | None:
    """Return "ascending" or "descending" if the worklist is ordered by that column, else None."""
    if order == Order.NEWEST:
        return "descending" if name == "submitted" else None
    if order.removeprefix("-") != name:
        return None
    return "descending" if order.startswith("-") else "ascending"


def conditions(user_id: str, chosen: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for a user's own scans, or the scans shared with the user, that
    match the filters; `chosen` has the valid values of `WorklistFilterForm`. Days are days in UTC,
    and the last day is included.
    """
    clauses: list[ColumnElement[bool]] = [Scan.user_id == user_id]
    if chosen.get("whose") == SHARED:
        clauses = [Scan.id.in_(shared_with(user_id)), Scan.user_id != user_id]
        if submitter := chosen.get("submitter"):
            named = User.username_key.contains(submitter.lower(), autoescape=True)
            clauses.append(Scan.user_id.in_(select(User.id).where(named)))
    if text := chosen.get("title"):
        clauses.append(Scan.title.icontains(text, autoescape=True))
    if status := chosen.get("status"):
        clauses.append(Scan.status == JobStatus(status))
    if state := chosen.get("verdict"):
        clauses.append(Scan.verdict_state == state)
    if priority := chosen.get("priority"):
        clauses.append(Scan.stat == (true() if priority == "stat" else false()))
    if since := chosen.get("since"):
        clauses.append(Scan.created_at >= datetime.combine(since, time.min, UTC))
    if until := chosen.get("until"):
        clauses.append(Scan.created_at <= datetime.combine(until, time.max, UTC))
    if study := chosen.get("study"):
        clauses.append(Scan.study_id == study)
    return clauses


def count_of(user_id: str, chosen: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of entries and of scans in the user's worklist; without filters they are
    read from the totals, otherwise they are counted.
    """
    if not chosen:
        totals = totals_of(user_id)
        return totals.studies, totals.scans
    entries = (
        select(func.count().label("scans"))
        .where(*conditions(user_id, chosen))
        .group_by(*_entry_columns("study" in chosen))
        .subquery()
    )
    counted = select(func.count(), func.coalesce(func.sum(entries.c.scans), 0)).select_from(entries)
    entry_count, scan_count = db.session.execute(counted).one()
    return int(entry_count), int(scan_count)


def places_of_page(
    which: Sequence[ColumnElement[bool]],
    order: str,
    limit: int,
    offset: int,
    *,
    apart: bool,
    backward: bool = False,
) -> Select[Any]:
    """Return the query for the entries on a page of such a worklist, in order, or from its end in
    the opposite order; with `apart`, each scan is a separate entry.
    """
    columns = (*order_of_studies(order), *((Scan.id,) if apart else ()))
    directions = (
        directed(column, descending is not backward) for column, descending in map(split, columns)
    )
    entry = _entry_columns(apart)
    entries = select(*entry).where(*which).group_by(*entry)
    return entries.order_by(*directions).limit(limit).offset(offset)


def studies_of_page(
    user_id: str, chosen: Mapping[str, Any], order: str, total: int, limit: int, offset: int
) -> list[Study]:
    """Return the studies on a page of the user's worklist, in order; `total` is the number of its
    entries. In the worklist of one study (`chosen["study"]`), each series is an entry.

    Pages of the second half are counted from the end, so that the last one takes no longer than the
    first.
    """
    apart, which = "study" in chosen, conditions(user_id, chosen)
    backward = 2 * offset > total
    if backward:
        end = min(offset + limit, total)
        limit, offset = end - offset, total - end
    page = places_of_page(which, order, limit, offset, apart=apart, backward=backward)
    places = db.session.execute(page).all()
    if backward:
        places = places[::-1]
    if apart:
        return [_alone(scan) for scan in visible_scans(user_id, [place.id for place in places])]
    studies = _studies(which, places, scope=conditions(user_id, _scope(chosen)))
    return [studies[place.study_id] for place in places if place.study_id in studies]


def studies_around(user_id: str, chosen: Mapping[str, Any], scans: Iterable[Scan]) -> list[Study]:
    """Return the studies that contain these scans, as this worklist shows them; none in the
    worklist of one study.
    """
    if "study" in chosen:
        return []
    scope = conditions(user_id, _scope(chosen))
    studies = _studies(conditions(user_id, chosen), scans, scope=scope)
    return [study for study in studies.values() if study.total > 1]


def neighbors_of(
    scan: Scan, which: Sequence[ColumnElement[bool]], order: str
) -> tuple[str | None, str | None]:
    """Return the ids of the scans before and after this one among those that match `which`, in that
    order; None at the ends. The scan itself need not match any more.
    """
    columns = [split(column) for column in order_columns(order)]
    values = db.session.execute(
        select(*(column for column, _ in columns)).where(Scan.id == scan.id)
    ).one()
    before, after = (
        db.session.scalar(
            select(Scan.id)
            .where(*which, beyond(columns, values, backward))
            .order_by(*(directed(column, down is not backward) for column, down in columns))
            .limit(1)
        )
        for backward in (True, False)
    )
    return before, after


def own_scans(user_id: str, ids: Sequence[str]) -> list[Scan]:
    """Return the given scans that belong to the user, in the order of `ids`."""
    return [scan for scan in visible_scans(user_id, ids) if scan.user_id == user_id]


def visible_scans(user_id: str, ids: Sequence[str]) -> list[Scan]:
    """Return the given scans that the user may see, in the order of `ids`, with submitters."""
    scans = {
        scan.id: scan
        for scan in db.session.scalars(
            select(Scan).where(Scan.id.in_(ids), visible_to(user_id)).options(joinedload(Scan.user))
        )
    }
    return [scans[scan_id] for scan_id in dict.fromkeys(ids) if scan_id in scans]


def has_pending(user_id: str) -> bool:
    """Return whether one of the user's scans is waiting or being analyzed."""
    # Only columns of the index of open scans; otherwise SQLite would use another index.
    query = select(Scan.status).where(Scan.user_id == user_id, IS_OPEN).limit(1)
    return db.session.scalar(query) is not None


def verdicts_since(user_id: str, opened: datetime) -> int:
    """Return the number of the user's results after `opened`, by the database's clock."""
    count = select(func.count()).where(
        Scan.user_id == user_id, Scan.finished_at > opened, Scan.status == JobStatus.DONE
    )
    return db.session.scalar(count) or 0


def version_of(scan: Scan) -> str:
    """Return a hash that changes whenever the scan's row on the page does."""
    return _hash(
        scan.status,
        f"{scan.progress:.2f}",
        scan.stage,
        scan.error,
        scan.stat,
        scan.title,
        scan.thumbnail_key,
        scan.verdict_state,
        scan.risk,
        scan.is_unread,
    )


def _hash(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _entry_columns(apart: bool) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return the GROUP BY columns of a worklist entry (a prefix of the index)."""
    scan = (Scan.id,) if apart else ()
    return (Scan.created_at, Scan.study_id, *scan)  # type: ignore[return-value]


def _alone(scan: Scan) -> Study:
    return Study(
        id=scan.study_id,
        scans=(scan,),
        chosen=1,
        total=1,
        slice_count=scan.slice_count,
        stat=scan.stat,
        status=scan.status,
        verdict_state=scan.verdict_state,
        risk=scan.risk,
    )


def _scope(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the filters that select whose scans are listed."""
    return {name: chosen[name] for name in SCOPE if name in chosen}


def _studies(
    which: Sequence[ColumnElement[bool]],
    places: Iterable[Row[Any] | Scan],
    *,
    scope: Sequence[ColumnElement[bool]],
) -> dict[str, Study]:
    """Return the studies of these entries, by id, with the series to list; `scope` limits the
    series that are counted as the total.
    """
    entries = list(places)
    # Filter by created_at to use the index; other studies with the same time are dropped below.
    at_their_times = Scan.created_at.in_({entry.created_at for entry in entries})
    matching = [*which, at_their_times]
    totals = _totals([*scope, at_their_times]) if len(which) > len(scope) else {}
    series = _listed_series(matching, {entry.study_id for entry in entries})
    return {
        row.study_id: Study(
            id=row.study_id,
            scans=tuple(series[row.study_id]),
            chosen=row.chosen,
            total=totals.get(row.study_id, row.chosen),
            slice_count=int(row.slices),
            stat=bool(row.stat),
            status=_WORKFLOW[row.status],
            verdict_state=None if row.state is None else STATES[row.state],
            risk=float(row.risk or 0),
        )
        for row in _summaries(matching)
        if row.study_id in series  # may have been deleted between two queries
    }


def _totals(which: Sequence[ColumnElement[bool]]) -> dict[str, int]:
    """Return the number of series of each study."""
    counted = select(Scan.study_id, func.count()).where(*which).group_by(Scan.study_id)
    return {row[0]: row[1] for row in db.session.execute(counted)}


def _listed_series(
    which: Sequence[ColumnElement[bool]], study_ids: Iterable[str]
) -> dict[str, list[Scan]]:
    """Return the series to list of each of these studies, the worst state first."""
    number = func.row_number().over(partition_by=Scan.study_id, order_by=_WORST_FIRST)
    ranked = select(Scan.id, number.label("number")).where(*which).subquery()
    listed = (
        select(Scan)
        .join(ranked, ranked.c.id == Scan.id)
        .where(ranked.c.number <= MOST_SERIES, Scan.study_id.in_(study_ids))
        .options(joinedload(Scan.user))
        .order_by(ranked.c.number)
    )
    series: dict[str, list[Scan]] = {}
    for scan in db.session.scalars(listed):
        series.setdefault(scan.study_id, []).append(scan)
    return series


def _summaries(which: Sequence[ColumnElement[bool]]) -> Sequence[Row[Any]]:
    """Return one row per study with the counts and the worst state of its series."""
    summaries = (
        select(
            Scan.study_id,
            func.count().label("chosen"),
            func.sum(Scan.slice_count).label("slices"),
            _STAT.label("stat"),
            func.min(_STATUS_RANK).label("status"),
            _WORST_VERDICT.label("state"),
            _RISK.label("risk"),
        )
        .where(*which)
        .group_by(Scan.study_id)
    )
    return db.session.execute(summaries).all()
