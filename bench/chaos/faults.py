"""The faults, one function per kind. Each returns when the fault is over, with a note about its
effect.
"""

from __future__ import annotations

import http.client
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from bench.chaos.dicom import abort_association, fail_archive, kill_listener
from bench.chaos.servers import answers, held_still, pid_of
from bench.chaos.stack import LEASES_S, STACKS, STOP_S, Program, Stack
from bench.overload import archive_of_empty_segments, nifti_of_zeros
from bench.service import Refused, descendants, is_ready, seconds_until
from webapp import jobs

BROKER_BACK_S = 30
STORAGE_AWAY_S = (1.0, 8.0)  # Workers try again for 4.2 s, then hand back.
DISK_FULL_S = (1.0, 8.0)
"""A worker retries for 4.2 s (`worker.retries`), then postpones the scan."""
SLOW_SOCKETS, SLOW_S = 60, (3.0, 6.0)
CHEAP_UPLOADS = 6
HEALTHY_S = 5.0
"""A health check that takes longer fails the test; on an idle machine it takes milliseconds."""
FULL_DISK_BYTES = 20_000
"""Maximum file size, so that writing an image fails halfway."""
NOTHING_LIMITED = "which had no running process, so nothing was limited"
DECODER = "-m ml.decode "

Inject = Callable[[Stack, random.Random], str]


@dataclass(frozen=True)
class Kind:
    """A kind of fault, the resource that it locks (so that no two simultaneous faults share it),
    and the stacks that support it.
    """

    inject: Inject
    holds: str = ""
    stacks: tuple[str, ...] = STACKS


@dataclass
class Fault:
    """One fault, with start and end (seconds since 1970) and its effect."""

    kind: str
    began: float = 0.0
    ended: float = 0.0
    met: str = ""


@dataclass
class Injector:
    """Injects faults into a stack, each in its own thread so that they overlap, and reports each
    when it is over.
    """

    stack: Stack
    began: float = field(default_factory=time.time)
    faults: list[Fault] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _held: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def begin(self, kind: str, rng: random.Random) -> None:
        """Start a fault and return immediately."""
        fault = Fault(kind)
        self.faults.append(fault)
        thread = threading.Thread(target=self._carry_out, args=(fault, rng), name=kind, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Wait until all are over."""
        for thread in self._threads:
            thread.join()

    def _carry_out(self, fault: Fault, rng: random.Random) -> None:
        kind = KINDS[fault.kind]
        with self._held[kind.holds or fault.kind]:
            fault.began = time.time()
            try:
                fault.met = kind.inject(self.stack, rng)
            except Exception as err:  # noqa: BLE001 - a fault that could not be injected is reported at the end.
                self.errors.append(f"{fault.kind}: {type(err).__name__}: {err}")
            fault.ended = time.time()
            sys.stdout.write(
                f"{fault.began - self.began:7.1f} s  {fault.kind}{fault.met and f': {fault.met}'}\n"
            )
            sys.stdout.flush()


def schedule(kind_of_stack: str, count: int, rng: random.Random) -> list[str]:
    """Return `count` kinds of fault in random order with about equal frequency."""
    possible = [name for name, kind in KINDS.items() if kind_of_stack in kind.stacks]
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(possible, len(possible))
    return drawn[:count]


def kill_worker(stack: Stack, rng: random.Random) -> str:
    """SIGKILL to a worker's parent, to its children, or to all, as in a machine failure; the
    maintenance worker has no children.
    """
    name, to = rng.choice(VICTIMS), rng.choice(("parent", "children", "all"))
    to = "all" if name == "beat" else to
    stack.programs[name].send(signal.SIGKILL, to)
    return f"{name}, {to}"


def pause_worker(stack: Stack, rng: random.Random) -> str:
    """SIGSTOP, and SIGCONT after others have taken over."""
    name = rng.choice(VICTIMS)
    stack.programs[name].send(signal.SIGSTOP, "all")
    time.sleep(LEASES_S["LEASE_S"] + rng.uniform(1, 3))
    stack.programs[name].send(signal.SIGCONT, "all")
    return name


def ask_worker_to_stop(stack: Stack, rng: random.Random) -> str:
    """SIGTERM, then SIGKILL after the grace period of docker-compose.yml."""
    name = rng.choice(("worker-train", *VICTIMS))
    program = stack.programs[name]
    starts, deadline = program.starts, time.monotonic() + STOP_S
    program.send(signal.SIGTERM)
    while program.starts == starts:
        if time.monotonic() > deadline:
            program.send(signal.SIGKILL, "all")
            return f"{name}, which did not end within {STOP_S} s"
        time.sleep(0.05)
    return name


def kill_web(stack: Stack, rng: random.Random) -> str:
    """SIGKILL to the web process, possibly between a file and its row."""
    stack.programs["web"].send(signal.SIGKILL, "all")
    return ""


def restart_broker(stack: Stack, rng: random.Random) -> str:
    """Stop the broker and start it again at once; its queue is lost."""
    stack.broker.stop()
    stack.broker.start()
    return ""


def take_broker_away(stack: Stack, rng: random.Random) -> str:
    """Connections are refused for a while."""
    stack.broker.stop()
    time.sleep(rng.uniform(3, 6))
    stack.broker.start()
    return ""


def hang_broker(stack: Stack, rng: random.Random) -> str:
    """Connections are accepted, but not answered."""
    held_still(pid_of(stack.broker), rng.uniform(3, 6))
    return ""


def flush_broker(stack: Stack, rng: random.Random) -> str:
    """All its data are lost."""
    with stack.broker.client() as client:
        client.flushall()
    return ""


def drop_nudges(stack: Stack, rng: random.Random) -> str:
    """For two seconds every queued message is dropped."""
    dropped = 0
    until = time.monotonic() + 2
    with stack.broker.client() as client:
        while time.monotonic() < until:
            for queue in jobs.QUEUES:
                try:
                    dropped += len(client.lpop(queue, 1000) or [])
                except redis.RedisError:
                    continue  # Another fault is affecting the broker.
            time.sleep(0.02)
    return f"{dropped} dropped"


def double_nudges(stack: Stack, rng: random.Random) -> str:
    """Every kind of nudge is sent ten more times."""
    with stack.app.app_context():
        sent = sum(jobs.nudge(task) for task in jobs.QUEUE_OF_TASK for _ in range(10))
    return f"{sent} sent"


def restart_database(stack: Stack, rng: random.Random) -> str:
    """PostgreSQL is stopped, cleanly or by a crash, and is down for up to three seconds."""
    if stack.database is None:
        raise RuntimeError("An embedded database cannot be restarted.")
    crash = rng.random() < 0.5
    stack.database.stop(crash=crash)
    time.sleep(rng.uniform(0, 3))
    stack.database.start()
    return "crash" if crash else "in order"


def take_storage_away(stack: Stack, rng: random.Random) -> str:
    """The storage folder is missing, like an unmounted network folder."""
    point_files_to(stack, stack.folder / "nowhere")
    time.sleep(rng.uniform(*STORAGE_AWAY_S))
    point_files_to(stack, stack.volume)
    return ""


def fill_disk(stack: Stack, rng: random.Random) -> str:
    """A worker's writes fail halfway (a file size limit simulates a full disk; it also applies to
    root).
    """
    name = rng.choice(("worker-predict", "worker-predict-2"))
    return f"{name}{fill_disk_of(stack.programs[name], rng.uniform(*DISK_FULL_S))}"


def fill_disk_of_web(stack: Stack, rng: random.Random) -> str:
    """The same for the web process: it refuses uploads while they wait for their response."""
    return f"web{fill_disk_of(stack.programs['web'], rng.uniform(*DISK_FULL_S))}"


def kill_broker(stack: Stack, rng: random.Random) -> str:
    """SIGKILL to the broker, with damaged files of its own left behind."""
    folder = stack.home / "broker"
    if folder.is_dir():
        (folder / "dump.rdb").write_bytes(b"REDIS0011 half of what it was")
    killed = pid_of(stack.broker)
    os.kill(killed, signal.SIGKILL)
    if stack.broker.url is not None:  # The embedded one is started again by its own keeper.
        stack.broker.stop()
        stack.broker.start()
    seconds_until(lambda: answers(stack.broker) and pid_of(stack.broker) != killed, BROKER_BACK_S)
    return ""


def open_slow_sockets(stack: Stack, rng: random.Random) -> str:
    """Open sockets that send half a header, or half an upload, and then nothing."""
    half = (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        b"POST /api/v1/scans HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nhalf",
    )
    with ExitStack() as sockets:
        for number in range(SLOW_SOCKETS):
            with suppress(OSError):  # The web process is being killed.
                sock = socket.create_connection(("127.0.0.1", stack.port), timeout=5)
                sockets.enter_context(sock).sendall(half[number % 2])
        waited = slowest_answers(stack, rng.uniform(*SLOW_S))
    return f"{SLOW_SOCKETS} sockets, {waited}"


def send_cheap_bytes(stack: Stack, rng: random.Random) -> str:
    """Upload files of a few bytes that are expensive to process: archives of JPEGs with thousands
    of empty segments, and a compressed NIfTI file, half of which is missing so that it does not
    become a scan.
    """
    packed = nifti_of_zeros()
    cheap = {"cheap.zip": archive_of_empty_segments(), "cheap.nii.gz": packed[: len(packed) // 2]}

    def send(name: str) -> None:
        with suppress(Refused, OSError, http.client.HTTPException):
            stack.client().upload(name, cheap[name])

    names = [name for name in cheap for _ in range(CHEAP_UPLOADS // len(cheap))]
    senders = [threading.Thread(target=send, args=(name,), daemon=True) for name in names]
    for sender in senders:
        sender.start()
    waited = slowest_answers(stack, SLOW_S[0])
    for sender in senders:
        sender.join(HEALTHY_S)
    sizes = " and ".join(f"{len(content)}" for content in cheap.values())
    return f"{CHEAP_UPLOADS} uploads of {sizes} bytes, {waited}"


def slowest_answers(stack: Stack, for_s: float) -> str:
    """Return how long the slowest health check and the slowest page took; requests that another
    fault cut off do not count.

    Raises:
        RuntimeError: a health check took too long.
    """
    slowest_s, until = dict.fromkeys(("/healthz", "/login"), 0.0), time.monotonic() + for_s
    while time.monotonic() < until:
        for path in slowest_s:
            began = time.monotonic()
            if is_ready(stack.port, path):
                slowest_s[path] = max(slowest_s[path], time.monotonic() - began)
        time.sleep(0.1)
    if slowest_s["/healthz"] > HEALTHY_S:
        raise RuntimeError(f"a health check took {slowest_s['/healthz']:.1f} s")
    return (
        f"health checks answered within {slowest_s['/healthz']:.2f} s, pages within"
        f" {slowest_s['/login']:.2f} s"
    )


def fill_disk_of(program: Program, for_s: float) -> str:
    """Limit the size of a program's files for a while; return a note if it was not running."""
    limited = limit_files(program.pid, FULL_DISK_BYTES)
    time.sleep(for_s)
    limit_files(program.pid, resource.RLIM_INFINITY)
    return "" if limited else f", {NOTHING_LIMITED}"


def limit_files(root_pid: int, size: int) -> int:
    """Limit the file size for a process and its children; the parent first, so that new children
    inherit it. Return how many processes were limited.

    Raises:
        PermissionError: one of them, other than a confined decoder, cannot be limited.
    """
    limited = 0
    below = descendants(root_pid) if root_pid else {}
    for pid, command in sorted(below.items(), key=lambda each: each[0] != root_pid):
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        except ProcessLookupError:
            continue  # It has ended.
        except PermissionError:
            # A decoder's own limit applies; its namespace keeps others from changing it.
            if DECODER not in command:
                raise
        else:
            limited += 1
    return limited


def point_files_to(stack: Stack, target: Path) -> None:
    """Switch the storage's folder atomically."""
    fresh = stack.home / "files.new"
    fresh.symlink_to(target)
    os.replace(fresh, stack.files)


VICTIMS = ("worker-predict", "worker-predict-2", "beat")
"""The train worker is killed by `bench.chaos.trainings` only, each time after a new checkpoint,
because other deaths count against a run.
"""

KINDS = {
    "worker killed": Kind(kill_worker),
    "worker paused for longer than its lease": Kind(pause_worker),
    "worker asked to stop": Kind(ask_worker_to_stop),
    "web process killed": Kind(kill_web),
    "broker restarted": Kind(restart_broker, "broker"),
    "broker unavailable": Kind(take_broker_away, "broker"),
    "broker hanging": Kind(hang_broker, "broker"),
    "broker flushed": Kind(flush_broker, "broker"),
    "nudges dropped": Kind(drop_nudges),
    "nudges repeated": Kind(double_nudges),
    "database restarted": Kind(restart_database, "database", ("postgres",)),
    "storage unavailable": Kind(take_storage_away, "storage"),
    "disk full": Kind(fill_disk, "storage"),
    "disk of the web process full": Kind(fill_disk_of_web),
    "broker killed": Kind(kill_broker, "broker"),
    "slow sockets": Kind(open_slow_sockets),
    "small expensive uploads": Kind(send_cheap_bytes),
    "listener killed": Kind(kill_listener),
    "association aborted": Kind(abort_association),
    "archive down": Kind(fail_archive("down"), "archive"),
    "archive slow": Kind(fail_archive("slow"), "archive"),
    "archive refusing": Kind(fail_archive("refuses"), "archive"),
    "archive cut off midway": Kind(fail_archive("cuts in the middle"), "archive"),
}
