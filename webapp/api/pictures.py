"""The pictures of a scan and the slices of a series; some are made after the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Response
from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute
from werkzeug.exceptions import HTTPException, NotFound

from webapp.api.access import NO_SUCH_SCAN, PROBLEM, blueprint, documented, is_own
from webapp.api.schemas import ProblemSchema
from webapp.extensions import db
from webapp.models import Heatmap, Prediction, Scan
from webapp.pictures import WindowSchema, heatmap_key, picture, series_file, slice_picture
from webapp.volume import Window

BINARY = {"type": "string", "format": "binary"}
HEATMAP_WAIT_S = 2.0
"""How long a request for a heat map waits for it: most are drawn within a second of the verdict."""
HEATMAP_LOOK_S = 0.1


class NotYet(HTTPException):
    """Not an error: what was asked for is being made, ask again in a second."""

    code = 202

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Return the headers, with the time to wait."""
        return [*super().get_headers(*args, **kwargs), ("Retry-After", "1")]


def operation(
    operation_id: str, path: str, what: Mapping[str, str], media: str, *problems: int
) -> Callable[[Any], Any]:
    """Return a decorator for a GET of something that may not be made yet."""

    def add(view: Any) -> Any:
        view = blueprint.response(200, what, content_type=media)(view)
        view = blueprint.alt_response(
            202,
            schema=ProblemSchema,
            content_type=PROBLEM,
            description="Not made yet; see Retry-After.",
            success=True,
        )(view)
        return blueprint.get(f"/scans/<scan_id>/{path}")(
            documented(operation_id, 404, *problems)(view)
        )

    return add


@operation("read_image", "image.png", BINARY, "image/png")
def image(scan_id: str) -> Response:
    """Fetch the slice that stands for the scan, as the model's reader sees it."""
    return picture(key_of(scan_id, Scan.image_key, "picture"))


@operation("read_heatmap", "heatmap.png", BINARY, "image/png")
def heatmap(scan_id: str) -> Response:
    """Fetch the heat map, to be laid over the image.

    It is drawn after the verdict; this waits for it a moment.
    """
    _, key, _ = drawn_heatmap(scan_id)
    return picture(key)


@operation("read_volume", "volume", BINARY, "application/gzip")
def volume(scan_id: str) -> Response:
    """Fetch all slices of a series as NIfTI (.nii.gz, int16): HU, or greys 0..1 in thousandths
    where pictures were submitted.
    """
    return series_file(key_of(scan_id, Scan.volume_key, "series of slices"))


@operation("read_slice_image", "slices/<int:index>.png", BINARY, "image/png", 422)
@blueprint.arguments(WindowSchema, location="query")
def slice_image(window: Window | None, scan_id: str, index: int) -> Response:
    """Fetch one slice of a series as a picture through a window.

    Slices count from 0 in anatomical order. Where pictures were submitted there is no HU: the named
    windows show their greys as they are, `level` and `width` are in 0..1.
    """
    return slice_picture(key_of(scan_id, Scan.volume_key, "series of slices"), index, window)


@operation("read_slice_heatmap", "slices/<int:index>/heatmap.png", BINARY, "image/png")
def slice_heatmap(scan_id: str, index: int) -> Response:
    """Fetch the heat map of one slice of a series, to be laid over its picture; `heatmap_slices`
    says which are drawn.
    """
    heatmap_id, _, slices = drawn_heatmap(scan_id)
    if index not in slices:
        raise NotFound("This slice has no heat map.")
    return picture(heatmap_key(heatmap_id, index))


def key_of(scan_id: str, column: InstrumentedAttribute[str | None], what: str) -> str:
    """Return the key of something that is made together with the verdict.

    Raises:
        NotFound: there is no such scan for the token's owner, or it has no `what`.
        NotYet: it is not ready yet.
    """
    look = db.session.execute(
        select(Scan.status, column.label("key")).where(is_own(scan_id))
    ).one_or_none()
    if look is None:
        raise NotFound(NO_SUCH_SCAN)
    if look.key is None and look.status.is_final:
        raise NotFound(f"This scan has no {what}.")
    if look.key is None:
        raise NotYet(f"The {what} is not ready yet.")
    return str(look.key)


def drawn_heatmap(scan_id: str) -> tuple[str, str, Sequence[int]]:
    """Wait a moment for the heat map; return its id, the key of its picture, and which slices of a
    series are drawn.

    Raises:
        NotFound: there is no such scan for the token's owner, or it has no heat map.
        NotYet: it is not drawn yet.
    """
    give_up_at = time.monotonic() + HEATMAP_WAIT_S
    find = (
        select(
            Scan.status,
            Heatmap.status.label("drawing"),
            Heatmap.id,
            Heatmap.image_key,
            Heatmap.slices,
            Heatmap.error,
        )
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
            return look.id, look.image_key, look.slices or ()
        if (look.drawing or look.status).is_final:
            raise NotFound(look.error or "This scan has no heat map.")
        if look.drawing is None or time.monotonic() >= give_up_at:
            raise NotYet("The heat map is not ready yet.")
        time.sleep(HEATMAP_LOOK_S)
