"""Stops the processes of a run that was killed and could not do so itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from webapp.embedded.checks import is_alive
from webapp.embedded.valkey import shut_down

STOP_S = 15
"""Time for a training run to save and return to the queue; processes that take longer are
killed.
"""
LOOK_S = 0.2


class Guard:
    """Tells the guarding process which process groups belong to this run.

    Args:
        writer: a pipe to the guarding process, which closes when this process exits for any reason.
    """

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def watch(self, pid: int) -> None:
        """Have the process group of `pid` stopped if this run is killed."""
        self._say(b"+%d\n" % pid)

    def forget(self, pid: int) -> None:
        """Note that the process group of `pid` has ended."""
        self._say(b"-%d\n" % pid)

    def _say(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # Somebody killed the guarding process; the run goes on.
            os.write(self._writer, line)


@contextmanager
def guard(own_broker: Path | None) -> Iterator[Guard]:
    """Fork a process that waits until this one exits, even by SIGKILL, and then stops its process
    groups and its broker.

    The forked process also holds the lock on the run's folder until all of them have ended. Must be
    called before this process has threads.

    Args:
        own_broker: the socket of the embedded broker, if there is one.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            _wait_and_stop(reader, own_broker)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield Guard(writer)
    finally:
        os.close(writer)
        os.kill(pid, signal.SIGCONT)  # Somebody may have paused it.
        os.waitpid(pid, 0)


def _wait_and_stop(reader: int, own_broker: Path | None) -> None:
    """Read which groups start and end until the run exits, then stop those that are left."""
    os.setsid()  # Ctrl-C in the terminal must not end this process.
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(caught, signal.SIG_IGN)
    groups: set[int] = set()
    with open(reader, "rb") as lines:
        for line in lines:
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    _stop(groups)
    if own_broker:
        shut_down(own_broker)


def _stop(groups: Collection[int]) -> None:
    for group in groups:
        signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while any(map(is_alive, groups)) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    for group in groups:
        signal_group(group, signal.SIGKILL)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if there still is one."""
    # macOS raises EPERM for a process group of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
