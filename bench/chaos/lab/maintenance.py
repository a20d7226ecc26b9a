"""A process is killed in work without a lease: the sweep, the sealing of the audit log, the
cleanup, the check of a version before its promotion, and the description of a version.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import func, select, update

from bench.chaos.lab.jobs import request_report
from bench.chaos.lab.kill_points import end_of, kill_point
from bench.chaos.lab.promotions import PROMOTED, promoted
from bench.chaos.lab.tools import Lab, require, until
from webapp import jobs
from webapp.audit_chain import verify
from webapp.extensions import database_now, db
from webapp.models import (
    Act,
    AuditEvent,
    AuditLink,
    ModelVersion,
    Report,
    Scan,
    new_id,
)
from webapp.models.reports import KEEP_S

ORPHANS = 3
LONG_AGO_S = 7200


@dataclass(frozen=True)
class Work:
    """Work without a lease: `task` is the message that starts it, and `act` carries out the
    case.
    """

    task: str
    act: Callable[[Lab], str]


def check_killed(lab: Lab) -> str:
    """Kill the process that checks a version, while it loads the version or before it commits the
    outcome: another process checks it, and it is promoted.
    """
    for point in (r"open .*/\.checked-", "commit UPDATE model_version SET .*checked_at"):
        version_id = lab.another_version("series", f"checked: {point}")
        with kill_point(lab.stack, point) as reached:
            status, answer = promoted(lab, version_id)
        require(reached.kills == 1, f"no process was killed at {point}")
        require(status == PROMOTED, f"promotion: {status} {answer}"[:300])
    return "killed while it loaded one and before its commit; both were checked and promoted"


def description_killed(lab: Lab) -> str:
    """Kill the process that computes the curves of a version, before its commit: they are computed
    again, and are the same.
    """
    version_id = lab.live("slice")[0]
    undisturbed = described(lab, version_id)
    require(bool(undisturbed), "the live version has no curves")
    point = f"commit UPDATE model_version SET curves.*{version_id}"
    with kill_point(lab.stack, point) as reached:
        again = described(lab, version_id)
    require(reached.kills == 1, "no process was killed")
    require(again == undisturbed, "other curves than without the kill")
    return "a process was killed before its commit; the curves are the same as without the kill"


def described(lab: Lab, version_id: str) -> object:
    """Delete the curves of a version, and return those that a worker computes."""
    its = ModelVersion.id == version_id
    with lab.changing():
        db.session.execute(update(ModelVersion).where(its).values(curves=None))
    with lab.stack.app.app_context():
        jobs.nudge(jobs.TRAIN_MODEL)
    return until(lambda: lab.one(select(ModelVersion.curves).where(its)))


def sweep_killed(lab: Lab) -> str:
    """Kill a process that analyzes a scan, and the sweep that returns the scan to the queue, before
    its commit: the next sweep returns it, once.
    """
    lab.done(Scan, lab.scans[-1])  # So that no other scan is affected.
    with kill_point(lab.stack, "commit UPDATE scan SET .*counted_deaths=") as reached:
        scan_id = request_and_kill(lab)
        attempts = lab.done(Scan, scan_id).attempts
    require(reached.kills == 1, "no sweep was killed")
    require(attempts == 1, f"the scan was returned {attempts} times")
    return "killed before its commit; the next sweep returned the scan to the queue, once"


def request_and_kill(lab: Lab) -> str:
    """Submit a scan, kill the process before it commits the result, and return the scan's id."""
    with kill_point(lab.stack, end_of(Scan)) as reached:
        scan_id = lab.submit_picture()
        until(lambda: reached.kills)
    return scan_id


def sealing_killed(lab: Lab) -> str:
    """Kill the process that seals events of the audit log, before its commit: they are sealed once,
    and the chain is intact.
    """
    with kill_point(lab.stack, "commit INSERT INTO audit_link") as reached:
        with lab.changing():
            event = AuditEvent(act=Act.VERSION_PROMOTED, address="lab")
            db.session.add(event)
            db.session.flush()
            event_id = event.id
        links = select(func.count()).where(AuditLink.event_id == event_id)
        until(lambda: lab.one(links))
    require(reached.kills == 1, "no process was killed")
    require(lab.one(links) == 1, "the event was sealed twice")
    with lab.stack.app.app_context():
        result = verify()
    require(result.problem is None, str(result.problem))
    return f"killed before its commit; all {result.events} events were sealed once, chain intact"


def cleanup_killed(lab: Lab) -> str:
    """Kill the cleanup while it deletes files: of a report whose row is deleted already, and of
    orphans. The next one deletes the rest, and nothing else.
    """
    report_id = request_report(lab)
    lab.done(Report, report_id)
    kept = files_of(lab)
    expired = sorted(key for key in kept if key.startswith(f"reports/{report_id}"))
    require(bool(expired), "the report has no file")
    orphans = [f"heatmaps/{new_id()}.zip" for _ in range(ORPHANS)]
    for key in orphans:
        (lab.stack.volume / key).parent.mkdir(exist_ok=True)
        (lab.stack.volume / key).write_bytes(b"orphan")
    for key in (*expired, *orphans):
        os.utime(lab.stack.volume / key, (time.time() - LONG_AGO_S,) * 2)
    with lab.changing():
        its = update(Report).where(Report.id == report_id)
        db.session.execute(its.values(finished_at=database_now(-2 * KEEP_S)))
    for key in (expired[0], orphans[1]):
        with kill_point(lab.stack, f"os.remove .*{key}") as reached:
            clean_up_until(lab, lambda: reached.kills)
    gone = {*expired, *orphans}
    clean_up_until(lab, lambda: not gone & files_of(lab))
    require(lab.one(select(Report.id).where(Report.id == report_id)) is None, "the report is left")
    lost = kept - gone - files_of(lab)
    require(not lost, f"files are lost: {sorted(lost)[:5]}")
    return f"killed twice; the next one deleted the other files, {len(gone)} in all, and no other"


def files_of(lab: Lab) -> set[str]:
    """Return the keys of all stored files."""
    volume = lab.stack.volume
    return {str(path.relative_to(volume)) for path in volume.rglob("*") if path.is_file()}


def clean_up_until(lab: Lab, is_over: Callable[[], object]) -> None:
    """Start cleanups, as happens every hour, until a condition holds."""

    def look() -> object:
        with lab.stack.app.app_context():
            jobs.nudge(jobs.CLEAN_UP)
        return is_over()

    until(look, every_s=1.0)


WORK: Mapping[str, Work] = {
    "sweep": Work(jobs.SWEEP, sweep_killed),
    "sealing of the audit log": Work(jobs.SWEEP, sealing_killed),
    "cleanup": Work(jobs.CLEAN_UP, cleanup_killed),
    "check of a version": Work(jobs.PREDICT_SCANS, check_killed),
    "description of a version": Work(jobs.TRAIN_MODEL, description_killed),
}
"""Every kind of work without a lease."""
