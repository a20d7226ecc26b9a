"""Leases on rows: claim, renew, finish, return to the queue, and reap.

A row is `running` while a worker holds its lease, and every write to it is conditional on still
holding it, so a worker that was presumed dead can never overwrite the work of its successor. All
times are from the database's clock; the caller commits.
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
    text,
    true,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from webapp.extensions import database_now, db
from webapp.models import Attempt, JobStatus, Leased

LOST = "The worker stopped."
MOST_DEATHS = 3
"""A row fails with its third counted death of a worker."""

GIVE_UP_S = 3600
"""A row fails after storage errors for this long."""
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 300.0
"""Bounds of the wait before the next attempt, which equals the time since the first error."""

MOST_CLAIMED_AHEAD = 16
"""A claim considers this many times its limit, so that this many simultaneous claims find rows that
are not locked.
"""

Row = TypeVar("Row", bound=Leased)


class LeaseLost(Exception):
    """Another worker has this row now, or it was canceled or deleted."""


def claim(table: type[Row], owner: str, limit: int = 1, after: str | None = None) -> list[Row]:
    """Claim the next queued rows, up to `limit`, for `owner` in one statement.

    The oldest rows are next. If rows belong to users (`Leased.in_turn_of`), users take turns: the
    oldest row of each user, the users with the fewest running rows first, so that a single scan
    does not wait behind thousands of another user. Urgent rows (`Leased.urgency`) come before all
    others and take turns among themselves.

    For example, Ann has three queued rows (a1 oldest), Ben two and Cy one, and one row of Ben is
    running. The turns are a1: 1, c1: 1, a2: 2, b1: 2, a3: 3, b2: 3; Ben's begin at 2 because of his
    running row. A claim with limit 2 gets a1 and c1, the next one a2 and b1.

    Claims of one row at a time cannot see turns beyond the running rows, so the caller passes the
    user whose row it had last as `after`: users then take turns by id.

    A row whose batch died is claimed alone next time, so that the next death shows which row is the
    cause. Only deaths of a row that was alone count (`death_counts`).

    One function, because it builds one statement, part by part in the order in which each is used.
    """
    # Most tables from which single rows are claimed are empty, and the statement below would take
    # milliseconds even then.
    if limit == 1 and not is_any_waiting(table):
        return []
    turns = _turns(table, limit, after)
    order = ("turn",) if after is None else ("turn", "is_passed", "person")
    next_rows = (
        select(turns)
        .order_by(*_in_order(table, turns.c, *(turns.c[name] for name in order)))
        .limit(limit)
    )
    if _on_postgresql():  # not needed on SQLite, which serializes writers
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
    # Rows never attempted may join if the first row was never attempted either.
    is_first_attempt_batch = (following.c.attempts == 0) & (deaths_of_first == 0)
    claimed = db.session.scalars(
        update(table)
        .where(
            table.id.in_(
                select(following.c.id).where(or_(following.c.id == first, is_first_attempt_batch))
            )
        )
        .values(
            status=JobStatus.RUNNING,
            lease_owner=owner,
            lease_expires_at=database_now(current_app.config["LEASE_S"]),
            # a row that was attempted before is alone in its batch
            death_counts=literal(True) if limit == 1 else table.attempts > 0,
            started_at=database_now(),
        )
        .returning(table),
        execution_options={"synchronize_session": False, "populate_existing": True},
    )
    return sorted(claimed, key=lambda row: (row.queued_at, row.id))


def _turns(table: type[Row], limit: int, after: str | None) -> CTE:
    """Return the queued rows that a claim of `limit` considers, each with its turn: 1 for the
    oldest row of a user without running rows, and so on; 0 if rows do not belong to users.
    """
    person = table.in_turn_of()
    most = MOST_CLAIMED_AHEAD * limit
    if person is None:
        return _oldest(table, literal(0).label("turn")).limit(most).cte("turns")
    rows = _oldest_of_each(table, person, limit).subquery("rows")
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
    """Return the queued rows of each user that a claim of `limit` may reach.

    It goes from user to user through the index of the queue, so its cost depends on the number of
    users, not of rows. On PostgreSQL it considers, in addition to `limit` rows of each user, an
    equal share of the rows that other claims may have locked.
    """
    people = _people(table, person)
    if not _on_postgresql():  # SQLite has no LATERAL; a correlated subquery replaces it
        queued = aliased(table)
        ids = (
            select(queued.id)
            .where(
                is_queued(queued), is_due(queued), getattr(queued, person.key) == people.c.person
            )
            .order_by(*(getattr(queued, column.key).desc() for column in table.urgency()))
            .order_by(queued.queued_at, queued.id)
            .limit(limit)
        )
        columns = _columns(table, person.label("person"))
        return select(*columns).select_from(people.join(table, table.id.in_(ids)))
    number = select(func.count()).select_from(people).correlate(None).scalar_subquery()
    oldest = (
        _oldest(table, person.label("person"))
        .where(person == people.c.person)
        .limit(limit + MOST_CLAIMED_AHEAD * limit // number)
    )
    rows = oldest.lateral("oldest")
    return select(rows).select_from(people.join(rows, true()))


def _people(table: type[Row], person: InstrumentedAttribute[str]) -> CTE:
    """Return the users who have queued rows, using a loose index scan; the last row is NULL."""
    name = table.__table__.name  # type: ignore[attr-defined]
    # Without statistics SQLite prefers the index by status, and reads the whole queue at each step.
    queue = name if _on_postgresql() else f"{name} INDEXED BY ix_{name}_queue"
    column: ColumnElement[str] = literal_column(f"{name}.{person.key}")
    first = (
        select(func.min(column).label("person"))
        .select_from(text(queue))
        .where(literal_column(f"{name}.status") == literal_column(f"'{JobStatus.QUEUED}'"))
    )
    people = first.cte("people", recursive=True)
    following = first.where(column > people.c.person).scalar_subquery()
    return people.union_all(select(following).where(people.c.person.is_not(None)))


def _oldest(table: type[Row], *columns: ColumnElement[Any]) -> Select[Any]:
    """Return the queued rows, oldest first, with the columns needed to sort them and `columns`."""
    table_columns = table.__table__.c  # type: ignore[attr-defined]
    due = select(*_columns(table, *columns)).where(is_queued(table), is_due(table))
    return due.order_by(*_in_order(table, table_columns))


def _columns(table: type[Row], *columns: ColumnElement[Any]) -> tuple[ColumnElement[Any], ...]:
    table_columns = table.__table__.c  # type: ignore[attr-defined]
    return (
        table_columns.id,
        table_columns.attempts,
        table_columns.queued_at,
        *table.urgency(),
        *columns,
    )


def _in_order(
    table: type[Row], columns: Any, *turn: ColumnElement[int]
) -> list[ColumnElement[Any]]:
    return [
        *(columns[column.key].desc() for column in table.urgency()),
        *turn,
        columns.queued_at,
        columns.id,
    ]


def is_queued(table: type[Row]) -> ColumnElement[bool]:
    """Return the condition of the queue's partial index as a literal, because the planner cannot
    use the index with a parameter.
    """
    return table.status == literal_column(f"'{JobStatus.QUEUED}'")


def is_due(table: type[Row]) -> ColumnElement[bool]:
    """Return the condition of rows whose waiting time, if any, is over."""
    # Not the clock itself, which is volatile: PostgreSQL would then compute all turns before it
    # locks, and lock each of them instead of those that are claimed.
    now = func.timezone("utc", func.statement_timestamp()) if _on_postgresql() else database_now()
    return or_(table.retry_at.is_(None), table.retry_at <= now)


def is_any_waiting(*tables: type[Leased]) -> bool:
    """Return whether a row of these tables could be claimed now."""
    return any(
        db.session.scalar(select(table.id).where(is_queued(table), is_due(table)).limit(1))
        for table in tables
    )


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
    """Return rows to their place in the queue, to be claimed in `wait_s` seconds at the earliest;
    this does not count as an attempt.
    """
    held = hand_back(table, owner, ids)
    if held:
        db.session.execute(
            update(table).where(table.id.in_(held)).values(retry_at=database_now(wait_s)),
            execution_options={"synchronize_session": False},
        )
    return held


def retry_after_storage_error(
    table: type[Row], owner: str, sentences: Mapping[str, str]
) -> frozenset[str]:
    """Queue rows again after an error of the storage, with a wait equal to the time since the first
    error; after `GIVE_UP_S` a row fails with its sentence.

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
    """Take back all rows with an expired lease; return the new status of each.

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
