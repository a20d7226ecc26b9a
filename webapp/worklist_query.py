"""Which scans a worklist shows, and in which order.

All conditions and orders but the title's text are answered from one index (`ix_scan_worklist`), so
that only the scans of one page are read from the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

from sqlalchemy import ColumnElement, Select, case, false, func, select, true
from sqlalchemy.orm import joinedload

from ml.verdict import STATES
from webapp.extensions import db
from webapp.forms import SHARED
from webapp.models import JobStatus, Order, Scan, User
from webapp.sharing import shared_with, visible_to

PENDING = (JobStatus.QUEUED, JobStatus.RUNNING)
_WORKFLOW = (JobStatus.RUNNING, *(status for status in JobStatus if status != JobStatus.RUNNING))


@dataclass(frozen=True)
class Column:
    """A column of the worklist by which it can be sorted.

    Attributes:
        heading: what stands above it.
        value: what is compared.
        missing: true of scans that have no value; they come last in either direction.
        descending: whether the first click on its heading puts the largest value first.
    """

    heading: str
    value: ColumnElement[Any]
    missing: ColumnElement[bool] | None = None
    descending: bool = False

    def ordered(self, descending: bool) -> tuple[ColumnElement[Any], ...]:
        """Return what to order by; equal values are ordered newest first."""
        missing = () if self.missing is None else (self.missing,)
        value = self.value.desc() if descending else self.value.asc()
        return (*missing, value, Scan.created_at.desc(), Scan.id.asc())


COLUMNS = {
    "priority": Column("Priority", Scan.stat.expression, descending=True),
    "title": Column("Title", func.lower(Scan.title), Scan.title == ""),
    "slices": Column("Slices", Scan.slice_count.expression, descending=True),
    "status": Column(
        "State", case({s.value: i for i, s in enumerate(_WORKFLOW)}, value=Scan.status)
    ),
    "verdict": Column(
        "Hemorrhage",
        case({state: rank for rank, state in enumerate(STATES)}, value=Scan.verdict_state),
        Scan.verdict_state.is_(None),
    ),
    "probability": Column(
        "Probability", Scan.risk.expression, Scan.verdict_state.is_(None), descending=True
    ),
    "submitted": Column("Submitted", Scan.created_at.expression, descending=True),
}
"""By the name that the address has for it; a minus before it reverses the order."""


def known_order(asked: str) -> str:
    """Return the order that was asked for: a column's name, one with a minus before it, or one of
    `Order`; newest first if there is no such order.
    """
    known = asked.removeprefix("-") in COLUMNS or asked in list(Order)
    return asked if known else Order.NEWEST.value


def order_columns(order: str) -> tuple[Any, ...]:
    """Return what to order by for an order of `known_order`."""
    if order in list(Order):
        return Order(order).columns
    return COLUMNS[order.removeprefix("-")].ordered(descending=order.startswith("-"))


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
    return found


def ids_of_page(
    which: Sequence[ColumnElement[bool]], order: str, limit: int, offset: int
) -> Select[str]:
    """Return the statement for the ids of the scans on a page, in order."""
    return select(Scan.id).where(*which).order_by(*order_columns(order)).limit(limit).offset(offset)


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
    return any(
        db.session.scalar(
            select(Scan.id).where(Scan.user_id == user_id, Scan.status == status).limit(1)
        )
        for status in PENDING
    )


def verdicts_since(user_id: str, opened: datetime) -> int:
    """Return how many verdicts that person got after `opened`, by the database's clock."""
    came = select(func.count()).where(
        Scan.user_id == user_id, Scan.finished_at > opened, Scan.status == JobStatus.DONE
    )
    return db.session.scalar(came) or 0


def version_of(scan: Scan) -> str:
    """Return a hash that changes whenever the scan's row on the page does."""
    facts = (
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
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
