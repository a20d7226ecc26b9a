"""The worker processes, and the audit log."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from webapp.extensions import UtcDateTime, db, utc_now


class Worker(db.Model):
    """A worker process, which updates its row every few seconds, by the database's clock.

    Attributes:
        queue: "predict" or "train".
        seen_at: the time of its last heartbeat.
        delivered_at: when the broker last delivered a message to it, which shows that the broker
            works.
        alarm: why it cannot analyze scans although it is running, as a sentence; usually empty.
    """

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    queue: Mapped[str] = mapped_column(String(20))
    host: Mapped[str] = mapped_column(String(100))
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    alarm: Mapped[str | None] = mapped_column(Text)


class Act(StrEnum):
    """The actions that the audit log records; in parentheses, what its `object_id` refers to."""

    SIGNED_UP = "signed up"
    LOGGED_IN = "logged in"
    LOGIN_FAILED = "login failed"  # (the user with the given username, if there is one)
    LOGIN_THROTTLED = "login throttled"
    ACCESS_REFUSED = "access refused"  # (another user's scan; empty for an administrator's page)
    LOGGED_OUT = "logged out"
    LOGINS_ENDED = "logins ended"  # (one session, or the user whose other sessions ended)
    PASSWORD_CHANGED = "password changed"
    PASSWORD_RESET = "password reset"
    RESET_LINK_MADE = "reset link made"  # (the user it is for)
    TOKEN_MADE = "token made"
    TOKEN_REVOKED = "token revoked"
    SECOND_FACTOR_SET_UP = "second factor set up"
    SECOND_FACTOR_FAILED = "second factor failed"  # (the user, after the correct password)
    SECOND_FACTOR_REMOVED = "second factor removed"  # (the user who had it)
    RECOVERY_CODES_MADE = "recovery codes made"
    RECOVERY_CODE_USED = "recovery code used"
    USER_DISABLED = "user disabled"
    USER_ENABLED = "user enabled"
    ACCOUNT_DELETED = "account deleted"
    ADMIN_MADE = "admin made"
    SCAN_SUBMITTED = "scan submitted"
    SCAN_CANCELLED = "scan cancelled"
    SCAN_RETRIED = "scan retried"
    SCAN_SCORED_AGAIN = "scan scored again"  # With the live model.
    SCAN_FORCED = "scan forced"  # Scored although it does not look like a head CT.
    SCAN_MADE_STAT = "scan made STAT"
    SCAN_MADE_ROUTINE = "scan made routine"
    SCANS_JOINED = "scans joined"  # (each of the parts, and the resulting series)
    SCAN_SPLIT = "scan split"  # (the series, and each of the resulting images)
    SCAN_DELETED = "scan deleted"
    SCAN_SHARED = "scan shared"
    SHARING_ENDED = "sharing ended"  # (the scan)
    OPINION_GIVEN = "opinion given"  # (the scan)
    OPINION_CHANGED = "opinion changed"
    OPINION_WITHDRAWN = "opinion withdrawn"
    ROLE_CHANGED = "role changed"  # (the user whose role was changed)
    DATASET_REQUESTED = "data set requested"  # From confirmed scans.
    FIGURES_REQUESTED = "site figures requested"
    VERSION_CALIBRATED = "calibration launched"  # (the run)
    REPORT_ASKED_FOR = "report asked for"  # (the scan; its kind is the detail)
    RESULT_SENT_AGAIN = "result sent again"  # (its delivery to a destination)
    RESULT_CANCELLED = "result cancelled"
    DATASET_IMPORTED = "data set imported"
    IMPORT_CANCELLED = "import cancelled"
    DATASET_DELETED = "data set deleted"
    LABEL_CORRECTED = "label corrected"  # (the data set; its image, and the old and new label)
    CORRECTION_WITHDRAWN = "correction withdrawn"  # Before it was applied.
    DATASET_CORRECTED = "data set corrected"  # (the new version)
    RUN_LAUNCHED = "run launched"
    RUN_CANCELLED = "run cancelled"
    RUN_RETRIED = "run retried"
    RUN_DESCRIBED = "run described"  # Name, tags and notes.
    PAPER_LAUNCHED = "experiment launched"  # The paper’s experiment; also when it is resumed.
    PAPER_CANCELLED = "experiment cancelled"
    EVALUATION_REQUESTED = "evaluation requested"
    EVALUATION_CANCELLED = "evaluation cancelled"
    COMPARISON_REQUESTED = "comparison requested"  # (the version compared with the live one)
    AUDIT_EXPORTED = "audit log exported"
    AUDIT_TRIMMED = "audit log trimmed"  # (empty: done by its retention)
    VERSION_PROMOTED = "version promoted"  # Also a rollback.
    POINT_CHANGED = "operating point changed"  # (the live version)
    REPLAY_REQUESTED = "replay requested"  # (the scan, or the sample)
    REPLAY_CANCELLED = "replay cancelled"  # (the sample)
    SHADOW_STARTED = "shadow started"
    SHADOW_STOPPED = "shadow stopped"


class AuditEvent(db.Model):
    """One action. The table is append-only: triggers, created by a migration, refuse to change or
    delete rows.

    It outlives the users and objects that it refers to, so it contains ids but no names, and no
    foreign keys.

    Attributes:
        act: an `Act`.
        actor_id: who did it; empty if nobody was logged in.
        object_id: the row that the action applied to, if any.
        address: the client's IP address, "DICOM" and an AE title, or "command line".
        detail: what was chosen if the action offers a choice, such as a kind of report or a role.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    act: Mapped[str] = mapped_column(String(24))
    actor_id: Mapped[str | None] = mapped_column(String(32))
    object_id: Mapped[str | None] = mapped_column(String(32))
    address: Mapped[str] = mapped_column(String(45))
    detail: Mapped[str | None] = mapped_column(String(120))

    __table_args__ = tuple(
        Index(None, *columns)
        for columns in (
            ("at",),
            *((column, "id") for column in ("act", "actor_id", "object_id", "address")),
        )
    )


class AuditLink(db.Model):
    """A link of the hash chain over the audit log (`webapp.audit_chain`). Append-only, too; links
    of trimmed events are deleted with them.

    Attributes:
        position: counts from 1 without a gap, in the order in which events were sealed.
        hash: of the event and of the previous link.
    """

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event_id: Mapped[int] = mapped_column(unique=True)
    hash: Mapped[str] = mapped_column(String(64))
    sealed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class AuditAnchor(db.Model):
    """Where the chain begins after older events were trimmed: the triggers allow only those up to
    `position` to be deleted. `hash` is that of the link there.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class AuditCheck(db.Model):
    """The newest verification of the chain; earlier rows are replaced.

    Attributes:
        events: how many were verified.
        position, hash: the head of the chain, which the next verification must find again; while
            there is a problem, the last head without one.
        problem: where the chain is broken, as a sentence; None if it is intact.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    events: Mapped[int]
    position: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))
    problem: Mapped[str | None] = mapped_column(Text)
