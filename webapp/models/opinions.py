"""Users' opinions on scans, and whom scans are shared with."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    Enum,
    ForeignKey,
    Index,
    String,
    Subquery,
    Text,
    case,
    func,
    select,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.accounts import User
from webapp.models.leased import new_id
from webapp.models.scans import Scan


class Finding(StrEnum):
    """A user's finding on hemorrhage in a scan or a slice."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCLEAR = "cannot tell"

    @property
    def is_decisive(self) -> bool:
        """True if it can confirm a scan."""
        return self is not Finding.UNCLEAR


def unique_where(condition: str, name: str, *columns: str) -> Index:
    """Return an index that makes these columns unique among the rows that match the condition."""
    where = text(condition)
    return Index(name, *columns, unique=True, postgresql_where=where, sqlite_where=where)


class Opinion(db.Model):
    """One user's opinion on a scan, or on one of its slices; a user has at most one on each.

    The model's prediction at that time is stored with it, because a scan can be analyzed again.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"))
    author_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    # Counted from 0; empty for the whole scan.
    slice_index: Mapped[int | None]
    finding: Mapped[Finding] = mapped_column(
        Enum(
            Finding,
            native_enum=False,
            length=16,
            values_callable=lambda findings: [finding.value for finding in findings],
        )
    )
    # Types of hemorrhage (`ml.catalogue.BLEEDING_TYPES`).
    types: Mapped[list[str]] = mapped_column(JSON, default=list)
    comment: Mapped[str] = mapped_column(Text, default="")
    # An ellipse on the slice: its center and its radii as fractions of the image's width and
    # height, {"x", "y", "rx", "ry"}.
    region: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # The prediction that its author saw: the version, its probability for the scan or the slice,
    # and, for the scan, whether that was positive; empty if it was inconclusive.
    model_version_id: Mapped[str | None] = mapped_column(ForeignKey("model_version.id"))
    model_probability: Mapped[float | None]
    model_positive: Mapped[bool | None]
    # The probability with which the review queue selected the scan, if its author came from there;
    # otherwise empty.
    sampling: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    author: Mapped[User] = relationship()
    scan: Mapped[Scan] = relationship()

    __table_args__ = (
        # NULLs do not count as duplicates of each other, so there is an index for either kind.
        unique_where("slice_index IS NULL", "uq_opinion_scan", "scan_id", "author_id"),
        unique_where(
            "slice_index IS NOT NULL", "uq_opinion_slice", "scan_id", "author_id", "slice_index"
        ),
    )

    @property
    def slice_number(self) -> int | None:
        """The slice counted from 1, as pages show it; None for the whole scan."""
        return None if self.slice_index is None else self.slice_index + 1

    @property
    def agrees(self) -> bool | None:
        """Whether it agrees with the scan's current result, which may differ from the one that its
        author saw; None without a result, for slices, and if one of them is not decisive.
        """
        state = self.scan.verdict_state
        is_decisive = state not in (None, "inconclusive") and self.finding.is_decisive
        if self.slice_index is not None or not is_decisive:
            return None
        return (state == "suspected") == (self.finding == Finding.PRESENT)


class Share(db.Model):
    """A user may see another user's scan and give an opinion on it: `with_user`, or all reviewers
    if that is empty.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"))
    with_user_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    with_user: Mapped[User | None] = relationship()

    __table_args__ = (
        Index("ix_share_with", "with_user_id", "scan_id"),
        unique_where("with_user_id IS NULL", "uq_share_reviewers", "scan_id"),
        unique_where("with_user_id IS NOT NULL", "uq_share_person", "scan_id", "with_user_id"),
    )


def votes() -> Subquery:
    """Return a table of all scans on which somebody gave an opinion: `scan_id`, and how many
    opinions on the whole scan say `present` and `absent`.
    """

    def count(finding: Finding) -> Any:
        return func.sum(case((Opinion.finding == finding, 1), else_=0)).label(finding.value)

    of_scans = select(Opinion.scan_id, count(Finding.PRESENT), count(Finding.ABSENT))
    return of_scans.where(Opinion.slice_index.is_(None)).group_by(Opinion.scan_id).subquery("votes")
