"""Data sets, training runs and the model versions that they produce."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    ForeignKey,
    String,
    Table,
    Text,
    and_,
    false,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.accounts import User
from webapp.models.leased import Attempt, Leased, new_id

if TYPE_CHECKING:
    from webapp.models.promotions import Promotion

training_run_dataset = Table(
    "training_run_dataset",
    db.metadata,
    Column("training_run_id", ForeignKey("training_run.id", ondelete="CASCADE"), primary_key=True),
    Column("dataset_id", ForeignKey("dataset.id"), primary_key=True),
)


dataset_scan = Table(
    "dataset_scan",
    db.metadata,
    Column("dataset_id", ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True),
    Column("scan_id", String(32), primary_key=True),
    Column("study_id", String(32), nullable=False, index=True),
)
"""Which confirmed scans a data set was made from, and their studies, which represent patients.

A scan may be deleted later: `scan_id` is not a foreign key, so that it stays known what a model was
trained on. A scan that replaces others (`webapp.intake.rearrange`) is recorded here like them.
"""


def enter_successor(study_ids: Collection[str], scan_id: str, study_id: str) -> None:
    """Record a scan with a separate study, which replaced scans of these studies, in the data sets
    that contain one of them; the caller commits.
    """
    known = (
        select(dataset_scan.c.dataset_id, literal(scan_id), literal(study_id))
        .where(dataset_scan.c.study_id.in_(study_ids))
        .distinct()
    )
    columns = [column.name for column in dataset_scan.columns]
    db.session.execute(insert(dataset_scan).from_select(columns, known))


class Dataset(Leased, db.Model):
    """Labeled images that an administrator imported, or had made from confirmed scans: one archive
    in the storage. It can be used once a train worker has read it.
    """

    name: Mapped[str] = mapped_column(String(80), unique=True)
    imported_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    archive_key: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    exploration: Mapped[dict[str, Any] | None] = mapped_column(
        JSON
    )  # `ml.exploration.summary.explore`
    contact_sheet_key: Mapped[str | None] = mapped_column(String(200))
    # The confirmed scans that a worker makes it from (`webapp.learning.confirmed`); empty if
    # imported.
    made_from: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # A version with corrected labels shares the archive of the previous version, which may be
    # deleted later; `corrections` are all differences from the archive: {"name", "was", "label",
    # "reason"} for each image.
    corrected_from_id: Mapped[str | None] = mapped_column(String(32))
    corrections: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    imported_by: Mapped[User | None] = relationship()

    @property
    def corrected_labels(self) -> dict[str, int | None]:
        """The corrected labels by image name."""
        return {correction["name"]: correction["label"] for correction in self.corrections or ()}


class TrainingRun(Leased, db.Model):
    """A training run that an administrator launched; it produces at most one model version.

    A calibration fits the version named by its initial weights to a data set of this site, without
    training it.

    Attributes:
        settings: the architecture's settings, by name (`ml.catalogue`).
        eta_s: estimated seconds until the end.
        current_metrics: metrics so far, by name.
        name, notes: free text by its users.
        log: its last lines, each with the UTC time at which it was written.
        tags: words by which users find it, in their order.
    """

    is_calibration: Mapped[bool] = mapped_column(default=False, server_default=false())
    launched_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    architecture: Mapped[str] = mapped_column(String(40))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    initial_weights: Mapped[str] = mapped_column(String(200))
    seed: Mapped[int]
    eta_s: Mapped[float | None]
    current_metrics: Mapped[dict[str, float]] = mapped_column(JSON, default=dict)
    name: Mapped[str | None] = mapped_column(String(80))
    notes: Mapped[str | None] = mapped_column(Text)
    log: Mapped[str | None] = mapped_column(Text, deferred=True)
    launched_by: Mapped[User | None] = relationship()
    _tags: Mapped[list[RunTag]] = relationship(
        order_by="RunTag.tag", cascade="all, delete-orphan", passive_deletes=True, lazy="selectin"
    )
    tags: AssociationProxy[list[str]] = association_proxy(
        "_tags", "tag", creator=lambda tag: RunTag(tag=tag)
    )
    datasets: Mapped[list[Dataset]] = relationship(
        secondary=training_run_dataset, order_by="Dataset.name"
    )  # A resumed run needs them in the same order.
    version: Mapped[ModelVersion | None] = relationship(back_populates="run")
    history: Mapped[list[Attempt]] = relationship(order_by=Attempt.id, passive_deletes=True)

    @classmethod
    def in_attempt(cls) -> str | None:
        """Return the column that refers to a run."""
        return "run_id"


class RunTag(db.Model):
    """A word by which users find a run."""

    run_id: Mapped[str] = mapped_column(
        ForeignKey("training_run.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(30), primary_key=True, index=True)


CURVE_STEPS = 10_000
"""A run has at most this many points of each metric, in equal steps, however many batches it
takes.
"""


class TrainingPoint(db.Model):
    """A metric, such as the mean loss, during one of `CURVE_STEPS` equal parts of a run.

    `step` counts these from 0; `stage` is the fold, or another stage of the run; `epoch` counts
    from 1.
    """

    run_id: Mapped[str] = mapped_column(
        ForeignKey("training_run.id", ondelete="CASCADE"), primary_key=True
    )
    metric: Mapped[str] = mapped_column(String(40), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float]
    stage: Mapped[str] = mapped_column(String(200))
    epoch: Mapped[int | None]


class SiteFigures(Leased, db.Model):
    """The performance of the live versions on this site's confirmed scans, computed by a train
    worker; pages show the newest finished row.
    """

    __tablename__ = "site_figures"

    asked_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    # A list with one entry for each live version (`worker.learning.site_figures`).
    figures: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))


OWN_THRESHOLDS = "own thresholds"


@dataclass(frozen=True)
class OperatingPoint:
    """The thresholds for positive predictions of a version.

    Attributes:
        name: a name of `ml.named_points.POINTS`, `OWN_THRESHOLDS`, or None: as trained.
        slice_threshold, scan_threshold: for scans of one slice and of several, as probabilities
            0..1; None means the card's threshold.
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
    """The columns of a chosen operating point."""

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
    """A trained model: a model folder in the storage under `storage_prefix`.

    Attributes:
        run_id: the training run that produced it; empty for models that ship.
        card_id: a hash of the model's files.
        reads: "slice" or "series".
        card: the content of its card.json.
        blocked_because: why it may not be promoted, as a sentence; empty if it may.
        canary: its probability for the canary's phantom (`worker.canary`), which each worker
            compares with its own.
        check_requested_at, checked_at, check_error: when a worker was asked to load the version and
            score the phantom, when one did, and why it failed.
        curves: of its out-of-fold predictions, by level `ml.evaluation.curves.LevelCurves`; None
            until a train worker has computed them, empty if there are no predictions.
        mistakes: its worst out-of-fold mistakes (`ml.evaluation.curves.Mistake`), each with an
            image in the storage; None if its training kept none.
        operating_point: the point that workers use; each promotion stores the one chosen at that
            time.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("training_run.id"), unique=True)
    card_id: Mapped[str] = mapped_column(String(64), index=True)
    architecture: Mapped[str] = mapped_column(String(40))
    reads: Mapped[str] = mapped_column(String(16))
    storage_prefix: Mapped[str] = mapped_column(String(200))
    card: Mapped[dict[str, Any]] = mapped_column(JSON)
    blocked_because: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    canary: Mapped[float | None]
    check_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    check_error: Mapped[str | None] = mapped_column(Text)
    curves: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    mistakes: Mapped[list[dict[str, Any]] | None] = mapped_column(
        JSON(none_as_null=True), deferred=True
    )
    run: Mapped[TrainingRun | None] = relationship(back_populates="version")
    promotions: Mapped[list[Promotion]] = relationship(
        back_populates="version", order_by="Promotion.id"
    )
    if TYPE_CHECKING:
        number: Mapped[int]

    def mistake_key(self, index: int, layer: str = "") -> str:
        """Return the storage key of the image of a mistake, or of its heat map ("-heat")."""
        return f"{self.storage_prefix}/mistake-{index:02d}{layer}.png"


_earlier = ModelVersion.__table__.alias()
ModelVersion.number = column_property(
    select(func.count())
    .where(
        _earlier.c.architecture == ModelVersion.architecture,
        or_(
            _earlier.c.created_at < ModelVersion.created_at,
            and_(
                _earlier.c.created_at == ModelVersion.created_at, _earlier.c.id <= ModelVersion.id
            ),
        ),
    )
    .correlate_except(_earlier)
    .scalar_subquery(),
)


def waits_for_check() -> ColumnElement[bool]:
    """Return the SQL condition for versions whose check by a predict worker is still pending."""
    return ModelVersion.check_requested_at.is_not(None) & or_(
        ModelVersion.checked_at.is_(None),
        ModelVersion.checked_at < ModelVersion.check_requested_at,
    )
