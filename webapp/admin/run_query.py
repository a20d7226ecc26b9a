"""Filters and order of the list of training runs, from its address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, or_, select

from ml.catalogue import ARCHITECTURES
from webapp.extensions import db
from webapp.forms import is_id
from webapp.models import Dataset, JobStatus, ModelVersion, RunTag, TrainingRun

_AUROC = ModelVersion.card[("metrics", "auroc", "value")].as_float()
_NEWEST = (TrainingRun.created_at.desc(), TrainingRun.id)
SORTS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "newest": ("newest first", _NEWEST),
    "oldest": ("oldest first", (TrainingRun.created_at, TrainingRun.id)),
    "auroc": ("best AUROC first", (_AUROC.is_(None), _AUROC.desc(), *_NEWEST)),
    "name": ("by name", (TrainingRun.name.is_(None), TrainingRun.name, *_NEWEST)),
    "architecture": ("by architecture", (TrainingRun.architecture, *_NEWEST)),
    "state": ("by state", (TrainingRun.status, *_NEWEST)),
}
"""By name in the address: label and ORDER BY columns."""
LONGEST_TEXT = 100


@dataclass(frozen=True)
class RunsQuery:
    """The filters and the order of a list of runs.

    Attributes:
        filters: the filters in the address that are set, by name: "state", "architecture",
            "dataset" (an id), "tag", "text" (in name or notes) and "sort".
        where: the conditions.
        order: the order.
    """

    filters: Mapping[str, str]
    where: Sequence[ColumnElement[bool]]
    order: Sequence[Any]


def requested_runs(arguments: Mapping[str, str]) -> RunsQuery:
    """Return the query in the arguments of an address; invalid arguments are ignored."""
    parameters: dict[str, str] = {}
    where: list[ColumnElement[bool]] = []
    for name, condition in (
        ("state", _of_state),
        ("architecture", _of_architecture),
        ("dataset", _of_dataset),
        ("tag", _of_tag),
        ("text", _of_text),
    ):
        text = "".join(c for c in arguments.get(name, "").strip() if c.isprintable())
        where_text = condition(text[:LONGEST_TEXT]) if text else None
        if where_text is not None:
            parameters[name] = text[:LONGEST_TEXT]
            where.append(where_text)
    sort = arguments.get("sort", "")
    if sort in SORTS and sort != "newest":
        parameters["sort"] = sort
    return RunsQuery(parameters, where, SORTS[parameters.get("sort", "newest")][1])


def tags_in_use() -> Sequence[str]:
    """Return all tags, in alphabetical order."""
    return db.session.scalars(select(RunTag.tag).distinct().order_by(RunTag.tag)).all()


def _of_state(text: str) -> ColumnElement[bool] | None:
    return TrainingRun.status == JobStatus(text) if text in set(JobStatus) else None


def _of_architecture(text: str) -> ColumnElement[bool] | None:
    return TrainingRun.architecture == text if text in ARCHITECTURES else None


def _of_dataset(text: str) -> ColumnElement[bool] | None:
    return TrainingRun.datasets.any(Dataset.id == text) if is_id(text) else None


def _of_tag(text: str) -> ColumnElement[bool] | None:
    of_run = select(RunTag.run_id).where(RunTag.tag == text.lower())
    return TrainingRun.id.in_(of_run)


def _of_text(text: str) -> ColumnElement[bool] | None:
    return or_(
        TrainingRun.name.icontains(text, autoescape=True),
        TrainingRun.notes.icontains(text, autoescape=True),
    )
