"""Scripts and style sheets come compressed to those who accept it; nothing else does."""

from __future__ import annotations

import gzip

import pytest
from flask import Flask

from webapp import compression

NIIVUE = "/static/vendor/niivue/niivue.umd.js"
ACCEPTS = {"Accept-Encoding": "br, gzip"}


def test_the_viewer_of_volumes_comes_compressed_and_is_asked_for_once(app: Flask) -> None:
    client = app.test_client()
    with client.get(NIIVUE) as plain:
        assert "Content-Encoding" not in plain.headers
        assert "Accept-Encoding" in plain.headers["Vary"]
        content = plain.data
    for _ in range(2):
        with client.get(NIIVUE, headers=ACCEPTS) as packed:
            assert packed.headers["Content-Encoding"] == "gzip"
            assert "Accept-Encoding" in packed.headers["Vary"]
            assert int(packed.headers["Content-Length"]) == len(packed.data) < len(content) / 2
            assert gzip.decompress(packed.data) == content
    known = {"If-None-Match": packed.headers["ETag"]}
    with client.get(NIIVUE, headers={**ACCEPTS, **known}) as again:
        assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize(
    "address", ["/login", "/static/series.jpg", "/static/phantoms/phantom-3.png", "/healthz"]
)
def test_pages_and_pictures_are_sent_as_they_are(app: Flask, address: str) -> None:
    with app.test_client().get(address, headers=ACCEPTS) as response:
        assert response.status_code == 200
        assert "Content-Encoding" not in response.headers


def test_a_file_is_held_once_however_its_address_is_written(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_compressed", {})
    for path in ("hemoscan.css", "vendor/../hemoscan.css", "nowhere/../hemoscan.css"):
        with app.test_client().get(f"/static/{path}", headers=ACCEPTS) as response:
            assert response.headers["Content-Encoding"] == "gzip"
    assert len(compression._compressed) == 1
