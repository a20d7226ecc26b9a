"""Who owns a queued row: claim, renew, finish, hand back, reap.

A row is `running` while a worker holds its lease, and every write about it is conditional on still holding it. So a worker
that was presumed dead can never overwrite what its successor did. All times are the database's; the caller commits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from flask import current_app
from sqlalchemy import ColumnElement, Subquery, case, func, literal, null, or_, select, update

from webapp.extensions import database_now, db
from webapp.models import JobStatus, Leased

MOST_DEATHS = 3
"""The third death that counts is the last: the row fails."""

MOST_CLAIMED_AHEAD = 16
"""A claim looks at so many times its limit: as many claims at the same moment find rows that no other has locked."""

Row = TypeVar("Row", bound=Leased)


class LeaseLost(Exception):
    """Another worker has this row now, or it was cancelled or deleted."""


def claim(table: type[Row], owner: str, limit: int = 1) -> list[Row]:
    """Take the next queued rows, up to `limit`, in one statement; no other worker gets them.

    The oldest are next; where rows belong to people (`Leased.in_turn_of`), the oldest of each person in turn, whoever has fewest at
    work first, so that one's single scan waits for one batch and not behind another's thousands. Urgent rows (`Leased.urgency`)
    go before all others, among themselves in the same turns.

    A row whose batch died before is claimed alone, so that the next death tells who causes it. Only deaths while alone count.
    """
    turns = _turns(table, MOST_CLAIMED_AHEAD * limit)
    urgent = table.urgency()
    following = (
        select(table.id, table.attempts, table.queued_at, turns.c.turn, *urgent)
        .join(turns, turns.c.id == table.id)
        .where(table.status == JobStatus.QUEUED)  # Here too: PostgreSQL asks again once it has a row that another claim had locked.
        .order_by(*(column.desc() for column in urgent), turns.c.turn, table.queued_at, table.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=table)  # PostgreSQL; SQLite has one writer at a time.
        .cte("following")
    )
    in_turn = (*(following.c[column.key].desc() for column in urgent), following.c.turn, following.c.queued_at, following.c.id)
    first = select(following.c.id).order_by(*in_turn).limit(1).scalar_subquery()
    deaths_of_first = select(following.c.attempts).order_by(*in_turn).limit(1).scalar_subquery()
    fresh_company = (following.c.attempts == 0) & (deaths_of_first == 0)
    claimed = db.session.scalars(
        update(table)
        .where(table.id.in_(select(following.c.id).where(or_(following.c.id == first, fresh_company))))
        .values(
            status=JobStatus.RUNNING,
            lease_owner=owner,
            lease_expires_at=database_now(current_app.config["LEASE_S"]),
            death_counts=literal(True) if limit == 1 else table.attempts > 0,
            started_at=database_now(),
        )
        .returning(table),
        execution_options={"synchronize_session": False, "populate_existing": True},
    )
    return sorted(claimed, key=lambda row: (row.queued_at, row.id))


def _turns(table: type[Row], most: int) -> Subquery:
    """Return id and turn of the next `most` queued rows: 1 for the oldest of a person who has none at work, and so on.

    Where nobody owns rows every turn is 0. They are cut off here, before they meet the table again to be locked: without fresh statistics
    PostgreSQL would compare each of ten thousand rows with each (seconds instead of milliseconds).
    """
    person = table.in_turn_of()
    by_age = (*(column.desc() for column in table.urgency()), table.queued_at, table.id)
    if person is None:
        turn: ColumnElement[int] = literal(0)
        queued = select(table.id, turn.label("turn")).where(table.status == JobStatus.QUEUED)
        return queued.order_by(*by_age).limit(most).subquery("turns")
    at_work = (
        select(person.label("person"), func.count().label("rows"))
        .where(table.status == JobStatus.RUNNING)
        .group_by(person)
        .subquery("at_work")
    )
    place = func.row_number().over(partition_by=person, order_by=by_age)
    turn = place + func.coalesce(at_work.c.rows, 0)
    return (
        select(table.id, turn.label("turn"))
        .outerjoin(at_work, at_work.c.person == person)
        .where(table.status == JobStatus.QUEUED)
        .order_by(*(column.desc() for column in table.urgency()), turn, table.queued_at, table.id)
        .limit(most)
        .subquery("turns")
    )


def write(table: type[Row], owner: str, ids: Collection[str], **columns: Any) -> frozenset[str]:
    """Set columns of rows that `owner` still holds; return the ids of these, and leave the others alone."""
    if not ids:
        return frozenset()
    return frozenset(
        db.session.scalars(
            update(table)
            .where(table.id.in_(ids), table.lease_owner == owner, table.status == JobStatus.RUNNING)
            .values(**columns)
            .returning(table.id),
            execution_options={"synchronize_session": False},
        )
    )


def renew(table: type[Row], owner: str, ids: Collection[str]) -> frozenset[str]:
    """Extend the leases of these rows; return the ids of those that `owner` still holds."""
    return write(table, owner, ids, lease_expires_at=database_now(current_app.config["LEASE_S"]))


def finish(table: type[Row], owner: str, ids: Collection[str], **columns: Any) -> frozenset[str]:
    """End rows as done and set `columns`, which may be SQL; return the ids that `owner` still held: only these have the verdict."""
    return write(table, owner, ids, **_ended(JobStatus.DONE), progress=1.0, error=None, **columns)


def fail(table: type[Row], owner: str, sentences: Mapping[str, str]) -> frozenset[str]:
    """End rows as failed, each with its sentence; return the ids that `owner` still held."""
    if not sentences:
        return frozenset()
    return write(table, owner, sentences, **_ended(JobStatus.FAILED), error=case(dict(sentences), value=table.id))


def hand_back(table: type[Row], owner: str, ids: Collection[str]) -> frozenset[str]:
    """Queue rows again at their place; that is no attempt."""
    return write(table, owner, ids, status=JobStatus.QUEUED, stage=None, lease_owner=None, lease_expires_at=None)


def reap(table: type[Row], what: str) -> dict[str, JobStatus]:
    """Take back every row whose lease expired; return what became of each.

    It is queued again, or failed after the third death that counts: "The worker stopped three times while it `what`."
    """
    deaths = table.counted_deaths + case((table.death_counts, 1), else_=0)
    is_last = deaths >= MOST_DEATHS
    returned = db.session.execute(
        update(table)
        .where(table.status == JobStatus.RUNNING, table.lease_expires_at < database_now())
        .values(
            attempts=table.attempts + 1,
            counted_deaths=deaths,
            status=case((is_last, JobStatus.FAILED.value), else_=JobStatus.QUEUED.value),
            error=case((is_last, f"The worker stopped three times while it {what}."), else_=null()),
            finished_at=case((is_last, database_now()), else_=null()),
            stage=None,
            lease_owner=None,
            lease_expires_at=None,
        )
        .returning(table.id, table.status),
        execution_options={"synchronize_session": False},
    )
    return {row_id: JobStatus(status) for row_id, status in returned}


def _ended(status: JobStatus) -> dict[str, Any]:
    return {"status": status, "finished_at": database_now(), "stage": None, "lease_owner": None, "lease_expires_at": None}
