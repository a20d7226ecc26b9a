"""Which scans a worklist shows, in which order, and which of them stand together as a study.

A place in a worklist is a study: the series of one examination, or one scan alone. Filters choose
scans; a study stands where the best placed of its chosen series belongs. All conditions and orders
are answered from one index (`ix_scan_worklist`), so that only the scans of one page are read from
the table.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    UnaryExpression,
    and_,
    case,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, joinedload
from sqlalchemy.sql.operators import asc_op, desc_op
from werkzeug.datastructures import MultiDict

from ml.verdict import STATES, State
from webapp.extensions import db
from webapp.forms import SHARED, WorklistFilterForm
from webapp.models import JobStatus, Order, Scan, User
from webapp.sharing import shared_with, visible_to

PENDING = (JobStatus.QUEUED, JobStatus.RUNNING)
SCOPE: tuple[str, ...] = ("whose",)
"""The names of filters that say whose scans there are to choose from; without them, one's own."""
MOST_SERIES = 8
"""Series that are shown beneath a study; the others are a click away."""
_WORKFLOW = (JobStatus.RUNNING, *(status for status in JobStatus if status != JobStatus.RUNNING))
_STATUS = case({s.value: i for i, s in enumerate(_WORKFLOW)}, value=Scan.status)
_STATE = case({state: rank for rank, state in enumerate(STATES)}, value=Scan.verdict_state)
_STAT = func.max(case((Scan.stat, 1), else_=0))
_NEWEST = (Scan.created_at.desc(), Scan.study_id.asc())
_WORST_STATE = func.min(_STATE)
# The rank of the worst state and, of the series in that state, the highest probability.
_WORST = func.min(2 * _STATE - Scan.risk)
_RISK = 2 * _WORST_STATE - _WORST
_WORST_FIRST = (
    _STATE.is_(None),
    _STATE,
    Scan.risk.desc(),
    func.length(Scan.title),  # "Series 9" before "Series 10".
    Scan.title,
    Scan.id,
)


@dataclass(frozen=True)
class Study:
    """A place in a worklist.

    Attributes:
        scans: those of its series that are shown, the worst verdict first.
        chosen: how many of its series the filters let through.
        total: how many series it has.
        slice_count: of the chosen series together.
        stat: True if one of them is.
        status: of the series that needs attention first: running, waiting, done.
        verdict_state: the worst one; None without any.
        risk: the highest probability of the series in that state.
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
        """When it came."""
        return self.scans[0].created_at

    @property
    def title(self) -> str:
        """What the titles of its series begin with, before their own labels."""
        titles = {scan.title.rpartition(" · ")[0] for scan in self.scans}
        return titles.pop() if len(titles) == 1 else ""

    @property
    def version(self) -> str:
        """A hash that changes whenever its row on the page does; its series have their own."""
        facts = self.chosen, self.total, self.slice_count, self.stat, self.status
        return _hash(*facts, self.verdict_state, self.risk, self.title)


@dataclass(frozen=True)
class Column:
    """A column of the worklist by which it can be sorted.

    Attributes:
        heading: what stands above it.
        value: what is compared of scans.
        of_study: what is compared of studies.
        missing: true of scans that have no value; they come last in either direction, and so do
            studies of such scans.
        descending: whether the first click on its heading puts the largest value first.
    """

    heading: str
    value: ColumnElement[Any]
    of_study: ColumnElement[Any]
    missing: ColumnElement[bool] | None = None
    descending: bool = False

    def ordered(self, descending: bool) -> tuple[ColumnElement[Any], ...]:
        """Return what to order scans by; equal values are ordered newest first."""
        missing = () if self.missing is None else (self.missing,)
        value = self.value.desc() if descending else self.value.asc()
        return (*missing, value, Scan.created_at.desc(), Scan.id.asc())

    def studies_ordered(self, descending: bool) -> tuple[ColumnElement[Any], ...]:
        """Return what to order studies by; equal values are ordered newest first."""
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
    "status": Column("State", _STATUS, func.min(_STATUS)),
    "verdict": Column("Hemorrhage", _STATE, _WORST_STATE, Scan.verdict_state.is_(None)),
    "probability": Column(
        "Probability", Scan.risk.expression, _RISK, Scan.verdict_state.is_(None), descending=True
    ),
    "submitted": Column(
        "Submitted", Scan.created_at.expression, Scan.created_at.expression, descending=True
    ),
}
"""By the name that the address has for it; a minus before it reverses the order."""


def known_order(asked: str) -> str:
    """Return the order that was asked for: a column's name, one with a minus before it, or one of
    `Order`; newest first if there is no such order.
    """
    known = asked.removeprefix("-") in COLUMNS or asked in list(Order)
    return asked if known else Order.NEWEST.value


def asked_for(arguments: MultiDict[str, str]) -> tuple[dict[str, Any], str]:
    """Return the valid filters and the order in the parameters of an address."""
    chosen = WorklistFilterForm(arguments).chosen
    return chosen, known_order(arguments.get("order", ""))


def address_of(chosen: Mapping[str, Any], order: str) -> dict[str, Any]:
    """Return filters and order as the parameters of an address."""
    address: dict[str, Any] = {name: str(value) for name, value in chosen.items()}
    return address if order == Order.NEWEST else {**address, "order": order}


def order_columns(order: str) -> tuple[Any, ...]:
    """Return what to order scans by for an order of `known_order`."""
    if order in list(Order):
        return Order(order).columns
    return COLUMNS[order.removeprefix("-")].ordered(descending=order.startswith("-"))


def order_of_studies(order: str) -> tuple[ColumnElement[Any], ...]:
    """Return what to order studies by for an order of `known_order`."""
    if order == Order.RISK:
        return (_STAT.desc(), func.max(Scan.risk).desc(), *_NEWEST)
    if order == Order.UNCERTAINTY:
        return (_STAT.desc(), func.min(Scan.margin), *_NEWEST)
    if order == Order.NEWEST:
        return _NEWEST
    return COLUMNS[order.removeprefix("-")].studies_ordered(descending=order.startswith("-"))


def next_order(name: str, order: str) -> str:
    """Return the order that a click on the heading of a column leads to."""
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
    """Return what is true of the scans of that person, or of those shared with them, which the
    filters let through; `chosen` has the valid values of `WorklistFilterForm`. Days are days in
    UTC, the last one included.
    """
    found: list[ColumnElement[bool]] = [Scan.user_id == user_id]
    if chosen.get("whose") == SHARED:
        found = [Scan.id.in_(shared_with(user_id)), Scan.user_id != user_id]
        if submitter := chosen.get("submitter"):
            named = User.username_key.contains(submitter.lower(), autoescape=True)
            found.append(Scan.user_id.in_(select(User.id).where(named)))
    if text := chosen.get("title"):
        found.append(Scan.title.icontains(text, autoescape=True))
    if status := chosen.get("status"):
        found.append(Scan.status == JobStatus(status))
    if state := chosen.get("verdict"):
        found.append(Scan.verdict_state == state)
    if priority := chosen.get("priority"):
        found.append(Scan.stat == (true() if priority == "stat" else false()))
    if since := chosen.get("since"):
        found.append(Scan.created_at >= datetime.combine(since, time.min, UTC))
    if until := chosen.get("until"):
        found.append(Scan.created_at <= datetime.combine(until, time.max, UTC))
    if study := chosen.get("study"):
        found.append(Scan.study_id == study)
    return found


def count_of(which: Sequence[ColumnElement[bool]], *, apart: bool) -> tuple[int, int]:
    """Return how many places there are in such a worklist, and how many scans; `apart` gives each
    scan a place of its own.
    """
    places = select(func.count().label("scans")).where(*which).group_by(*_place(apart)).subquery()
    counted = select(func.count(), func.coalesce(func.sum(places.c.scans), 0)).select_from(places)
    found = db.session.execute(counted).one()
    return int(found[0]), int(found[1])


def places_of_page(
    which: Sequence[ColumnElement[bool]], order: str, limit: int, offset: int, *, apart: bool
) -> Select[Any]:
    """Return the statement for the places on a page of such a worklist, in order."""
    columns = (*order_of_studies(order), *((Scan.id,) if apart else ()))
    place = _place(apart)
    found = select(*place).where(*which).group_by(*place)
    return found.order_by(*columns).limit(limit).offset(offset)


def studies_of_page(
    user_id: str, chosen: Mapping[str, Any], order: str, limit: int, offset: int
) -> list[Study]:
    """Return the studies on a page of that person's worklist, in order. In the worklist of one
    study (`chosen["study"]`) each series has a place of its own.
    """
    apart, which = "study" in chosen, conditions(user_id, chosen)
    places = db.session.execute(places_of_page(which, order, limit, offset, apart=apart)).all()
    if apart:
        return [_alone(scan) for scan in visible_scans(user_id, [place.id for place in places])]
    studies = _studies(which, places, scope=conditions(user_id, _scope(chosen)))
    return [studies[place.study_id] for place in places if place.study_id in studies]


def studies_around(user_id: str, chosen: Mapping[str, Any], scans: Iterable[Scan]) -> list[Study]:
    """Return the studies of which these scans are series, as such a worklist tells of them; none
    for a worklist of one study.
    """
    if "study" in chosen:
        return []
    scope = conditions(user_id, _scope(chosen))
    studies = _studies(conditions(user_id, chosen), scans, scope=scope)
    return [one for one in studies.values() if one.total > 1]


def neighbors_of(
    scan: Scan, which: Sequence[ColumnElement[bool]], order: str
) -> tuple[str | None, str | None]:
    """Return the ids of the scans before and after this one among those that `which` lets through,
    in that order; None at the ends. The scan itself may be one that is not let through any more.
    """
    columns = [_split(column) for column in order_columns(order)]
    values = db.session.execute(
        select(*(column for column, _ in columns)).where(Scan.id == scan.id)
    ).one()
    before, after = (
        db.session.scalar(
            select(Scan.id)
            .where(*which, _beyond(columns, values, backward))
            .order_by(*(_sorted(column, down is not backward) for column, down in columns))
            .limit(1)
        )
        for backward in (True, False)
    )
    return before, after


def _split(column: Any) -> tuple[ColumnElement[Any], bool]:
    """Return what a column of an order compares, and whether it puts the largest value first."""
    if isinstance(column, UnaryExpression) and column.modifier in (desc_op, asc_op):
        return column.element, column.modifier is desc_op
    return column, False


def _sorted(column: ColumnElement[Any], descending: bool) -> ColumnElement[Any]:
    return column.desc() if descending else column.asc()


def _beyond(
    columns: Sequence[tuple[ColumnElement[Any], bool]], values: Sequence[Any], backward: bool
) -> ColumnElement[bool]:
    """Return what is true of rows that come after one with these values, or before it."""
    found: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for (column, descending), value in zip(columns, values, strict=True):
        if value is None:  # So it is of all that are equal before, since they have no value.
            equal.append(column.is_(None))
            continue
        given = literal(value, column.type)
        is_beyond = column < given if descending is not backward else column > given
        found.append(and_(*equal, is_beyond))
        equal.append(column == given)
    # What an index can start from, where the first value is one that it has.
    (first, descending), value = columns[0], values[0]
    if value is None or isinstance(value, bool):
        return or_(*found)
    return and_(
        first <= value if descending is not backward else first >= value,
        or_(*found),
    )


def own_scans(user_id: str, ids: Sequence[str]) -> list[Scan]:
    """Return those of these scans that are the person's, in the order of `ids`."""
    return [scan for scan in visible_scans(user_id, ids) if scan.user_id == user_id]


def visible_scans(user_id: str, ids: Sequence[str]) -> list[Scan]:
    """Return those of these scans that the person may see, with their submitters, in the order of
    `ids`.
    """
    found = {
        scan.id: scan
        for scan in db.session.scalars(
            select(Scan).where(Scan.id.in_(ids), visible_to(user_id)).options(joinedload(Scan.user))
        )
    }
    return [found[each] for each in dict.fromkeys(ids) if each in found]


def has_pending(user_id: str) -> bool:
    """Return whether one of that person's scans is waiting or being analyzed."""
    each = (exists().where(Scan.user_id == user_id, Scan.status == status) for status in PENDING)
    return bool(db.session.scalar(select(or_(*each))))


def verdicts_since(user_id: str, opened: datetime) -> int:
    """Return how many verdicts that person got after `opened`, by the database's clock."""
    came = select(func.count()).where(
        Scan.user_id == user_id, Scan.finished_at > opened, Scan.status == JobStatus.DONE
    )
    return db.session.scalar(came) or 0


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


def _hash(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _place(apart: bool) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return what scans share that stand together; the index begins with it."""
    alone = (Scan.id,) if apart else ()
    return (Scan.created_at, Scan.study_id, *alone)  # type: ignore[return-value]


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
    """Return those of the filters that say whose scans there are to choose from."""
    return {name: chosen[name] for name in SCOPE if name in chosen}


def _studies(
    which: Sequence[ColumnElement[bool]],
    places: Iterable[Row[Any] | Scan],
    *,
    scope: Sequence[ColumnElement[bool]],
) -> dict[str, Study]:
    """Return the studies at these places, by id, with their series that are shown; of all series,
    those within `scope` are counted.
    """
    found = list(places)
    ids = {place.study_id for place in found}
    # The index finds them by this alone; what else came at the same time is passed over.
    here = Scan.created_at.in_({place.created_at for place in found})
    total = {}
    if len(which) > len(scope):
        counted = select(Scan.study_id, func.count()).where(*scope, here).group_by(Scan.study_id)
        total = {row[0]: row[1] for row in db.session.execute(counted)}
    number = func.row_number().over(partition_by=Scan.study_id, order_by=_WORST_FIRST)
    ranked = select(Scan.id, number.label("number")).where(*which, here).subquery()
    shown = (
        select(Scan)
        .join(ranked, ranked.c.id == Scan.id)
        .where(ranked.c.number <= MOST_SERIES, Scan.study_id.in_(ids))
        .options(joinedload(Scan.user))
        .order_by(ranked.c.number)
    )
    series: defaultdict[str, list[Scan]] = defaultdict(list)
    for scan in db.session.scalars(shown):
        series[scan.study_id].append(scan)
    summaries = (
        select(
            Scan.study_id,
            func.count().label("chosen"),
            func.sum(Scan.slice_count).label("slices"),
            _STAT.label("stat"),
            func.min(_STATUS).label("status"),
            _WORST_STATE.label("state"),
            _RISK.label("risk"),
        )
        .where(*which, here)
        .group_by(Scan.study_id)
    )
    return {
        row.study_id: Study(
            id=row.study_id,
            scans=tuple(series[row.study_id]),
            chosen=row.chosen,
            total=total.get(row.study_id, row.chosen),
            slice_count=int(row.slices),
            stat=bool(row.stat),
            status=_WORKFLOW[row.status],
            verdict_state=None if row.state is None else STATES[row.state],
            risk=float(row.risk or 0),
        )
        for row in db.session.execute(summaries)
        if series[row.study_id]  # Deleted between two statements.
    }
