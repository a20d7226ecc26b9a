"""Benchmark of the whole service against simpler implementations of it, all in one run.

    python -m bench.services [--rounds 3]

Three services run at once, each on its own port, and take turns, so that other programs affect all
of them alike:

- hemoscan: `make run`, with everything that it does for a scan;
- usual: `bench.usual_design` as commonly written: two web processes, one Celery worker, the same
  network by Keras's `Model.predict`;
- best: the same with the network compiled by `tf.function` and a worker with one thread for each
  of two cores.

A round submits several slices at once, then several series of 40 slices at once, and waits for all
answers; then single slices, each after the answer to the previous one. Times are elapsed times from
the first byte to the last answer; CPU times are those of all processes of a service. Ratios are
Hemoscan's speed divided by that of the other service. The last line is the verdict; the exit status
is 1 if the ratio of CPU time to that of the best form exceeds its limit. Linux only.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.service import Client, a_slice, free_port, is_ready, running_service, seconds_until
from bench.service import series as series_archive
from bench.start import cpu_s
from webapp.config import PROJECT_ROOT
from webapp.embedded.valkey import broker

SLICES, SERIES, SINGLES = 20, 2, 5
MOST_OF_BEST = {"slice": 2.5, "series": 2.0}
"""Limits of CPU time, as a multiple of that of the best form of the usual design."""
LOOK_S, LOOK_MOST_S, MORE = 0.02, 0.25, 1.3
"""Clients poll after 20 ms, then less and less often: polling takes the service's time, too."""
LONGEST_S = 300.0


@dataclass(frozen=True)
class Service:
    """A service under test.

    Attributes:
        client: sends files.
        is_answered: whether the answer to a file is available, given its id.
        pids: processes whose CPU time counts, with that of their children.
    """

    client: Client
    is_answered: Callable[[str], bool]
    pids: Sequence[int]

    def cpu_s(self) -> float:
        """Return the CPU time of all processes so far, in seconds."""
        return sum(map(cpu_s, self.pids))

    def answer(self, name: str, content: bytes, count: int) -> tuple[float, float]:
        """Submit a file that many times at once; return the elapsed seconds and the CPU seconds per
        file.
        """
        self.client.connection.close()  # The server closes idle connections soon.
        before, began = self.cpu_s(), time.perf_counter()
        waiting = [str(self.client.upload(name, content)["id"]) for _ in range(count)]
        pause = LOOK_S
        while waiting:
            # The last one first: once it is answered, most others are, too.
            if self.is_answered(waiting[-1]):
                waiting.pop()
            elif time.perf_counter() - began > LONGEST_S:
                raise TimeoutError(f"{len(waiting)} of {count} had no answer.")
            else:
                time.sleep(pause)
                pause = min(pause * MORE, LOOK_MOST_S)
        seconds = time.perf_counter() - began
        return seconds / count, (self.cpu_s() - before) / count


@contextmanager
def hemoscan() -> Iterator[Service]:
    """Run Hemoscan as `make run` does."""
    with running_service() as running:
        client = Client(running.port, running.token)

        def is_answered(scan_id: str) -> bool:
            status = client.call("GET", f"/api/v1/scans/{scan_id}")["status"]
            if status == "failed":
                raise RuntimeError("Hemoscan could not answer.")
            return bool(status == "done")

        yield Service(client, is_answered, [running.pid])


@contextmanager
def usual(*, best: bool) -> Iterator[Service]:
    """Run the usual design, in its best form or as commonly written."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hemoscan-usual-")))
        stack.enter_context(broker(home / "broker", home / "broker" / "socket"))
        (home / "files").mkdir()
        port = free_port()
        environ = {
            **os.environ,
            "USUAL_BROKER": f"redis+socket://{home}/broker/socket",
            "USUAL_FOLDER": f"{home}/files",
            "USUAL_MODEL": str(PROJECT_ROOT / "ml" / "starter_series"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        if best:
            environ |= {"USUAL_COMPILED": "1", "OMP_NUM_THREADS": "1"}
            environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        web = ["gunicorn", "--workers", "2", "--threads", "4", "--log-level", "warning"]
        worker = ["celery", "-A", "bench.usual_design:celery", "--quiet", "worker", "-c"]
        pids = [
            stack.enter_context(process([sys.executable, "-m", *command], environ))
            for command in (
                [*web, "--bind", f"127.0.0.1:{port}", "bench.usual_design:app"],
                [*worker, "2" if best else "1", "--loglevel", "error"],
            )
        ]
        seconds_until(lambda: is_ready(port, "/healthz"), LONGEST_S)
        client = Client(port, "", "/scans")
        yield Service(
            client,
            lambda scan_id: client.call("GET", f"/scans/{scan_id}")["probability"] is not None,
            pids,
        )


@contextmanager
def process(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[int]:
    """Run a process; yield its id."""
    running = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait(60)


def measured(services: Mapping[str, Service], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median times of each service, in seconds."""
    tasks = {
        "slice": ("slice.png", a_slice(), SLICES),
        "series": ("series.zip", series_archive(40, 5.0), SERIES),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in services}
    for number in range(rounds + 1):
        for name, service in services.items():
            of_round: dict[str, float] = {}
            for what, (file, content, count) in tasks.items():
                clock, processor = service.answer(file, content, count)
                of_round |= {what: clock, f"{what}, processor": processor}
            singles = [service.answer("slice.png", a_slice(), 1)[0] for _ in range(SINGLES)]
            of_round["one slice, idle"] = statistics.median(singles)
            if number:  # The first round warms up.
                for figure, value in of_round.items():
                    seconds[name].setdefault(figure, []).append(value)
    return {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in seconds.items()
    }


def main() -> int:
    """Measure all, print times and ratios, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default 3)")
    rounds = parser.parse_args().rounds
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rounds}"
        " rounds\n"
    )
    with hemoscan() as ours, usual(best=False) as mostly, usual(best=True) as best:
        medians = measured({"hemoscan": ours, "usual": mostly, "best": best}, rounds)
    for name, figures in medians.items():
        for figure, seconds in figures.items():
            ratio = seconds / medians["hemoscan"][figure]
            rate = "" if "processor" in figure else f", {1 / seconds:.2f} per second"
            sys.stdout.write(
                f"{name:9} {figure:18} {1000 * seconds:8.1f} ms{rate}; Hemoscan's speed by it"
                f" {ratio:.2f}\n"
            )
    broken = [
        what
        for what, most in MOST_OF_BEST.items()
        if medians["hemoscan"][f"{what}, processor"] > most * medians["best"][f"{what}, processor"]
    ]
    sys.stdout.write(
        f"services: {'BROKEN: ' + '; '.join(broken) if broken else 'all limits hold'}\n"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
