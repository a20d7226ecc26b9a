"""Images of a scan and slices of a series, served to those who may see the scan: the routes of the
pages, and the responses that the API shares with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, abort, request
from flask_login import current_user, login_required
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate
from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.orm import InstrumentedAttribute
from werkzeug.wsgi import FileWrapper

from webapp.extensions import db
from webapp.forms import is_id
from webapp.models import Heatmap, Prediction, Scan
from webapp.review.sharing import visible_to
from webapp.scans.outlines import contour
from webapp.scans.stored_volume import WINDOWS, Window, open_volume
from webapp.storage import storage

NO_OUTLINE = "This slice has no outline."
OUTLINE = (
    Scan.outline_key,
    Prediction.outlined_slices,
    Prediction.first_slices,
    Prediction.id.label("prediction_id"),
)
"""The columns needed to serve an outline. A scan's next prediction stores another outline under the
same key.
"""

blueprint = Blueprint("pictures", __name__, url_prefix="/scans/<scan_id>")


class WindowSchema(Schema):
    """The window in a query, by name or by `level` and `width` in HU; loads as a `Window` or
    None.
    """

    window = fields.String(
        validate=validate.OneOf(list(WINDOWS)),
        metadata={"description": "Default: brain."},
    )
    level = fields.Float(
        validate=validate.Range(-32_768, 32_768),
        metadata={"description": "Center of the window in HU; requires width."},
    )
    width = fields.Float(
        validate=validate.Range(0.001, 65_536),
        metadata={"description": "Width of the window in HU."},
    )

    @post_load
    def chosen(self, query: Mapping[str, Any], **_: object) -> Window | None:
        """Return the window."""
        if len(query) != (1 if "window" in query else 0 if not query else 2):
            raise ValidationError("Specify a window by name, or by level and width.", "window")
        return (
            Window(query["level"], query["width"])
            if "level" in query
            else WINDOWS.get(query.get("window", ""))
        )


@blueprint.get("/image.png")
@login_required
def image(scan_id: str) -> Response:
    """Send the slice that represents the scan."""
    return picture(*_of_scan(scan_id, Scan.image_key, Scan.finished_at))


@blueprint.get("/thumbnail.png")
@login_required
def thumbnail(scan_id: str) -> Response:
    """Send that slice as a thumbnail."""
    return picture(*_of_scan(scan_id, Scan.thumbnail_key, Scan.finished_at))


@blueprint.get("/heatmap.png")
@login_required
def heatmap(scan_id: str) -> Response:
    """Send the heat map, an overlay for the image."""
    (key,) = _of_scan(scan_id, Heatmap.image_key)
    return picture(key)


@blueprint.get("/volume")
@login_required
def volume(scan_id: str) -> Response:
    """Send all slices of a series as one file."""
    (key,) = _of_scan(scan_id, Scan.volume_key)
    return series_file(key)


@blueprint.get("/slices/<int:index>.png")
@login_required
def slice_image(scan_id: str, index: int) -> Response:
    """Send one slice of a series as a PNG, with the window of the query."""
    (key,) = _of_scan(scan_id, Scan.volume_key)
    try:
        window = WindowSchema().load(request.args, unknown=EXCLUDE)
    except ValidationError:
        abort(400, "Unknown window.")
    return slice_picture(key, index, window)


@blueprint.get("/slices/<int:index>/heatmap.png")
@login_required
def slice_heatmap(scan_id: str, index: int) -> Response:
    """Send the heat map of one slice of a series, an overlay for its image."""
    drawn = _of_scan(scan_id, Heatmap.id, Heatmap.slices)
    return picture(heatmap_key(drawn.id, index) if index in (drawn.slices or ()) else None)


@blueprint.get("/outline.png")
@login_required
def outline(scan_id: str) -> Response:
    """Send the contour of the hemorrhage, an overlay for the image."""
    stored = _of_scan(scan_id, *OUTLINE)
    return outline_picture(stored, (stored.first_slices or (0,))[0])


@blueprint.get("/slices/<int:index>/outline.png")
@login_required
def slice_outline(scan_id: str, index: int) -> Response:
    """Send the contour of the hemorrhage in one slice, an overlay for its image."""
    return outline_picture(_of_scan(scan_id, *OUTLINE), index)


@blueprint.get("/outline.nii.gz")
@login_required
def outline_file(scan_id: str) -> Response:
    """Send the outlined voxels of all slices as one file."""
    return mask_file(_of_scan(scan_id, *OUTLINE))


def picture(key: str | None, made_at: datetime | None = None) -> Response:
    """Return a stored PNG, or 404 if it is not ready yet; `made_at` distinguishes it from an
    earlier one under the same key.
    """
    if key is None:
        abort(404, "This image is not ready yet.")
    return private_response("image/png", f"{key} {made_at}", lambda: storage.get(key))


def slice_picture(volume_key: str | None, index: int, window: Window | None) -> Response:
    """Return a slice of a stored series as a PNG, or 404 if there is none."""
    if volume_key is None:
        abort(404, "This scan is not a series.")

    def drawn() -> bytes:
        try:
            return open_volume(volume_key).png(index, window)
        except IndexError:
            abort(404, "Slice not found in this series.")

    return private_response("image/png", f"{volume_key} {index} {window}", drawn)


def series_file(volume_key: str | None) -> Response:
    """Stream a stored series; 404 if there is none."""
    if volume_key is None:
        abort(404, "This scan is not a series.")
    return _stored_file(volume_key, volume_key, volume_key.rsplit("/", 1)[-1])


def outline_picture(stored: Row[Any], index: int) -> Response:
    """Return the contour in one slice as a PNG, or 404 if nothing is outlined; `stored` are the
    columns `OUTLINE` of the scan.
    """
    if stored.outline_key is None or index not in (stored.outlined_slices or ()):
        abort(404, NO_OUTLINE)

    def drawn() -> bytes:
        try:
            return contour(stored.outline_key, index)
        except IndexError:
            abort(404, NO_OUTLINE)

    name = f"{stored.outline_key} {stored.prediction_id} {index}"
    return private_response("image/png", name, drawn)


def mask_file(stored: Row[Any]) -> Response:
    """Stream the outlined voxels, or 404 if there are none; `stored` are the columns `OUTLINE` of
    the scan.
    """
    if stored.outline_key is None or not stored.outlined_slices:
        abort(404, "This scan has no outline.")
    own_id = stored.outline_key.rsplit("/", 1)[-1]
    name = f"{stored.outline_key} {stored.prediction_id}"
    return _stored_file(stored.outline_key, name, f"outline-{own_id}")


def _stored_file(key: str, name: str, file_name: str) -> Response:
    answer = private_response(
        "application/gzip", name, lambda: FileWrapper(storage.open(key), 2**16)
    )
    answer.headers.set("Content-Disposition", "attachment", filename=file_name)
    return answer


def heatmap_key(heatmap_id: str, index: int) -> str:
    """Return the storage key of the heat map of one slice of a series."""
    return f"heatmaps/{heatmap_id}.{index}.png"


def private_response(
    media: str, name: str, content: Callable[[], bytes | Iterable[bytes]]
) -> Response:
    """Return content that only the owner's browser may cache, revalidated on each use; `content` is
    called only if the browser has no current copy.

    `name` identifies the content: the content under a name never changes.
    """
    answer = Response(mimetype=media)
    answer.cache_control.private = True
    answer.cache_control.no_cache = True
    answer.headers["X-Content-Type-Options"] = "nosniff"
    tag = hashlib.sha256(name.encode()).hexdigest()[:32]
    answer.set_etag(tag)
    if not request.if_none_match.contains(tag):
        body = content()
        # No proxy may buffer a long file.
        answer.direct_passthrough = not isinstance(body, bytes)
        answer.response = [body] if isinstance(body, bytes) else body
    answer.make_conditional(request)
    return answer


def _of_scan(scan_id: str, *columns: ColumnElement[Any] | InstrumentedAttribute[Any]) -> Row[Any]:
    """Return columns of a scan that the current user may see; 404 for any other."""
    row = (
        is_id(scan_id)
        and db.session.execute(
            select(*columns)
            .select_from(Scan)
            .outerjoin(Scan.prediction)
            .outerjoin(Prediction.heatmap)
            .where(Scan.id == scan_id, visible_to(current_user.id))
        ).one_or_none()
    )
    if not row:
        abort(404, "Scan not found.")
    return row
