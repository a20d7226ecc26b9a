"""Damaged files of a version: a candidate cannot be promoted, and scans wait for a live one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from bench.chaos.lab.promotions import PROMOTED, REFUSED, promoted
from bench.chaos.lab.tools import Lab, require, sentence_of, until
from ml.artifacts.card import CARD, FEATURES
from webapp.extensions import database_now
from webapp.models import Evaluation, JobStatus, ModelVersion, Scan, Worker

PREDICT_PROGRAMS = ("worker-predict", "worker-predict-2")
COULD_NOT_USE = "A predict worker could not use this version: "


def truncate(file: Path) -> None:
    """Leave half of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def replace(file: Path) -> None:
    """Replace a file with one of the same length that means nothing."""
    file.write_bytes(b"\0\xff" * (file.stat().st_size // 2))


def change_card(file: Path) -> None:
    """Change a threshold in a card, which stays valid otherwise."""
    card = json.loads(file.read_bytes())
    card["threshold"] = 1 - card["threshold"]
    file.write_text(json.dumps(card), encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "replaced": replace,
    "missing": Path.unlink,
}


@contextmanager
def damaged(file: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage a file, and repair it afterwards."""
    content = file.read_bytes()
    damage(file)
    try:
        yield
    finally:
        file.write_bytes(content)


def damages_of(lab: Lab, version_id: str) -> Iterator[tuple[str, Path, Callable[[Path], None]]]:
    """Yield every damage to every file of a version, with a description."""
    its = ModelVersion.id == version_id
    (row,) = lab.columns(ModelVersion, ("storage_prefix", "card"), its)
    folder = lab.stack.volume / row["storage_prefix"]
    for name in (*row["card"]["files"], CARD):
        for how, damage in DAMAGES.items():
            yield f"{name} {how}", folder / name, damage
    yield f"{CARD} with another threshold", folder / CARD, change_card


def candidate_damaged(lab: Lab) -> str:
    """Damage each file of a candidate in turn: it can neither be evaluated nor promoted, until it
    is repaired.
    """
    version_id = lab.another_version("series", "damaged")
    before = lab.live("series")[0]
    count, sentence = 0, ""
    for what, file, damage in damages_of(lab, version_id):
        with damaged(file, damage):
            if what == f"{FEATURES} truncated":
                require_evaluation_fails(lab, version_id)
            status, answer = promoted(lab, version_id)
            require(status == REFUSED, f"{what}: promotion {status} {answer}"[:300])
            sentence = sentence_of(answer)
            require(sentence.startswith(COULD_NOT_USE), f"{what}: {sentence}")
            require(lab.live("series")[0] == before, f"{what}: it went live")
            count += 1
    status, answer = promoted(lab, version_id)
    require(status == PROMOTED, f"repaired: promotion {status} {answer}"[:300])
    return (
        f"promotion refused after each of {count} damages, at last “{sentence}”; repaired, it was"
        " promoted"
    )


def require_evaluation_fails(lab: Lab, version_id: str) -> None:
    """Request an evaluation of a damaged version.

    Raises:
        Unexpected: it does not fail with a sentence about the damage.
    """
    body = {"version_id": version_id, "dataset_id": lab.dataset()}
    evaluation_id = str(lab.api("POST", "/evaluations", body, 202)["id"])
    lab.meant_to_fail.add(evaluation_id)
    end = lab.ended(Evaluation, evaluation_id)
    is_expected = end.status == JobStatus.FAILED and FEATURES in str(end.error)
    require(is_expected, f"evaluation: {end.status} {end.error}")


def live_damaged(lab: Lab) -> str:
    """Damage each file of the live version for series in turn, and restart the processes that have
    it in memory: each worker raises an alarm and hands series back, while slices are analyzed;
    repaired, all get their verdicts.
    """
    version_id = lab.live("series")[0]
    count = 0
    waiting: list[str] = []
    for _, file, damage in damages_of(lab, version_id):
        with damaged(file, damage):
            forget_model(lab, version_id)
            until(lambda: all(alarms_of(lab)))
            if file.name == CARD:
                waiting.append(lab.submit_series())
                until(lambda: is_handed_back(lab, waiting[-1]))
                lab.done(Scan, lab.submit_picture())
            count += 1
    for scan_id in waiting:
        lab.done(Scan, scan_id)
    until(lambda: not any(alarms_of(lab)))
    return (
        f"every predict worker raised an alarm after each of {count} damages, and slices were"
        f" analyzed; repaired, {len(waiting)} series got their verdicts, and the alarms ended"
    )


def forget_model(lab: Lab, version_id: str) -> None:
    """Remove a version from this machine's disk and from the memory of the predict workers."""
    card_id = lab.one(select(ModelVersion.card_id).where(ModelVersion.id == version_id))
    shutil.rmtree(lab.stack.home / "cache" / "models" / str(card_id), ignore_errors=True)
    before = {row["id"] for row in workers(lab)}
    for name in PREDICT_PROGRAMS:
        lab.stack.programs[name].send(signal.SIGKILL, "children")

    def are_new() -> bool:
        return len({row["id"] for row in workers(lab)} - before) == len(PREDICT_PROGRAMS)

    until(are_new)


def workers(lab: Lab) -> list[dict[str, str | None]]:
    """Return the predict workers that were seen last, one for each program."""
    alive = Worker.seen_at > database_now(-3)
    return lab.columns(Worker, ("id", "alarm"), Worker.queue == "predict", alive)


def alarms_of(lab: Lab) -> list[str | None]:
    """Return the alarms of the predict workers."""
    return [row["alarm"] for row in workers(lab)]


def is_handed_back(lab: Lab, scan_id: str) -> bool:
    """Return whether a scan waits for a worker that can analyze it."""
    (row,) = lab.columns(Scan, ("status", "retry_at"), Scan.id == scan_id)
    require(row["status"] in (JobStatus.QUEUED, JobStatus.RUNNING), f"a scan is {row['status']}")
    return row["status"] == JobStatus.QUEUED and row["retry_at"] is not None
