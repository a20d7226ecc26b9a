"""Benchmark of the start of `make run` and of its memory when idle.

    python -m bench.start [--rounds 3]

Each round starts the processes of `make run` in a folder that was set up before, and submits a
slice as soon as the web application responds. Then one web server and one predict worker are
started in addition, each by itself. Finally, the memory of an idle `make run` is read.

Elapsed times depend on what else runs on the machine, so the limits are on CPU time as a multiple
of what `import sqlalchemy.orm` takes in the same round, and on memory and numbers of processes. The
last line is the verdict; the exit status is 1 if a limit is exceeded. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.alone import report
from bench.service import (
    Client,
    a_slice,
    descendants,
    flask,
    free_port,
    is_ready,
    predict_worker_ready_s,
    seconds_until,
    wait_for_verdict,
)
from webapp.config import PROJECT_ROOT

LIMITS = {
    "verdict_cpu_ratio": 40.0,
    "idle_pss_mb": 700.0,
    "idle_rss_mb": 1100.0,
    "idle_processes": 12.0,
    "idle_with_tensorflow": 0.0,
}
LONGEST_S = 300.0
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
IDLE_SHARE = 0.2
"""Fraction of a core that all processes together may use and still count as idle."""


@contextmanager
def installed() -> Iterator[dict[str, str]]:
    """Yield the environment of a folder that is set up, including an administrator's token."""
    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as home:
        environ = {**os.environ, "HEMOSCAN_HOME": home}
        for name in ("DATABASE_URL", "BROKER_URL", "STORAGE_URL"):
            environ.pop(name, None)
        flask("setup", environ)
        flask("create-admin bench", {**environ, "HEMOSCAN_PASSWORD": uuid.uuid4().hex})
        environ["BENCH_TOKEN"] = flask("create-token bench", environ).strip().splitlines()[-1]
        yield environ


@contextmanager
def make_run(environ: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Start `make run`; yield its port and process id, and stop it at the end."""
    port = free_port()
    service = subprocess.Popen(
        [sys.executable, "-m", "webapp.embedded"],
        cwd=PROJECT_ROOT,
        env={**environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port, service.pid
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(60)


def figures_of_start(environ: dict[str, str]) -> dict[str, float]:
    """Return how long a start takes as a whole, and each of its parts by itself."""
    unit_s = import_cpu_s()
    began = time.perf_counter()
    with make_run(environ) as (port, pid):
        seconds_until(lambda: is_ready(port, "/healthz"), LONGEST_S)
        figures = {"web_ready_s": time.perf_counter() - began}
        client = Client(port, environ["BENCH_TOKEN"])
        wait_for_verdict(client, client.upload("slice.png", a_slice())["id"], LONGEST_S)
        figures["verdict_s"] = time.perf_counter() - began
        figures["verdict_cpu_s"] = cpu_s(pid)
        figures["verdict_cpu_ratio"] = figures["verdict_cpu_s"] / unit_s
        figures["web_alone_ready_s"] = web_ready_s(environ)
        figures["predict_alone_ready_s"] = predict_worker_ready_s(environ, LONGEST_S)
    return figures


def import_cpu_s() -> float:
    """Return the CPU time of a reference start, which depends only on the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import sqlalchemy.orm"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_s(root_pid: int) -> float:
    """Return the CPU time of a process and all its descendants, including those that have ended."""
    ticks = 0
    for pid in descendants(root_pid):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_A_SECOND


def web_ready_s(environ: dict[str, str]) -> float:
    """Return the seconds from the start of a web server until it answers."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--config", "webapp/gunicorn.conf.py"]
    server = subprocess.Popen(
        [*command, "webapp:create_app()"], cwd=PROJECT_ROOT, env={**environ, "PORT": str(port)}
    )
    try:
        return seconds_until(lambda: is_ready(port, "/healthz"), LONGEST_S)
    finally:
        server.terminate()
        server.wait(30)


def figures_of_idleness(environ: dict[str, str]) -> dict[str, float]:
    """Return the memory of all processes while idle: as the sum of their resident memory, which
    counts shared pages several times, and as the sum of their proportional shares (PSS).
    """
    with make_run(environ) as (port, pid):
        seconds_until(lambda: is_ready(port), LONGEST_S)
        wait_until_idle(pid)
        memory = {number: memory_mb(number) for number in descendants(pid)}
        with_tensorflow = sum("libtensorflow" in maps(number) for number in memory)
        for number, command in sorted(descendants(pid).items()):
            rss, pss = memory.get(number, (0.0, 0.0))
            sys.stdout.write(f"{rss:8.1f} MB resident, {pss:6.1f} MB share  {command[:90]}\n")
    return {
        "idle_pss_mb": sum(pss for _, pss in memory.values()),
        "idle_rss_mb": sum(rss for rss, _ in memory.values()),
        "idle_processes": len(memory),
        "idle_with_tensorflow": with_tensorflow,
    }


def wait_until_idle(pid: int) -> None:
    """Return once all processes together have used almost no CPU time for a second."""

    def is_idle() -> bool:
        before, began = cpu_s(pid), time.perf_counter()
        time.sleep(1)
        return cpu_s(pid) - before < IDLE_SHARE * (time.perf_counter() - began)

    seconds_until(is_idle, LONGEST_S)


def memory_mb(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process and its proportional share (PSS), in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    of_name = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return of_name["Rss"], of_name["Pss"]


def maps(pid: int) -> str:
    """Return the files that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text()


def main() -> int:
    """Measure, print a line per figure and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="starts (default 3)")
    rounds = parser.parse_args().rounds
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python"
        f" {platform.python_version()}\n"
    )
    with installed() as environ:
        starts = [figures_of_start(environ) for _ in range(rounds)]
        figures = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
        figures |= figures_of_idleness(environ)
    return report(figures, LIMITS)


if __name__ == "__main__":
    sys.exit(main())
