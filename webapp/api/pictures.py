"""The pictures of a scan, some of which are made after its verdict."""

from __future__ import annotations

import time
from typing import Any

from flask import Response
from sqlalchemy import select
from werkzeug.exceptions import HTTPException, NotFound

from webapp.api.access import NO_SUCH_SCAN, PROBLEM, blueprint, documented_problems, is_own
from webapp.api.schemas import ProblemSchema
from webapp.extensions import db
from webapp.models import Heatmap, Prediction, Scan
from webapp.scans import picture

PNG = {"type": "string", "format": "binary"}
HEATMAP_WAIT_S = 2.0
"""How long a request for a heat map waits for it: most are drawn within a second of the verdict."""
HEATMAP_LOOK_S = 0.1


class NotYet(HTTPException):
    """Not an error: what was asked for is being made, ask again in a second."""

    code = 202

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Return the headers, with the time to wait."""
        return [*super().get_headers(*args, **kwargs), ("Retry-After", "1")]


@blueprint.get("/scans/<scan_id>/image.png")
@documented_problems(404)
@blueprint.alt_response(202, schema=ProblemSchema, content_type=PROBLEM, description="Not made yet; see Retry-After.", success=True)
@blueprint.response(200, PNG, content_type="image/png")
def image(scan_id: str) -> Response:
    """Fetch the slice as the model's reader sees it."""
    look = db.session.execute(select(Scan.status, Scan.image_key).where(is_own(scan_id))).one_or_none()
    if look is None:
        raise NotFound(NO_SUCH_SCAN)
    if look.image_key:
        return picture(look.image_key)
    if look.status.is_final:
        raise NotFound("This scan has no picture.")
    raise NotYet("The picture is not made yet.")


@blueprint.get("/scans/<scan_id>/heatmap.png")
@documented_problems(404)
@blueprint.alt_response(202, schema=ProblemSchema, content_type=PROBLEM, description="Not drawn yet; see Retry-After.", success=True)
@blueprint.response(200, PNG, content_type="image/png")
def heatmap(scan_id: str) -> Response:
    """Fetch the heat map, to be laid over the image.

    It is drawn after the verdict; this waits for it a moment.
    """
    give_up_at = time.monotonic() + HEATMAP_WAIT_S
    find = (
        select(Scan.status, Heatmap.status.label("drawing"), Heatmap.image_key)
        .outerjoin(Scan.prediction)
        .outerjoin(Prediction.heatmap)
        .where(is_own(scan_id))
    )
    while True:
        look = db.session.execute(find).one_or_none()
        db.session.rollback()  # No transaction is open while this request waits.
        if look is None:
            raise NotFound(NO_SUCH_SCAN)
        if look.image_key:
            return picture(look.image_key)
        if (look.drawing or look.status).is_final:
            raise NotFound("This scan has no heat map.")
        if look.drawing is None or time.monotonic() >= give_up_at:
            raise NotYet("The heat map is not drawn yet.")
        time.sleep(HEATMAP_LOOK_S)
