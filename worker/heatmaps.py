"""Pictures of where a model looked, drawn after the verdict is told."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.explain import overlay
from ml.inference import Stopped
from webapp import logs
from webapp.extensions import db
from webapp.models import Heatmap, Prediction
from webapp.pictures import heatmap_key
from webapp.storage import StorageAway, storage
from worker import leases
from worker.patience import committed, stored
from worker.predictors import predictor_for
from worker.presence import presence
from worker.scans import IMAGE_PX, png, read_original, sentence_for, shown_slice

MOST_HEATMAPS = 20
"""Slices of one series that are drawn; each takes as long as a verdict."""
DRAWN_TOGETHER = 5
"""A worker that is asked to stop finishes so many: they share what the convolutions see."""


def draw_next_heatmap() -> bool:
    """Claim one heat map and draw it; False if none was queued. One at a time, because verdicts go before maps."""
    mine = presence()

    def claim() -> Heatmap | None:
        claimed = leases.claim(Heatmap, mine.owner, after=mine.last_drawn_for)
        if not claimed:
            return None
        mine.last_drawn_for = claimed[0].user_id
        joined = joinedload(Heatmap.prediction)
        return db.session.scalar(
            select(Heatmap)
            .where(Heatmap.id == claimed[0].id)
            .options(joined.joinedload(Prediction.scan), joined.joinedload(Prediction.model_version))
        )

    heatmap = committed(claim)
    if heatmap is None:
        return False
    with mine.holding(Heatmap, [heatmap.id]), logs.about(scan_ids=[heatmap.prediction.scan_id]):
        try:
            drawn = draw(heatmap)
        except (Stopped, StorageAway):
            committed(lambda: leases.hand_back(Heatmap, mine.owner, [heatmap.id]))
            return False
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            sentence = sentence_for(err, heatmap)
            committed(lambda: leases.fail(Heatmap, mine.owner, {heatmap.id: sentence}))
        else:
            columns = {"image_key": next(iter(drawn.values())), "slices": list(drawn) if len(heatmap.prediction.slices) > 1 else None}
            committed(lambda: leases.finish(Heatmap, mine.owner, [heatmap.id], **columns))
            if not committed(lambda: db.session.scalar(select(Heatmap.id).where(Heatmap.id == heatmap.id))):
                for key in drawn.values():
                    storage.discard(key)  # Its scan was deleted meanwhile.
    return True


def draw(heatmap: Heatmap) -> dict[int, str]:
    """Store pictures of where the version that gave the verdict looked, and return their keys by slice, that of the shown slice first.

    Raises:
        Stopped: the worker was asked to stop before all were drawn.
    """
    prediction = heatmap.prediction
    predictor = predictor_for(prediction.model_version)
    series = read_original(prediction.scan)
    indices = drawn_slices(prediction)
    keys = {index: heatmap_key(heatmap.id, index) if len(series.slices) > 1 else f"heatmaps/{heatmap.id}.png" for index in indices}
    for start in range(0, len(indices), DRAWN_TOGETHER):
        if presence().stopping():
            raise Stopped("The heat maps are left to another worker.")
        some = indices[start : start + DRAWN_TOGETHER]
        for index, heat in zip(some, predictor.heatmaps(series, some), strict=True):
            content = png(overlay(heat, IMAGE_PX))
            stored(lambda index=index, content=content: storage.put(keys[index], content))  # type: ignore[misc]
    return keys


def drawn_slices(prediction: Prediction) -> list[int]:
    """Return which slices get a heat map: those to look at first, the shown one among them, then the most probable positive ones."""
    by_probability = sorted(range(len(prediction.slices)), key=lambda index: -prediction.slices[index])
    positive = [index for index in by_probability if prediction.slices[index] >= prediction.threshold]
    first = prediction.first_slices or [shown_slice(prediction.first_slices)]
    return list(dict.fromkeys([*first, *positive]))[:MOST_HEATMAPS]
