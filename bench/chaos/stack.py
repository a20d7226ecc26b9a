"""Hemoscan in the chaos test: the Procfile's processes on separate servers, and a supervisor that
restarts those that die.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from honcho.environ import parse_procfile
from sqlalchemy.exc import InterfaceError, OperationalError

from bench.chaos.neighbors import OWNER, Neighbors
from bench.chaos.servers import Broker, Embedded, Postgres, Redis
from bench.service import Client, descendants, free_port, is_ready, seconds_until
from webapp import create_app
from webapp.config import PROJECT_ROOT
from webapp.extensions import db, reads_only
from webapp.models import Scope

STACKS = ("postgres", "embedded")
LEASES_S = {"LEASE_S": 5, "HEARTBEAT_S": 1, "SWEEP_S": 1}
TRAIN_LEASE_S = 20
"""Loading TensorFlow blocks a process for seconds on a slow machine; its worker must not be
considered dead.
"""
TRAIN_SLOW_S = 0.5
"""Jobs of the train worker that take milliseconds take longer by this, so that they can be
killed.
"""
READY_S, STOP_S, RESTART_AFTER_S = 120, 30, 0.5
POISON_PX = 251
INSIDE = Path(__file__).resolve().parent / "inside"

Item = TypeVar("Item")


class Program:
    """A line of the Procfile as the leader of its own process group; `starts` counts its starts."""

    def __init__(self, name: str, command: str, environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.starts = 0
        self._command = command
        self._environ = environ
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process of the Procfile's command."""
        return self._process.pid if self._process else 0

    def keep_alive(self) -> None:
        """Start it unless it is running; processes left by an earlier one are terminated first, as
        in systemd and containers.
        """
        with self._lock:
            if self._process is not None:
                if self._process.poll() is None:
                    return
                self._signal_group(signal.SIGKILL)
                time.sleep(RESTART_AFTER_S)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", f"exec {self._command}"],
                    cwd=PROJECT_ROOT,
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.starts += 1

    def send(self, number: signal.Signals, to: str = "parent") -> None:
        """Send a signal to "parent", "children", or "all"; ignored if the process has ended."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return
            if to == "all":
                self._signal_group(number)
                return
            for pid in (
                [self.pid]
                if to == "parent"
                else [pid for pid in descendants(self.pid) if pid != self.pid]
            ):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def stop(self) -> bool:
        """Terminate it; return False if that took too long and it was killed."""
        self.send(signal.SIGTERM)
        try:
            if self._process is not None:
                self._process.wait(STOP_S)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self._signal_group(signal.SIGKILL)
            if self._process is not None:
                self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


class Stack:
    """An installation of Hemoscan in `folder`; `app` is the application in this process, for
    reading rows.
    """

    def __init__(self, kind: str, folder: Path, rng: random.Random) -> None:
        """Raises NotInstalled."""
        self.kind = kind
        self.folder = folder
        self.home = folder / "home"
        self.volume = folder / "volume"
        self.points = folder / "points"
        self.curve = folder / "curve"
        for its in (self.home, self.volume, self.points, self.points / "kills"):
            its.mkdir()
        # So that the storage can be removed and restored atomically.
        self.files.symlink_to(self.volume)
        self.database = Postgres(folder) if kind == "postgres" else None
        self.broker: Broker = Redis(folder) if kind == "postgres" else Embedded(self.home)
        self.clock_s = rng.choice((-60, 60))
        self.port = free_port()
        self.neighbors = Neighbors()
        settings = {
            **self.neighbors.settings,
            "HEMOSCAN_HOME": str(self.home),
            **{name: str(value) for name, value in LEASES_S.items()},
            "CHECKPOINT_S": "0",
        }
        if self.database:
            settings |= {
                "DATABASE_URL": self.database.url,
                "BROKER_URL": str(self.broker.url),
                "SECRET_KEY": uuid.uuid4().hex,
            }
            settings |= {"STORAGE_URL": f"file://{self.files}"}
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.endswith("_URL") and name != "SECRET_KEY"
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._environ = {
            **inherited,
            **settings,
            "PATH": path,
            "PORT": str(self.port),
            "WEB_PROCESSES": "1",
        }
        self.programs = self._programs()
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.app = create_app(settings)
        self.token = ""

    @property
    def files(self) -> Path:
        """The configured folder of the storage."""
        return self.home / "files"

    def _programs(self) -> dict[str, Program]:
        lines = parse_procfile((PROJECT_ROOT / "Procfile").read_text()).processes
        lines["worker-predict-2"] = lines["worker-predict"].replace("predict@", "predict-2@")
        paths = filter(None, (str(INSIDE), os.environ.get("PYTHONPATH")))
        inside = {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_POINTS": str(self.points)}
        poisoned = {**inside, "CHAOS_POISON_PX": str(POISON_PX)}
        extra = {
            "worker-predict": poisoned,
            "worker-predict-2": {**poisoned, "CHAOS_CLOCK_S": str(self.clock_s)},
            "worker-train": {
                **inside,
                "LEASE_S": str(TRAIN_LEASE_S),
                "CHAOS_SLOW_S": str(TRAIN_SLOW_S),
                "CHAOS_CURVE": str(self.curve),
                "CHAOS_SHORT_FITS": "1",
            },
            "beat": inside,
        }
        return {
            name: Program(
                name, command, {**self._environ, **extra.get(name, {})}, self.folder / f"{name}.log"
            )
            for name, command in lines.items()
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start everything and wait until it is ready; stop everything at the end."""
        try:
            if self.database:
                self.database.start()
            self.broker.start()
            self.flask("setup")
            self.flask("create-admin", OWNER)
            scopes = [f"--scope={scope.value}" for scope in Scope]
            self.token = self.flask("create-token", OWNER, *scopes).splitlines()[-1]
            self.neighbors.start()
            self._supervisor.start()
            seconds_until(lambda: is_ready(self.port), READY_S)
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for program in self.programs.values():
            program.send(signal.SIGCONT, "all")
            program.send(signal.SIGTERM)
        for program in self.programs.values():
            program.stop()
        with self.app.app_context():
            db.session.remove()
            db.engine.dispose()
        self.neighbors.stop()
        self.broker.stop()
        if self.database:
            self.database.stop()

    def _supervise(self) -> None:
        while not self._over.wait(0.1):
            for program in self.programs.values():
                program.keep_alive()

    def flask(self, *arguments: str) -> str:
        """Run a command of `flask --app webapp` and return what it prints."""
        command = [sys.executable, "-m", "flask", "--app", "webapp", *arguments]
        environ = {**self._environ, "HEMOSCAN_PASSWORD": uuid.uuid4().hex}
        return subprocess.run(
            command, cwd=PROJECT_ROOT, env=environ, check=True, capture_output=True, text=True
        ).stdout

    def client(self) -> Client:
        """Return a connection to the API."""
        return Client(self.port, self.token)

    def ask(self, look: Callable[[], Item]) -> Item | None:
        """Return the result of `look` on the database, None if it is down."""
        with self.app.app_context():
            token = reads_only.set(True)
            try:
                return look()
            except (OperationalError, InterfaceError):
                return None
            finally:
                with suppress(OperationalError, InterfaceError):
                    db.session.rollback()
                reads_only.reset(token)

    def leftovers(self) -> list[str]:
        """Return the command lines of processes that still use this folder."""
        commands = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if (
                    entry.name.isdigit()
                    and f"HEMOSCAN_HOME={self.home}\0".encode()
                    in (entry / "environ").read_bytes() + b"\0"
                ):
                    commands.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return commands
