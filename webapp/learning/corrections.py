"""Label corrections: collected, then applied together as a new version of a data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import delete, func, insert, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import joinedload

from webapp.audit import record, whose_request
from webapp.extensions import db, refers_to_deleted
from webapp.forms import text_problem
from webapp.jobs import IMPORT_DATASET, nudge
from webapp.models import (
    Act,
    Dataset,
    DatasetImage,
    JobStatus,
    LabelCorrection,
    dataset_scan,
    new_id,
)

MOST_CORRECTIONS = 5000
"""Maximum number of pending corrections of a data set: they are stored with the row of the new
version.
"""
MAX_NAME = 80
WORDS = {1: "hemorrhage", 0: "normal", None: "unknown"}


class CorrectionRefused(ValueError):
    """A correction is refused; the message is a sentence."""


def waiting_corrections(dataset_id: str) -> int:
    """Return the number of pending corrections of a data set."""
    query = select(func.count()).where(LabelCorrection.dataset_id == dataset_id)
    return db.session.scalar(query) or 0


def corrections_of(dataset_id: str) -> Sequence[LabelCorrection]:
    """Return the pending corrections of a data set, in the order of their images."""
    return db.session.scalars(
        select(LabelCorrection)
        .where(LabelCorrection.dataset_id == dataset_id)
        .options(joinedload(LabelCorrection.image), joinedload(LabelCorrection.by))
        .order_by(LabelCorrection.number)
    ).all()


def correct(dataset: Dataset, image: DatasetImage, label: int | None, reason: str) -> bool:
    """Record a label correction, replacing an earlier one of this image, and commit; a correction
    to the current label withdraws it. Return whether a correction is pending now.

    Raises:
        CorrectionRefused: the reason is too long, too many corrections are pending, or the data set
            was deleted.
    """
    if problem := text_problem(reason, 200):
        raise CorrectionRefused(problem)
    # Serializes simultaneous requests.
    locked = select(Dataset.id).where(Dataset.id == dataset.id).with_for_update()
    if db.session.scalar(locked) is None:
        db.session.rollback()
        raise CorrectionRefused("This data set was deleted.")
    same_image = (LabelCorrection.dataset_id == dataset.id, LabelCorrection.number == image.number)
    replaced = db.session.execute(delete(LabelCorrection).where(*same_image)).rowcount  # type: ignore[attr-defined]
    if label == image.label:
        if replaced:
            record(Act.CORRECTION_WITHDRAWN, dataset.id, detail=f"image {image.number + 1}")
        db.session.commit()
        return False
    if waiting_corrections(dataset.id) >= MOST_CORRECTIONS:
        db.session.rollback()
        raise CorrectionRefused(
            f"{MOST_CORRECTIONS:,} corrections are already pending. Apply them before you add more."
        )
    db.session.add(
        LabelCorrection(
            dataset_id=dataset.id,
            number=image.number,
            label=label,
            reason=reason,
            by_id=whose_request(),
        )
    )
    record(
        Act.LABEL_CORRECTED,
        dataset.id,
        detail=f"image {image.number + 1}: {WORDS[image.label]} → {WORDS[label]}",
    )
    db.session.commit()
    return True


def suggested_name(name: str) -> str:
    """Return an unused name for the next version of a data set, such as "head_ct v2"."""
    stem = re.sub(r" v[0-9]{1,4}$", "", name)[: MAX_NAME - 6]
    existing = set(
        db.session.scalars(
            select(Dataset.name).where(Dataset.name.startswith(f"{stem} v", autoescape=True))
        )
    )
    number = 2
    while f"{stem} v{number}" in existing:
        number += 1
    return f"{stem} v{number}"


def apply_corrections(dataset: Dataset, name: str, user_id: str) -> tuple[Dataset, bool]:
    """Queue the next version of a data set, to which all pending corrections are applied, and
    commit; return it, and whether a worker could be notified.

    It shares the archive. The data set itself stays unchanged, for the models that were trained on
    it.

    Raises:
        CorrectionRefused: no correction is pending any more, or the name is invalid or taken.
    """
    problem = text_problem(name, MAX_NAME) if name else "Enter a name for the new version."
    if problem:
        raise CorrectionRefused(problem)
    # If two people apply them at the same time, the second finds none.
    db.session.execute(select(Dataset.id).where(Dataset.id == dataset.id).with_for_update())
    waiting = corrections_of(dataset.id)
    if not waiting:
        db.session.rollback()
        raise CorrectionRefused("There are no pending corrections left to apply.")
    known = {correction["name"]: correction for correction in dataset.corrections or ()}
    for correction in waiting:
        before = known.get(correction.image.name)
        known[correction.image.name] = {
            "name": correction.image.name,
            "was": before["was"] if before else correction.image.label,
            "label": correction.label,
            "reason": correction.reason,
        }
    corrected = Dataset(
        id=new_id(),
        name=name,
        imported_by_id=user_id,
        archive_key=dataset.archive_key,
        corrected_from_id=dataset.id,
        corrections=[
            correction for correction in known.values() if correction["was"] != correction["label"]
        ],
    )
    try:
        db.session.add(corrected)
        db.session.flush()
    except IntegrityError as err:
        db.session.rollback()
        if refers_to_deleted(err):
            raise
        raise CorrectionRefused(f"A data set named “{name}” already exists.") from err
    # The confirmed scans in the data set, by which later models record what they were trained on.
    scans = select(literal(corrected.id), dataset_scan.c.scan_id, dataset_scan.c.study_id).where(
        dataset_scan.c.dataset_id == dataset.id
    )
    columns = ["dataset_id", "scan_id", "study_id"]
    db.session.execute(insert(dataset_scan).from_select(columns, scans))
    for correction in waiting:
        db.session.delete(correction)
    count = f"{len(waiting)} {'label' if len(waiting) == 1 else 'labels'}"
    record(Act.DATASET_CORRECTED, corrected.id, detail=f"{count} corrected")
    db.session.commit()
    return corrected, nudge(IMPORT_DATASET)


def versions_of_one(dataset_ids: Sequence[str]) -> list[str]:
    """Return the names of those data sets that contain the same images with different labels; empty
    if there are none.
    """
    rows = db.session.execute(
        select(Dataset.name, Dataset.archive_key)
        .where(Dataset.id.in_(dataset_ids))
        .order_by(Dataset.name)
    ).all()
    times = Counter(row.archive_key for row in rows)
    return [row.name for row in rows if times[row.archive_key] > 1]


def versions_around(dataset: Dataset) -> tuple[Dataset | None, Sequence[Dataset]]:
    """Return the version that a data set was corrected from, if it still exists, and those that
    were made from it.
    """
    before = (
        db.session.get(Dataset, dataset.corrected_from_id) if dataset.corrected_from_id else None
    )
    after = db.session.scalars(
        select(Dataset)
        .where(
            Dataset.corrected_from_id == dataset.id,
            Dataset.status.not_in((JobStatus.FAILED, JobStatus.CANCELLED)),
        )
        .order_by(Dataset.created_at)
        .limit(20)
    ).all()
    return before, after
