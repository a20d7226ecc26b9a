"""The chaos report: a Markdown page with the results of each stack, and a one-line verdict."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil

from bench.chaos.campaign import GAP_S
from bench.chaos.faults import DISK_FULL_S, STORAGE_AWAY_S
from bench.chaos.stack import LEASES_S, TRAIN_LEASE_S
from bench.chaos.trainings import ARCHITECTURE, KILLS
from bench.chaos.verdict import Outcome
from bench.service import percentile

TITLE_OF = {
    "postgres": "PostgreSQL and Redis",
    "embedded": "The embedded default: SQLite and the embedded broker",
}

INTRODUCTION = """# Chaos: what was broken, and what came of it

`{command}` on {date}; {machine}.

Each stack is the Procfile's processes and a second predict worker, on servers of its own; a
supervisor starts again what ended. Scans come in over HTTP from a client that sends each until it
is accepted. A fault begins {gap[0]:g} to {gap[1]:g} s after the one before, whether that is over or
not. Leases are short, so that this ends in time: {leases}; the train worker, which TensorFlow holds
still for seconds, has `LEASE_S={train_lease}`. Checkpoints are stored at once (`CHECKPOINT_S=0`).
The storage is away for {away[0]:g} to {away[1]:g} s at a time: workers try again for 4.2 s, then
hand back. A disk is full for {full[0]:g} to {full[1]:g} s: what is refused for longer than 4.2 s
is put off. Poisoned scans kill the process that reads them. The clock of the second predict
worker is off by a minute all the time.

*Recovery* is the time from the beginning of a fault, its own duration included, until every sound
scan that waited or was being read at that moment has its verdict. A fault that met no such scan has
none.
"""
HEAD = (
    "| fault | times | met waiting scans | recovery, median (s) | longest (s)"
    " |\n|---|---|---|---|---|\n"
)


def report(outcomes: Sequence[Outcome], given: argparse.Namespace) -> str:
    """Return the page, which ends in the verdict."""
    introduction = INTRODUCTION.format(
        command=(
            f"python -m bench.chaos --scans {given.scans} --faults {given.faults} --trainings"
            f" {given.trainings} --seed {given.seed}"
            f"{f' --seeds {given.seeds}' if given.seeds > 1 else ''}"
            f"{' --load' if given.load else ''}"
        ),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        gap=GAP_S,
        leases=", ".join(f"`{name}={value}`" for name, value in LEASES_S.items()),
        train_lease=TRAIN_LEASE_S,
        away=STORAGE_AWAY_S,
        full=DISK_FULL_S,
    )
    return f"{introduction}{''.join(map(_of_stack, outcomes))}\n{verdict(outcomes)}\n"


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return the one line."""
    broken = [
        f"{outcome.stack}, seed {outcome.seed}: {complaint}"
        for outcome in outcomes
        for complaint in outcome.broken
    ]
    if broken:
        return f"BROKEN: {'; '.join(broken)}."
    scans, runs = (
        sum(outcome.scans for outcome in outcomes),
        sum(outcome.runs for outcome in outcomes),
    )
    faults = sum(outcome.faults.total() for outcome in outcomes)
    last_s = max(outcome.last_verdict_s for outcome in outcomes)
    trained = f"; {runs} trainings, each killed {KILLS} times, made {runs} versions" if runs else ""
    return (
        f"Held: {scans} scans, {faults} faults, nothing lost, doubled or stuck, "
        f"all verdicts within {ceil(last_s)} s of the last fault{trained}."
    )


def _of_stack(outcome: Outcome) -> str:
    recovery = [seconds for each in outcome.recoveries_s.values() for seconds in each]
    pace = outcome.scans / outcome.submitting_s * 60
    judged = (
        f"**broken**: {'; '.join(outcome.broken)}."
        if outcome.broken
        else "each has one verdict, and only the poisoned failed."
    )
    lines = [
        f"{outcome.scans} scans, {outcome.poisoned} of them poisoned: {judged}",
        f"Recovery: {_spread(recovery)}.",
        f"The last verdict came {outcome.last_verdict_s:.1f} s after the last fault.",
        f"Load average before the start: {outcome.load_before:.1f} on {os.cpu_count()} cores.",
        (
            f"Throughput: {pace:.0f} scans a minute from the first upload to the last verdict, as"
            " fast as they came in."
        ),
        f"Upload replies: {_spread(outcome.replies_s)}.",
        f"Uploads that were refused or cut off, and sent again: {outcome.refusals}.",
        (
            "Scans that were stored although the response to their upload was lost, in addition to"
            f" those sent again: {outcome.unanswered}."
        ),
        (
            "Scans that were requeued because their worker had died or seemed dead, counted each"
            f" time: {outcome.attempts}."
        ),
        (
            "Restarts by the supervisor:"
            f" {', '.join(f'{name} {count}' for name, count in outcome.restarts.items())}."
        ),
        (f"Orphaned files that the service's own cleanup removed: {outcome.orphans}."),
        *outcome.notes,
    ]
    if outcome.runs:
        attempts = ", ".join(map(str, outcome.run_attempts))
        lines.append(
            f"Trainings (`{ARCHITECTURE}` on phantoms): {outcome.runs}, each killed {KILLS} times"
            f" after a new checkpoint; attempts that ended in a death: {attempts}."
        )
    listed = "\n".join(f"- {line}" for line in lines)
    table = "".join(
        f"| {kind} | {count} | {len(times)} | {_seconds(times, 0.5)} | {_seconds(times, 1)} |\n"
        for kind, count in sorted(outcome.faults.items())
        for times in [outcome.recoveries_s[kind]]
    )
    return f"\n## {TITLE_OF[outcome.stack]}, seed {outcome.seed}\n\n{listed}\n\n{HEAD}{table}"


def _spread(times: Sequence[float]) -> str:
    return (
        f"median {_seconds(times, 0.5)} s, 95th percentile {_seconds(times, 0.95)} s, longest"
        f" {_seconds(times, 1)} s"
    )


def _seconds(times: Sequence[float], share: float) -> str:
    return f"{percentile(list(times), share):.1f}" if times else "–"
