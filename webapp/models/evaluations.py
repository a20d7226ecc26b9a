"""What is known about model versions beyond their own training: evaluations on data sets, and
comparisons of two versions on the same images.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, UniqueConstraint, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.extensions import database_now, db
from webapp.models.accounts import User
from webapp.models.learning import Dataset, ModelVersion
from webapp.models.leased import JobStatus, Leased, new_id
from webapp.models.promotions import live_version

NEWEST_COMPARED = 5
KINDS = ("slice", "series")


class Evaluation(Leased, db.Model):
    """A model version scored once on a data set; its tables and images are in storage under
    `storage_prefix`. It is deleted with the data set.
    """

    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    requested_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    # `ml.evaluation.results.Evaluation`; by level `ml.evaluation.curves.LevelCurves`; and
    # `ml.evaluation.curves.Mistake`, each with an image.
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    curves: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    mistakes: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    version: Mapped[ModelVersion] = relationship()
    dataset: Mapped[Dataset] = relationship()
    requested_by: Mapped[User | None] = relationship()

    __table_args__ = (
        Index(None, "status", "queued_at"),
        Index(None, "dataset_id"),
        UniqueConstraint("version_id", "dataset_id"),
    )

    @property
    def storage_prefix(self) -> str:
        """The storage prefix of its files."""
        return f"evaluations/{self.id}"

    def mistake_key(self, index: int, layer: str = "") -> str:
        """Return the storage key of the image of a mistake, or of its heat map ("-heat")."""
        return f"{self.storage_prefix}/mistake-{index:02d}{layer}.png"


class Comparison(Leased, db.Model):
    """How a version differs from another one on the images that both have predictions for; one row
    for each pair, computed again when there is more to compare.
    """

    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    other_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    # One entry for each source of predictions (`worker.learning.comparison`); None until computed.
    results: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    version: Mapped[ModelVersion] = relationship(foreign_keys=[version_id])
    other: Mapped[ModelVersion] = relationship(foreign_keys=[other_id])

    __table_args__ = (
        Index(None, "status", "queued_at"),
        Index(None, "other_id"),
        UniqueConstraint("version_id", "other_id"),
    )


def comparison_of(version: ModelVersion, other: ModelVersion) -> Comparison | None:
    """Return the comparison of a version with another; None if nobody requested it."""
    return db.session.scalar(
        select(Comparison).where(
            Comparison.version_id == version.id, Comparison.other_id == other.id
        )
    )


def request_comparison(version_id: str, other_id: str) -> None:
    """Queue the comparison of a version with another; the caller commits and notifies a worker.

    A comparison that was computed, or is being computed, is computed again: there may be more to
    compare now. Until then its earlier results are kept.
    """
    again = {
        "status": JobStatus.QUEUED,
        "queued_at": database_now(),
        "progress": 0.0,
        "stage": None,
        "error": None,
        "finished_at": None,
        "lease_owner": None,
        "lease_expires_at": None,
        "counted_deaths": 0,
        "retry_at": None,
        "refused_since": None,
    }
    is_postgresql = db.session.get_bind().dialect.name == "postgresql"
    inserted = (postgresql.insert if is_postgresql else sqlite.insert)(Comparison).values(
        id=new_id(), version_id=version_id, other_id=other_id
    )
    # A single statement, so that two simultaneous requests create one row.
    db.session.execute(
        inserted.on_conflict_do_update(
            index_elements=[Comparison.version_id, Comparison.other_id], set_=again
        ),
        execution_options={"synchronize_session": False},
    )


def request_comparisons_after(version_id: str, dataset_id: str) -> None:
    """Queue the comparisons to which an evaluation of a version on a data set contributes: with the
    live version or, for a live version, with the newest others that were evaluated or trained on
    the data set or were compared with it already. The caller commits and notifies a worker.
    """
    live = [version.id for reads in KINDS if (version := live_version(reads))]
    for other_id in live:
        if other_id != version_id:
            request_comparison(version_id, other_id)
    if version_id in live:
        evaluated = select(Evaluation.version_id).where(Evaluation.dataset_id == dataset_id)
        compared = select(Comparison.version_id).where(Comparison.other_id == version_id)
        for other_id in db.session.scalars(
            _newest().where(
                ModelVersion.id.not_in(live),
                or_(ModelVersion.id.in_(evaluated), ModelVersion.id.in_(compared)),
            )
        ):
            request_comparison(other_id, version_id)


def compare_newest_with(live: ModelVersion) -> None:
    """Queue the comparisons of the newest versions with one that has just gone live, unless they
    exist already. The caller commits and notifies a worker.
    """
    compared = select(Comparison.version_id).where(Comparison.other_id == live.id)
    for version_id in db.session.scalars(
        _newest().where(
            ModelVersion.id != live.id,
            ModelVersion.reads == live.reads,
            ModelVersion.id.not_in(compared),
        )
    ):
        request_comparison(version_id, live.id)


def _newest() -> Any:
    return (
        select(ModelVersion.id)
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(NEWEST_COMPARED)
    )
