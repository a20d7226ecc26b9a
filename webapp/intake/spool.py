"""Where the bytes of uploads wait while a request is answered: one folder of this machine, for its
owner only.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import IO, cast

import flask
from flask import current_app

HELD_IN_MEMORY = 500_000


class Request(flask.Request):
    """A request whose files are spooled to that folder; they have no name there, so they go with
    the process, however it ends.
    """

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        if total_content_length is None or total_content_length > HELD_IN_MEMORY:
            return cast(IO[bytes], TemporaryFile("rb+", dir=incoming_folder()))
        return cast(
            IO[bytes], SpooledTemporaryFile(HELD_IN_MEMORY, "rb+", dir=str(incoming_folder()))
        )


def incoming_folder() -> Path:
    """Return the folder, which is made where it is missing."""
    incoming = Path(current_app.config["HEMOSCAN_HOME"]) / "incoming"
    incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
    return incoming


def empty_incoming(home: Path) -> None:
    """Remove what a web server that was killed left there; for the start of a server, before any
    request.
    """
    for left in (home / "incoming").glob("*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
