"""Shadows that fail, that kill their workers, and that analyze scans of the past."""

from __future__ import annotations

from sqlalchemy import func, select

from bench.chaos.lab.kill_points import end_of, kill_point
from bench.chaos.lab.promotions import PROMOTED, promoted
from bench.chaos.lab.tools import Lab, require, until
from webapp.models import (
    JobStatus,
    ModelVersion,
    Promotion,
    Scan,
    Shadow,
    ShadowAnswer,
)
from webapp.models.shadows import MOST_FAILURES, PAST_IS_ANSWERED
from worker.leases import MOST_DEATHS

PAST_SCANS = 2
UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING)


def shadow_fails(lab: Lab) -> str:
    """Run a shadow that fails on every scan: it is ended."""
    version_id = lab.another_version("series", "fails", fails=True)
    shadow_id = lab.api("POST", "/shadows", {"version_id": version_id}, 201)["id"]
    for _ in range(MOST_FAILURES + 1):
        lab.submit_series()
    return f"ended: “{ended_because(lab, shadow_id)}”"


def shadow_kills(lab: Lab) -> str:
    """Run a shadow whose version kills each process that loads it: each scan is given up after
    three deaths, and the shadow is ended; scans get their verdicts meanwhile.
    """
    version_id = lab.another_version("series", "kills")
    card_id = lab.one(select(ModelVersion.card_id).where(ModelVersion.id == version_id))
    with kill_point(lab.stack, f"open .*/{card_id}/", always=True) as point:
        shadow_id = lab.api("POST", "/shadows", {"version_id": version_id}, 201)["id"]
        for _ in range(MOST_FAILURES):
            lab.submit_series()
        until(lambda: point.kills)
        lab.done(Scan, lab.submit_series())
        because = ended_because(lab, shadow_id)
        kills = point.kills
    least = MOST_DEATHS * MOST_FAILURES
    require(kills >= least, f"only {kills} processes were killed")
    return f"a scan got its verdict meanwhile; after {kills} processes were killed: “{because}”"


def ended_because(lab: Lab, shadow_id: str) -> str:
    """Wait for the end of a shadow that fails, and return the reason."""
    ended = select(Shadow.ended_because).where(Shadow.id == shadow_id)
    because = str(until(lambda: lab.one(ended)))
    require(f"failed on {MOST_FAILURES} scans in a row" in because, because)
    return because


def past_shadow(lab: Lab) -> str:
    """Have the previous version analyze the scans of a promotion, and kill its worker before a
    commit: it analyzes each of them once, and the shadow ends.
    """
    version_id = lab.another_version("series", "after")
    status, answer = promoted(lab, version_id)
    require(status == PROMOTED, f"promotion: {status} {answer}"[:300])
    scans = [lab.submit_series() for _ in range(PAST_SCANS)]
    for scan_id in scans:
        lab.done(Scan, scan_id)
    its = Promotion.version_id == version_id
    promotion_id = lab.one(select(Promotion.id).where(its))
    # The shadow of slices is to have nothing left whose commit would be taken for one of this.
    unfinished = select(func.count()).where(ShadowAnswer.status.in_(UNFINISHED))
    until(lambda: lab.one(unfinished) == 0)
    with kill_point(lab.stack, end_of(ShadowAnswer)) as point:
        shadow_id = lab.api("POST", f"/promotions/{promotion_id}/find-out", None, 202)["id"]
        because = until(lambda: lab.one(select(Shadow.ended_because).where(Shadow.id == shadow_id)))
    require(because == PAST_IS_ANSWERED, because)
    require(point.kills == 1, "no process was killed")
    names = ("scan_id", "status", "probability", "live_probability", "attempts")
    rows = lab.columns(ShadowAnswer, names, ShadowAnswer.shadow_id == shadow_id)
    require(sorted(row["scan_id"] for row in rows) == sorted(scans), f"answers: {rows}"[:300])
    # Both versions are copies of the same one.
    for row in rows:
        is_same = row["probability"] == row["live_probability"]
        require(row["status"] == JobStatus.DONE and is_same, f"an answer: {row}"[:300])
    require(any(row["attempts"] for row in rows), "no scan was attempted twice")
    return f"a process was killed before its commit; {len(rows)} scans were analyzed once; ended"
