"""The processes of a run, which are restarted when they exit by themselves."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from typing import Any

import honcho.manager
from honcho.environ import parse_procfile
from honcho.printer import Message, Printer
from honcho.process import Process

from webapp.config import PROJECT_ROOT
from webapp.embedded.checks import say
from webapp.embedded.guard import STOP_S, Guard, signal_group

LOOK_S = 0.5
FIRST_S = 10
"""A process that exits with an error this soon after its first start cannot work; the run then
ends.
"""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Minimum and maximum wait before a process is restarted."""
MOST_THREADS = 4
LISTENER, TRAINER = "dicom-listen", "worker-train"
NEEDED_FIRST = ("web", "worker-predict")
"""What a first scan needs; the others start afterwards, because on two cores all of them would take
longer to start at once.
"""
LONGEST_READY_S = 15.0
INSTALL_AGAIN_S = 60
STOPPED_BY_SIGNAL = {entry["rc"] for entry in honcho.manager.SIGNALS.values()}


def commands(config: Mapping[str, Any], install_to_train: str = "") -> dict[str, str]:
    """Return the shell command of each process in the Procfile; the DICOM listener is included if
    anybody may send (`DICOM_PEERS`).

    Args:
        config: the application's configuration.
        install_to_train: a command that installs what the train worker needs, and succeeds at once
            if it is installed; it runs before the worker starts, and again if it fails.
    """
    lines: dict[str, str] = parse_procfile((PROJECT_ROOT / "Procfile").read_text()).processes
    shell = {
        name: f"exec {command}"
        for name, command in lines.items()
        if name != LISTENER or config["DICOM_PEERS"]
    }
    if install_to_train:
        # Only this user may read what the processes write, but others may run what is installed.
        first = f"until (umask 022; {install_to_train}); do sleep {INSTALL_AGAIN_S}; done"
        shell[TRAINER] = f"{first}; {shell[TRAINER]}"
    return shell


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

    Attributes:
        can_analyze: set once a predict worker is ready as well, or takes unusually long.
    """

    def __init__(self, url: str, login: str) -> None:
        self.url = url
        self.login = login or "Log in with your account."
        self.has_password_to_print = bool(login)
        self.can_analyze = threading.Event()

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

        deadline = time.monotonic() + LONGEST_READY_S
        while not self._can_analyze() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        self.can_analyze.set()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _can_analyze(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/readyz", timeout=5).close()
        except urllib.error.HTTPError as err:  # Not ready: the maintenance worker is missing too.
            with err:
                return bool(json.load(err)["checks"]["predict_worker"])
        except OSError:
            return False
        return True


class Processes(honcho.manager.Manager):
    """honcho's manager, with time for workers to return their work to the queue before they exit,
    and a thread for each process where honcho has a process.
    """

    def __init__(self, guard: Guard, greeting: Greeting) -> None:
        super().__init__(Printer(sys.stdout))
        self.events: queue.Queue[Message] = queue.Queue()
        self.greeting = greeting
        self.stopping = threading.Event()
        self._process_ctor = partial(
            RestartedProcess,
            guard=guard,
            others_may_start=greeting.can_analyze,
            stopping=self.stopping,
        )
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

    def _start(self) -> None:
        for name, entry in self._processes.items():
            threading.Thread(
                target=entry["obj"].run, args=[self.events], name=name, daemon=True
            ).start()


class RestartedProcess(Process):  # type: ignore[misc]
    """A process that is restarted when it exits by itself, and that takes its own children with
    it.
    """

    def __init__(
        self,
        *args: Any,
        guard: Guard,
        others_may_start: threading.Event,
        stopping: threading.Event,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.guard = guard
        self.others_may_start = others_may_start
        self.stopping = stopping

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Keep the process running and relay its output; honcho calls this in a thread."""
        wait_s, is_first = FIRST_WAIT_S, True
        if self.name not in NEEDED_FIRST:
            # Then it starts even if all are to stop: `terminate` waits until all have started.
            while not self.others_may_start.wait(LOOK_S) and not self.stopping.is_set():
                pass
        while True:
            began = time.monotonic()
            life = Life(self, events)
            threading.Thread(target=life.end_with_leader, daemon=True).start()
            super().run(life)
            lived_s = time.monotonic() - began
            self.guard.forget(self._child.pid)
            status: int = self._child.returncode
            if is_first and status >= 0 and lived_s < FIRST_S:  # It cannot work.
                self.stopping.set()
            if self.stopping.wait(wait_s):
                events.put(life.last_words)
                return
            self._events = events
            self._send_message(f"exited (status {status}) and is being restarted\n".encode())
            is_first = False
            wait_s = FIRST_WAIT_S if lived_s > LONGEST_WAIT_S else min(2 * wait_s, LONGEST_WAIT_S)


class Life:
    """The messages to honcho from one run of a process: all except its end, because it may be
    restarted.
    """

    def __init__(self, process: RestartedProcess, events: Any) -> None:
        self.events = events
        self.last_words: Message | None = None
        self._process = process
        self._is_begun = threading.Event()

    def put(self, message: Message) -> None:
        """Forward a message, unless it announces the end."""
        if message.type == "stop":
            self.last_words = message
            return
        if message.type == "start":
            self._process.guard.watch(message.data["pid"])
            self._is_begun.set()
        self.events.put(message)
        # All were asked to stop while this one was being started.
        if message.type == "start" and self._process.stopping.is_set():
            signal_group(message.data["pid"], signal.SIGTERM)

    def end_with_leader(self) -> None:
        """Kill what is left of the process group once its leader has exited; until then, its
        output would not end.
        """
        self._is_begun.wait()
        child: subprocess.Popen[bytes] = self._process._child
        child.wait()
        signal_group(child.pid, signal.SIGKILL)
