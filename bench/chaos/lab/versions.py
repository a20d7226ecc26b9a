"""The cases without a killed worker: damaged files, a failing shadow, simultaneous promotions, a
long curve, and the deletion of a data set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select

from bench.chaos.lab.tools import (
    ANSWERS_WITHIN_S,
    NAME,
    Lab,
    require,
    sentence_of,
    until,
)
from ml.artifacts.card import FEATURES
from ml.training.progress import Progress
from webapp.admin.versions import NOT_CHECKED
from webapp.extensions import db
from webapp.models import (
    CURVE_STEPS,
    Dataset,
    Evaluation,
    JobStatus,
    Promotion,
    Shadow,
    TrainingRun,
    new_id,
)
from webapp.models.shadows import MOST_FAILURES
from worker.learning.training_curves import AVERAGED_STEPS, Curves

POINTS = 1_000_000
CURVE_WITHIN_S = 5.0
ROUNDS = 5
PROMOTED, REFUSED = 200, 409


def version_damaged(lab: Lab) -> str:
    """Damage the files of a version: it can neither be evaluated nor promoted."""
    version_id = lab.another_version("series", "damaged")
    features = lab.stack.volume / "models" / version_id / FEATURES
    features.write_bytes(features.read_bytes()[:1000])
    body = {"version_id": version_id, "dataset_id": lab.dataset()}
    evaluation_id = str(lab.api("POST", "/evaluations", body, 202)["id"])
    lab.meant_to_fail.add(evaluation_id)
    end = lab.ended(Evaluation, evaluation_id)
    is_expected = end.status == JobStatus.FAILED and FEATURES in str(end.error)
    require(is_expected, f"evaluation: {end.status} {end.error}")
    status, answer = promoted(lab, version_id)
    require(status == REFUSED, f"promotion: {status} {answer}"[:300])
    sentence = sentence_of(answer)
    require(FEATURES in sentence, f"promotion: {sentence}")
    require(lab.live("series")[0] != version_id, "it went live")
    return f"evaluation failed, “{end.error}”; promotion refused, “{sentence}”"


def shadow_fails(lab: Lab) -> str:
    """Run a shadow that fails on every scan: it is ended."""
    version_id = lab.another_version("series", "fails", fails=True)
    shadow_id = lab.api("POST", "/shadows", {"version_id": version_id}, 201)["id"]
    for _ in range(MOST_FAILURES + 1):
        lab.submit_series()
    ended = select(Shadow.ended_because).where(Shadow.id == shadow_id)
    because = str(until(lambda: lab.one(ended)))
    require(f"failed on {MOST_FAILURES} scans in a row" in because, because)
    return f"ended: “{because}”"


@dataclass
class Request:
    """One of several simultaneous requests: its times, and the API's response."""

    path: str
    body: dict[str, str]
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    answer: dict[str, Any] | None = None


def promoted_at_once(lab: Lab) -> str:
    """Promote two versions at the same moment, several times: one of them wins each time."""
    versions = [lab.another_version("series", f"rival {number}") for number in range(3)]
    # A worker checks a version before its first promotion, which takes seconds. Promotions that
    # follow are decided within milliseconds, so that those of a round meet.
    for version_id in versions:
        status, answer = promoted(lab, version_id)
        require(status == PROMOTED, f"a promotion alone: {status} {answer}"[:300])
    refused = ""
    for number in range(ROUNDS):
        live = lab.live("series")[0]
        rivals = [version_id for version_id in versions if version_id != live]
        before = promotions(lab)
        requests = [Request(*promotion_of(lab, version_id)) for version_id in rivals]
        send_at_once(lab, requests)
        refused = refused_of_round(lab, f"round {number + 1}", requests, rivals)
        new = promotions(lab) - before
        require(new == 1, f"round {number + 1}: {new} new rows in the history")
    return f"in each of {ROUNDS} rounds one went live; the other was refused: “{refused}”"


def refused_of_round(
    lab: Lab, which: str, requests: Sequence[Request], rivals: Sequence[str]
) -> str:
    """Return the reason of the refusal.

    Raises:
        Unexpected: not exactly one of them was promoted, they were not simultaneous, or the winner
            is not live.
    """
    statuses = [request.status for request in requests]
    answers = [request.answer for request in requests]
    require(sorted(statuses) == [PROMOTED, REFUSED], f"{which}: {statuses} {answers}"[:400])
    began, ended = (
        max(request.began for request in requests),
        min(request.ended for request in requests),
    )
    require(began < ended, f"{which}: one request ended before the other began")
    winner = rivals[statuses.index(PROMOTED)]
    require(winner == lab.live("series")[0], f"{which}: {winner} was promoted and is not live")
    return sentence_of(answers[statuses.index(REFUSED)] or {})


def send_at_once(lab: Lab, requests: Sequence[Request]) -> None:
    """Send requests at the same moment, and wait for all responses."""
    start = threading.Barrier(len(requests), timeout=ANSWERS_WITHIN_S)

    def send(request: Request) -> None:
        start.wait()
        request.began = time.monotonic()
        request.status, request.answer = lab.respond("POST", request.path, request.body)
        request.ended = time.monotonic()

    clients = [threading.Thread(target=send, args=(request,), daemon=True) for request in requests]
    for client in clients:
        client.start()
    for client in clients:
        client.join(2 * ANSWERS_WITHIN_S)


def promotion_of(lab: Lab, version_id: str) -> tuple[str, dict[str, str]]:
    """Return the path and body of a promotion request in which the checklist is ticked."""
    checklist = lab.api("GET", f"/models/{version_id}/checklist", None, 200)
    return f"/models/{version_id}/promote", {
        "reason": NAME,
        "seen": checklist["seen"],
        "confirmation": checklist["confirmation"] or "",
    }


def promoted(lab: Lab, version_id: str) -> tuple[int, dict[str, Any]]:
    """Request a promotion, again if no worker of a busy machine has checked the version in time;
    return the status and the body of the API's response.
    """

    def decide() -> tuple[int, dict[str, Any]] | None:
        response = lab.respond("POST", *promotion_of(lab, version_id))
        return None if response[1].get("detail") == NOT_CHECKED else response

    decided: tuple[int, dict[str, Any]] = until(decide)
    return decided


def promotions(lab: Lab) -> int:
    """Return the length of the history of promotions."""
    return int(until(lambda: lab.one(select(func.count()).select_from(Promotion))))


def long_curve(lab: Lab) -> str:
    """Report a million points of a run: they are averaged, and read quickly."""
    run_id = new_id()
    curves = Curves(run_id)
    for number in range(POINTS):
        epoch = {"loss": 1.0, "validation_loss": 1.0, "epoch": 1 + number // 1000}
        curves.add(Progress("fold 1 of 1", number / POINTS, None, epoch))
    with lab.changing():
        db.session.add(
            TrainingRun(
                id=run_id,
                architecture="alexnet",
                settings={},
                initial_weights="random",
                seed=0,
                status=JobStatus.CANCELLED,
            )
        )
        db.session.flush()
        curves.write()
    began = time.monotonic()
    answer = lab.api("GET", f"/runs/{run_id}", None, 200)
    took_s, points = time.monotonic() - began, len(answer["curves"])
    with lab.changing():
        db.session.execute(delete(TrainingRun).where(TrainingRun.id == run_id))
    expected = CURVE_STEPS // AVERAGED_STEPS + CURVE_STEPS
    require(points == expected and took_s < CURVE_WITHIN_S, f"{points}, {took_s:.1f} s")
    return f"{POINTS:,} of each of two metrics became {points:,} rows, read in {took_s:.2f} s"


def dataset_deleted(lab: Lab) -> str:
    """Delete a data set after its evaluations have ended: they are deleted with it."""
    dataset_id = lab.request_import("deleted")
    lab.done(Dataset, dataset_id)
    body = {"version_id": lab.live("slice")[0], "dataset_id": dataset_id}
    evaluation_id = str(lab.api("POST", "/evaluations", body, 202)["id"])
    lab.done(Evaluation, evaluation_id)
    lab.api("DELETE", f"/datasets/{dataset_id}", None, 204)
    of_dataset = select(Evaluation.id).where(Evaluation.dataset_id == dataset_id)
    require(lab.one(of_dataset) is None, "evaluations are left")
    files = [*lab.digests(f"evaluations/{evaluation_id}"), *lab.digests(f"sheets/{dataset_id}")]
    require(not files, f"files are left: {files}")
    return "its evaluation and all files were deleted with it"
