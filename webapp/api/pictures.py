"""Images, slices and heat maps of a scan; heat maps are generated after the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from http import HTTPMethod
from typing import Any

from flask import Response
from sqlalchemy import Row, select
from sqlalchemy.orm import InstrumentedAttribute
from werkzeug.exceptions import HTTPException, NotFound

from webapp.api.access import NO_SUCH_SCAN, PROBLEM, blueprint, is_visible, operation
from webapp.api.schemas import ProblemSchema
from webapp.extensions import db
from webapp.models import Heatmap, Prediction, Scan, Scope
from webapp.scans.pictures import (
    OUTLINE,
    WindowSchema,
    heatmap_key,
    mask_file,
    outline_picture,
    picture,
    series_file,
    slice_picture,
)
from webapp.scans.stored_volume import Window

BINARY = {"type": "string", "format": "binary"}
HEATMAP_WAIT_S = 2.0
"""How long a request waits for a heat map; most are ready within a second of the result."""
HEATMAP_LOOK_S = 0.1


class NotYet(HTTPException):
    """Not an error: the resource is being generated; the client should retry in a second."""

    code = 202

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Return the headers, including Retry-After."""
        return [*super().get_headers(*args, **kwargs), ("Retry-After", "1")]


def may_come(view: Any) -> Any:
    """Document that a GET may get a response before the file is ready."""
    return blueprint.alt_response(
        202,
        schema=ProblemSchema,
        content_type=PROBLEM,
        description="Not ready yet; see the Retry-After header.",
        success=True,
    )(view)


def picture_operation(
    operation_id: str, path: str, media: str, *problems: int
) -> Callable[[Any], Any]:
    """Return a decorator for a GET of a file of a scan that may not be ready yet."""

    def add(view: Any) -> Any:
        view = may_come(blueprint.response(200, BINARY, content_type=media)(view))
        add_to_api = operation(
            HTTPMethod.GET, f"/scans/<scan_id>/{path}", operation_id, Scope.READ, 404, *problems
        )
        return add_to_api(view)

    return add


@picture_operation("read_image", "image.png", "image/png")
def image(scan_id: str) -> Response:
    """Download the slice that represents the scan, as shown on its page."""
    return picture(*file_of(scan_id, Scan.image_key, "image"))


@picture_operation("read_thumbnail", "thumbnail.png", "image/png")
def thumbnail(scan_id: str) -> Response:
    """Download the same slice as a thumbnail, for lists."""
    return picture(*file_of(scan_id, Scan.thumbnail_key, "thumbnail"))


@picture_operation("read_heatmap", "heatmap.png", "image/png")
def heatmap(scan_id: str) -> Response:
    """Download the heat map as an overlay for the image.

    Heat maps are generated after the result; the request waits for up to two seconds.
    """
    _, key, _ = drawn_heatmap(scan_id)
    return picture(key)


@picture_operation("read_volume", "volume", "application/gzip")
def volume(scan_id: str) -> Response:
    """Download all slices of a series as NIfTI (.nii.gz, int16), in HU; for images without HU, gray
    levels from 0 to 1 in thousandths.
    """
    return series_file(file_of(scan_id, Scan.volume_key, "volume")[0])


@picture_operation("read_slice_image", "slices/<int:index>.png", "image/png", 422)
@blueprint.arguments(WindowSchema, location="query")
def slice_image(window: Window | None, scan_id: str, index: int) -> Response:
    """Download one slice of a series as a PNG with the given window.

    Slices are numbered from 0 in anatomical order. If the series has no HU, named windows leave
    gray levels unchanged, and `level` and `width` range from 0 to 1.
    """
    return slice_picture(file_of(scan_id, Scan.volume_key, "volume")[0], index, window)


@picture_operation("read_slice_heatmap", "slices/<int:index>/heatmap.png", "image/png")
def slice_heatmap(scan_id: str, index: int) -> Response:
    """Download the heat map of one slice as an overlay for its image; `heatmap_slices` lists the
    slices that have one.
    """
    heatmap_id, _, slices = drawn_heatmap(scan_id)
    if index not in slices:
        raise NotFound("This slice has no heat map.")
    return picture(heatmap_key(heatmap_id, index))


@picture_operation("read_outline", "outline.png", "image/png")
def outline(scan_id: str) -> Response:
    """Download the contour of the hemorrhage as an overlay for the image."""
    stored = outline_of(scan_id)
    return outline_picture(stored, (stored.first_slices or (0,))[0])


@picture_operation("read_slice_outline", "slices/<int:index>/outline.png", "image/png")
def slice_outline(scan_id: str, index: int) -> Response:
    """Download the contour of the hemorrhage in one slice as an overlay for its image; a slice's
    `outline_url` says whether it has one.
    """
    return outline_picture(outline_of(scan_id), index)


@picture_operation("read_outline_mask", "outline.nii.gz", "application/gzip")
def outline_mask(scan_id: str) -> Response:
    """Download the outline of the hemorrhage as NIfTI (.nii.gz, uint8): 1 inside, 0 elsewhere, in
    the frame of the volume.
    """
    return mask_file(outline_of(scan_id))


def outline_of(scan_id: str) -> Row[Any]:
    """Return the `webapp.scans.pictures.OUTLINE` columns of a scan with a result.

    Raises:
        NotFound: the token's owner has no such scan, or it ended without a result.
        NotYet: it is not ready yet.
    """
    look: Any = db.session.execute(
        select(Scan.status, *OUTLINE).outerjoin(Scan.prediction).where(is_visible(scan_id))
    ).one_or_none()
    if look is None:
        raise NotFound(NO_SUCH_SCAN)
    if not look.status.is_final:
        raise NotYet("The outline is not ready yet.")
    row: Row[Any] = look
    return row


def file_of(
    scan_id: str, column: InstrumentedAttribute[str | None], what: str
) -> tuple[str, datetime | None]:
    """Return the storage key of a file that is made together with the result, and when that was.

    Raises:
        NotFound: the token's owner may not see such a scan, or the scan has no `what`.
        NotYet: it is not ready yet.
    """
    look = db.session.execute(
        select(Scan.status, Scan.finished_at, column.label("key")).where(is_visible(scan_id))
    ).one_or_none()
    if look is None:
        raise NotFound(NO_SUCH_SCAN)
    if look.key is None and look.status.is_final:
        raise NotFound(f"This scan has no {what}.")
    if look.key is None:
        raise NotYet(f"The {what} is not ready yet.")
    return str(look.key), look.finished_at


def drawn_heatmap(scan_id: str) -> tuple[str, str, Sequence[int]]:
    """Wait up to HEATMAP_WAIT_S for the heat map; return its id, the storage key of its image, and
    the slices of a series that have one.

    Raises:
        NotFound: the token's owner may not see such a scan, or the scan has no heat map.
        NotYet: it is not ready yet.
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
        .where(is_visible(scan_id))
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
