"""Analyzes live scans with a candidate in shadow mode, when there is nothing else to do."""

from __future__ import annotations

import logging
import time

from sqlalchemy import delete, select
from sqlalchemy.orm import joinedload

from ml.errors import ImageError
from ml.inference.predictor import ScanResult, Stopped
from webapp import logs
from webapp.extensions import db
from webapp.models import (
    Shadow,
    ShadowAnswer,
    cancel,
    end_shadow,
    end_shadows,
)
from webapp.models.shadows import skip
from webapp.storage import MissingFile, StorageUnavailable
from worker import leases
from worker.background import gives_way
from worker.heartbeat import heartbeat
from worker.predictors import CannotLoad, predictor_for
from worker.retries import in_transaction
from worker.scan_files import is_passing, read_original

log = logging.getLogger(__name__)


def answer_next_in_shadow() -> bool:
    """Claim a scan for a candidate and record its prediction; return False if none was queued or
    the storage is unavailable.
    """
    mine = heartbeat()

    def claim() -> ShadowAnswer | None:
        claimed = leases.claim(ShadowAnswer, mine.owner)
        if not claimed:
            return None
        parts = (
            joinedload(ShadowAnswer.scan),
            joinedload(ShadowAnswer.shadow).joinedload(Shadow.version),
        )
        return db.session.scalar(
            select(ShadowAnswer)
            .where(ShadowAnswer.id == claimed[0].id)
            .options(*parts)
            # The operating point may have changed since the last one.
            .execution_options(populate_existing=True)
        )

    row = in_transaction(claim)
    if row is None:
        return False
    if row.shadow.ended_at is not None:
        # The live prediction was committed when the shadow had just ended.
        in_transaction(lambda: cancel(ShadowAnswer, ShadowAnswer.id == row.id))
        return True
    with mine.holding(ShadowAnswer, [row.id]), logs.about(scan_ids=[row.scan_id]):
        return _carry_through(row)


def _carry_through(row: ShadowAnswer) -> bool:
    mine, began = heartbeat(), time.process_time()
    try:
        result = _answered(row)
    except Stopped:
        in_transaction(lambda: leases.hand_back(ShadowAnswer, mine.owner, [row.id]))
    except StorageUnavailable:
        in_transaction(lambda: leases.hand_back(ShadowAnswer, mine.owner, [row.id]))
        return False
    except CannotLoad as err:
        sentence = f"The candidate cannot be used: {err}"
        in_transaction(lambda: end_shadow(row.shadow_id, sentence))
        log.error("shadow=%s ended: %s", row.shadow_id, sentence)
    except (ImageError, MissingFile):
        in_transaction(lambda: _skip(row))  # Due to the storage, not the candidate.
    except Exception as err:  # noqa: BLE001 - a candidate may fail in any way without affecting results.
        _fail(row, err, time.process_time() - began)
    else:
        columns = {
            "probability": result.probability,
            "threshold": result.threshold,
            "state": result.state,
            "seconds": time.process_time() - began,
        }
        in_transaction(lambda: leases.finish(ShadowAnswer, mine.owner, [row.id], **columns))
    return True


def _answered(row: ShadowAnswer) -> ScanResult:
    predictor = predictor_for(row.shadow.version)
    series = read_original(row.scan)
    return predictor.predict(series, should_stop=gives_way(ShadowAnswer, row.id))


def _fail(row: ShadowAnswer, err: Exception, seconds: float) -> None:
    """Fail this scan, or postpone it after an error of the storage; end the shadow after too many
    consecutive failures.
    """
    mine = heartbeat()
    log.warning("shadow=%s failed on a scan", row.shadow_id, exc_info=err)
    sentence = f"The candidate failed ({type(err).__name__})."

    def end() -> None:
        if is_passing(err):
            leases.retry_after_storage_error(ShadowAnswer, mine.owner, {row.id: str(err)})
            return
        leases.write(ShadowAnswer, mine.owner, [row.id], seconds=seconds)
        leases.fail(ShadowAnswer, mine.owner, {row.id: sentence})
        end_shadows()

    in_transaction(end)


def _skip(row: ShadowAnswer) -> None:
    held = delete(ShadowAnswer).where(
        ShadowAnswer.id == row.id, ShadowAnswer.lease_owner == heartbeat().owner
    )
    if db.session.scalar(held.returning(ShadowAnswer.id)) is not None:
        skip(row.shadow_id, 1)
