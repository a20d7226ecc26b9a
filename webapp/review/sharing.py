"""Who can see a scan besides its owner: users it is shared with by name, or the reviewers."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, delete, exists, or_, select
from sqlalchemy.orm import joinedload

from webapp.audit import record
from webapp.extensions import db
from webapp.forms import is_id, username_problem
from webapp.models import REVIEWERS, Act, AuditEvent, ReplacedScan, Scan, Share, User

MOST_SHARES = 50
"""Maximum number of users that one scan can be shared with by name."""
THE_REVIEWERS = "the reviewers"
REARRANGED = (Act.SCANS_JOINED, Act.SCAN_SPLIT)
MADE = (Act.SCAN_SUBMITTED, *REARRANGED)
SHARED_OR_NOT = (Act.SCAN_SHARED, Act.SHARING_ENDED)


class SharingRefused(ValueError):
    """A scan cannot be shared like this; the message is a sentence for its owner."""


def visible_to(user_id: str) -> ColumnElement[bool]:
    """Return the condition for scans that this user may see: their own, and those currently shared
    with them.
    """
    # Separate subqueries, so that each can use its index.
    return or_(
        Scan.user_id == user_id,
        exists().where(Share.scan_id == Scan.id, Share.with_user_id == user_id),
        exists().where(Share.scan_id == Scan.id, Share.with_user_id.is_(None))
        & _is_reviewer(user_id),
    )


def successor_of(scan_id: str, user_id: str) -> str | None:
    """Return the id of the scan that replaced one that is gone, if this user may see it; None if
    there is none.
    """
    if not is_id(scan_id):
        return None
    heir = select(Scan.id).join(ReplacedScan, ReplacedScan.scan_id == Scan.id)
    return db.session.scalar(heir.where(ReplacedScan.id == scan_id, visible_to(user_id)))


def why_gone(scan_id: str, user_id: str) -> str | None:
    """Return, as a sentence, why a scan is gone that this user could see until then; None if they
    could not, if it or its replacement exists, or if the audit log does not reach back to it.
    """
    still = exists().where(Scan.id == scan_id) | exists().where(ReplacedScan.id == scan_id)
    if not is_id(scan_id) or db.session.scalar(select(still)):
        return None
    acts = (*MADE, *SHARED_OR_NOT, Act.SCAN_DELETED)
    of_scan = select(AuditEvent).where(AuditEvent.object_id == scan_id, AuditEvent.act.in_(acts))
    events = db.session.scalars(of_scan.order_by(AuditEvent.id)).all()
    is_own = any(event.act in MADE and event.actor_id == user_id for event in events)
    last = {event.detail: event.act for event in events if event.act in SHARED_OR_NOT}
    known_to = {_whom(user_id)}
    if db.session.scalar(select(_is_reviewer(user_id))):
        known_to.add(_whom(None))
    if not is_own and not any(last.get(whom) == Act.SCAN_SHARED for whom in known_to):
        return None
    done = {event.act for event in events}
    if Act.SCAN_DELETED in done:
        return "You deleted this scan." if is_own else "The owner of this scan deleted it."
    if done.intersection(REARRANGED):
        return "This scan was deleted, or replaced by one that was deleted."
    if is_own:
        return "This scan was deleted automatically because scans are stored for a limited time."
    return "This scan was deleted, automatically or with its owner’s account."


def shared_with(user_id: str) -> Select[str]:
    """Return the statement for the ids of all scans that are shared with this user."""
    to_reviewers = Share.with_user_id.is_(None) & _is_reviewer(user_id)
    return select(Share.scan_id).where(or_(Share.with_user_id == user_id, to_reviewers))


def shared_with_reviewers() -> Select[str]:
    """Return the statement for the ids of all scans that are shared with the reviewers."""
    return select(Share.scan_id).where(Share.with_user_id.is_(None))


def move_shares(scan_id: str, heir_id: str) -> None:
    """Share a scan with everybody whom the scan that it replaces is shared with; the caller
    commits.
    """
    known = {each.with_user_id for each in shares_of(heir_id)}
    for each in shares_of(scan_id):
        if each.with_user_id not in known:
            each.scan_id = heir_id
    db.session.flush()


def is_any_shared_with(user_id: str) -> bool:
    """Return whether another user's scan is shared with this user."""
    return db.session.scalar(shared_with(user_id).limit(1)) is not None


def shares_of(scan_id: str) -> list[Share]:
    """Return whom a scan is shared with, in the order in which it was shared."""
    shares = select(Share).where(Share.scan_id == scan_id).options(joinedload(Share.with_user))
    return list(db.session.scalars(shares.order_by(Share.created_at, Share.id)))


def share(scan: Scan, username: str | None) -> Share:
    """Share a scan with the user of that name, or with the reviewers; the caller commits.

    Raises:
        SharingRefused: there is no such user, the scan is already shared with them (perhaps by a
            simultaneous request) or with too many users, or it was deleted meanwhile.
    """
    person = None if username is None else _person_named(username.strip())
    if person is not None and person.id == scan.user_id:
        raise SharingRefused("This scan is already yours.")
    # Locked, so that of two simultaneous requests the second finds what the first one did.
    if db.session.scalar(select(Scan.id).where(Scan.id == scan.id).with_for_update()) is None:
        raise SharingRefused("This scan has been deleted.")
    with_user_id = person and person.id
    earlier = shares_of(scan.id)
    if any(share.with_user_id == with_user_id for share in earlier):
        whom = THE_REVIEWERS if person is None else person.username
        raise SharingRefused(f"This scan is already shared with {whom}.")
    if len(earlier) >= MOST_SHARES:
        raise SharingRefused(f"A scan can be shared with at most {MOST_SHARES} people.")
    created = Share(scan_id=scan.id, with_user_id=with_user_id, with_user=person)
    db.session.add(created)
    record(Act.SCAN_SHARED, scan.id, detail=_whom(with_user_id))
    return created


def end_share(scan_id: str, share_id: str) -> bool:
    """Stop sharing a scan with a user or the reviewers; False if it was not shared. The caller
    commits.
    """
    ended = db.session.execute(
        delete(Share)
        .where(Share.id == share_id, Share.scan_id == scan_id)
        .returning(Share.with_user_id)
    ).one_or_none()
    if ended is None:
        return False
    record(Act.SHARING_ENDED, scan_id, detail=_whom(ended.with_user_id))
    return True


def _is_reviewer(user_id: str) -> ColumnElement[bool]:
    return exists().where(User.id == user_id, User.role.in_(REVIEWERS))


def _whom(user_id: str | None) -> str:
    """Return whom a scan is shared with for the audit log, which contains no names."""
    return f"with {THE_REVIEWERS}" if user_id is None else f"with {user_id}"


def _person_named(username: str) -> User:
    known = username_problem(username) is None and db.session.scalar(
        select(User).where(User.username_key == username.lower(), User.disabled_at.is_(None))
    )
    if not known:
        raise SharingRefused(
            f"There is no user named “{username[:64]}”." if username else "Please enter a username."
        )
    return known
