"""Promotions: which version is live, since when, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, func, select
from sqlalchemy.orm import Mapped, joinedload, mapped_column, relationship

from webapp.extensions import UtcDateTime, database_now, db, utc_now
from webapp.models.accounts import User
from webapp.models.learning import HasOperatingPoint, ModelVersion, OperatingPoint


class Promotion(HasOperatingPoint, db.Model):
    """A decision about which version is live; rows are never changed or deleted.

    For each input ("slice", "series") the version of the newest promotion is live. A rollback
    promotes an earlier version again, and another operating point for the live version promotes
    that version again.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    reads: Mapped[str] = mapped_column(String(16))
    # Empty if setup promoted it.
    by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    reason: Mapped[str] = mapped_column(Text)
    # What was known about it then, and what its promoter confirmed
    # (`webapp.admin.promotion_checks`); empty if setup promoted it.
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    version: Mapped[ModelVersion] = relationship(back_populates="promotions")
    by: Mapped[User | None] = relationship()

    __table_args__ = (Index(None, "reads", "id"),)


def live_version(reads: str) -> ModelVersion | None:
    """Return the live version for `reads` ("slice" or "series"), or None if none was promoted."""
    newest = (
        select(Promotion.version_id)
        .where(Promotion.reads == reads)
        .order_by(Promotion.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return db.session.scalar(
        select(ModelVersion)
        .where(ModelVersion.id == newest)
        # A worker's session may still have it with the operating point of an earlier batch.
        .execution_options(populate_existing=True)
    )


def answering_versions() -> tuple[ModelVersion | None, ModelVersion | None]:
    """Return the versions that now analyze single slices and series: the live version for each, or
    else the one for the other input.
    """
    of_slices, of_series = live_version("slice"), live_version("series")
    return of_slices or of_series, of_series or of_slices


class PromotionRefused(ValueError):
    """A version may not be promoted; the message is a sentence for the administrator."""


def promote(
    version: ModelVersion,
    by_id: str | None,
    reason: str,
    point: OperatingPoint | None = None,
    evidence: dict[str, Any] | None = None,
) -> Promotion:
    """Append the promotion that makes `version` live for what it reads, or changes the operating
    point of the live one; the caller commits.

    Args:
        by_id: the administrator who decides, or None for setup.
        reason: recorded in the history.
        point: the operating point for workers; None leaves the current one.
        evidence: what was known about the version (`webapp.admin.promotion_checks`).

    Raises:
        PromotionRefused: the version is blocked, it is already live at this operating point, or no
            reason is given.
    """
    require_promotable(version, reason, point)
    point = point or version.operating_point
    version.operating_point = point
    promotion = Promotion(
        version=version,
        reads=version.reads,
        by_id=by_id,
        # By the clock that also dates the results that count to it.
        at=database_now(),
        reason=reason.strip(),
        evidence=evidence,
    )
    promotion.operating_point = point
    db.session.add(promotion)
    return promotion


def require_promotable(
    version: ModelVersion, reason: str, point: OperatingPoint | None = None
) -> None:
    """Check that a version may be promoted; the arguments are those of `promote`.

    Raises:
        PromotionRefused: the version is blocked, it is already live at this operating point, or no
            reason is given.
    """
    if version.blocked_because:
        raise PromotionRefused(version.blocked_because)
    if not reason.strip():
        raise PromotionRefused(
            "Please enter a reason for the promotion; it is recorded in the history."
        )
    live = live_version(version.reads)
    if live is not None and live.id == version.id and point in (None, version.operating_point):
        raise PromotionRefused("This version is already live at this operating point.")


def newest_promotion(reads: str, *, lock: bool = False) -> Promotion | None:
    """Return the promotion that determines what is live for `reads`; with `lock`, no other
    promotion of that kind can be decided before the caller commits.
    """
    if lock:
        # The second of two promotions waits here, and then reads what the first one has committed.
        # What is locked is the oldest version of the kind, because there may be no promotion yet;
        # `key_share` lets rows that refer to it be written meanwhile. SQLite has one writer at a
        # time.
        of_kind = select(ModelVersion.id).where(ModelVersion.reads == reads)
        oldest = of_kind.order_by(ModelVersion.created_at, ModelVersion.id).limit(1)
        db.session.execute(oldest.with_for_update(key_share=True))
    newest = (
        select(Promotion)
        .where(Promotion.reads == reads)
        .order_by(Promotion.id.desc())
        .limit(1)
        .options(defer_card())
    )
    return db.session.scalar(newest)


def promotion_at(reads: str, at: datetime) -> Promotion | None:
    """Return the promotion by which a version was live for `reads` at a time; None if there was
    none yet.
    """
    return db.session.scalar(
        select(Promotion)
        .where(Promotion.reads == reads, Promotion.at <= at)
        .order_by(Promotion.id.desc())
        .limit(1)
        .options(defer_card())
    )


def promotion_after(promotion: Promotion) -> Promotion | None:
    """Return the promotion that ended another one; None while that one is in force."""
    return db.session.scalar(
        select(Promotion)
        .where(Promotion.reads == promotion.reads, Promotion.id > promotion.id)
        .order_by(Promotion.id)
        .limit(1)
    )


def promotion_before(promotion: Promotion) -> Promotion | None:
    """Return the promotion that was in force before another one; None if nothing was live
    before.
    """
    return db.session.scalar(
        select(Promotion)
        .where(Promotion.reads == promotion.reads, Promotion.id < promotion.id)
        .order_by(Promotion.id.desc())
        .limit(1)
        .options(joinedload(Promotion.version))
    )


def earlier_promotions(live: ModelVersion) -> list[Promotion]:
    """Return the last promotion of each version that was live before and may be live again, newest
    first: the possible rollbacks.
    """
    last = (
        select(func.max(Promotion.id))
        .where(Promotion.reads == live.reads, Promotion.version_id != live.id)
        .group_by(Promotion.version_id)
    )
    return list(
        db.session.scalars(
            select(Promotion)
            .join(Promotion.version)
            .where(Promotion.id.in_(last), ModelVersion.blocked_because.is_(None))
            .order_by(Promotion.id.desc())
            .options(defer_card())
        )
    )


def defer_card() -> Any:
    """Return the option that loads a promotion's version without its card."""
    return joinedload(Promotion.version).defer(ModelVersion.card)
