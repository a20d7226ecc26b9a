"""What must hold before `make run` can start: a folder and a port that nobody else uses."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 30  # The processes of a run that was killed notice it and exit within this time.


class CannotStart(RuntimeError):
    """`make run` cannot start; the message says why."""


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
    """Return whether a process with that id runs. One that was killed and that its parent has not
    waited for does not; in a container that may never happen.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:  # It has just ended, or this system has no such file.
        return not Path("/proc/self/stat").exists()
    return status.rpartition(")")[2].split()[0] != "Z"


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
