"""Promotions by two administrators at the same moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Update, func, select, update

from bench.chaos.lab.tools import ANSWERS_WITHIN_S, NAME, Lab, require, sentence_of, until
from webapp.admin.versions import NOT_CHECKED
from webapp.extensions import db
from webapp.models import Promotion

ROUNDS = 5
PROMOTED, REFUSED = 200, 409
HIDDEN = "hidden"


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
    """Promote two versions at the same moment, several times: one of them wins each time. In the
    first round no version of their kind is live, as in a new installation.
    """
    versions = [lab.another_version("series", f"rival {number}") for number in range(3)]
    # A worker checks a version before its first promotion, which takes seconds. Promotions that
    # follow are decided within milliseconds, so that those of a round meet.
    for version_id in versions:
        status, answer = promoted(lab, version_id)
        require(status == PROMOTED, f"a promotion alone: {status} {answer}"[:300])
    with none_live(lab, "series"):
        first = round_of(lab, "the first promotion", versions[:2])
    for number in range(ROUNDS):
        live = lab.live("series")[0]
        rivals = [version_id for version_id in versions if version_id != live]
        refused = round_of(lab, f"round {number + 1}", rivals)
    return (
        f"of the first two of a kind, and in each of {ROUNDS} rounds, one went live; the other was"
        f" refused: “{first}”, “{refused}”"
    )


@contextmanager
def none_live(lab: Lab, reads: str) -> Iterator[None]:
    """Hide the promotions of a kind from the service, and put them back into the history
    afterwards. They keep their rows, because SQLite would give their ids to others.
    """
    with lab.changing():
        db.session.execute(of_kind(reads).values(reads=HIDDEN))
    try:
        yield
    finally:
        with lab.changing():
            db.session.execute(of_kind(HIDDEN).values(reads=reads))


def of_kind(reads: str) -> Update:
    """Return an update of the promotions of a kind."""
    return update(Promotion).where(Promotion.reads == reads)


def round_of(lab: Lab, which: str, rivals: Sequence[str]) -> str:
    """Promote two versions at the same moment; return the reason of the refusal.

    Raises:
        Unexpected: as `refused_of_round`, or the history has not one new row.
    """
    before = promotions(lab)
    requests = [Request(*promotion_of(lab, version_id)) for version_id in rivals]
    send_at_once(lab, requests)
    refused = refused_of_round(lab, which, requests, rivals)
    new = promotions(lab) - before
    require(new == 1, f"{which}: {new} new rows in the history")
    return refused


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
    count = select(func.count()).select_from(Promotion)
    return int(until(lambda: (lab.one(count),))[0])
