"""Studies received by DICOM, the scans made from them, and results to be sent back.

None of these rows names a patient or contains a UID that was received: instances are identified by
keyed hashes (`webapp.sealing`), and the link to the original study is encrypted.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.leased import Leased, new_id, queue_index


class ReceivedStudy(db.Model):
    """The outcome of a study received by DICOM; kept for a while, for administrators.

    Attributes:
        sent_by: the AE titles of the senders.
        user_id: the account that owns the scans; None if there is no such account.
        files, scans: how many instances were received completely, and how many scans they became.
        sentence: what was refused and why; None if nothing was.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    closed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, index=True)
    sent_by: Mapped[str] = mapped_column(String(100))
    user_id: Mapped[str | None] = mapped_column(
        ForeignKey("user.id", ondelete="CASCADE"), index=True
    )
    files: Mapped[int]
    scans: Mapped[int]
    sentence: Mapped[str | None] = mapped_column(Text)


class ReceivedScan(db.Model):
    """The origin of a scan received by DICOM; it is deleted with the scan.

    Attributes:
        study_hash: keyed hash of account and study, which identifies a study that is sent again.
        instances: keyed hashes of its instances and their pixels.
        answers: the names of the destinations that its result is sent to, and which results they
            get (`webapp.dicom_peers.Answered`); None if nothing is sent back.
        sealed_link: the link to the original study, encrypted (`webapp.routing`); None if nothing
            is sent back, or nothing remains to be sent.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), unique=True)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    study_hash: Mapped[str] = mapped_column(String(32), index=True)
    instances: Mapped[list[str]] = mapped_column(JSON)
    answers: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    sealed_link: Mapped[str | None] = mapped_column(Text)


class ResultDelivery(Leased, db.Model):
    """The delivery of a scan's result to one destination.

    It is queued in the transaction of the result. `tries` counts failed tries, `error` gives the
    reason for the last failure, and `retry_at` is the time of the next try.

    Attributes:
        destination: its name in `DICOM_DESTINATIONS`.
        sent: the kinds of objects that were accepted, separated by commas.
    """

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"))
    destination: Mapped[str] = mapped_column(String(64))
    tries: Mapped[int] = mapped_column(default=0)
    sent: Mapped[str | None] = mapped_column(String(40))

    __table_args__ = (
        UniqueConstraint("scan_id", "destination"),
        Index(None, "status", "queued_at"),
        queue_index("ix_result_delivery_queue"),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return the owner of its scan."""
        return cls.user_id  # type: ignore[return-value]
