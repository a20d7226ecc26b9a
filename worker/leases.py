"""Leases on rows: claim, renew, finish, hand back, reap.

A row is `running` while a worker holds its lease, and every write to it is conditional on still
holding it, so a worker that was presumed dead can never overwrite the work of its successor. All
times are those of the database; the caller commits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from flask import current_app
from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    case,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from webapp.extensions import database_now, db
from webapp.models import Attempt, JobStatus, Leased

LOST = "The worker stopped."
MOST_DEATHS = 3
"""A row fails with its third counted death of a worker."""

GIVE_UP_S = 3600
"""A row that the storage has refused for so long fails."""
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 300.0
"""A refused row waits as long as it has been refused already, within these bounds."""

MOST_CLAIMED_AHEAD = 16
"""A claim considers this many times its limit, so that as many simultaneous claims find unlocked
rows.
"""

Row = TypeVar("Row", bound=Leased)


class LeaseLost(Exception):
    """Another worker has this row now, or it was canceled or deleted."""


def claim(table: type[Row], owner: str, limit: int = 1, after: str | None = None) -> list[Row]:
    """Claim the next queued rows, up to `limit`, for `owner` in one statement.

    The oldest rows are next. If rows belong to people (`Leased.in_turn_of`), they take turns: the
    oldest row of each person, those with the fewest running rows first, so that a single scan does
    not wait behind somebody else's thousands. Urgent rows (`Leased.urgency`) come before all others
    and take turns among themselves.

    Claims of one row at a time cannot see turns beyond the running rows, so the caller passes the
    person whose row it had last as `after`: people then take turns by id.

    A row whose batch died is claimed alone next time, so that the next death shows which row causes
    it. Only deaths while alone count.
    """
    turns = _turns(table, limit, after)
    order = ("turn",) if after is None else ("turn", "is_passed", "person")
    next_rows = (
        select(turns)
        .order_by(*_in_order(table, turns.c, *(turns.c[name] for name in order)))
        .limit(limit)
    )
    if _on_postgresql():  # SQLite has one writer at a time.
        # Rows are locked one by one, by key; the status is checked again on the locked row, because
        # another claim may have changed it.
        free = (
            select(table.id)
            .where(table.id == turns.c.id, table.status == JobStatus.QUEUED)
            .with_for_update(skip_locked=True)
        )
        next_rows = next_rows.join(free.lateral("free"), true())
    following = next_rows.cte("following")
    in_turn = (
        select(following)
        .order_by(*_in_order(table, following.c, *(following.c[name] for name in order)))
        .limit(1)
    )
    first = in_turn.with_only_columns(following.c.id).scalar_subquery()
    deaths_of_first = in_turn.with_only_columns(following.c.attempts).scalar_subquery()
    fresh_company = (following.c.attempts == 0) & (deaths_of_first == 0)
    claimed = db.session.scalars(
        update(table)
        .where(
            table.id.in_(select(following.c.id).where(or_(following.c.id == first, fresh_company)))
        )
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


def _turns(table: type[Row], limit: int, after: str | None) -> CTE:
    """Return the queued rows that a claim of `limit` considers, each with its turn: 1 for the
    oldest row of a person without running rows, and so on; 0 if rows do not belong to people.
    """
    person = table.in_turn_of()
    most = MOST_CLAIMED_AHEAD * limit
    if person is None:
        return _oldest(table, literal(0).label("turn")).limit(most).cte("turns")
    rows = (
        _oldest_of_each(table, person, limit)
        if _on_postgresql()
        else _oldest(table, person.label("person"))
    ).subquery("rows")
    at_work = (
        select(person.label("person"), func.count().label("rows"))
        .where(table.status == JobStatus.RUNNING)
        .group_by(person)
    )
    busy = at_work.subquery("busy")
    place = func.row_number().over(partition_by=rows.c.person, order_by=_in_order(table, rows.c))
    turn = (place + func.coalesce(busy.c.rows, 0)).label("turn")
    is_passed = (rows.c.person <= (after or "")).label("is_passed")
    turns = select(rows, turn, is_passed).outerjoin(busy, busy.c.person == rows.c.person)
    order = (turn,) if after is None else (turn, is_passed, rows.c.person)
    return turns.order_by(*_in_order(table, rows.c, *order)).limit(most).cte("turns")


def _oldest_of_each(
    table: type[Row], person: InstrumentedAttribute[str], limit: int
) -> Select[Any]:
    """Return the queued rows of each person that a claim of `limit` may reach, in SQL for
    PostgreSQL (SQLite has no LATERAL).

    It goes from person to person through the index of the queue, so its cost depends on the number
    of people, not of rows. For each person it considers `limit` rows, and an equal share of those
    that other claims may have locked.
    """
    first = select(func.min(person).label("person")).where(_is_queued(table))
    people = first.cte("people", recursive=True)
    following = first.where(person > people.c.person).scalar_subquery()
    people = people.union_all(select(following).where(people.c.person.is_not(None)))
    number = select(func.count()).select_from(people).correlate(None).scalar_subquery()
    oldest = (
        _oldest(table, person.label("person"))
        .where(person == people.c.person)
        .limit(limit + MOST_CLAIMED_AHEAD * limit // number)
    )
    some = oldest.lateral("oldest")
    return select(some).select_from(people.join(some, true()))


def _oldest(table: type[Row], *columns: ColumnElement[Any]) -> Select[Any]:
    """Return the queued rows, oldest first, with the columns needed to sort them and `columns`."""
    own = table.__table__.c  # type: ignore[attr-defined]
    needed = (own.id, own.attempts, own.queued_at, *table.urgency())
    due = select(*needed, *columns).where(_is_queued(table), is_due(table))
    return due.order_by(*_in_order(table, own))


def _in_order(
    table: type[Row], columns: Any, *turn: ColumnElement[int]
) -> list[ColumnElement[Any]]:
    return [
        *(columns[column.key].desc() for column in table.urgency()),
        *turn,
        columns.queued_at,
        columns.id,
    ]


def _is_queued(table: type[Row]) -> ColumnElement[bool]:
    """Return the condition of the queue's partial index as a literal, since the planner cannot use
    the index with a parameter.
    """
    return table.status == literal_column(f"'{JobStatus.QUEUED}'")


def is_due(table: type[Row]) -> ColumnElement[bool]:
    """Return the condition of rows that are not put off, or not any longer."""
    # Not the clock itself, which is volatile: PostgreSQL would then compute all turns before it
    # locks, and lock each of them instead of those that are claimed.
    now = func.timezone("utc", func.statement_timestamp()) if _on_postgresql() else database_now()
    return or_(table.retry_at.is_(None), table.retry_at <= now)


def _on_postgresql() -> bool:
    return db.engine.dialect.name == "postgresql"


def write(table: type[Row], owner: str, ids: Collection[str], **columns: Any) -> frozenset[str]:
    """Update those rows that `owner` still holds; return their ids."""
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
    """Mark rows as done and set `columns`, which may be SQL expressions; return the ids of those
    that `owner` still held, the only ones that were changed.
    """
    return write(table, owner, ids, **_ended(JobStatus.DONE), progress=1.0, error=None, **columns)


def fail(table: type[Row], owner: str, sentences: Mapping[str, str]) -> frozenset[str]:
    """Mark rows as failed, each with its error message; return the ids that `owner` still held."""
    if not sentences:
        return frozenset()
    return write(
        table,
        owner,
        sentences,
        **_ended(JobStatus.FAILED),
        error=case(dict(sentences), value=table.id),
    )


def hand_back(table: type[Row], owner: str, ids: Collection[str]) -> frozenset[str]:
    """Return rows to their place in the queue; this does not count as an attempt."""
    return write(
        table,
        owner,
        ids,
        status=JobStatus.QUEUED,
        stage=None,
        lease_owner=None,
        lease_expires_at=None,
    )


def put_off(table: type[Row], owner: str, ids: Collection[str], wait_s: float) -> frozenset[str]:
    """Queue rows again at their place, to be claimed in `wait_s` seconds at the earliest; that is
    no attempt.
    """
    held = hand_back(table, owner, ids)
    if held:
        db.session.execute(
            update(table).where(table.id.in_(held)).values(retry_at=database_now(wait_s)),
            execution_options={"synchronize_session": False},
        )
    return held


def refuse(table: type[Row], owner: str, sentences: Mapping[str, str]) -> frozenset[str]:
    """Put rows off that the storage refused, each for as long as that has lasted already; after
    `GIVE_UP_S` a row fails with its sentence.

    Return the ids that `owner` still held.
    """
    if not sentences:
        return frozenset()
    rows = db.session.execute(
        select(table.id, table.refused_since, database_now().label("now")).where(
            table.id.in_(sentences), table.lease_owner == owner
        )
    ).all()
    held: frozenset[str] = frozenset()
    for row in rows:
        refused_s = (row.now - row.refused_since).total_seconds() if row.refused_since else 0.0
        if refused_s >= GIVE_UP_S:
            held |= fail(table, owner, {row.id: sentences[row.id]})
            continue
        if row.refused_since is None:
            write(table, owner, [row.id], refused_since=database_now())
        wait_s = min(max(refused_s, FIRST_RETRY_S), LAST_RETRY_S)
        held |= put_off(table, owner, [row.id], wait_s)
    return held


def expire(table: type[Row], owner: str) -> None:
    """End the leases of a worker that is known to be dead, so that the next sweep reaps its
    rows.
    """
    db.session.execute(
        update(table)
        .where(table.lease_owner == owner, table.status == JobStatus.RUNNING)
        .values(lease_expires_at=database_now()),
        execution_options={"synchronize_session": False},
    )


def reap(table: type[Row], what: str) -> dict[str, JobStatus]:
    """Take back all rows whose lease has expired; return the new status of each.

    A row is queued again, or failed at the third counted death: "The worker stopped three times
    while it `what`." Locked rows are left to the next sweep, so that a worker that hangs in a
    transaction does not hold up other rows.
    """
    deaths = table.counted_deaths + case((table.death_counts, 1), else_=0)
    is_last = deaths >= MOST_DEATHS
    is_expired = (table.status == JobStatus.RUNNING) & (table.lease_expires_at < database_now())
    expired = select(table.id).where(is_expired).with_for_update(skip_locked=True)
    returned = db.session.execute(
        update(table)
        .where(table.id.in_(expired))
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
        .returning(table.id, table.status, table.started_at),
        execution_options={"synchronize_session": False},
    ).all()
    if (column := table.in_attempt()) is not None and returned:
        lost = [
            {
                column: row.id,
                "started_at": row.started_at,
                "ended_at": database_now(),
                "outcome": LOST,
            }
            for row in returned
        ]
        db.session.execute(insert(Attempt).values(lost))
    return {row.id: JobStatus(row.status) for row in returned}


def _ended(status: JobStatus) -> dict[str, Any]:
    return {
        "status": status,
        "finished_at": database_now(),
        "stage": None,
        "lease_owner": None,
        "lease_expires_at": None,
    }
