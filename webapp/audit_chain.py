"""A hash chain over the audit log, which reveals changed, deleted or inserted events.

Requests only add events. A maintenance worker seals them seconds later: it appends a link to the
chain for each event, which holds the hash of the event and of the previous link. The order of links
is the order of sealing, because on PostgreSQL an event with a smaller id may be committed after one
with a larger id.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, func, insert, select

from webapp.extensions import LARGEST_INTEGER, db, reads_only, utc_now
from webapp.models import Act, AuditAnchor, AuditCheck, AuditEvent, AuditLink

log = logging.getLogger(__name__)

START = "0" * 64
SEALED_AT_ONCE = 500
VERIFIED_AT_ONCE = 5000
TRIMMED_AT_ONCE = 2000
LATE_IDS = 1000
"""An event that is committed this many ids late is still sealed by the next sweep; the hourly
cleanup looks for any that are later.
"""
OPEN_S = 600
"""Events that are not sealed after this time are reported: no maintenance worker is running."""
LOCK = 0x61756469  # "audi" in ASCII: PostgreSQL identifies advisory locks by numbers.


@dataclass(frozen=True)
class Head:
    """The end of the chain, or its beginning if nothing is sealed: a position and its hash.

    If it is also stored elsewhere, one can check later that everything before it is unchanged.
    """

    position: int
    hash: str

    def __str__(self) -> str:
        return f"{self.position}:{self.hash}"


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        events: how many events were verified.
        head: the end of the chain.
        unsealed: the number of events that were not sealed within `OPEN_S`.
        problem: where the chain is broken, as a sentence; None if it is intact.
    """

    events: int
    head: Head
    unsealed: int
    problem: str | None


def hash_of(previous: str, event: Any) -> str:
    """Return the hash of a link, 64 hexadecimal digits: SHA-256 of the previous hash and all fields
    of the event, which is an `AuditEvent` or a row of its columns.
    """
    content = [
        event.id,
        event.at.isoformat(timespec="microseconds"),
        event.act,
        event.actor_id,
        event.object_id,
        event.address,
        event.detail,
    ]
    content_as_json = json.dumps([previous, *content], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content_as_json.encode()).hexdigest()


def seal(late_ids: int = LATE_IDS) -> int:
    """Append links for up to `SEALED_AT_ONCE` events that have none, oldest first; return the
    number of links. The caller commits. Events whose ids are further than `late_ids` behind are
    ignored.

    Only one process does this at a time: SQLite has one writer, and on PostgreSQL other processes
    find the lock taken and do nothing.
    """
    if db.engine.dialect.name == "postgresql" and not db.session.scalar(
        select(func.pg_try_advisory_xact_lock(LOCK))
    ):
        return 0
    head = head_of_chain()
    newest = db.session.scalar(select(func.max(AuditLink.event_id))) or 0
    events = db.session.scalars(
        select(AuditEvent)
        .outerjoin(AuditLink, AuditLink.event_id == AuditEvent.id)
        .where(AuditEvent.id > newest - late_ids, AuditLink.position.is_(None))
        .order_by(AuditEvent.id)
        .limit(SEALED_AT_ONCE)
    ).all()
    links, position, last = [], head.position, head.hash
    for event in events:
        position, last = position + 1, hash_of(last, event)
        links.append(
            {"position": position, "event_id": event.id, "hash": last, "sealed_at": utc_now()}
        )
    if links:
        db.session.execute(insert(AuditLink), links)
    return len(links)


def head_of_chain() -> Head:
    """Return the end of the chain."""
    newest = select(AuditLink).order_by(AuditLink.position.desc()).limit(1)
    last_link = db.session.scalar(newest)
    anchor = anchor_of_chain()
    if last_link is None or last_link.position < anchor.position:
        return anchor
    return Head(last_link.position, last_link.hash)


def anchor_of_chain() -> Head:
    """Return where the chain begins: its start, or the anchor left by trimming; of two anchors from
    the same moment the later in the chain, as in the triggers.
    """
    order = AuditAnchor.position.desc(), AuditAnchor.id.desc()
    furthest = db.session.scalar(select(AuditAnchor).order_by(*order).limit(1))
    return Head(furthest.position, furthest.hash) if furthest else Head(0, START)


def verify(noted: Head | None = None) -> Verification:
    """Recompute all hashes, and check that `noted`, an earlier head, is still in the chain.
    Commits, and reads without SQLite's write lock. If the log is trimmed meanwhile, the
    verification starts again.
    """
    db.session.commit()
    token = reads_only.set(True)
    try:
        while True:
            anchor = anchor_of_chain()
            verification = _verified_from(anchor, noted)
            db.session.commit()
            if verification.problem is None or anchor == anchor_of_chain():
                return verification
    finally:
        db.session.commit()
        reads_only.reset(token)


def _verified_from(anchor: Head, noted: Head | None) -> Verification:
    wanted = _known_heads(noted)
    at, last = anchor.position, anchor.hash
    problem = _problem_of_anchor(anchor) or _problem_of_head(wanted, at, last)
    if problem is None and noted is not None and noted.position < anchor.position:
        problem = f"Link {noted.position} was trimmed, so it cannot be looked for."
    while problem is None and (rows := _rows_after(at)):
        for row in rows:
            problem = _problem_of_link(row, at, last)
            if problem is None:
                at, last = row.position, row.hash
                problem = _problem_of_head(wanted, at, last)
            if problem is not None:
                break
        db.session.commit()  # Verifying a long log takes time; no transaction is open meanwhile.
    reached = max((head.position for head in wanted), default=at)
    if problem is None and reached > at:
        problem = f"The end is gone: the chain reached {reached} before, and ends at {at}."
    return Verification(at - anchor.position, Head(at, last), _unsealed(), problem)


def _known_heads(noted: Head | None) -> list[Head]:
    known = [noted] if noted else []
    newest = newest_check()
    if newest is not None:
        known.append(Head(newest.position, newest.hash))
    return known


def _rows_after(position: int) -> Sequence[Row[Any]]:
    return db.session.execute(
        select(AuditLink.position, AuditLink.hash, AuditLink.event_id, *AuditEvent.__table__.c)
        .outerjoin(AuditEvent, AuditEvent.id == AuditLink.event_id)
        .where(AuditLink.position > position)
        .order_by(AuditLink.position)
        .limit(VERIFIED_AT_ONCE)
    ).all()


def _problem_of_link(row: Row[Any], at: int, last: str) -> str | None:
    if row.position != at + 1:
        return f"Links {at + 1} to {row.position - 1} of the chain are gone."
    if row.id is None:
        return f"Event {row.event_id} was deleted (link {row.position})."
    if hash_of(last, row) != row.hash:
        return (
            f"Event {row.id}, dated {row.at:%Y-%m-%d %H:%M:%S}, or link {row.position} was changed."
        )
    return None


def _problem_of_head(wanted: Sequence[Head], position: int, hash: str) -> str | None:
    """Return a sentence if an earlier head at this position had another hash."""
    if all(head.hash == hash for head in wanted if head.position == position):
        return None
    return f"The chain was rewritten: link {position} had another hash before."


def _problem_of_anchor(anchor: Head) -> str | None:
    """Return a sentence if the beginning was deleted and no trimming is on record."""
    if not anchor.position:
        return None
    on_record = select(AuditEvent.id).where(
        AuditEvent.act == Act.AUDIT_TRIMMED, AuditEvent.detail == _trimmed(anchor)
    )
    if db.session.scalar(on_record.limit(1)) is not None:
        return None
    return f"Everything up to link {anchor.position} was deleted, and no event records that."


def _unsealed() -> int:
    late = select(func.count(AuditEvent.id)).outerjoin(
        AuditLink, AuditLink.event_id == AuditEvent.id
    )
    before = utc_now() - timedelta(seconds=OPEN_S)
    unsealed = late.where(AuditLink.position.is_(None), AuditEvent.at < before)
    return db.session.scalar(unsealed) or 0


def verify_and_note() -> Verification:
    """Verify the chain and store the result, for pages and metrics; the caller commits.

    If the chain is broken, the head of the previous verification is kept: otherwise the next
    verification would accept the broken chain as correct.
    """
    result = verify()
    before, head = newest_check(), result.head
    if result.problem is not None and before is not None:
        head = Head(before.position, before.hash)
    if result.problem is not None:
        log.error("the audit log failed verification: %s", result.problem)
    else:
        # This puts the head into log collectors, outside of the database.
        log.info("the audit log was verified, events=%d head=%s", result.events, result.head)
    db.session.execute(delete(AuditCheck))
    db.session.add(
        AuditCheck(
            events=result.events,
            position=head.position,
            hash=head.hash,
            problem=result.problem,
        )
    )
    return result


def newest_check() -> AuditCheck | None:
    """Return the newest verification; None before the first one."""
    return db.session.scalar(select(AuditCheck).order_by(AuditCheck.id.desc()).limit(1))


def trim(days: int) -> int:
    """Delete sealed events older than this many days, and commit; return how many.

    The last deleted link becomes the anchor from which the rest is verified, and an event records
    this. The triggers allow deletion only before the anchor, so an interrupted trimming is
    completed by the next one.
    """
    before = utc_now() - timedelta(days=days)
    first_kept = (
        select(func.min(AuditLink.position))
        .join(AuditEvent, AuditEvent.id == AuditLink.event_id)
        .where(AuditEvent.at >= before)
        .scalar_subquery()
    )
    old = select(AuditLink).where(AuditLink.position < func.coalesce(first_kept, LARGEST_INTEGER))
    last = db.session.scalar(old.order_by(AuditLink.position.desc()).limit(1))
    if last is not None and last.position > anchor_of_chain().position:
        anchor = Head(last.position, last.hash)
        db.session.add(AuditAnchor(position=anchor.position, hash=anchor.hash))
        db.session.add(
            AuditEvent(act=Act.AUDIT_TRIMMED, address="retention", detail=_trimmed(anchor))
        )
    db.session.commit()
    return _delete_up_to(anchor_of_chain().position)


def _delete_up_to(position: int) -> int:
    trimmed = 0
    while True:
        some = db.session.execute(
            select(AuditLink.position, AuditLink.event_id)
            .where(AuditLink.position <= position)
            .order_by(AuditLink.position)
            .limit(TRIMMED_AT_ONCE)
        ).all()
        if not some:
            db.session.commit()
            return trimmed
        # Links are deleted last, because the triggers look up an event's link.
        db.session.execute(delete(AuditEvent).where(AuditEvent.id.in_([row[1] for row in some])))
        db.session.execute(delete(AuditLink).where(AuditLink.position <= some[-1].position))
        db.session.commit()
        trimmed += len(some)


def _trimmed(anchor: Head) -> str:
    return f"up to link {anchor}"
