"""Comparison of two versions: paired differences on images that neither was trained on, from
out-of-fold predictions or evaluations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload, load_only

from ml.errors import DatasetError
from ml.evaluation.answers import AnswersError
from ml.evaluation.comparison import ComparedLevel, compare
from ml.typed_json import to_json
from webapp.extensions import db
from webapp.models import Comparison, Dataset, Evaluation, JobStatus, ModelVersion, live_version
from webapp.models.evaluations import NEWEST_COMPARED
from webapp.storage import MissingFile, StorageError, StorageUnavailable, storage
from worker import leases
from worker.heartbeat import heartbeat
from worker.leases import LeaseLost
from worker.predictors import PREDICTIONS
from worker.retries import in_transaction, retry_storage
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

OUT_OF_FOLD, EVALUATION = "out of fold", "evaluation"
NO_PREDICTIONS = {
    "own": "This version has no stored out-of-fold predictions.",
    "other": "The other version has no stored out-of-fold predictions.",
}
UNEXPECTED = "An unexpected error occurred during this comparison; see the log for details."
FIGURES = ("auroc", "accuracy", "sensitivity", "specificity")


@dataclass(frozen=True)
class Tables:
    """The location of a version's predictions on images that it was not trained on.

    Attributes:
        out_of_fold: storage key, or the folder of a training run that has just ended.
        evaluations: storage key by the id of the data set.
    """

    out_of_fold: str | Path
    evaluations: Mapping[str, str]

    def on(self, dataset_id: str) -> tuple[str, str | Path]:
        """Return the kind and the location of the predictions on a data set: those of the
        evaluation, otherwise the out-of-fold predictions.
        """
        if key := self.evaluations.get(dataset_id):
            return EVALUATION, key
        return OUT_OF_FOLD, self.out_of_fold


def compare_next_pair() -> bool:
    """Claim a queued comparison and compute it, or return it to the queue if the storage is
    unavailable; return False if none was queued.
    """
    mine = heartbeat()

    def claim() -> Comparison | None:
        claimed = leases.claim(Comparison, mine.owner)
        if not claimed:
            return None
        versions = (joinedload(Comparison.version), joinedload(Comparison.other))
        return db.session.scalar(
            select(Comparison).where(Comparison.id == claimed[0].id).options(*versions)
        )

    row = in_transaction(claim)
    if row is None:
        return False
    with mine.holding(Comparison, [row.id]), mine.work_folder() as folder:
        _carry_through(row, folder)
    return True


def _carry_through(row: Comparison, folder: Path) -> None:
    mine, ids = heartbeat(), [row.id]
    try:
        tables = in_transaction(lambda: (_tables_of(row.version), _tables_of(row.other)))
        results = results_of(*tables, folder)
        if not in_transaction(lambda: leases.finish(Comparison, mine.owner, ids, results=results)):
            raise LeaseLost
        log.info("comparison=%s done", row.id)
    except LeaseLost:
        log.info("comparison=%s was requested again or is another worker's", row.id)
    except StorageUnavailable:
        in_transaction(lambda: leases.hand_back(Comparison, mine.owner, ids))
    except StorageError as err:
        sentences = {row.id: str(err)}
        end = leases.retry_after_storage_error if is_passing(err) else leases.fail
        in_transaction(lambda: end(Comparison, mine.owner, sentences))
    except Exception:
        log.error("comparison=%s failed unexpectedly", row.id)
        in_transaction(lambda: leases.fail(Comparison, mine.owner, {row.id: UNEXPECTED}))
        raise


def compare_with_earlier(run: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Compare a newly trained model with the live versions and the newest trained ones.

    Args:
        run: the folder of the training run, with its `predictions.csv`.
        folder: a temporary folder for the predictions of the other versions.

    Returns:
        By the id of each version, the return value of `results_of`. Any error becomes a reason
        there, because a failed comparison must not fail the training run.
    """
    own = Tables(run, {})
    by_version = {}
    for version, tables in in_transaction(_versions_before):
        try:
            by_version[version.id] = results_of(own, tables, folder / version.id)
        except StorageError as err:
            by_version[version.id] = [{"source": OUT_OF_FOLD, "reason": str(err)}]
        except Exception:
            log.exception("version=%s could not be compared", version.id)
            by_version[version.id] = [{"source": OUT_OF_FOLD, "reason": UNEXPECTED}]
    return by_version


def _versions_before() -> list[tuple[ModelVersion, Tables]]:
    live = [version for reads in ("slice", "series") if (version := live_version(reads))]
    newest = db.session.scalars(
        select(ModelVersion)
        .where(ModelVersion.run_id.is_not(None))
        .options(load_only(ModelVersion.card_id, ModelVersion.storage_prefix))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(NEWEST_COMPARED)
    )
    return [(version, _tables_of(version)) for version in dict.fromkeys([*live, *newest])]


def _tables_of(version: ModelVersion) -> Tables:
    done = db.session.execute(
        select(Evaluation.dataset_id, Evaluation.id)
        .where(Evaluation.version_id == version.id, Evaluation.status == JobStatus.DONE)
        .order_by(Evaluation.finished_at)
    )
    return Tables(
        f"{version.storage_prefix}/{PREDICTIONS}",
        {dataset_id: f"evaluations/{id}/answers.csv" for dataset_id, id in done},
    )


def results_of(own: Tables, other: Tables, folder: Path) -> list[dict[str, Any]]:
    """Compare a version with another one: on out-of-fold predictions, and on each data set on which
    one of them was evaluated. If the other one was not, its out-of-fold predictions are used.

    Args:
        own, other: the locations of their predictions.
        folder: a temporary folder for the predictions.

    Returns:
        For each source {"source": "out of fold" or the data set's name, "own", "other": the kind of
        predictions} and either "slice" and "patient", each as returned by `_level`, or "reason", a
        sentence. For a data set, also "dataset_id".

    Raises:
        StorageUnavailable: the storage cannot be reached.
        StorageError: a table cannot be downloaded.
    """
    both = {**own.evaluations, **other.evaluations}
    named = select(Dataset.id, Dataset.name).where(Dataset.id.in_(both)).order_by(Dataset.name)
    names = in_transaction(lambda: {row.id: row.name for row in db.session.execute(named)})
    results = [
        {
            "source": OUT_OF_FOLD,
            "own": OUT_OF_FOLD,
            "other": OUT_OF_FOLD,
            **_figures(own.out_of_fold, other.out_of_fold, folder / OUT_OF_FOLD),
        }
    ]
    for dataset_id, name in names.items():
        (of_own, own_table), (of_other, other_table) = own.on(dataset_id), other.on(dataset_id)
        results.append(
            {
                "source": name,
                "dataset_id": dataset_id,
                "own": of_own,
                "other": of_other,
                **_figures(own_table, other_table, folder / dataset_id),
            }
        )
    return results


def _figures(own: str | Path, other: str | Path, folder: Path) -> dict[str, Any]:
    runs = []
    for name, table in (("other", other), ("own", own)):
        try:
            runs.append(_fetched(table, folder / name))
        except MissingFile:
            return {"reason": NO_PREDICTIONS[name]}
    try:
        comparison = compare(runs)
    except (AnswersError, DatasetError) as err:
        return {"reason": str(err)}
    return {"slice": _level(comparison.slice), "patient": _level(comparison.patient)}


def _fetched(table: str | Path, folder: Path) -> Path:
    """Return a folder with the table, downloading it if necessary."""
    if isinstance(table, Path):
        return table
    folder.mkdir(parents=True)
    retry_storage(lambda: storage.fetch(table, folder / table.rsplit("/", 1)[-1]))
    return folder


def _level(level: ComparedLevel) -> dict[str, Any]:
    """Return {"n", "positive", "negative"}, the differences of `FIGURES`, and for "own" and "other"
    those figures and the curve over all thresholds.
    """
    other, own = level.runs
    return {
        "n": level.n,
        "positive": own.curves.positive,
        "negative": own.curves.negative,
        **{name: to_json(getattr(level.differences[0], name)) for name in FIGURES},
        "runs": {
            name: {
                **{figure: to_json(getattr(run.metrics, figure)) for figure in FIGURES},
                "curve": to_json(run.curves.thresholds),
            }
            for name, run in (("own", own), ("other", other))
        },
    }
