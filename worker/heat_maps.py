"""Generates heat maps, after the result of a scan has been written."""

from __future__ import annotations

from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.inference.heat_maps import overlay
from ml.inference.predictor import Stopped
from webapp import logs
from webapp.extensions import db
from webapp.models import Heatmap, Prediction
from webapp.models.reports import capture_waits_no_longer
from webapp.scans.pictures import heatmap_key
from webapp.storage import StorageUnavailable, storage
from worker import leases
from worker.background import gives_way
from worker.heartbeat import heartbeat
from worker.predictors import LOAD_AGAIN_S, CannotLoad, predictor_for
from worker.retries import in_transaction, retry_storage
from worker.scan_files import (
    IMAGE_PX,
    is_passing,
    png,
    read_original,
    sentence_for,
    shown_slice,
)

MOST_HEATMAPS = 20
"""Heat maps per series; each takes as long as a prediction."""
DRAWN_TOGETHER = 5
"""Slices whose feature maps are computed together."""


def draw_next_heatmap() -> bool:
    """Claim one heat map and draw it; return False if none was queued or it was returned to the
    queue. Only one at a time, because predictions have priority.
    """
    mine = heartbeat()

    def claim() -> Heatmap | None:
        claimed = leases.claim(Heatmap, mine.owner, after=mine.last_drawn_for)
        if not claimed:
            return None
        mine.last_drawn_for = claimed[0].user_id
        joined = joinedload(Heatmap.prediction)
        return db.session.scalar(
            select(Heatmap)
            .where(Heatmap.id == claimed[0].id)
            .options(
                joined.joinedload(Prediction.scan), joined.joinedload(Prediction.model_version)
            )
        )

    heatmap = in_transaction(claim)
    if heatmap is None:
        return False
    keys = keys_of(heatmap)
    goes_on = True
    with mine.holding(Heatmap, [heatmap.id]), logs.about(scan_ids=[heatmap.prediction.scan_id]):
        try:
            draw(heatmap)
        except CannotLoad:
            held = in_transaction(
                lambda: leases.put_off(Heatmap, mine.owner, [heatmap.id], LOAD_AGAIN_S)
            )
        except (Stopped, StorageUnavailable):
            held = in_transaction(lambda: leases.hand_back(Heatmap, mine.owner, [heatmap.id]))
            goes_on = not held
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            sentences = {heatmap.id: sentence_for(err, heatmap)}
            end = leases.retry_after_storage_error if is_passing(err) else leases.fail
            held = in_transaction(lambda: end(Heatmap, mine.owner, sentences))
        else:
            columns = {
                "image_key": next(iter(keys.values())),
                "slices": list(keys) if len(heatmap.prediction.slices) > 1 else None,
            }
            held = in_transaction(
                lambda: leases.finish(Heatmap, mine.owner, [heatmap.id], **columns)
            )
        if not held and not in_transaction(
            lambda: db.session.scalar(select(Heatmap.id).where(Heatmap.id == heatmap.id))
        ):
            for key in keys.values():
                storage.discard(key)  # The scan was deleted in the meantime.
        else:
            in_transaction(lambda: capture_waits_no_longer(heatmap.prediction.scan_id))
    return goes_on


def draw(heatmap: Heatmap) -> None:
    """Draw and store the heat maps of a prediction that are not stored yet, with the model version
    that made it. A waiting scan goes first; then the rest is drawn.

    Raises:
        Stopped: before all were drawn, a scan was submitted, the worker was asked to stop or the
            lease was lost.
    """
    predictor = predictor_for(heatmap.prediction.model_version)
    keys, is_over = keys_of(heatmap), gives_way(Heatmap, heatmap.id)
    missing = [
        index for index, key in keys.items() if not retry_storage(partial(storage.exists, key))
    ]
    series = read_original(heatmap.prediction.scan)
    for start in range(0, len(missing), DRAWN_TOGETHER):
        some = missing[start : start + DRAWN_TOGETHER]
        for index, heat in zip(some, predictor.heatmaps(series, some, is_over), strict=True):
            content = png(overlay(heat, IMAGE_PX))
            retry_storage(lambda index=index, content=content: storage.put(keys[index], content))  # type: ignore[misc]


def keys_of(heatmap: Heatmap) -> dict[int, str]:
    """Return the storage key of each slice's heat map, that of the scan's representative slice
    first.
    """
    indices = drawn_slices(heatmap.prediction)
    is_series = len(heatmap.prediction.slices) > 1
    return {
        index: heatmap_key(heatmap.id, index) if is_series else f"heatmaps/{heatmap.id}.png"
        for index in indices
    }


def drawn_slices(prediction: Prediction) -> list[int]:
    """Return the slices that get a heat map: those to look at first, then the positive ones by
    descending probability.
    """
    by_probability = sorted(
        range(len(prediction.slices)), key=lambda index: -prediction.slices[index]
    )
    positive = [
        index for index in by_probability if prediction.slices[index] >= prediction.threshold
    ]
    first = prediction.first_slices or [shown_slice(prediction.first_slices)]
    return list(dict.fromkeys([*first, *positive]))[:MOST_HEATMAPS]
