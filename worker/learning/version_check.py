"""The check of a version by a predict worker, before its promotion."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from flask import current_app
from sqlalchemy import select, update

from ml.errors import ArtifactError
from webapp.extensions import database_now, db
from webapp.models import ModelVersion, waits_for_check
from webapp.storage import StorageError, StorageUnavailable
from worker.canary import require_same_answer
from worker.heartbeat import models_of
from worker.predictors import fetch_model, load_model
from worker.retries import in_transaction

log = logging.getLogger(__name__)


def check_next_version() -> bool:
    """Check one version before its promotion, with the stored files; False if none is waiting."""
    version = in_transaction(
        lambda: db.session.scalar(
            select(ModelVersion)
            .where(waits_for_check())
            .order_by(ModelVersion.check_requested_at)
            .limit(1)
        )
    )
    if version is None:
        return False
    began = in_transaction(lambda: db.session.scalar(select(database_now())))
    parent = models_of(current_app)
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".checked-", dir=parent))
    error: str | None = None
    try:
        fetch_model(version, folder)
        require_same_answer(version, load_model(folder))
    except StorageUnavailable:
        return False  # Still unknown; the request remains.
    except (ArtifactError, StorageError, OSError) as err:
        error = str(err) if isinstance(err, ArtifactError | StorageError) else type(err).__name__
        log.error("version=%s failed its check: %s", version.id, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    in_transaction(
        lambda: db.session.execute(
            update(ModelVersion)
            .where(ModelVersion.id == version.id)
            # The time of the start: a request made meanwhile needs another check.
            .values(checked_at=began, check_error=error),
            execution_options={"synchronize_session": False},
        )
    )
    return True
