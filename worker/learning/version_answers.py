"""Curves and worst mistakes of a version, from its out-of-fold predictions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from ml.evaluation.answers import AnswersError
from ml.evaluation.curves import curves_of_run
from ml.typed_json import to_json
from webapp.extensions import db
from webapp.models import ModelVersion
from webapp.storage import MissingFile, StorageError, storage
from worker.heartbeat import heartbeat
from worker.predictors import PREDICTIONS
from worker.retries import in_transaction, retry_storage

log = logging.getLogger(__name__)

NO_CURVES: dict[str, Any] = {}
"""Stored for a version without out-of-fold predictions, so that they are not searched for again."""


def answers_of_training(out_dir: Path) -> dict[str, Any]:
    """Return a version's columns about its predictions, from the folder that `train` wrote."""
    listed = out_dir / "mistakes" / "mistakes.json"
    return {
        "curves": curves_in(out_dir),
        "mistakes": json.loads(listed.read_bytes()) if listed.is_file() else None,
    }


def curves_in(folder: Path) -> dict[str, Any]:
    """Return the curves of the predictions in a folder; none if there are no predictions."""
    try:
        return dict(to_json(curves_of_run(folder)))
    except AnswersError:
        return NO_CURVES


def describe_next_version() -> bool:
    """Compute the curves of a version that has none yet: one that was shipped, or that an earlier
    version of this software trained. Return False if there is none or its predictions cannot be
    read now.

    Such a version is not claimed: two workers at the same time would write the same.
    """
    version = in_transaction(
        lambda: db.session.execute(
            select(ModelVersion.id, ModelVersion.storage_prefix)
            .where(ModelVersion.curves.is_(None))
            .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
            .limit(1)
        ).one_or_none()
    )
    if version is None:
        return False
    with heartbeat().work_folder() as folder:
        try:
            key = f"{version.storage_prefix}/{PREDICTIONS}"
            retry_storage(lambda: storage.fetch(key, folder / PREDICTIONS))
            curves = curves_in(folder)
        except MissingFile:
            curves = NO_CURVES
        except StorageError as err:
            log.warning("version=%s has no curves yet: %s", version.id, type(err).__name__)
            return False
    filled = update(ModelVersion).where(ModelVersion.id == version.id).values(curves=curves)
    in_transaction(lambda: db.session.execute(filled))
    return True
