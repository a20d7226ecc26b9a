"""Python loads this module at the start of every process that has this folder on PYTHONPATH. That
is how faults get into a worker that has no hooks for them.

`CHAOS_CLOCK_S` sets the clock of the process ahead by that many seconds. `CHAOS_POISON_PX` kills
the process, as a crash in a decoder would, when it reads a PNG of that width in pixels.
`CHAOS_SLOW_S` makes it wait for that many seconds when it creates its first temporary folder, as on
a slow disk: jobs do so when they begin, and some end within milliseconds, too soon to be killed.
`CHAOS_POINTS` names a folder with files that say at which point to kill the process (`KillPoints`).
`CHAOS_CURVE` names a file: a training run that begins while it exists reports as many points as its
number says, and removes it.
`CHAOS_SHORT_FITS` makes the fits short that take most of the paper's experiment and of an import.

Imported inside functions: what it changes, which the process has not loaded yet.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
import threading
import time
from datetime import datetime as TrueDatetime  # noqa: N812 - a class
from typing import Any

FEW_TREES = 10
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


def wait_for_folder(by_s: float) -> None:
    """Make each process wait when it creates its first temporary folder."""
    waited = set[int]()

    def look(event: str, _: tuple[Any, ...]) -> None:
        if event == "tempfile.mkdtemp" and os.getpid() not in waited:
            waited.add(os.getpid())
            time.sleep(by_s)

    sys.addaudithook(look)


class KillPoints:
    """Kills this process when it reaches a point that a file in a folder names.

    A file holds a regular expression of a point: `commit` and a statement with its parameters, when
    the process is about to commit the transaction in which it was executed, when the files that
    belong to the change are therefore stored already; `open` or `os.remove` and a path, when it is
    about to open or remove that file. The process records its death in the folder `kills`. A file
    is removed before it takes effect, so that it kills one process, unless its name begins with
    "always".
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._looking = threading.local()

    def is_any(self) -> bool:
        """Return whether there is a point at all."""
        return any(entry.is_file() for entry in os.scandir(self._folder))

    def reach(self, what: str) -> None:
        """Kill this process if this is such a point."""
        if getattr(self._looking, "now", False):
            return
        self._looking.now = True
        try:
            for point in [entry for entry in os.scandir(self._folder) if entry.is_file()]:
                with open(point.path, encoding="utf-8") as file:
                    if not re.match(file.read(), what, re.DOTALL):
                        continue
                if not point.name.startswith("always"):
                    os.unlink(point.path)
                with open(f"{self._folder}/kills/{point.name}.{os.getpid()}", "wb"):
                    os.kill(os.getpid(), signal.SIGKILL)
        except FileNotFoundError:
            pass  # It killed another process, or is over.
        finally:
            self._looking.now = False

    def look_at_files(self) -> None:
        """Look for points at files, and for the import after which transactions can be watched."""

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "os.remove"):
                self.reach(f"{event} {arguments[0]}")
            elif event == "import" and arguments[0] == "worker.leases":
                self._look_at_transactions()

        sys.addaudithook(look)

    def _look_at_transactions(self) -> None:
        from sqlalchemy import event
        from sqlalchemy.engine import Connection, Engine

        if getattr(self, "_is_looking", False):
            return
        self._is_looking = True

        def executed(
            connection: Connection, _: Any, statement: str, parameters: Any, *__: Any
        ) -> None:
            if self.is_any():
                so_far = connection.info.setdefault("statements", [])
                so_far.append(f"commit {statement} {parameters!r}")

        def committed(connection: Connection) -> None:
            for statement in connection.info.pop("statements", ()):
                self.reach(statement)

        def rolled_back(connection: Connection) -> None:
            connection.info.pop("statements", None)

        event.listen(Engine, "before_cursor_execute", executed)
        event.listen(Engine, "commit", committed)
        event.listen(Engine, "rollback", rolled_back)


def report_points(path: str) -> None:
    """Have the next training run report as many points as the file says."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        # It is imported after the curves, which can be changed then.
        if event != "import" or arguments[0] != "worker.learning.training_log":
            return
        from ml.training.progress import Progress
        from worker.learning.training_curves import Curves

        begin = Curves.__init__

        def begin_with_points(curves: Curves, run_id: str) -> None:
            begin(curves, run_id)
            if not os.path.exists(path):
                return
            with open(path, encoding="utf-8") as file:
                points = int(file.read())
            os.unlink(path)
            for number in range(points):
                epoch = {"loss": 1.0, "validation_loss": 1.0, "epoch": 1 + number // 1000}
                curves.add(Progress("fold 1 of 1", number / points, None, epoch))

        Curves.__init__ = begin_with_points  # type: ignore[method-assign,assignment]

    sys.addaudithook(look)


def shorten_fits() -> None:
    """Show an autoencoder a few images only, and give a test of shortcuts a few trees."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" and arguments[0] == "ml.paper.grid":
            from ml.models import features

            features.PICTURES_TO_RECONSTRUCT = 1
        elif event == "import" and arguments[0] == "worker.learning.dataset_images":
            from ml.exploration import shortcuts

            shortcuts.TREES = FEW_TREES

    sys.addaudithook(look)


if "CHAOS_CLOCK_S" in os.environ:
    set_clock_ahead(float(os.environ["CHAOS_CLOCK_S"]))
if "CHAOS_POISON_PX" in os.environ:
    die_of_pictures(int(os.environ["CHAOS_POISON_PX"]))
if "CHAOS_SLOW_S" in os.environ:
    wait_for_folder(float(os.environ["CHAOS_SLOW_S"]))
if "CHAOS_POINTS" in os.environ:
    KillPoints(os.environ["CHAOS_POINTS"]).look_at_files()
if "CHAOS_CURVE" in os.environ:
    report_points(os.environ["CHAOS_CURVE"])
if "CHAOS_SHORT_FITS" in os.environ:
    shorten_fits()
