"""Scripts and style sheets are sent compressed: NiiVue has 2.3 MB. Pages are not, as their size
would tell a listener about the secrets in them (the BREACH attack).
"""

from __future__ import annotations

import gzip

from flask import Flask, Response, request

COMPRESSED = ("text/javascript", "application/javascript", "text/css", "image/svg+xml")
SMALLEST_BYTES = 2_000

_compressed: dict[str, tuple[str | None, bytes]] = {}
"""By address, of which there are few: the ETag of a file and its compressed content."""


def init_compression(app: Flask) -> None:
    """Compress static files for clients that accept it."""
    app.after_request(_compress)


def _compress(response: Response) -> Response:
    is_text = request.endpoint == "static" and response.mimetype in COMPRESSED
    if not is_text or response.status_code != 200:
        return response
    response.vary.add("Accept-Encoding")
    if (response.content_length or 0) < SMALLEST_BYTES or not request.accept_encodings["gzip"]:
        return response
    etag, _ = response.get_etag()
    response.direct_passthrough = False
    content = response.get_data()  # Also where it is known, so that the file is closed.
    if _compressed.get(request.path, ("", b""))[0] != etag:
        _compressed[request.path] = etag, gzip.compress(content, mtime=0)
    response.set_data(_compressed[request.path][1])
    response.content_encoding = "gzip"
    if etag:
        response.set_etag(etag, weak=True)  # The bytes differ, what they mean does not.
    return response
