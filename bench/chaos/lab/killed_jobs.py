"""A worker is killed in the middle of each kind of job, and the next one at its end, before its
commit: the job is done all the same, once, and its result equals that of a job that nobody
disturbed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bench.chaos.lab import jobs, learning_jobs
from bench.chaos.lab.kill_points import end_of, kill_point
from bench.chaos.lab.tools import Lab, Unexpected, require, until
from webapp.extensions import db
from webapp.models import (
    Comparison,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    Heatmap,
    JobStatus,
    Leased,
    Notification,
    PaperExperiment,
    Preview,
    Replay,
    Report,
    ResultDelivery,
    Scan,
    ShadowAnswer,
    SiteFigures,
    TrainingRun,
)

TRIES = 30
"""How often a job is requested until its worker was killed twice before it ended."""
KILLS = 2
OF_ALL = 0.25
"""The share of kills of all processes of a worker, whose leases have to expire then."""
FOLLOWS_EVERY_S = 0.002
LATEST = 0.8
"""The latest moment of a kill, as a fraction of the duration of the undisturbed job."""
SHORT_S = 1.0
"""The worker of a job that takes less than this is killed at once, or it would be too late."""


@dataclass(frozen=True)
class Job:
    """A kind of job.

    Attributes:
        table: its rows.
        request: requests a job, and returns its id; it is called several times.
        result: returns what a finished job has produced, as rows and hashes of files, including all
            rows of which there must be only one.
        expected: returns what it must have produced; if None, the job is carried out once
            undisturbed, and must produce the same.
        meanwhile: called after the request; returns a remark.
        is_under_way: says whether to kill the worker yet, given the row of a running job.
        may_be_empty: the parts of a result, by their names, that may be empty.
    """

    table: type[Leased]
    request: Callable[[Lab], str]
    result: Callable[[Lab, str], Any]
    expected: Callable[[Lab, str], Any] | None = None
    meanwhile: Callable[[Lab], str] = lambda _: ""
    is_under_way: Callable[[Any], bool] = lambda _: True
    may_be_empty: Collection[str] = ()


JOBS: Mapping[str, Job] = {
    "analysis of a scan": Job(
        Scan, jobs.request_scan, jobs.scan_result, may_be_empty=("outlines", "volumes")
    ),
    "drawing of a heat map": Job(
        Heatmap, jobs.request_heatmap, jobs.heatmap_result, may_be_empty=("slices",)
    ),
    "creation of a report": Job(Report, jobs.request_report, jobs.report_result),
    "replay of a result": Job(Replay, jobs.request_replay, jobs.replay_result),
    "analysis of a scan in shadow mode": Job(
        ShadowAnswer, jobs.request_shadow_answer, jobs.shadow_result, expected=jobs.live_result
    ),
    "preview": Job(Preview, jobs.request_preview, jobs.preview_result),
    "sending of a notification": Job(
        Notification,
        jobs.request_notification,
        jobs.notification_result,
        expected=jobs.expected_notification,
        may_be_empty=("not sent",),
    ),
    "sending of a result": Job(
        ResultDelivery, jobs.request_delivery, jobs.delivery_result, expected=jobs.expected_delivery
    ),
    "import of a data set": Job(
        Dataset,
        Lab.request_import,
        learning_jobs.dataset_result,
        may_be_empty=("corrections", "pairs", "scans"),
    ),
    "creation of a data set of confirmed scans": Job(
        Dataset,
        learning_jobs.request_confirmed,
        learning_jobs.dataset_result,
        may_be_empty=("corrections", "pairs"),
    ),
    "creation of a data set with corrected labels": Job(
        Dataset,
        learning_jobs.request_corrected,
        learning_jobs.dataset_result,
        may_be_empty=("pairs", "scans"),
    ),
    "index of the images of a data set": Job(
        DatasetAnalysis,
        learning_jobs.request_index,
        learning_jobs.index_result,
        may_be_empty=("corrections", "pairs", "scans"),
    ),
    "preview of a split": Job(
        DatasetAnalysis, learning_jobs.request_split, learning_jobs.analysis_result
    ),
    "comparison of two data sets": Job(
        DatasetAnalysis, learning_jobs.request_sources, learning_jobs.analysis_result
    ),
    "computation of the site figures": Job(
        SiteFigures, learning_jobs.request_figures, learning_jobs.figures_result
    ),
    "comparison of two versions": Job(
        Comparison, learning_jobs.request_comparison, learning_jobs.comparison_result
    ),
    "evaluation; deleting its data set meanwhile is refused": Job(
        Evaluation,
        learning_jobs.request_evaluation,
        learning_jobs.evaluation_result,
        meanwhile=learning_jobs.refused_deletion,
    ),
    "calibration": Job(
        TrainingRun,
        learning_jobs.request_calibration,
        learning_jobs.calibration_result,
        may_be_empty=("checkpoints",),
    ),
    "paper’s experiment": Job(
        PaperExperiment,
        learning_jobs.request_experiment,
        learning_jobs.experiment_result,
        expected=learning_jobs.expected_experiment,
        may_be_empty=("checkpoints",),
        is_under_way=lambda row: row.cells_done > 0,
    ),
}
"""Every kind of job, by what a worker does; `bench.chaos.trainings` kills the worker of trainings,
which are of the table of calibrations.
"""


def killed_in(job: Job) -> Callable[[Lab], str]:
    """Return the case in which the worker of such a job is killed."""
    return lambda lab: kill_worker(lab, job)


def kill_worker(lab: Lab, job: Job) -> str:
    """Request a job until its worker was killed twice: in the middle of it, and at its end, when
    the files are stored and the rows not yet committed; return how it ended.

    Raises:
        Unexpected: it did not end as intended, or was never killed twice.
    """
    undisturbed, lasts_s = None, 0.0
    if job.expected is None:
        row_id = job.request(lab)
        lasts_s = lab.done(job.table, row_id).lasted_s
        undisturbed = job.result(lab, row_id)
    for _ in range(TRIES):
        with kill_point(lab.stack, end_of(job.table)) as point:
            row_id = job.request(lab)
            remark = job.meanwhile(lab)
            wait_s = lab.rng.uniform(0, LATEST * lasts_s) if lasts_s > SHORT_S else 0.0
            how = kill_during(lab, job, row_id, wait_s)
            attempts = lab.done(job.table, row_id).attempts
        if how and point.kills and attempts >= KILLS:
            result = job.result(lab, row_id)
            nothing = empty_parts(result, job.may_be_empty)
            require(not nothing, f"nothing in {nothing}")
            expected = job.expected(lab, row_id) if job.expected else undisturbed
            differences = differing(result, expected)
            require(not differences, f"another result than expected: {differences}")
            same = "as expected" if job.expected else "the same as without the kills"
            return (
                f"{how}, and a process before its commit; done on attempt {attempts + 1}, once,"
                f" result {same}{remark}"
            )
    raise Unexpected(f"its worker was never killed {KILLS} times, in {TRIES} tries")


def kill_during(lab: Lab, job: Job, row_id: str, wait_s: float) -> str:
    """Kill the worker of a job some time after it began; return how, "" if it ended before."""
    columns = job.table.__table__  # type: ignore[attr-defined]
    query = select(columns).where(columns.c.id == row_id)
    dead: set[str] = set()

    def holder() -> str | bool:
        """Return the worker that runs it, True if it has ended, False if it waits."""
        row = lab.stack.ask(lambda: db.session.execute(query).one())
        if row is None or row.status == JobStatus.QUEUED or row.lease_owner in dead:
            return False
        if row.lease_owner is None:
            return True
        return row.lease_owner if job.is_under_way(row) else False

    while isinstance(owner := until(holder, FOLLOWS_EVERY_S), str):
        time.sleep(wait_s)
        if wait_s and holder() != owner:
            wait_s = 0.0
        elif how := kill(lab, int(owner.rsplit("-", 2)[1])):
            return how
        else:
            dead.add(owner)  # It was killed at its end, and the row waits for the next worker.
    return ""


def kill(lab: Lab, pid: int) -> str:
    """Kill a process of a worker, or all of them; return how, "" if it is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
        if state == "Z":
            return ""
        if lab.rng.random() >= OF_ALL:
            os.kill(pid, signal.SIGKILL)
            return "process killed"
        group = os.getpgid(pid)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    for program in lab.stack.programs.values():
        if program.pid == group:
            program.send(signal.SIGKILL, "all")
    return "worker killed with all its processes"


def differing(result: Any, expected: Any, place: str = "") -> list[str]:
    """Return the places at which two results differ, with both values."""
    if isinstance(result, dict) and isinstance(expected, dict):
        return [
            difference
            for key in sorted({*result, *expected}, key=str)
            for difference in differing(result.get(key), expected.get(key), f"{place}.{key}")
        ]
    if isinstance(result, list) and isinstance(expected, list) and len(result) == len(expected):
        return [
            difference
            for number, pair in enumerate(zip(result, expected, strict=True))
            for difference in differing(*pair, f"{place}[{number}]")
        ]
    return [] if result == expected else [f"{place} {result!r:.80} {expected!r:.80}"]


def empty_parts(result: Any, may_be_empty: Collection[str]) -> list[str]:
    """Return the names of the parts of a result that are empty and should not be; equal results
    prove nothing if a job gave none.
    """
    parts = result if isinstance(result, dict) else {"result": result}
    return [name for name, part in parts.items() if name not in may_be_empty and is_empty(part)]


def is_empty(part: Any) -> bool:
    """Return whether there is nothing in a result, or only parts in which there is nothing."""
    if isinstance(part, dict):
        return all(map(is_empty, part.values()))
    if isinstance(part, list | set):
        return all(map(is_empty, part))
    return part is None or part == ""
