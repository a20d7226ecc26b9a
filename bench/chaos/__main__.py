"""Break everything that may break, and see that every scan and every training ends in exactly one
verdict.

    python -m bench.chaos [--scans 1000] [--faults 60] [--trainings 1] [--seed 1] [--stack
    postgres|embedded] [--report FILE]

Starts Hemoscan on PostgreSQL and Redis servers of its own, then on the embedded default, each time
with so many scans, faults and trainings. The same seed draws the same faults, victims and times;
what they meet depends on the machine. Linux only. The last line is the verdict; the exit status is
1 where the promise is broken.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench.chaos.campaign import carry_out
from bench.chaos.report import report, verdict
from bench.chaos.servers import NotInstalled
from bench.chaos.stack import STACKS, Stack
from bench.chaos.verdict import Outcome, judge


def main() -> int:
    """Run the stacks one after the other; print the report and the verdict; return the exit
    status.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=1000, help="scans a stack (default 1000)")
    parser.add_argument("--faults", type=int, default=60, help="faults a stack (default 60)")
    parser.add_argument(
        "--trainings",
        type=int,
        default=1,
        help="trainings a stack, each killed three times (default 1)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="draws faults, victims and times (default 1)"
    )
    parser.add_argument("--stack", choices=STACKS, help="only this one (default both)")
    parser.add_argument(
        "--within",
        type=float,
        default=60,
        metavar="S",
        help="seconds from the last fault to the last verdict (default 60)",
    )
    parser.add_argument("--report", type=Path, help="also write the report into this file")
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder with logs, database and files"
    )
    given = parser.parse_args()
    # So that both end everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcomes = [suffer(kind, given) for kind in ([given.stack] if given.stack else STACKS)]
    except NotInstalled as err:
        sys.stdout.write(f"Chaos needs {err}, which is not on this machine.\n")
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("Stopped; nothing is left running.\n")
        return 130
    page = report(outcomes, given)
    sys.stdout.write(page)
    if given.report:
        given.report.write_text(page, encoding="utf-8")
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def suffer(kind: str, given: argparse.Namespace) -> Outcome:
    """Run one stack through its faults and judge what came of it."""
    rng = random.Random(f"{given.seed} {kind}")
    folder = Path(tempfile.mkdtemp(prefix="hemoscan-chaos-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user where we are root.
    sys.stdout.write(f"{kind}: in {folder}\n")
    sys.stdout.flush()
    try:
        stack = Stack(kind, folder, rng)
        with stack.running():
            outcome = judge(
                carry_out(stack, given.scans, given.faults, given.trainings, rng), given.within
            )
        left = stack.leftovers()
        outcome.check(not left, f"processes are left: {left}")
        sys.stdout.write(f"{kind}: {verdict([outcome])}\n")
        sys.stdout.flush()
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
