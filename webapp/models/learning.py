"""Data sets, training runs and the model versions that come of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    String,
    Table,
    Text,
    or_,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.accounts import User
from webapp.models.leased import Attempt, Leased, new_id

training_run_dataset = Table(
    "training_run_dataset",
    db.metadata,
    Column("training_run_id", ForeignKey("training_run.id", ondelete="CASCADE"), primary_key=True),
    Column("dataset_id", ForeignKey("dataset.id"), primary_key=True),
)


class Dataset(Leased, db.Model):
    """Labelled images that an admin imports: one archive in storage, read by a train worker before
    it counts.
    """

    name: Mapped[str] = mapped_column(String(80), unique=True)
    imported_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    archive_key: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    exploration: Mapped[dict[str, Any] | None] = mapped_column(
        JSON
    )  # `ml.exploration.summary.explore`
    contact_sheet_key: Mapped[str | None] = mapped_column(String(200))
    imported_by: Mapped[User | None] = relationship()


class TrainingRun(Leased, db.Model):
    """One training that an admin launched; it ends in at most one model version."""

    launched_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    architecture: Mapped[str] = mapped_column(String(40))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    initial_weights: Mapped[str] = mapped_column(String(200))
    seed: Mapped[int]
    eta_s: Mapped[float | None]
    current_metrics: Mapped[dict[str, float]] = mapped_column(JSON, default=dict)
    launched_by: Mapped[User | None] = relationship()
    datasets: Mapped[list[Dataset]] = relationship(
        secondary=training_run_dataset, order_by="Dataset.name"
    )  # A run goes on with them in the same order.
    version: Mapped[ModelVersion | None] = relationship(back_populates="run")
    history: Mapped[list[Attempt]] = relationship(order_by=Attempt.id, passive_deletes=True)

    @classmethod
    def in_attempt(cls) -> str | None:
        """Return the column that names a run."""
        return "run_id"


class ModelVersion(db.Model):
    """A model folder in storage under `storage_prefix`; `card` is its card.json."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    # Empty for the starter.
    run_id: Mapped[str | None] = mapped_column(ForeignKey("training_run.id"), unique=True)
    card_id: Mapped[str] = mapped_column(String(64), index=True)  # A hash over the model's files.
    architecture: Mapped[str] = mapped_column(String(40))
    reads: Mapped[str] = mapped_column(String(16))
    storage_prefix: Mapped[str] = mapped_column(String(200))
    card: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Why it may not be promoted; empty if it may.
    blocked_because: Mapped[str | None] = mapped_column(Text)
    # With versions made before it: `worker.comparison`.
    comparisons: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    # Its probability for the canary's phantom (`worker.canary`), with which each worker compares.
    canary: Mapped[float | None]
    # When a worker was asked to load it and score the phantom, when one did, and what failed.
    check_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    check_error: Mapped[str | None] = mapped_column(Text)
    run: Mapped[TrainingRun | None] = relationship(back_populates="version")
    promotions: Mapped[list[Promotion]] = relationship(
        back_populates="version", order_by="Promotion.id"
    )


class Promotion(db.Model):
    """Append-only: the newest promotion of a kind says which version is live; rolling back promotes
    an older one again.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    reads: Mapped[str] = mapped_column(String(16))
    # Empty for setup.
    by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    reason: Mapped[str] = mapped_column(Text)
    version: Mapped[ModelVersion] = relationship(back_populates="promotions")
    by: Mapped[User | None] = relationship()

    __table_args__ = (Index(None, "reads", "id"),)


def live_version(reads: str) -> ModelVersion | None:
    """Return the version that answers now for `reads` ("slice" or "series"), or None where none was
    promoted.
    """
    newest = (
        select(Promotion.version_id)
        .where(Promotion.reads == reads)
        .order_by(Promotion.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return db.session.scalar(select(ModelVersion).where(ModelVersion.id == newest))


def answering_versions() -> tuple[ModelVersion | None, ModelVersion | None]:
    """Return the versions that answer now for a slice and for a series: the live one of each kind,
    else the other kind's.
    """
    of_slices, of_series = live_version("slice"), live_version("series")
    return of_slices or of_series, of_series or of_slices


class PromotionRefused(ValueError):
    """A version may not go live; the text is a sentence for the admin who asked."""


def promote(version: ModelVersion, by_id: str | None, reason: str) -> Promotion:
    """Append the promotion that makes `version` live for what it reads; the caller commits.

    Args:
        by_id: the admin who decided, or None for setup.
        reason: stays in the history.

    Raises:
        PromotionRefused: the version is blocked or live already, or no reason is given.
    """
    require_promotable(version, reason)
    promotion = Promotion(version=version, reads=version.reads, by_id=by_id, reason=reason.strip())
    db.session.add(promotion)
    return promotion


def require_promotable(version: ModelVersion, reason: str) -> None:
    """Refuse to promote a version for what its row says.

    Raises:
        PromotionRefused: the version is blocked or live already, or no reason is given.
    """
    if version.blocked_because:
        raise PromotionRefused(version.blocked_because)
    if not reason.strip():
        raise PromotionRefused(
            "Please enter a reason for the promotion; it is recorded in the history."
        )
    live = live_version(version.reads)
    if live is not None and live.id == version.id:
        raise PromotionRefused(f"Version {version.card_id} is already live.")


def waits_for_check() -> ColumnElement[bool]:
    """Return the condition of versions that a predict worker was asked to check, and none has."""
    return ModelVersion.check_requested_at.is_not(None) & or_(
        ModelVersion.checked_at.is_(None),
        ModelVersion.checked_at < ModelVersion.check_requested_at,
    )


def version_before(live: ModelVersion) -> ModelVersion | None:
    """Return the version that was live most recently before `live` and may be again, or None: what
    a rollback promotes.
    """
    return db.session.scalar(
        select(ModelVersion)
        .join(Promotion)
        .where(
            Promotion.reads == live.reads,
            ModelVersion.id != live.id,
            ModelVersion.blocked_because.is_(None),
        )
        .order_by(Promotion.id.desc())
        .limit(1)
    )
