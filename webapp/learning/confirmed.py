"""Confirmed scans: scans on whose label people agree, and their use at a site.

A scan counts while it is shared with the reviewers and more people give one label to the whole scan
than the opposite. Administrators have data sets made from such scans, and see how the live models
perform on them. A scan that a model was trained on, directly or through the versions it started
from, never counts in its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from sqlalchemy import ColumnElement, Select, case, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import joinedload

from webapp.audit import record
from webapp.deletion import discard_archive
from webapp.extensions import db, refers_to_deleted
from webapp.forms import text_problem
from webapp.jobs import IMPORT_DATASET, TRAIN_MODEL, nudge
from webapp.models import (
    Act,
    Dataset,
    JobStatus,
    ModelVersion,
    Opinion,
    Scan,
    SiteFigures,
    TrainingRun,
    dataset_scan,
    new_id,
    training_run_dataset,
    votes,
)
from webapp.review.sharing import shared_with_reviewers
from webapp.storage import new_key

MAX_DATASET_NAME = 80
VERSION = "version:"
"""The prefix of initial weights that come from a version of this service."""


class RequestRefused(ValueError):
    """An administrator's request cannot be fulfilled; the message is a sentence."""


@dataclass(frozen=True)
class Filter:
    """Which confirmed scans belong to a data set.

    Attributes:
        since, until: days of submission in UTC, both inclusive, in ISO 8601; None for any.
        kind: "series", "slice" or "" for both.
        opinions: the minimum number of people who agree.
    """

    since: str | None = None
    until: str | None = None
    kind: str = ""
    opinions: int = 1

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions of the filter, except for the number of opinions."""
        conditions: list[ColumnElement[bool]] = []
        if self.since:
            first = datetime.combine(date.fromisoformat(self.since), time.min, UTC)
            conditions.append(Scan.created_at >= first)
        if self.until:
            last = datetime.combine(date.fromisoformat(self.until), time.max, UTC)
            conditions.append(Scan.created_at <= last)
        if self.kind:
            conditions.append(
                Scan.slice_count > 1 if self.kind == "series" else Scan.slice_count == 1
            )
        return conditions


EVERYTHING = Filter()


def filter_of(made_from: Mapping[str, Any]) -> Filter:
    """Return the filter stored in `Dataset.made_from`."""
    return Filter(**made_from)


def confirmed_scans(chosen: Filter = EVERYTHING) -> Select[Scan]:
    """Return the statement for the confirmed scans that match a filter, oldest first."""
    voted = votes()
    surplus = voted.c.present - voted.c.absent
    most = case((surplus > 0, voted.c.present), else_=voted.c.absent)
    return (
        select(Scan)
        .join(voted, voted.c.scan_id == Scan.id)
        .where(
            Scan.id.in_(shared_with_reviewers()),
            Scan.status == JobStatus.DONE,
            surplus != 0,
            most >= chosen.opinions,
            *chosen.conditions(),
        )
        .order_by(Scan.created_at, Scan.id)
    )


def confirmed_counts() -> dict[str, int]:
    """Return how many scans are confirmed "present" and "absent", and how many are "disputed", with
    as many people on either side.
    """
    voted = votes()
    shared = Scan.id.in_(shared_with_reviewers())
    which = {
        "present": voted.c.present > voted.c.absent,
        "absent": voted.c.absent > voted.c.present,
        "disputed": (voted.c.present == voted.c.absent) & (voted.c.present > 0),
    }
    return {
        name: db.session.scalar(
            select(func.count())
            .select_from(Scan)
            .join(voted, voted.c.scan_id == Scan.id)
            .where(shared, Scan.status == JobStatus.DONE, holds)
        )
        or 0
        for name, holds in which.items()
    }


def disputed_scans(limit: int) -> list[tuple[Scan, int, int]]:
    """Return scans on which people disagree, newest first, with the numbers of people who say
    present and absent.
    """
    voted = votes()
    rows = db.session.execute(
        select(Scan, voted.c.present, voted.c.absent)
        .join(voted, voted.c.scan_id == Scan.id)
        .where(Scan.id.in_(shared_with_reviewers()), voted.c.present > 0, voted.c.absent > 0)
        .options(joinedload(Scan.user))
        .order_by(Scan.created_at.desc(), Scan.id)
        .limit(limit)
    )
    return [(scan, present, absent) for scan, present, absent in rows]


def studies_learned_from(version: ModelVersion) -> set[str]:
    """Return the ids of the studies that a version was trained on: those in the data sets of its
    training or calibration, and of all versions that it started from, whether or not their scans
    still exist. Scans of one study are of one patient.
    """
    trained = {
        row.id: row
        for row in db.session.execute(
            select(ModelVersion.id, ModelVersion.run_id, TrainingRun.initial_weights).join(
                TrainingRun, TrainingRun.id == ModelVersion.run_id
            )
        )
    }
    runs: set[str] = set()
    ancestor = trained.get(version.id)
    while ancestor is not None and ancestor.run_id not in runs:
        runs.add(ancestor.run_id)
        ancestor = trained.get(ancestor.initial_weights.removeprefix(VERSION))
    used = select(training_run_dataset.c.dataset_id).where(
        training_run_dataset.c.training_run_id.in_(runs)
    )
    return set(
        db.session.scalars(
            select(dataset_scan.c.study_id).where(dataset_scan.c.dataset_id.in_(used))
        )
    )


def request_dataset(name: str, chosen: Filter, user_id: str) -> tuple[Dataset, bool]:
    """Queue a data set to be made from the confirmed scans that match a filter; return it, and
    whether a worker could be notified.

    Raises:
        RequestRefused: the name is taken or invalid, or no scan matches.
    """
    problem = text_problem(name, MAX_DATASET_NAME) if name else "Please enter a name."
    if problem:
        raise RequestRefused(problem)
    if db.session.scalar(confirmed_scans(chosen).with_only_columns(Scan.id).limit(1)) is None:
        raise RequestRefused("No confirmed scan matches these filters.")
    dataset = Dataset(
        id=new_id(),
        name=name,
        imported_by_id=user_id,
        archive_key=new_key("datasets", ".zip"),
        made_from=asdict(chosen),
    )
    useless = Dataset.status.in_((JobStatus.FAILED, JobStatus.CANCELLED))
    try:
        replaced = db.session.execute(
            delete(Dataset)
            .where(Dataset.name == name, useless)
            .returning(Dataset.id, Dataset.archive_key)
        ).one_or_none()
        if replaced:
            record(Act.DATASET_DELETED, replaced.id)
        db.session.add(dataset)
        record(Act.DATASET_REQUESTED, dataset.id)
        db.session.commit()
    except IntegrityError as err:
        db.session.rollback()
        if refers_to_deleted(err):
            raise
        raise RequestRefused(f"A data set named “{name}” already exists.") from err
    if replaced:
        discard_archive(replaced.archive_key)
    return dataset, nudge(IMPORT_DATASET)


def request_figures(user_id: str | None) -> bool:
    """Queue a computation of the site figures unless one is already queued; return whether a worker
    could be notified.
    """
    waits = SiteFigures.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
    if db.session.scalar(select(SiteFigures.id).where(waits).limit(1)) is None:
        figures = SiteFigures(id=new_id(), asked_by_id=user_id)
        db.session.add(figures)
        record(Act.FIGURES_REQUESTED, figures.id, actor_id=user_id)
    db.session.commit()
    return nudge(TRAIN_MODEL)


def newest_figures(status: JobStatus | None = None) -> SiteFigures | None:
    """Return the newest computation of the site figures, optionally in a given status."""
    newest = select(SiteFigures).order_by(SiteFigures.created_at.desc(), SiteFigures.id).limit(1)
    return db.session.scalar(
        newest if status is None else newest.where(SiteFigures.status == status)
    )


def opinions_since(figures: SiteFigures) -> int:
    """Return how many opinions on whole scans were given or changed after these figures were
    requested.
    """
    changed = select(func.count()).where(
        Opinion.slice_index.is_(None), Opinion.updated_at > figures.created_at
    )
    return db.session.scalar(changed) or 0


def request_calibration(
    version: ModelVersion,
    dataset: Dataset,
    user_id: str,
    before_commit: Callable[[TrainingRun], None] = lambda _: None,
) -> tuple[str, bool]:
    """Queue a calibration of a version on a data set; return the id of the run, and whether a
    worker could be notified.

    Args:
        before_commit: called with the new row in its transaction.

    Raises:
        RequestRefused: the data set is not ready.
    """
    if dataset.status != JobStatus.DONE:
        raise RequestRefused("Choose a data set that is ready.")
    run = TrainingRun(
        id=new_id(),
        launched_by_id=user_id,
        architecture=version.architecture,
        settings={},
        initial_weights=f"{VERSION}{version.id}",
        seed=0,
        datasets=[dataset],
        is_calibration=True,
    )
    db.session.add(run)
    record(Act.VERSION_CALIBRATED, run.id)
    before_commit(run)
    db.session.commit()
    return run.id, nudge(TRAIN_MODEL)
