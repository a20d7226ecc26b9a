"""The responses of the service, as types. Fields added by a newer service are only in `raw`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Status = Literal["queued", "running", "done", "failed", "cancelled"]
State = Literal["suspected", "inconclusive", "not found"]


@dataclass(frozen=True)
class Job:
    """A submitted scan, and the address at which to follow it.

    Attributes:
        status: the status at submission.
        is_known: the same key was used before, so nothing was submitted again.
    """

    id: str
    status: Status
    url: str
    is_known: bool = False

    @classmethod
    def of(cls, answer: Mapping[str, Any], *, is_known: bool = False) -> Job:
        """Return the job that a response describes."""
        return cls(answer["id"], answer["status"], answer["url"], is_known)


@dataclass(frozen=True)
class ModelVersion:
    """The model that computed a result."""

    id: str
    architecture: str


@dataclass(frozen=True)
class Slice:
    """A slice of a result.

    Attributes:
        index: counted from 0, from inferior to superior.
        probability: 0..1.
        area_mm2: the outlined area; None if nothing is outlined or the pixel size is unknown.
    """

    index: int
    probability: float
    types: Mapping[str, float]
    area_mm2: float | None


@dataclass(frozen=True)
class Result:
    """The result of a scan. Research use only, never a diagnosis.

    Attributes:
        probability, threshold: 0..1.
        first_slices: the slices to look at first, counted from 0.
        volume_ml: the outlined volume; None if it is unknown.
    """

    state: State
    verdict: str
    probability: float
    threshold: float
    warnings: Sequence[str]
    types: Mapping[str, float]
    slices: Sequence[Slice]
    first_slices: Sequence[int]
    volume_ml: float | None
    model_version: ModelVersion

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Result:
        """Return the result that a response describes."""
        slices = [
            Slice(slice_["index"], slice_["probability"], slice_["types"], slice_["area_mm2"])
            for slice_ in answer["slices"]
        ]
        version = answer["model_version"]
        return cls(
            state=answer["state"],
            verdict=answer["verdict"],
            probability=answer["probability"],
            threshold=answer["threshold"],
            warnings=answer["warnings"],
            types=answer["types"],
            slices=slices,
            first_slices=answer["first_slices"],
            volume_ml=answer["volume_ml"],
            model_version=ModelVersion(version["id"], version["architecture"]),
        )


@dataclass(frozen=True)
class Scan:
    """A scan: a slice or a series.

    Attributes:
        error: why it failed, as a sentence.
        notes: remarks from its submission; sentences.
        result: None unless it is done.
        raw: the whole response of the service.
    """

    id: str
    study_id: str
    status: Status
    progress: float
    error: str | None
    title: str
    submitter: str
    kind: str
    slice_count: int
    stat: bool
    notes: Sequence[str]
    created_at: datetime
    finished_at: datetime | None
    result: Result | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether the analysis has ended, with any outcome."""
        return self.status in ("done", "failed", "cancelled")

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Scan:
        """Return the scan that a response describes."""
        return cls(
            id=answer["id"],
            study_id=answer["study_id"],
            status=answer["status"],
            progress=answer["progress"],
            error=answer["error"],
            title=answer["title"],
            submitter=answer["submitter"],
            kind=answer["kind"],
            slice_count=answer["slice_count"],
            stat=answer["stat"],
            notes=answer["notes"],
            created_at=datetime.fromisoformat(answer["created_at"]),
            finished_at=answer["finished_at"] and datetime.fromisoformat(answer["finished_at"]),
            result=answer["result"] and Result.of(answer["result"]),
            raw=answer,
        )
