"""Python loads this module at the start of every process that has this folder on PYTHONPATH. That
is how faults get into a worker that has no hooks for them.

`CHAOS_CLOCK_S` sets the clock of the process ahead by that many seconds. `CHAOS_POISON_PX` kills
the process, as a crash in a decoder would, when it reads a PNG of that width in pixels.
`CHAOS_SLOW_S` makes it wait for that many seconds whenever it creates a temporary folder, as on a
slow disk: jobs do so when they begin, and some end within milliseconds, too soon to be killed.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import threading
import time
from datetime import datetime as TrueDatetime  # noqa: N812 - a class
from typing import Any

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def set_clock_ahead(by_s: float) -> None:
    """Make `time.time` and `datetime.now` return a different time; compiled C code keeps the true
    one.
    """
    true_time, true_time_ns = time.time, time.time_ns

    class AnyDatetime(type):
        """A datetime created by C code passes isinstance checks against this class."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, TrueDatetime)

    class Datetime(TrueDatetime, metaclass=AnyDatetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return TrueDatetime.now(tz) + datetime.timedelta(seconds=by_s)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: true_time() + by_s
    time.time_ns = lambda: true_time_ns() + int(by_s * 1e9)
    datetime.datetime = Datetime  # type: ignore[misc]


def die_of_pictures(width_px: int) -> None:
    """Kill this process when it opens a PNG of that width for reading."""
    looking = threading.local()

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or getattr(looking, "now", False):
            return
        path, mode = str(arguments[0]), arguments[1]  # The mode is FileIO's, which knows no "b".
        if mode != "r" or not path.endswith((".png", "/original")):
            return
        looking.now = True
        try:
            with open(path, "rb") as picture:
                head = picture.read(24)
        except OSError:
            return  # Opening it will fail with the error.
        finally:
            looking.now = False
        if head.startswith(PNG_SIGNATURE) and int.from_bytes(head[16:20], "big") == width_px:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def wait_for_folders(by_s: float) -> None:
    """Make this process wait whenever it creates a temporary folder."""

    def look(event: str, _: tuple[Any, ...]) -> None:
        if event == "tempfile.mkdtemp":
            time.sleep(by_s)

    sys.addaudithook(look)


if "CHAOS_CLOCK_S" in os.environ:
    set_clock_ahead(float(os.environ["CHAOS_CLOCK_S"]))
if "CHAOS_POISON_PX" in os.environ:
    die_of_pictures(int(os.environ["CHAOS_POISON_PX"]))
if "CHAOS_SLOW_S" in os.environ:
    wait_for_folders(float(os.environ["CHAOS_SLOW_S"]))
