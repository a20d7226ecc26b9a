"""The predictions for scans, with their heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, delete, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from ml.verdict import State, state_of
from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.learning import ModelVersion
from webapp.models.leased import JobStatus, Leased, new_id, queue_again, queue_index
from webapp.models.scans import Scan, priority_in_turn


class Environment(db.Model):
    """Software and machine of a predict worker, by a hash: what predictions may depend on besides
    their version (`worker.made_with`).
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    first_seen_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Answer:
    """The content of a prediction; pages, exports and the API read it from here alone.

    Attributes:
        environment_id, settings: software and machine, and the settings (`worker.made_with`) with
            which it was computed; None in predictions from before these were recorded.
    """

    probability: Mapped[float]
    threshold: Mapped[float]
    positive: Mapped[bool]
    uncertain: Mapped[bool]
    # An `Environment`, which is never deleted. With a foreign key, SQLite would rebuild this table.
    environment_id: Mapped[str | None] = mapped_column(String(32))
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    @property
    def verdict(self) -> str:
        """The result as a sentence."""
        return "Brain Hemorrhage Detected." if self.positive else "No Brain Hemorrhage Detected."

    @property
    def state(self) -> State:
        """Whether the result is positive, negative or inconclusive."""
        return state_of(positive=self.positive, uncertain=self.uncertain)


class Prediction(Answer, db.Model):
    """The prediction for a scan; a scan has one exactly if it is done.

    Attributes:
        probability, threshold: 0..1.
        uncertain: whether the probability lies in the inconclusive band.
        warnings: sentences for the scan's owner.
        doubts: those warnings that make the prediction less reliable; None in predictions from
            before they were distinguished.
        slices: the probability of each slice, in anatomical order.
        first_slices: indices, from 0, of the slices of a series to look at first.
        types: estimated types of hemorrhage: name -> {"probability": of the scan, "slices": of each
            slice}; None if the model has no such estimate.
        outlined_slices: which slices have an outline in `Scan.outline_key`; None if the model gives
            none, or found no hemorrhage.
        areas_mm2: the outlined area of each slice; None as above, or if the pixel size is unknown.
        volume_ml, no_volume_because: the outlined volume; a sentence that says why there is none.
        can_be_segmented: whether the submitted DICOM files state the positions of the outlined
            slices, as a DICOM Segmentation requires; None in predictions from before this was
            recorded, and if nothing is outlined.
        seconds: this scan's share of its batch's time in the model.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), unique=True)
    model_version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    warnings: Mapped[list[str]] = mapped_column(JSON)
    doubts: Mapped[list[str] | None] = mapped_column(JSON)
    slices: Mapped[list[float]] = mapped_column(JSON)
    first_slices: Mapped[list[int] | None] = mapped_column(JSON)
    types: Mapped[dict[str, dict[str, Any]] | None] = mapped_column(JSON)
    outlined_slices: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    areas_mm2: Mapped[list[float] | None] = mapped_column(JSON(none_as_null=True))
    volume_ml: Mapped[float | None]
    no_volume_because: Mapped[str | None] = mapped_column(String(120))
    can_be_segmented: Mapped[bool | None]
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    scan: Mapped[Scan] = relationship(back_populates="prediction")
    model_version: Mapped[ModelVersion] = relationship()
    heatmap: Mapped[Heatmap | None] = relationship(back_populates="prediction")

    @property
    def doubts_of_answer(self) -> list[str]:
        """The warnings that make the prediction less reliable."""
        return self.warnings if self.doubts is None else self.doubts

    @property
    def notes_on_images(self) -> list[str]:
        """The other warnings: what was found or assumed when the images were read."""
        return [each for each in self.warnings if each not in self.doubts_of_answer]


class EarlierAnswer(Answer, db.Model):
    """A prediction that was followed by another one, of the same or another model version.

    `slices` has the probability of each slice; None in those from before these were stored.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), index=True)
    model_version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    answered_at: Mapped[datetime] = mapped_column(UtcDateTime)
    slices: Mapped[list[float] | None] = mapped_column(JSON(none_as_null=True))
    model_version: Mapped[ModelVersion] = relationship()


class Heatmap(Leased, db.Model):
    """The heat map of a prediction, drawn after the result is stored; a job like any other.

    Attributes:
        user_id: the owner of the scan, repeated here for the index of the queue.
        image_key: the heat map of the slice in `Scan.image_key`.
        slices: indices of the slices of a series that have heat maps, stored as
            `heatmaps/<id>.<index>.png`.
    """

    prediction_id: Mapped[str] = mapped_column(
        ForeignKey("prediction.id", ondelete="CASCADE"), unique=True
    )
    user_id: Mapped[str] = mapped_column(String(32), server_default=text("''"))
    image_key: Mapped[str | None] = mapped_column(String(200))
    slices: Mapped[list[int] | None] = mapped_column(JSON)
    prediction: Mapped[Prediction] = relationship(back_populates="heatmap")

    __table_args__ = (
        Index(None, "status", "queued_at"),
        queue_index("ix_heatmap_queue"),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return the column of the scan's owner."""
        return cls.user_id  # type: ignore[return-value]


def draw_heatmap(scan_id: str, user_id: str) -> bool:
    """Queue the heat maps of a user's analyzed scan; return False if it already has some, or its
    original is no longer stored. The caller commits and notifies a worker.

    For models that outline the hemorrhage, they are drawn only on request.
    """
    prediction_id = db.session.scalar(
        select(Prediction.id)
        .join(Prediction.scan)
        .outerjoin(Prediction.heatmap)
        .where(
            Scan.id == scan_id,
            Scan.user_id == user_id,
            Scan.original_removed_at.is_(None),
            Heatmap.id.is_(None),
        )
    )
    if prediction_id is None:
        return False
    try:
        with db.session.begin_nested():
            db.session.add(Heatmap(prediction_id=prediction_id, user_id=user_id))
    except IntegrityError:
        return False  # A double click counts once.
    return True


def score_again(scan_id: str) -> bool:
    """Queue an analyzed scan for the version that is live now and keep its prediction among the
    earlier ones; return False if it was not analyzed, or its original is no longer stored.

    The caller commits, notifies a worker, and deletes the heat maps of the earlier prediction.
    """
    queued = queue_again(
        Scan,
        Scan.id == scan_id,
        Scan.original_removed_at.is_(None),
        ended_as=(JobStatus.DONE,),
        risk=0.0,
        margin=1.0,
        verdict_state=None,
        **priority_in_turn(scan_id),
    )
    if queued:
        answer = (
            Prediction.scan_id,
            Prediction.model_version_id,
            Prediction.probability,
            Prediction.threshold,
            Prediction.positive,
            Prediction.uncertain,
            Prediction.environment_id,
            Prediction.settings,
            Prediction.slices,
            Prediction.created_at.label("answered_at"),
        )
        answers = select(*answer).where(Prediction.scan_id == scan_id)
        names = [column.name for column in answers.selected_columns]
        db.session.execute(insert(EarlierAnswer).from_select(names, answers))
        db.session.execute(
            delete(Prediction).where(Prediction.scan_id == scan_id),
            execution_options={"synchronize_session": False},
        )
    return queued


def result_of(scan: Scan) -> dict[str, Any] | None:
    """Return the prediction as the API's `Result`, without the URLs, which the caller adds; None if
    there is none yet.
    """
    prediction = scan.prediction
    if prediction is None:
        return None
    types = prediction.types or {}
    unknown = [None] * len(prediction.slices)
    areas: Sequence[float | None] = prediction.areas_mm2 or unknown
    return {
        "verdict": prediction.verdict,
        "positive": prediction.positive,
        "uncertain": prediction.uncertain,
        "state": prediction.state,
        "probability": prediction.probability,
        "threshold": prediction.threshold,
        "warnings": prediction.warnings,
        "model_version": {
            "id": prediction.model_version_id,
            "architecture": prediction.model_version.architecture,
        },
        "types": {name: type_["probability"] for name, type_ in types.items()},
        "slices": [
            {
                "index": index,
                "probability": value,
                "types": {name: type_["slices"][index] for name, type_ in types.items()},
                "area_mm2": areas[index],
            }
            for index, value in enumerate(prediction.slices)
        ],
        "first_slices": prediction.first_slices or [],
        "heatmap_slices": (prediction.heatmap and prediction.heatmap.slices) or [],
        "volume_ml": prediction.volume_ml,
        "no_volume_because": prediction.no_volume_because,
    }
