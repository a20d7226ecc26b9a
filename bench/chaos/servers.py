"""PostgreSQL and Redis servers of this run, on free ports; other servers are not touched."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis

from bench.service import free_port, seconds_until
from webapp.config import socket_path
from webapp.embedded.valkey import broker

START_S = 60


class NotInstalled(RuntimeError):
    """A required program is not installed; the text names it."""


class Broker(Protocol):
    """A Redis-compatible server that can be stopped and restarted."""

    url: str | None
    """The value of `BROKER_URL`; None for the embedded default."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def client(self) -> redis.Redis: ...


class Server:
    """A server program in the foreground, as a child process."""

    def __init__(self, log: Path, ready: Callable[[], bool]) -> None:
        self.log = log
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self, command: list[str], **options: Any) -> None:
        """Start it and return when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        seconds_until(self._ready, START_S)

    def end(self, by: signal.Signals) -> None:
        """Send the signal and wait for its end."""
        if self._process is None:
            return
        self._process.send_signal(by)
        try:
            self._process.wait(START_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process = None


class Postgres:
    """A PostgreSQL cluster; owned by an unprivileged user if we are root, since PostgreSQL refuses
    to run as root.
    """

    def __init__(self, folder: Path) -> None:
        """Raises NotInstalled."""
        self._data = folder / "postgres"
        self._port = free_port()
        self.url = f"postgresql://hemoscan@127.0.0.1:{self._port}/postgres"
        self._programs = postgres_programs()
        self._as_user = unprivileged_user() if os.getuid() == 0 else {}
        self._server = Server(folder / "postgres.log", self._answers)
        self._data.mkdir(mode=0o700)
        if self._as_user:
            shutil.chown(self._data, self._as_user["user"], self._as_user["group"])
        initdb = [
            str(self._programs / "initdb"),
            "--auth=trust",
            "--username=hemoscan",
            "--encoding=UTF8",
            "--pgdata",
            str(self._data),
        ]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **self._as_user)

    def start(self) -> None:
        """Start it and return when it answers."""
        options = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._data,
        }
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        self._server.launch(
            [
                *command,
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ],
            cwd=self._data,
            **self._as_user,
        )

    def stop(self, *, crash: bool = False) -> None:
        """Stop it; after a crash, the next start performs recovery."""
        self._server.end(signal.SIGQUIT if crash else signal.SIGINT)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


class Redis:
    """A Redis server that does not persist data across restarts, as in `docker-compose.yml`."""

    def __init__(self, folder: Path) -> None:
        """Raises NotInstalled."""
        installed = shutil.which("redis-server")
        if installed is None:
            raise NotInstalled("redis-server")
        port = free_port()
        self.url: str | None = f"redis://127.0.0.1:{port}/0"
        keep = ["--appendonly", "no", "--save", "", "--dir", str(folder)]
        self._command = [installed, "--port", str(port), "--bind", "127.0.0.1", *keep]
        self._server = Server(folder / "redis.log", lambda: answers(self))

    def start(self) -> None:
        """Start it and return when it answers."""
        self._server.launch(self._command)

    def stop(self) -> None:
        """Stop it."""
        self._server.end(signal.SIGTERM)

    def client(self) -> redis.Redis:
        """Return a new connection."""
        return redis.Redis.from_url(str(self.url), socket_timeout=5)


class Embedded:
    """The broker of `make run`, started by the same code."""

    url: str | None = None

    def __init__(self, home: Path) -> None:
        self._folder, self._socket = home / "broker", socket_path(home)
        self._running = ExitStack()

    def start(self) -> None:
        """Start it and return when it answers."""
        self._running.enter_context(broker(self._folder, self._socket))

    def stop(self) -> None:
        """Stop it."""
        self._running.close()

    def client(self) -> redis.Redis:
        """Return a new connection."""
        return redis.Redis(unix_socket_path=str(self._socket), socket_timeout=5)


def answers(server: Broker) -> bool:
    """Return whether the broker responds."""
    with suppress(redis.RedisError), server.client() as client:
        return bool(client.ping())
    return False


def pid_of(server: Broker) -> int:
    """Return the broker's process."""
    with server.client() as client:
        return int(client.info("server")["process_id"])


def held_still(pid: int, for_s: float) -> None:
    """Suspend a process, so that connections to it are accepted but not answered."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(for_s)
    finally:
        os.kill(pid, signal.SIGCONT)


def postgres_programs() -> Path:
    """Return the folder of the newest installed PostgreSQL programs.

    Raises:
        NotInstalled: there is none.
    """
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])
    )
    on_path = shutil.which("postgres")
    if installed or on_path:
        return installed[-1].parent if installed else Path(str(on_path)).parent
    raise NotInstalled("PostgreSQL")


def unprivileged_user() -> dict[str, Any]:
    """Return `subprocess` arguments to run a program as the user postgres, or as nobody."""
    names = {entry.pw_name: entry.pw_gid for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in names else "nobody"
    return {"user": name, "group": names[name], "extra_groups": []}
