"""Scripts and style sheets are sent compressed, because NiiVue alone has 2.3 MB. Pages are not,
because their size would reveal their secrets to an eavesdropper (the BREACH attack).
"""

from __future__ import annotations

import gzip

from flask import Flask, Response, request

COMPRESSED = ("text/javascript", "application/javascript", "text/css", "image/svg+xml")
SMALLEST_BYTES = 2_000

_compressed: dict[str, bytes] = {}
"""Compressed content by ETag: a file may have any number of addresses, but only one ETag."""


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
    if not etag:
        return response
    response.direct_passthrough = False
    content = response.get_data()  # Even if it is in the cache, so that the file is closed.
    if etag not in _compressed:
        _compressed[etag] = gzip.compress(content, mtime=0)
    response.set_data(_compressed[etag])
    response.content_encoding = "gzip"
    response.set_etag(etag, weak=True)  # The bytes differ, but the content is the same.
    return response
