"""Inject faults of all kinds, and check that every scan and every training ends with exactly one
verdict.

    python -m bench.chaos [--scans 1000] [--faults 60] [--trainings 1] [--seed 1] [--seeds 1]
    [--load] [--no-lab] [--case TEXT] [--stack postgres|embedded] [--report FILE]

Starts Hemoscan with its own PostgreSQL and Redis servers, then with the embedded default, each with
the given numbers of scans, faults and trainings. Some faults affect studies that arrive by DICOM,
and an archive that receives their results. Meanwhile, a shadow of the live version runs, which must
always give the same answers; replays run, which must be bit-for-bit identical; and the hash chain
of the audit log must verify. Afterwards, faults are injected into the lab: the worker of each kind
of job is killed twice, in the middle and just before its commit; so is a process in the sweep, the
sealing of the audit log, the cleanup and the check and the description of a version. Each file of a
candidate and of the live version is damaged, two versions are promoted at once, also as the first
of their kind, shadows fail or kill their workers on every scan, a run reports a curve of a million
points, and the deletion of a data set is requested while it is evaluated and after that. The seed
determines faults, targets and times; their effects depend
on the machine. `--seeds 10` repeats all of it with ten seeds, and `--load` runs it alongside
processes that take half of the machine. Linux only. The last line is the verdict; the exit status
is 1 if a guarantee is violated.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.campaign import carry_out
from bench.chaos.lab.cases import CASES
from bench.chaos.report import report, verdict
from bench.chaos.servers import NotInstalled
from bench.chaos.stack import STACKS, Stack
from bench.chaos.verdict import Outcome, judge


def main() -> int:
    """Run the stacks in turn; print the report and the verdict; return the exit status."""
    options = options_given()
    # So that either signal terminates everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seeds = range(options.seed, options.seed + options.seeds)
    kinds = [options.stack] if options.stack else STACKS
    try:
        with busy_processes(os.cpu_count() or 1 if options.load else 0):
            outcomes = [suffer(kind, seed, options) for kind in kinds for seed in seeds]
    except NotInstalled as err:
        sys.stdout.write(f"The chaos test needs {err}, which is not installed.\n")
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("Stopped; nothing is left running.\n")
        return 130
    page = report(outcomes, options)
    sys.stdout.write(f"{page}\n{verdict(outcomes)}\n")
    if options.report:
        options.report.write_text(page, encoding="utf-8")
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def options_given() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=1000, help="scans per stack (default 1000)")
    parser.add_argument("--faults", type=int, default=60, help="faults per stack (default 60)")
    parser.add_argument(
        "--trainings",
        type=int,
        default=1,
        help="trainings per stack, each killed three times (default 1)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="random seed for faults, targets and times (default 1)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="run N campaigns per stack, with this seed and those that follow it (default 1)",
    )
    parser.add_argument(
        "--load",
        action="store_true",
        help="run beside as many busy processes as the machine has cores",
    )
    parser.add_argument(
        "--lab",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="inject faults into the lab, after all other faults (default yes)",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="TEXT",
        help="only the cases of the lab whose names contain this text; may be repeated",
    )
    parser.add_argument("--stack", choices=STACKS, help="run only this stack (default both)")
    parser.add_argument(
        "--within",
        type=float,
        default=60,
        metavar="S",
        help="seconds from the last fault to the last verdict (default 60)",
    )
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder with logs, database and files"
    )
    options = parser.parse_args()
    for text in options.case:
        if not any(text in case for case in CASES):
            parser.error(f"No case of the lab has a name that contains {text!r}.")
    return options


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Start that many processes that compete for the CPU."""
    spin = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def suffer(kind: str, seed: int, options: argparse.Namespace) -> Outcome:
    """Run one stack with its faults and evaluate the outcome."""
    rng = random.Random(f"{seed} {kind}")
    folder = Path(tempfile.mkdtemp(prefix="hemoscan-chaos-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user if we are root.
    sys.stdout.write(f"{kind}, seed {seed}: in {folder}\n")
    sys.stdout.flush()
    load_before = os.getloadavg()[0]
    try:
        stack = Stack(kind, folder, rng)
        with stack.running():
            outcome = judge(
                carry_out(
                    stack,
                    options.scans,
                    options.faults,
                    options.trainings,
                    rng,
                    lab=options.case if options.lab else None,
                ),
                options.within,
            )
        left = stack.leftovers()
        outcome.check(not left, f"processes are left: {left}")
        outcome.seed, outcome.load_before = seed, load_before
        sys.stdout.write(f"{kind}, seed {seed}: {verdict([outcome])}\n")
        sys.stdout.flush()
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
