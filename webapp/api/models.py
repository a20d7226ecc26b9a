"""Which model versions answer now, and which did at any time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from webapp.api.access import blueprint, documented
from webapp.api.schemas import LiveModelsQuerySchema, LiveModelsSchema
from webapp.extensions import utc_now
from webapp.models import promotion_after, promotion_at


@blueprint.get("/models/live")
@blueprint.arguments(LiveModelsQuerySchema, location="query")
@documented("live_models", 422)
@blueprint.response(200, LiveModelsSchema)
def live_models(query: dict[str, Any]) -> dict[str, Any]:
    """Return the model versions that were live at a time, for single slices and for series.

    A kind without a live version was answered by the other kind's, if there was one.
    """
    at = query["at"] or utc_now()
    return {"at": at, "slice": live_model("slice", at), "series": live_model("series", at)}


def live_model(reads: str, at: datetime) -> dict[str, Any] | None:
    """Return what was live for `reads` at a time, None where nothing was."""
    promotion = promotion_at(reads, at)
    if promotion is None:
        return None
    after = promotion_after(promotion)
    version = promotion.version
    return {
        "id": version.id,
        "card_id": version.card_id,
        "architecture": version.architecture,
        "operating_point": promotion.point or "as trained",
        "slice_threshold": promotion.slice_threshold,
        "scan_threshold": promotion.scan_threshold,
        "since": promotion.at,
        "until": after.at if after else None,
    }
