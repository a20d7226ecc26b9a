"""The chaos report: a Markdown page with the results of each stack, and a one-line verdict."""

from __future__ import annotations

import argparse
import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil

from bench.chaos.background import REPLAYS
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

INTRODUCTION = """# Chaos: injected faults and what became of the scans

{verdict}

`{command}` on {date}; {machine}.

Each stack runs the processes of the Procfile and a second predict worker on its own servers, and a
supervisor restarts processes that exit. A client uploads scans over HTTP and repeats each upload
until it is accepted. A fault starts {gap[0]:g} to {gap[1]:g} s after the previous one, whether or
not that one is over. Leases are short to keep a campaign short: {leases}; the train worker, which
TensorFlow can block for seconds, has `LEASE_S={train_lease}`. Checkpoints are stored immediately
(`CHECKPOINT_S=0`). The storage is unavailable for {away[0]:g} to {away[1]:g} s at a time; a worker
retries for 4.2 s, then returns its scans to the queue. The disk is full for {full[0]:g} to
{full[1]:g} s; a scan that cannot be written within 4.2 s is postponed. Poisoned scans kill the
process that reads them. The clock of the second predict worker is always wrong by one minute. A
scanner sends studies by DICOM and repeats each study until all of it is accepted; an archive
receives their results, and *Send now* is pressed for results still waiting after the last fault. A
copy of the live version runs as a shadow and must give the same prediction for every scan that it
analyzes; halfway through the faults, up to {replays} predictions are computed again and must be
identical to the bit. After the last fault, faults are injected into the lab, one after the other,
each while a scan is analyzed. There, the worker of each kind of job, or of the chosen ones, is
killed twice while it runs one: in the middle, either its process or all processes of the worker,
and a process just before the commit of the result, when its files are stored already. The job must
be done by a third one, with the same result, not an empty one, as without the kills. For that, code
injected into the workers kills them when they reach such a point; it also shortens the fits of the
paper's experiment and of imports, and has a run report a million points. At the end, the hash
chain of the audit log is verified, and all
files that killed processes left behind must be removed by the service's own cleanup.

*Recovery* is the time from the start of a fault, including its duration, until every scan that was
queued or running at the start has its verdict; poisoned scans do not count. A fault has no recovery
time if there was no such scan.
"""
PARAGRAPH = "\n\n"
SEEDS_HEAD = (
    "| seed | scans | faults | requeued | uploads repeated | recovery, median (s) | longest (s) |"
    " last verdict after the last fault (s) | load before | result |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)
HEAD = (
    "| fault | count | with waiting scans | recovery, median (s) | longest (s)"
    " |\n|---|---|---|---|---|\n"
)
LAB_HEAD = "| fault in the lab | how it ended |\n|---|---|\n"


def report(outcomes: Sequence[Outcome], options: argparse.Namespace) -> str:
    """Return the page, which begins with the verdict."""
    introduction = INTRODUCTION.format(
        command=(
            f"python -m bench.chaos --scans {options.scans} --faults {options.faults} --trainings"
            f" {options.trainings} --seed {options.seed}"
            f"{f' --seeds {options.seeds}' if options.seeds > 1 else ''}"
            f"{' --load' if options.load else ''}"
            f"{'' if options.lab else ' --no-lab'}"
            f"{''.join(f' --case {text!r}' for text in options.case)}"
        ),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        gap=GAP_S,
        leases=", ".join(f"`{name}={value}`" for name, value in LEASES_S.items()),
        train_lease=TRAIN_LEASE_S,
        away=STORAGE_AWAY_S,
        full=DISK_FULL_S,
        replays=REPLAYS,
        verdict=verdict(outcomes),
    )
    by_stack = [
        [outcome for outcome in outcomes if outcome.stack == stack]
        for stack in dict.fromkeys(outcome.stack for outcome in outcomes)
    ]
    return introduction + "".join(
        _of_campaigns(of_stack) if len(of_stack) > 1 else _of_campaign(*of_stack)
        for of_stack in by_stack
    )


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return the one line."""
    broken = [
        f"{outcome.stack}, seed {outcome.seed}: {complaint}"
        for outcome in outcomes
        for complaint in outcome.broken
    ]
    if broken:
        return f"FAILED: {'; '.join(broken)}."
    scans, runs = (
        sum(outcome.scans for outcome in outcomes),
        sum(outcome.runs for outcome in outcomes),
    )
    faults = sum(outcome.faults.total() for outcome in outcomes)
    last_s = max(outcome.last_verdict_s for outcome in outcomes)
    studies = sum(outcome.dicom.studies for outcome in outcomes)
    sent = f" ({studies} by DICOM, with results delivered)" if studies else ""
    trained = (
        f"; {runs} trainings, each killed {KILLS} times, produced {runs} versions" if runs else ""
    )
    cases = sum(len(outcome.lab) for outcome in outcomes)
    trained += f"; {cases} lab cases ended as intended" if cases else ""
    return (
        f"Passed: {scans} scans{sent}, {faults} faults; nothing lost, duplicated or stuck; "
        f"all verdicts within {ceil(last_s)} s of the last fault{trained}."
    )


def _of_campaigns(outcomes: Sequence[Outcome]) -> str:
    """Return the section of a stack with several seeds: one row each, faults pooled."""
    rows = "".join(
        f"| {outcome.seed} | {outcome.scans} | {outcome.faults.total()} | {outcome.attempts} |"
        f" {outcome.refusals} | {_seconds(_recoveries(outcome), 0.5)} |"
        f" {_seconds(_recoveries(outcome), 1)} | {outcome.last_verdict_s:.1f} |"
        f" {outcome.load_before:.1f} | {'; '.join(outcome.broken) or 'passed'} |\n"
        for outcome in outcomes
    )
    remarks = [f"Seed {outcome.seed}: {note}" for outcome in outcomes for note in outcome.notes]
    return (
        f"\n## {TITLE_OF[outcomes[0].stack]}\n\n{SEEDS_HEAD}{rows}\n"
        f"{_listed(remarks)}{bool(remarks) * PARAGRAPH}{_of_faults(outcomes)}"
    )


def _of_campaign(outcome: Outcome) -> str:
    """Return the section of a stack with one seed."""
    pace = outcome.scans / outcome.submitting_s * 60
    verdict = (
        f"**failed**: {'; '.join(outcome.broken)}."
        if outcome.broken
        else "each has one verdict, and only the poisoned ones failed."
    )
    lines = [
        f"{outcome.scans} scans, {outcome.poisoned} of them poisoned: {verdict}",
        f"Recovery: {_spread(_recoveries(outcome))}.",
        f"The last verdict came {outcome.last_verdict_s:.1f} s after the last fault.",
        f"Load average before the start: {outcome.load_before:.1f} on {os.cpu_count()} cores.",
        (
            f"Throughput: {pace:.0f} scans a minute from the first upload to the last verdict,"
            " as fast as they were uploaded."
        ),
        f"Replies to uploads: {_spread(outcome.replies_s)}.",
        f"Uploads that were rejected or interrupted, and repeated: {outcome.refusals}.",
        (
            "Scans that were stored although the response to their upload was lost, in addition to"
            f" the repeated ones: {outcome.unanswered}."
        ),
        (
            "Scans that were requeued because their worker had died or seemed dead, counted each"
            f" time: {outcome.attempts}."
        ),
        (
            "Restarts by the supervisor:"
            f" {', '.join(f'{name} {count}' for name, count in outcome.restarts.items())}."
        ),
        (
            f"Studies received by DICOM: {outcome.dicom.studies}, sent {outcome.dicom.sent} times;"
            f" the archive has {outcome.dicom.objects} result objects; repeated"
            f" deliveries: {outcome.dicom.again}."
        ),
        (f"Orphaned files that the service's own cleanup removed: {outcome.orphans}."),
        *outcome.notes,
    ]
    if outcome.runs:
        attempts = ", ".join(map(str, outcome.run_attempts))
        lines.append(
            f"Trainings (`{ARCHITECTURE}` on phantoms): {outcome.runs}, each killed {KILLS} times"
            f" after a new checkpoint; attempts that ended because the worker died: {attempts}."
        )
    return (
        f"\n## {TITLE_OF[outcome.stack]}, seed {outcome.seed}\n\n{_listed(lines)}\n\n"
        f"{_of_faults([outcome])}{_of_lab(outcome)}"
    )


def _of_faults(outcomes: Sequence[Outcome]) -> str:
    """Return the table of the kinds of faults."""
    counts = sum((outcome.faults for outcome in outcomes), Counter())
    rows = []
    for kind, count in sorted(counts.items()):
        times = [seconds for outcome in outcomes for seconds in outcome.recoveries_s.get(kind, [])]
        rows.append(
            f"| {kind} | {count} | {len(times)} | {_seconds(times, 0.5)} | {_seconds(times, 1)} |\n"
        )
    return HEAD + "".join(rows)


def _of_lab(outcome: Outcome) -> str:
    """Return the table of the lab's cases, empty if there were none."""
    if not outcome.lab:
        return ""
    rows = "".join(f"| {case} | {end} |\n" for case, end in outcome.lab.items())
    beside = f"Scans submitted meanwhile: {len(outcome.beside_lab_s)}, from upload to verdict"
    return f"\n{beside} {_spread(outcome.beside_lab_s)}.\n\n{LAB_HEAD}{rows}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _recoveries(outcome: Outcome) -> list[float]:
    return [seconds for times in outcome.recoveries_s.values() for seconds in times]


def _spread(times: Sequence[float]) -> str:
    return (
        f"median {_seconds(times, 0.5)} s, 95th percentile {_seconds(times, 0.95)} s, longest"
        f" {_seconds(times, 1)} s"
    )


def _seconds(times: Sequence[float], share: float) -> str:
    return f"{percentile(list(times), share):.1f}" if times else "–"
