"""Decodes users' files in a child process with limits (`ml.decode`), so that a file that crashes
it, hangs or needs too much memory fails only its own scan.

Each worker process keeps one child, because starting one takes longer than most files take to
decode. The child is started for the first scan, inherits no secrets and no open files, and exits
when its worker does, because its standard input is closed then. The kernel confines it to its
folder, without access to the network and other processes (`ml.confinement`). `multiprocessing`
refuses to start a process inside a Celery child.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from flask import current_app

from ml.decode import PIXELS
from ml.errors import ImageError
from ml.scans.slices import Series, Slice
from webapp.config import PROJECT_ROOT
from worker.heartbeat import heartbeat

log = logging.getLogger(__name__)

BEYOND_LIMITS = (
    "The file could not be decoded within the limits on time and memory; it may be damaged or far"
    " too large."
)
ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV")
"""The environment variables that the child inherits; a malicious file must not get access to
others.
"""
GRACE_S = 10
"""The child kills itself this long after its time limit, in case its worker cannot."""


class BeyondLimits(ImageError):
    """A file needs more time or memory to decode than allowed, or the child died while decoding
    it.
    """

    def __init__(self) -> None:
        super().__init__(BEYOND_LIMITS)


class SlicesOfFile(Sequence[Slice]):
    """Slices whose pixels are read from a file on access; the file may be deleted once it is open.
    Modifying a slice does not change the file.
    """

    def __init__(
        self,
        file: Path,
        unit: Literal["hu", "display"],
        spacing_mm: Sequence[tuple[float, float] | None],
    ) -> None:
        # Read, not memory-mapped: the pages of a mapping would count as this process's memory.
        with file.open("rb") as opened:
            np.lib.format.read_magic(opened)
            self._shape, _, self._kind = np.lib.format.read_array_header_1_0(opened)
            self._start = opened.tell()
            self._descriptor = os.dup(opened.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._unit, self._spacing_mm = unit, spacing_mm

    def __len__(self) -> int:
        return int(self._shape[0])

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Slice, ...]: ...
    def __getitem__(self, index: int | slice) -> Slice | tuple[Slice, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        index = range(len(self))[index]
        height, width = self._shape[1:]
        size = height * width * self._kind.itemsize
        content = os.pread(self._descriptor, size, self._start + index * size)
        pixels = np.frombuffer(content, self._kind).reshape(height, width).astype(np.float32)
        spacing = self._spacing_mm[index]
        return Slice(pixels, self._unit, spacing and tuple(spacing))  # type: ignore[arg-type]


class Decoder:
    """A child process that decodes files. Must not be shared across a fork.

    Args:
        memory_mb: how much memory the child may allocate.
        limit_s: how many seconds a scan may take.
        folder: the folder in which it reads and writes.
    """

    def __init__(self, memory_mb: int, limit_s: int, folder: Path) -> None:
        self.memory_mb, self.limit_s, self.folder = memory_mb, limit_s, folder
        self._child: subprocess.Popen[bytes] | None = None
        self._opened = (0, 0)
        """Device and inode of the folder that the child may use: a new folder with the same name
        would be inaccessible to it.
        """

    def decode(
        self, paths: Sequence[Path], folder: Path, *, redact: bool = False, **limits: int
    ) -> Series:
        """Return the series in these files, blacked out around the head if `redact`; its slices are
        read from a file in `folder` (`SlicesOfFile`), which may be deleted afterwards.

        Raises:
            ImageError: they cannot be decoded, or not within the limits.
            OSError: the folder cannot be written to.
        """
        request = {
            "paths": [str(path) for path in paths],
            "folder": str(folder),
            "limit_s": self.limit_s + GRACE_S,
            "limits": limits,
            "redact": redact,
        }
        answer = self._ask(json.dumps(request).encode() + b"\n")
        if answer is None or answer.get("error", "") is None:
            raise BeyondLimits
        if "error" in answer:
            raise ImageError(answer["error"])
        if "full" in answer:
            raise OSError(answer["full"])
        return Series(
            SlicesOfFile(folder / PIXELS, answer["unit"], answer["spacing_mm"]),
            tuple(answer["warnings"]),
            answer["distance_mm"],
            tuple(answer["steps_mm"]),
        )

    def close(self) -> None:
        """Kill the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with suppress(BrokenPipeError):  # for a request that it never read
                    pipe.close()  # type: ignore[union-attr]
            self._child = None

    def _ask(self, request: bytes) -> dict[str, Any] | None:
        """Return the child's response; None if there was none in time, in which case the next
        request gets a new child.
        """
        status = self.folder.stat()
        opened = (status.st_dev, status.st_ino)
        child = self._child
        if child is None or child.poll() is not None or opened != self._opened:
            child = self._start()
            self._opened = opened
        answer = b""
        try:
            child.stdin.write(request)  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            answer = self._line_from(child)
        except BrokenPipeError:
            log.warning("the decoder had exited")
        except BaseException:
            self.close()  # Otherwise a late response would be taken for the next scan's.
            raise
        if not answer.endswith(b"\n"):
            self.close()
            log.warning("the decoder did not respond: status=%s", child.returncode)
            return None
        response: dict[str, Any] = json.loads(answer)
        return response

    def _line_from(self, child: subprocess.Popen[bytes]) -> bytes:
        """Return the child's next line, or its beginning if the child exited or ran out of time."""
        line, deadline = b"", time.monotonic() + self.limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            while not line.endswith(b"\n") and selector.select(deadline - time.monotonic()):
                if not (part := os.read(child.stdout.fileno(), 2**16)):  # type: ignore[union-attr]
                    break
                line += part
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        # A separate process group, so that a signal to the worker's group does not interrupt a
        # batch; a single thread, because each thread costs memory.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ml.decode", str(self.memory_mb), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT_ROOT,
            env={**known, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self._child


_decoder: Decoder | None = None


def decode(paths: Sequence[Path], *, redact: bool = False, **limits: int) -> Series:
    """Return the series in these files, decoded by this process's child.

    `limits` are those of `ml.scans.read.read_series`; `redact` blacks out everything around the
    head (`ml.preprocessing.redaction`).

    Raises:
        ImageError: they cannot be decoded, or not within the limits.
        OSError: the local disk cannot be written to.
    """
    global _decoder
    config, mine = current_app.config, heartbeat()
    if _decoder is None:
        _decoder = Decoder(config["DECODE_MEMORY_MB"], config["DECODE_S"], mine.folder)
    with mine.work_folder() as folder:
        return _decoder.decode(paths, folder, redact=redact, **limits)
