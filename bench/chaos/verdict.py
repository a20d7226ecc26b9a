"""Check the guarantees on the rows and the storage after a campaign."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import inspect, select

from bench.chaos.background import complaints
from bench.chaos.campaign import Campaign, unsettled
from bench.chaos.dicom import DicomOutcome, judge_dicom
from bench.chaos.faults import NOTHING_LIMITED
from bench.chaos.stack import POISON_PX, Stack
from bench.chaos.trainings import KILLS
from webapp.extensions import database_now, db
from webapp.jobs import CLEAN_UP, QUEUE_OF_TABLE, nudge
from webapp.models import (
    Comparison,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    Heatmap,
    JobStatus,
    ModelVersion,
    Prediction,
    Preview,
    Report,
    Scan,
    TrainingRun,
    Worker,
)
from worker.heartbeat import has_died

TWO_HOURS_S, TWO_DAYS_S = 7200, 2 * 24 * 3600
REMOVED_WITHIN_S = 120
REMARKS = ("did not end", "health checks", NOTHING_LIMITED)
"""The effects of faults that belong in the report."""
STOPPED_THREE_TIMES = "The worker stopped three times while it was analyzing this scan."


@dataclass
class Outcome:
    """The outcome of a campaign: `broken` lists violated guarantees; count and recovery times by
    kind of fault; `load_before` is the machine's load average when it began; `lab` says how each of
    its cases ended, and `beside_lab_s` how long scans took meanwhile.
    """

    stack: str
    seed: int = 0
    load_before: float = 0.0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scans: int = 0
    poisoned: int = 0
    attempts: int = 0
    unanswered: int = 0
    refusals: int = 0
    orphans: int = 0
    replies_s: list[float] = field(default_factory=list)
    submitting_s: float = 0.0
    last_verdict_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    run_attempts: list[int] = field(default_factory=list)
    dicom: DicomOutcome = field(default_factory=DicomOutcome)
    lab: dict[str, str] = field(default_factory=dict)
    beside_lab_s: list[float] = field(default_factory=list)

    def check(self, holds: bool, complaint: str) -> None:
        """Record `complaint` if the condition is false."""
        if not holds:
            self.broken.append(complaint)


def judge(campaign: Campaign, within_s: float) -> Outcome:
    """Check all rows and files of a running stack."""
    stack, injected = campaign.stack, campaign.injector.faults
    errors = campaign.injector.errors + campaign.trainings.errors + campaign.lab.errors
    outcome = Outcome(stack.kind, broken=errors, lab=campaign.lab.ends)
    outcome.refusals, outcome.replies_s = campaign.submitter.refusals, campaign.submitter.replies_s
    outcome.restarts = {name: program.starts - 1 for name, program in stack.programs.items()}
    outcome.faults = Counter(fault.kind for fault in injected)
    outcome.notes = [
        f"{fault.kind}: {fault.met}."
        for fault in injected
        if any(remark in fault.met for remark in REMARKS)
    ]
    with stack.app.app_context():
        scans = db.session.scalars(select(Scan)).all()
        poisoned = {
            scan.id for scan in scans if width_of(stack.volume / scan.original_key) == POISON_PX
        }
        outcome.dicom, complaints_of_dicom, by_dicom = judge_dicom(stack)
        outcome.broken += complaints_of_dicom
        accepted = [*campaign.submitter.accepted, *campaign.lab.scans, *by_dicom]
        judge_scans(scans, poisoned, accepted, outcome)
        judge_times(scans, poisoned, campaign, outcome)
        outcome.check(
            outcome.last_verdict_s <= within_s,
            f"the last verdict came {outcome.last_verdict_s:.0f} s after the last fault",
        )
        judge_runs(campaign, outcome)
        outcome.broken += complaints()
        waiting = unsettled()
        outcome.check(waiting == 0, f"{waiting} rows are still queued or running")
        judge_files(stack, outcome)
        judge_folders(stack, outcome)
    return outcome


def judge_scans(
    scans: Sequence[Scan], poisoned: AbstractSet[str], accepted: Sequence[str], outcome: Outcome
) -> None:
    """Check that each scan has exactly one verdict."""
    ids = {scan.id for scan in scans}
    done = {scan.id for scan in scans if scan.status == JobStatus.DONE}
    failed = {scan.id: scan.error for scan in scans if scan.status == JobStatus.FAILED}
    predictions = Counter(db.session.scalars(select(Prediction.scan_id)))
    # A model with outlines draws no heat maps, and no outline where it finds no hemorrhage.
    not_found = ~Prediction.positive & ~Prediction.uncertain & Heatmap.id.is_(None)
    drawn = set(
        db.session.scalars(
            select(Scan.id)
            .join(Scan.prediction)
            .outerjoin(Prediction.heatmap)
            .where((Heatmap.status == JobStatus.DONE) | Scan.outline_key.is_not(None) | not_found)
        )
    )
    outcome.scans, outcome.poisoned = len(scans), len(poisoned)
    outcome.attempts = sum(scan.attempts for scan in scans)
    outcome.unanswered = len(ids - set(accepted))

    lost = set(accepted) - ids
    outcome.check(not lost, f"{len(lost)} accepted scans have no row")
    apart = set(predictions) ^ done
    outcome.check(
        not apart,
        f"{len(apart)} scans are done without a prediction, or have one but are not done",
    )
    doubled = [scan_id for scan_id, count in predictions.items() if count > 1]
    outcome.check(not doubled, f"{len(doubled)} scans have two predictions")
    innocent = {error for scan_id, error in failed.items() if scan_id not in poisoned}
    outcome.check(not innocent, f"sound scans failed: {sorted(map(str, innocent))}")
    spared = poisoned - set(failed)
    outcome.check(not spared, f"{len(spared)} poisoned scans did not fail")
    otherwise = {failed[scan_id] for scan_id in poisoned - spared} - {STOPPED_THREE_TIMES}
    outcome.check(
        not otherwise, f"poisoned scans failed for another reason: {sorted(map(str, otherwise))}"
    )
    outcome.check(
        drawn == done, f"{len(done - drawn)} done scans have neither an outline nor a heat map"
    )


def judge_times(
    scans: Sequence[Scan], poisoned: AbstractSet[str], campaign: Campaign, outcome: Outcome
) -> None:
    """Record durations of scans and faults by the database's clock, which is this machine's."""
    spans = {
        scan.id: (scan.created_at.timestamp(), scan.finished_at.timestamp())
        for scan in scans
        if scan.finished_at
    }
    sound = [span for scan_id, span in spans.items() if scan_id not in poisoned]
    outcome.beside_lab_s = [
        spans[scan_id][1] - spans[scan_id][0] for scan_id in campaign.lab.scans if scan_id in spans
    ]
    recoveries: dict[str, list[float]] = {kind: [] for kind in outcome.faults}
    for fault in campaign.injector.faults:
        met = [end for begin, end in sound if begin <= fault.began < end]
        recoveries[fault.kind] += [max(met) - fault.began] if met else []
    outcome.recoveries_s = recoveries
    outcome.last_verdict_s = max(
        [0.0, *(end - campaign.last_fault_ended for _, end in spans.values())]
    )
    outcome.submitting_s = (
        max(end for _, end in spans.values()) - min(begin for begin, _ in spans.values())
        if spans
        else 0.0
    )


def judge_runs(campaign: Campaign, outcome: Outcome) -> None:
    """Check that each training was killed the intended number of times and produced exactly one
    version, and that evaluations, comparisons, requests about data sets and previews ended as
    intended.
    """
    for table in (Evaluation, Comparison, DatasetAnalysis):
        for row in db.session.scalars(select(table)):
            outcome.check(
                row.status == JobStatus.DONE or row.id in campaign.lab.meant_to_fail,
                f"{table.__tablename__} is {row.status} after {row.attempts} deaths: {row.error}",
            )
    for row in db.session.scalars(select(Preview)):
        ended = row.status == JobStatus.DONE or (row.status == JobStatus.FAILED and row.error)
        outcome.check(bool(ended), f"a preview is {row.status} after {row.attempts} deaths")
    versions = Counter(
        db.session.scalars(select(ModelVersion.run_id).where(ModelVersion.run_id.is_not(None)))
    )
    trained = select(TrainingRun).where(TrainingRun.is_calibration.is_(False))
    runs = db.session.scalars(trained).all()
    outcome.runs, outcome.run_attempts = len(runs), [run.attempts for run in runs]
    outcome.check(len(runs) == campaign.trainings.count, f"{len(runs)} training runs were launched")
    for run in runs:
        outcome.check(run.status == JobStatus.DONE, f"a training run is {run.status}: {run.error}")
        outcome.check(versions[run.id] == 1, f"a training run made {versions[run.id]} versions")
        kills = campaign.trainings.kills.get(run.id, 0)
        outcome.check(
            kills == KILLS,
            f"a training run ended after {kills} kills, before it could be killed {KILLS} times",
        )


def judge_files(stack: Stack, outcome: Outcome) -> None:
    """Make the files look two hours old and run the cleanup; then every file must belong to a row,
    and every row's files must exist.
    """
    before = orphans(stack)
    outcome.orphans = len(before)
    long_ago = time.time() - TWO_HOURS_S
    for path in stack.volume.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    deadline = time.monotonic() + REMOVED_WITHIN_S
    nudge(CLEAN_UP)
    while (left := orphans(stack)) and time.monotonic() < deadline:
        time.sleep(0.2)
    outcome.check(not left, f"{len(left)} files belong to no row: {sorted(left)[:5]}")
    missing = [key for key in named_files() if not (stack.volume / key).is_file()]
    outcome.check(
        not missing, f"{len(missing)} files named by rows are missing: {sorted(missing)[:5]}"
    )


def judge_folders(stack: Stack, outcome: Outcome) -> None:
    """Make killed workers look two days dead; then the service must remove the folders on this
    machine that they left.
    """
    long_ago = time.time() - TWO_DAYS_S
    for worker in db.session.scalars(select(Worker)):
        if has_died(worker.id):
            worker.seen_at = database_now(-TWO_HOURS_S)
    db.session.commit()
    for folder in folders_left(stack):
        os.utime(folder, (long_ago, long_ago))
    deadline = time.monotonic() + REMOVED_WITHIN_S
    while (left := folders_left(stack)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = sorted(str(folder.relative_to(stack.home)) for folder in left)
    outcome.check(not left, f"{len(left)} folders of killed workers are left: {names[:5]}")


def folders_left(stack: Stack) -> list[Path]:
    """Return the temporary folders of dead workers."""
    work, models = stack.home / "work", stack.home / "cache" / "models"
    of_dead = [folder for folder in work.glob("*") if has_died(folder.name)]
    return of_dead + [folder for folder in models.glob(".*") if folder.is_dir()]


def named_files() -> set[str]:
    """Return the keys of all files referenced by rows."""
    columns = [
        column
        for table in QUEUE_OF_TABLE
        for column in inspect(table).columns
        if column.name.endswith("_key")
    ]
    keys = {key for column in columns for key in db.session.scalars(select(column)) if key}
    for version in db.session.scalars(select(ModelVersion)):
        keys |= {
            f"{version.storage_prefix}/{name}" for name in (*version.card["files"], "card.json")
        }
    db.session.rollback()
    return keys


def orphans(stack: Stack) -> set[str]:
    """Return the keys of files without a row; the storage's marker file is ignored."""
    there = {
        str(path.relative_to(stack.volume)) for path in stack.volume.rglob("*") if path.is_file()
    }
    ids = {
        row_id
        for table in (Scan, Heatmap, Report, Dataset, Evaluation, ModelVersion, Preview)
        for row_id in db.session.scalars(select(table.id))
    }
    named = named_files()
    return {
        key
        for key in there - named
        if key.endswith(".part")
        or not (key.startswith("databases/") or ids.intersection(re.findall("[0-9a-f]{32}", key)))
    }


def width_of(picture: Path) -> int:
    """Return the width of a PNG in pixels."""
    with picture.open("rb") as file:
        return int.from_bytes(file.read(24)[16:20], "big")
