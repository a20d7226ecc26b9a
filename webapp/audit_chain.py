"""A hash chain over the audit log, by which a changed, deleted or slipped-in event is noticed.

Requests only add events. A maintenance worker seals them seconds later: it appends a link for each
to the chain, which holds the hash of the event and of the link before. Links count in the order of
sealing, since on PostgreSQL an event with a smaller id may be committed after one with a larger id.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, func, insert, select

from webapp.extensions import db, reads_only, utc_now
from webapp.models import Act, AuditAnchor, AuditCheck, AuditEvent, AuditLink

log = logging.getLogger(__name__)

START = "0" * 64
SEALED_AT_ONCE = 500
VERIFIED_AT_ONCE = 5000
TRIMMED_AT_ONCE = 2000
LATE_IDS = 1000
"""An event that is committed so many ids late is still sealed by the next sweep; the hourly
cleanup looks for any.
"""
ANY = 2**31 - 1
MOST_BREAKS = 1000
OPEN_S = 600
"""Events that are not sealed after this long are reported: no maintenance worker is running."""
LOCK = 0x61756469  # "audi": PostgreSQL's advisory locks are numbers.


@dataclass(frozen=True)
class Head:
    """The end of the chain, or its beginning where nothing is sealed: a position and its hash.

    If it is noted elsewhere, one can check later that everything before it is unchanged.
    """

    position: int
    hash: str

    def __str__(self) -> str:
        return f"{self.position}:{self.hash}"


class Break(NamedTuple):
    """Where the chain is broken.

    Attributes:
        key: what it is known by once it is acknowledged; empty if that cannot be.
        sentence: for the operator.
    """

    key: str
    sentence: str


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        events: how many events were verified.
        head: the end of the chain, or of its part before the first break.
        unsealed: events that were not sealed within `OPEN_S`.
        breaks: where the chain is broken, at most `MOST_BREAKS`, without those acknowledged.
        acknowledged: how many breaks were acknowledged.
    """

    events: int
    head: Head
    unsealed: int
    breaks: Sequence[Break]
    acknowledged: int

    @property
    def problem(self) -> str | None:
        """Where the chain is broken first, a sentence; None while it is not."""
        return self.breaks[0].sentence if self.breaks else None


def hash_of(previous: str, event: Any) -> str:
    """Return the hash of a link, 64 hexadecimal digits: SHA-256 of the hash before and all that the
    event holds. It is an `AuditEvent`, or a row of its columns.
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
    """Append links for events that have none, up to `SEALED_AT_ONCE`, oldest first; return how
    many. The caller commits. Events with ids further than `late_ids` behind are not looked for.

    One process at a time does so: SQLite has one writer, and on PostgreSQL the others find the lock
    taken and leave it to the one that holds it.
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
    """Return where the chain begins: its start, or what trims left; of two at the same moment the
    one that went further, as the triggers have it.
    """
    order = AuditAnchor.position.desc(), AuditAnchor.id.desc()
    furthest = db.session.scalar(select(AuditAnchor).order_by(*order).limit(1))
    return Head(furthest.position, furthest.hash) if furthest else Head(0, START)


def verify(noted: Head | None = None) -> Verification:
    """Compute all hashes again, and look for `noted`, an earlier head that must still be there.

    Commits, and reads without SQLite's write lock. If the log is trimmed meanwhile, it begins
    again.
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
    known = _acknowledged()
    wanted = _wanted_heads(noted, known)
    at, last, intact = anchor.position, anchor.hash, anchor
    of_anchor = list(_breaks_of_anchor(anchor, noted))
    breaks = [each for each in of_anchor if each.key not in known]
    acknowledged = len(of_anchor) - len(breaks)
    breaks += _breaks_of_heads(wanted, at, last)
    while len(breaks) < MOST_BREAKS and (rows := _rows_after(at)):
        for row in rows:
            if broken := _break_of_link(row, at, last):
                is_known = broken.key in known
                acknowledged += is_known
                breaks += [] if is_known else [broken]
            at, last = row.position, row.hash
            breaks += _breaks_of_heads(wanted, at, last)
            intact = intact if breaks else Head(at, last)
            if len(breaks) >= MOST_BREAKS:
                break
        db.session.commit()  # Nothing is held for as long as a long log takes.
    if len(breaks) < MOST_BREAKS:
        breaks += [
            Break(
                _key_of_head(head),
                f"The end is gone: the chain reached {head.position} before, and ends at {at}.",
            )
            for head in wanted
            if head.position > at
        ]
    return Verification(at - anchor.position, intact, _unsealed(), breaks, acknowledged)


def _acknowledged() -> frozenset[str]:
    """Return the keys of all breaks that were acknowledged."""
    details = select(AuditEvent.detail).where(AuditEvent.act == Act.AUDIT_BREAK_ACKNOWLEDGED)
    return frozenset((detail or "").split(";")[0] for detail in db.session.scalars(details))


def _wanted_heads(noted: Head | None, known: Collection[str]) -> list[Head]:
    """Return the heads that must still be there: the one that was noted, and that of the newest
    verification, unless its loss was acknowledged.
    """
    newest = newest_check()
    of_newest = Head(newest.position, newest.hash) if newest else None
    if of_newest and _key_of_head(of_newest) in known:
        of_newest = None
    return [head for head in dict.fromkeys((noted, of_newest)) if head]


def _rows_after(position: int) -> Sequence[Row[Any]]:
    return db.session.execute(
        select(AuditLink.position, AuditLink.hash, AuditLink.event_id, *AuditEvent.__table__.c)
        .outerjoin(AuditEvent, AuditEvent.id == AuditLink.event_id)
        .where(AuditLink.position > position)
        .order_by(AuditLink.position)
        .limit(VERIFIED_AT_ONCE)
    ).all()


def _break_of_link(row: Row[Any], at: int, last: str) -> Break | None:
    if row.position != at + 1:
        sentence = f"Links {at + 1} to {row.position - 1} of the chain are gone."
    elif row.id is None:
        sentence = f"Event {row.event_id} was deleted (link {row.position})."
    elif hash_of(last, row) != row.hash:
        sentence = (
            f"Event {row.id}, dated {row.at:%Y-%m-%d %H:%M:%S}, or link {row.position} was changed."
        )
    else:
        return None
    # All that is found here, so that an acknowledged break that is changed again is noticed.
    found = [at, last, row.position, row.hash, row.id and hash_of(last, row)]
    return Break(f"link {row.position} {_digest(found)}", sentence)


def _breaks_of_heads(wanted: Sequence[Head], position: int, hash: str) -> list[Break]:
    """Return a break for each earlier head at this position that had another hash."""
    return [
        Break(
            _key_of_head(head),
            f"The chain was rewritten: link {position} had another hash before.",
        )
        for head in wanted
        if head.position == position and head.hash != hash
    ]


def _breaks_of_anchor(anchor: Head, noted: Head | None) -> Iterator[Break]:
    """Yield a break where the beginning was deleted and no trim is on record, and where the noted
    head was trimmed.
    """
    on_record = select(AuditEvent.id).where(
        AuditEvent.act == Act.AUDIT_TRIMMED, AuditEvent.detail == _trimmed(anchor)
    )
    if anchor.position and db.session.scalar(on_record.limit(1)) is None:
        sentence = (
            f"Everything up to link {anchor.position} was deleted, and no event records that."
        )
        yield Break(f"anchor {anchor.position} {_digest(anchor.hash)}", sentence)
    if noted is not None and noted.position < anchor.position:
        yield Break("", f"Link {noted.position} was trimmed, so it cannot be looked for.")


def _key_of_head(head: Head) -> str:
    return f"head {head.position} {_digest(head.hash)}"


def _digest(found: object) -> str:
    """Return 32 hexadecimal digits, so that a reason fits beside them."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def _unsealed() -> int:
    late = select(func.count(AuditEvent.id)).outerjoin(
        AuditLink, AuditLink.event_id == AuditEvent.id
    )
    before = utc_now() - timedelta(seconds=OPEN_S)
    unsealed = late.where(AuditLink.position.is_(None), AuditEvent.at < before)
    return db.session.scalar(unsealed) or 0


def verify_and_note() -> Verification:
    """Verify the chain and keep what was found, for pages and metrics; the caller commits.

    Where it is broken, the head of the verification before is kept: otherwise the next one would
    take the broken chain for the right one.
    """
    result = verify()
    before, head = newest_check(), result.head
    if result.problem is not None and before is not None:
        head = Head(before.position, before.hash)
    if result.problem is not None:
        log.error("the audit log does not verify: %s", result.problem)
    else:
        # Log collectors then have the head outside of the database, too.
        log.info("the audit log verifies, events=%d head=%s", result.events, result.head)
    db.session.execute(delete(AuditCheck))
    db.session.add(
        AuditCheck(
            events=result.events,
            position=head.position,
            hash=head.hash,
            problem=result.problem,
            acknowledged=result.acknowledged,
        )
    )
    return result


def newest_check() -> AuditCheck | None:
    """Return the newest verification; None before the first one."""
    return db.session.scalar(select(AuditCheck).order_by(AuditCheck.id.desc()).limit(1))


def trim(days: int) -> int:
    """Delete sealed events older than so many days, and commit; return how many.

    The last link that goes becomes the anchor from which the rest is verified, and an event says
    so. The triggers let only those go that are before the anchor, so one that was interrupted is
    finished by the next.
    """
    before = utc_now() - timedelta(days=days)
    first_kept = (
        select(func.min(AuditLink.position))
        .join(AuditEvent, AuditEvent.id == AuditLink.event_id)
        .where(AuditEvent.at >= before)
        .scalar_subquery()
    )
    old = select(AuditLink).where(AuditLink.position < func.coalesce(first_kept, ANY))
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
        # Links last: the triggers look an event's link up.
        db.session.execute(delete(AuditEvent).where(AuditEvent.id.in_([row[1] for row in some])))
        db.session.execute(delete(AuditLink).where(AuditLink.position <= some[-1].position))
        db.session.commit()
        trimmed += len(some)


def _trimmed(anchor: Head) -> str:
    return f"up to link {anchor}"
