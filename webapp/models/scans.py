"""What a person submits and what the service answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from webapp.extensions import UtcDateTime, database_now, db, utc_now
from webapp.models.accounts import User
from webapp.models.learning import ModelVersion
from webapp.models.leased import JobStatus, Leased, new_id, queue_again


class Scan(Leased, db.Model):
    """One slice that a person submitted; the queue of the predict workers."""

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(80), default="")
    kind: Mapped[str] = mapped_column(String(16))  # What its bytes are: png, jpeg or dicom.
    original_key: Mapped[str] = mapped_column(String(200))
    image_key: Mapped[str | None] = mapped_column(String(200))  # The slice as the page shows it; the worker makes it.
    thumbnail_key: Mapped[str | None] = mapped_column(String(200))
    not_head_ct: Mapped[float | None]  # 0 to 1; set where it failed because it does not look like a head CT.
    forced_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # When its owner said to score it anyway.
    user: Mapped[User] = relationship()
    prediction: Mapped[Prediction | None] = relationship(back_populates="scan")

    __table_args__ = (Index(None, "status", "created_at"), Index(None, "user_id", "created_at"))

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return whose scan it is."""
        return cls.user_id  # type: ignore[return-value]

    @property
    def may_be_forced(self) -> bool:
        """True where it failed only because it does not look like a head CT, which its owner may know better."""
        return self.status == JobStatus.FAILED and self.not_head_ct is not None and self.forced_at is None


def force(scan_id: str, user_id: str) -> bool:
    """Queue a refused scan of that user again, to be scored whatever it looks like; False where there is nothing to overrule.

    The caller commits and nudges.
    """
    refused = (Scan.status == JobStatus.FAILED) & Scan.not_head_ct.is_not(None) & Scan.forced_at.is_(None)
    return queue_again(Scan, Scan.id == scan_id, Scan.user_id == user_id, refused, forced_at=database_now())


def retry(scan_id: str) -> bool:
    """Queue a failed or cancelled scan again, as if nobody had looked at it; False where it is neither. The caller commits and nudges."""
    return queue_again(Scan, Scan.id == scan_id, not_head_ct=None)


class Prediction(db.Model):
    """The verdict on a scan: exactly one where the scan is done."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), unique=True)
    model_version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    probability: Mapped[float]
    threshold: Mapped[float]
    positive: Mapped[bool]
    uncertain: Mapped[bool]
    warnings: Mapped[list[str]] = mapped_column(JSON)
    slices: Mapped[list[float]] = mapped_column(JSON)  # A probability for each slice, in anatomical order.
    seconds: Mapped[float]  # This scan's share of its batch's time in the model.
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    scan: Mapped[Scan] = relationship(back_populates="prediction")
    model_version: Mapped[ModelVersion] = relationship()
    heatmap: Mapped[Heatmap | None] = relationship(back_populates="prediction")

    @property
    def verdict(self) -> str:
        """The sentence that a person reads first."""
        return "Brain Hemorrhage Detected." if self.positive else "No Brain Hemorrhage Detected."


class Heatmap(Leased, db.Model):
    """The picture of where the model looked, drawn after the verdict is told; it is claimed like any job."""

    prediction_id: Mapped[str] = mapped_column(ForeignKey("prediction.id", ondelete="CASCADE"), unique=True)
    image_key: Mapped[str | None] = mapped_column(String(200))
    prediction: Mapped[Prediction] = relationship(back_populates="heatmap")


def result_of(scan: Scan) -> dict[str, Any] | None:
    """Return what the API tells of a verdict, or None where there is none yet (its URL fields are the caller's)."""
    prediction = scan.prediction
    if prediction is None:
        return None
    return {
        "verdict": prediction.verdict,
        "positive": prediction.positive,
        "uncertain": prediction.uncertain,
        "probability": prediction.probability,
        "threshold": prediction.threshold,
        "warnings": prediction.warnings,
        "model_version": {"id": prediction.model_version_id, "architecture": prediction.model_version.architecture},
        "slices": [{"index": index, "probability": value} for index, value in enumerate(prediction.slices)],
    }
