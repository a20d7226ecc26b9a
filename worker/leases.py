"""Who owns a queued row: claim, renew, finish, hand back, reap.

A row is `running` while a worker holds its lease, and every write about it is conditional on still
holding it. So a worker that was presumed dead can never overwrite what its successor did. All times
are the database's; the caller commits.
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
"""The third death that counts is the last: the row fails."""

GIVE_UP_S = 3600
"""A row that the storage has refused for so long fails."""
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 300.0
"""A refused row waits as long as it has been refused already, within these bounds."""

MOST_CLAIMED_AHEAD = 16
"""A claim looks at so many times its limit: as many claims at the same moment find rows that no
other has locked.
"""

Row = TypeVar("Row", bound=Leased)


class LeaseLost(Exception):
    """Another worker has this row now, or it was cancelled or deleted."""


def claim(table: type[Row], owner: str, limit: int = 1, after: str | None = None) -> list[Row]:
    """Take the next queued rows, up to `limit`, in one statement; no other worker gets them.

    The oldest are next; where rows belong to people (`Leased.in_turn_of`), the oldest of each
    person in turn, whoever has fewest at work first, so that one's single scan waits for one batch
    and not behind another's thousands. Urgent rows (`Leased.urgency`) go before all others, among
    themselves in the same turns.

    A claim of one row sees no turns but those of rows at work, so whoever makes many such claims
    says whose row was the last (`after`): the people go round by their ids then, and one's
    thousands of older rows are no reason to come first.

    A row whose batch died before is claimed alone, so that the next death tells who causes it. Only
    deaths while alone count.
    """
    turns = _turns(table, limit, after)
    order = ("turn",) if after is None else ("turn", "is_passed", "person")
    next_rows = (
        select(turns)
        .order_by(*_in_order(table, turns.c, *(turns.c[name] for name in order)))
        .limit(limit)
    )
    if _on_postgresql():  # SQLite has one writer at a time.
        # Locked one by one, by key. The status is asked here too, and again once there is a row
        # that another claim had locked.
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
    """Return the queued rows that a claim of `limit` looks at, each with its turn: 1 for the oldest
    of a person who has none at work, and so on. Where nobody owns rows every turn is 0.
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
    """Return the queued rows of each person that a claim of `limit` may come to, in the words of
    PostgreSQL (SQLite has no LATERAL).

    It goes from person to person through the index of the queue, so its cost hangs on the number of
    people and not of rows: of each it looks at `limit`, and at an equal share of those that other
    claims may have locked.
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
    """Return the queued rows with what their order hangs on and these columns, in the order of a
    queue without people.
    """
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
    """Return the condition of the index of the queue, word for word: a parameter could have any
    value.
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
    """Set columns of rows that `owner` still holds; return the ids of these, and leave the others
    alone.
    """
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
    """End rows as done and set `columns`, which may be SQL; return the ids that `owner` still held:
    only these have the verdict.
    """
    return write(table, owner, ids, **_ended(JobStatus.DONE), progress=1.0, error=None, **columns)


def fail(table: type[Row], owner: str, sentences: Mapping[str, str]) -> frozenset[str]:
    """End rows as failed, each with its sentence; return the ids that `owner` still held."""
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
    """Queue rows again at their place; that is no attempt."""
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


def reap(table: type[Row], what: str) -> dict[str, JobStatus]:
    """Take back every row whose lease expired; return what became of each.

    One that is locked is left to the next sweep: a worker that stands still in the midst of a
    transaction holds no other rows up. A row is
    queued again, or failed after the third death that counts: "The worker stopped three times while
    it `what`."
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
