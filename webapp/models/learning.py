"""Data sets, training runs and the model versions that come of them."""

from __future__ import annotations

from dataclasses import dataclass
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
    func,
    or_,
    select,
)
from sqlalchemy.orm import Mapped, joinedload, mapped_column, relationship

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


CURVE_STEPS = 1000
"""A run has a point of each metric for at most so many shares of its whole, however many batches it
takes.
"""


class TrainingPoint(db.Model):
    """The mean of a metric, such as the loss, while a run went through one of `CURVE_STEPS` equal
    shares of its whole.

    `step` counts those from 0; `stage` is the fold, or what else it was at; `epoch` counts from 1.
    """

    run_id: Mapped[str] = mapped_column(
        ForeignKey("training_run.id", ondelete="CASCADE"), primary_key=True
    )
    metric: Mapped[str] = mapped_column(String(40), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float]
    stage: Mapped[str] = mapped_column(String(200))
    epoch: Mapped[int | None]


OWN_THRESHOLDS = "own thresholds"


@dataclass(frozen=True)
class OperatingPoint:
    """From which probabilities on a version's answers are positive.

    Attributes:
        name: a name of `ml.named_points.POINTS`, `OWN_THRESHOLDS`, or None: as trained.
        slice_threshold, scan_threshold: for a scan of one slice and of several, 0..1; None is the
            card's own.
    """

    name: str | None = None
    slice_threshold: float | None = None
    scan_threshold: float | None = None

    def __str__(self) -> str:
        thresholds = [
            f"{what} from {threshold:.3g}"
            for what, threshold in (
                ("series", self.scan_threshold),
                ("single slices", self.slice_threshold),
            )
            if threshold is not None
        ]
        return (self.name or "as trained") + (f": {', '.join(thresholds)}" if thresholds else "")


class HasOperatingPoint:
    """Columns that say which operating point was chosen."""

    point: Mapped[str | None] = mapped_column(String(16))
    slice_threshold: Mapped[float | None]
    scan_threshold: Mapped[float | None]

    @property
    def operating_point(self) -> OperatingPoint:
        """The operating point in these columns."""
        return OperatingPoint(self.point, self.slice_threshold, self.scan_threshold)

    @operating_point.setter
    def operating_point(self, chosen: OperatingPoint) -> None:
        self.point = chosen.name
        self.slice_threshold = chosen.slice_threshold
        self.scan_threshold = chosen.scan_threshold


class ModelVersion(HasOperatingPoint, db.Model):
    """A model folder in storage under `storage_prefix`; `card` is its card.json.

    Workers use it at its operating point; each promotion keeps the one that was chosen then.
    """

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


class Promotion(HasOperatingPoint, db.Model):
    """Append-only: the newest promotion of a kind says which version is live; rolling back promotes
    an older one again, and another operating point for the live one promotes that again.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    reads: Mapped[str] = mapped_column(String(16))
    # Empty for setup.
    by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    reason: Mapped[str] = mapped_column(Text)
    # What was known of it then, and what its promoter confirmed (`webapp.promotions`); empty for
    # setup.
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON)
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
    return db.session.scalar(
        select(ModelVersion)
        .where(ModelVersion.id == newest)
        # A worker's session may hold it with the operating point of an earlier batch.
        .execution_options(populate_existing=True)
    )


def answering_versions() -> tuple[ModelVersion | None, ModelVersion | None]:
    """Return the versions that answer now for a slice and for a series: the live one of each kind,
    else the other kind's.
    """
    of_slices, of_series = live_version("slice"), live_version("series")
    return of_slices or of_series, of_series or of_slices


class PromotionRefused(ValueError):
    """A version may not go live; the text is a sentence for the admin who asked."""


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
        by_id: the admin who decided, or None for setup.
        reason: stays in the history.
        point: where workers use it; None keeps what was chosen before.
        evidence: what was known of it (`webapp.admin.promotion_checks`).

    Raises:
        PromotionRefused: the version is blocked or live at this point already, or no reason is
            given.
    """
    require_promotable(version, reason, point)
    point = point or version.operating_point
    version.operating_point = point
    promotion = Promotion(
        version=version,
        reads=version.reads,
        by_id=by_id,
        reason=reason.strip(),
        evidence=evidence,
    )
    promotion.operating_point = point
    db.session.add(promotion)
    return promotion


def require_promotable(
    version: ModelVersion, reason: str, point: OperatingPoint | None = None
) -> None:
    """Refuse to promote a version for what its row says; arguments as `promote` takes them.

    Raises:
        PromotionRefused: the version is blocked or live at this point already, or no reason is
            given.
    """
    if version.blocked_because:
        raise PromotionRefused(version.blocked_because)
    if not reason.strip():
        raise PromotionRefused(
            "Please enter a reason for the promotion; it is recorded in the history."
        )
    live = live_version(version.reads)
    if live is not None and live.id == version.id and point in (None, version.operating_point):
        raise PromotionRefused(
            f"Version {version.card_id} is already live at this operating point."
        )


def waits_for_check() -> ColumnElement[bool]:
    """Return the condition of versions that a predict worker was asked to check, and none has."""
    return ModelVersion.check_requested_at.is_not(None) & or_(
        ModelVersion.checked_at.is_(None),
        ModelVersion.checked_at < ModelVersion.check_requested_at,
    )


def newest_promotion(reads: str, *, lock: bool = False) -> Promotion | None:
    """Return the promotion that says what is live for `reads`; with `lock`, no other promotion of
    that kind is decided between this and the caller's commit.
    """
    newest = (
        select(Promotion)
        .where(Promotion.reads == reads)
        .order_by(Promotion.id.desc())
        .limit(1)
        .options(defer_card())
    )
    if lock:
        # Whoever comes second waits here, and then reads what the first one has committed. SQLite
        # has one writer at a time.
        db.session.execute(newest.with_only_columns(Promotion.id).with_for_update())
    return db.session.scalar(newest)


def promotion_at(reads: str, at: datetime) -> Promotion | None:
    """Return the promotion by which a version was live for `reads` at a time, or None where none
    was yet.
    """
    return db.session.scalar(
        select(Promotion)
        .where(Promotion.reads == reads, Promotion.at <= at)
        .order_by(Promotion.id.desc())
        .limit(1)
        .options(defer_card())
    )


def promotion_after(promotion: Promotion) -> Promotion | None:
    """Return the promotion that ended the time of another one, or None while that lasts."""
    return db.session.scalar(
        select(Promotion)
        .where(Promotion.reads == promotion.reads, Promotion.id > promotion.id)
        .order_by(Promotion.id)
        .limit(1)
    )


def earlier_promotions(live: ModelVersion) -> list[Promotion]:
    """Return the last promotion of each version that was live before and may be again, the newest
    first: what a rollback may lead to.
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
