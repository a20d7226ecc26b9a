"""Temporary storage of uploads during a request: one folder on this machine, accessible to its
owner only.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import IO, cast

import flask
from flask import current_app

from webapp.space import as_storage_full, require_space

HELD_IN_MEMORY = 500_000


class Request(flask.Request):
    """A request whose files are spooled to that folder. They have no name there, so they disappear
    with the process, however it ends; they are closed with the request, even if the form could not
    be parsed.

    A file that would leave too little free space, or that fills the disk, is refused with a
    `StorageFull`, whoever reads the form first.
    """

    def _load_form_data(self) -> None:
        try:
            with as_storage_full():
                super()._load_form_data()
        except BaseException:
            self._close_spooled()
            raise

    def close(self) -> None:
        """Close the files; Flask calls this at the end of every request."""
        self._close_spooled()

    @cached_property
    def _spooled(self) -> ExitStack:
        return ExitStack()

    def _close_spooled(self) -> None:
        with suppress(OSError):  # Closing a file flushes its buffer, which fails on a full disk.
            self._spooled.close()

    def spooled_file(self) -> IO[bytes]:
        """Return a new file for a part of a body that is not a form.

        Raises:
            StorageFull: the body would leave too little free space.
        """
        return self._get_file_stream(self.content_length, None)

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        require_space(total_content_length or 0)
        folder = str(incoming_folder())
        if total_content_length is None or total_content_length > HELD_IN_MEMORY:
            stream = self._spooled.enter_context(TemporaryFile("rb+", dir=folder))  # noqa: SIM115
            return cast(IO[bytes], stream)
        in_memory = SpooledTemporaryFile(HELD_IN_MEMORY, "rb+", dir=folder)  # noqa: SIM115
        return cast(IO[bytes], self._spooled.enter_context(in_memory))


def incoming_folder() -> Path:
    """Return the folder, which is created if it is missing."""
    incoming = Path(current_app.config["INCOMING_DIR"])
    incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
    return incoming


def empty_incoming(folder: Path) -> None:
    """Remove the leftovers of a killed server; called when a server starts, before any request."""
    for left in folder.glob("*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
