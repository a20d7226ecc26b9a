"""How a new version compares with earlier ones: paired differences on images for which both have
out-of-fold predictions.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import load_only

from ml.errors import DatasetError
from ml.evaluation.answers import AnswersError
from ml.evaluation.comparison import compare
from ml.typed_json import to_json
from webapp.extensions import db
from webapp.models import ModelVersion, live_version
from webapp.storage import MissingFile, StorageError, storage
from worker.predictors import PREDICTIONS
from worker.retries import in_transaction, retry_storage

log = logging.getLogger(__name__)

NEWEST_COMPARED = 5


def compare_with_earlier(run: Path, folder: Path) -> list[dict[str, Any]]:
    """Compare a finished training with the live versions and the newest trained ones.

    Args:
        run: the folder of the training, with its `predictions.csv`.
        folder: a temporary folder for the predictions of the other versions.

    Returns:
        For each version {"version_id", "card_id"} and either {"slice" and "patient": {"n", "auroc",
        "accuracy"}}, each difference (this training minus that version) as {"value", "low", "high",
        "n"}, or {"reason"}, a sentence. Any error becomes such a reason, because a failed
        comparison must not fail the training.
    """
    return [
        {
            "version_id": version.id,
            "card_id": version.card_id,
            **_difference(version, run, folder / "earlier" / version.card_id),
        }
        for version in in_transaction(_versions_before)
    ]


def _versions_before() -> list[ModelVersion]:
    live = [version for reads in ("slice", "series") if (version := live_version(reads))]
    newest = db.session.scalars(
        select(ModelVersion)
        .where(ModelVersion.run_id.is_not(None))
        .options(load_only(ModelVersion.card_id, ModelVersion.storage_prefix))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(NEWEST_COMPARED)
    )
    return list(dict.fromkeys([*live, *newest]))


def _difference(version: ModelVersion, run: Path, answers: Path) -> dict[str, Any]:
    key = f"{version.storage_prefix}/{PREDICTIONS}"
    try:
        answers.mkdir(parents=True)
        retry_storage(lambda: storage.fetch(key, answers / PREDICTIONS))
        comparison = compare([answers, run])
    except MissingFile:
        return {"reason": "This version has no stored out-of-fold predictions."}
    except (AnswersError, DatasetError, StorageError) as err:
        return {"reason": str(err)}
    except Exception:
        log.exception("version=%s could not be compared", version.id)
        return {
            "reason": "An unexpected error occurred in this comparison; see the log for details."
        }
    return {
        level: {
            "n": compared.n,
            "auroc": to_json(compared.differences[0].auroc),
            "accuracy": to_json(compared.differences[0].accuracy),
        }
        for level, compared in (
            ("slice", comparison.slice),
            ("patient", comparison.patient),
        )
    }
