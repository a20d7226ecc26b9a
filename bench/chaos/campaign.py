"""Submit scans over HTTP while faults are injected, until everything has a verdict."""

from __future__ import annotations

import http.client
import queue
import random
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import InterfaceError, OperationalError

from bench.chaos.background import begin_shadow, request_replays
from bench.chaos.dicom import is_settled, send_what_waits
from bench.chaos.faults import Injector, schedule
from bench.chaos.lab.cases import carry_out as carry_out_lab
from bench.chaos.lab.tools import Lab
from bench.chaos.stack import POISON_PX, Stack
from bench.chaos.trainings import Trainings
from bench.service import Client, Refused
from ml.scans.phantoms import phantom, write_png
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.jobs import QUEUE_OF_TABLE
from webapp.models import JobStatus

SCANS_A_POISON = 150
GAP_S = (2.0, 8.0)
"""Seconds between the starts of two faults; some last longer, so that they overlap."""
REPLAY_TRIES = 20
SETTLED_WITHIN_S = 600
"""Seconds after which the wait ends and rows without a verdict are reported."""


@dataclass
class Submitter(threading.Thread):
    """Submits images one after the other, retrying each until it is accepted."""

    stack: Stack
    accepted: list[str] = field(default_factory=list)
    refusals: int = 0
    replies_s: list[float] = field(default_factory=list)
    _waiting: queue.Queue[bytes | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        super().__init__(name="submitter", daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def submit(self, pictures: list[bytes]) -> None:
        """Submit these as soon as possible."""
        for picture in pictures:
            self._waiting.put(picture)

    def finish(self) -> None:
        """Wait until all are accepted."""
        self._waiting.put(None)
        self.join()

    def run(self) -> None:
        """Submit images from the queue."""
        client = self.stack.client()
        while (picture := self._waiting.get()) is not None:
            while not self._is_accepted(client, picture):
                self.refusals += 1
                time.sleep(0.2)
                client = self.stack.client()

    def _is_accepted(self, client: Client, picture: bytes) -> bool:
        began = time.monotonic()
        try:
            self.accepted.append(client.upload("slice", picture)["id"])
        except (Refused, OSError, http.client.HTTPException):
            return False
        self.replies_s.append(time.monotonic() - began)
        return True


@dataclass
class Campaign:
    """What was done to a stack, as input for `bench.chaos.verdict`."""

    stack: Stack
    submitter: Submitter
    injector: Injector
    trainings: Trainings
    lab: Lab
    began: float
    lab_ended: float = 0.0
    ended: float = 0.0

    @property
    def last_fault_ended(self) -> float:
        """End of the last fault, or of the lab (seconds since 1970)."""
        return max([self.began, self.lab_ended, *(fault.ended for fault in self.injector.faults)])


def carry_out(
    stack: Stack,
    scans: int,
    faults: int,
    trainings: int,
    rng: random.Random,
    *,
    lab: Collection[str] | None,
) -> Campaign:
    """Submit scans, inject faults, then those of the lab, and wait until everything has a verdict
    or time is up.

    Args:
        lab: which cases of the lab (`bench.chaos.lab.cases.carry_out`); None for no lab.
    """
    runs = Trainings(stack, trainings, stack.folder)
    if trainings:
        runs.import_phantoms()
    begin_shadow(stack)
    of_lab = Lab(stack, random.Random(0))  # Faults are drawn as without it.
    campaign = Campaign(stack, Submitter(stack), Injector(stack), runs, of_lab, time.time())
    campaign.submitter.start()
    if trainings:
        runs.start()
    kinds = schedule(stack.kind, faults, rng)
    pictures = pictures_of(scans, stack.folder, rng)
    for number, kind in enumerate(kinds):
        campaign.submitter.submit(
            pictures[number * scans // faults : (number + 1) * scans // faults]
        )
        if number == faults // 2:
            replay_when_possible(stack)
        time.sleep(rng.uniform(0.1, 1.0))
        campaign.injector.begin(kind, random.Random(rng.random()))
        time.sleep(rng.uniform(*GAP_S))
    campaign.injector.wait()
    campaign.submitter.finish()
    if lab is not None:
        if trainings:
            runs.join()  # It kills the worker that trains, too.
        carry_out_lab(of_lab, lab)
        campaign.lab_ended = time.time()
    stack.neighbors.scanner.finish()
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while time.monotonic() < deadline and (
        runs.is_alive() or not is_settled(stack) or stack.ask(unsettled) != 0
    ):
        send_what_waits(stack)
        time.sleep(0.5)
    campaign.ended = time.time()
    return campaign


def replay_when_possible(stack: Stack) -> None:
    """Request replays as soon as there is an answer and no fault keeps the database down."""
    with stack.app.app_context():
        for _ in range(REPLAY_TRIES):
            try:
                if request_replays():
                    return
            except (OperationalError, InterfaceError):
                db.session.rollback()
            time.sleep(0.5)


def unsettled() -> int:
    """Return the number of queued and running rows of all queues."""
    open_rows = (JobStatus.QUEUED, JobStatus.RUNNING)
    return sum(
        db.session.scalar(
            select(func.count()).select_from(table).where(table.status.in_(open_rows))
        )
        or 0
        for table in QUEUE_OF_TABLE
    )


def pictures_of(count: int, folder: Path, rng: random.Random) -> list[bytes]:
    """Return that many images, some of which, in the first half, are poisoned."""
    good = [
        path.read_bytes()
        for path in sorted((PROJECT_ROOT / "webapp" / "static" / "phantoms").glob("phantom-*"))
    ]
    write_png(phantom(1, hemorrhage=True, size=POISON_PX), folder / "poison.png")
    poison = (folder / "poison.png").read_bytes()
    first_half = range((count + 1) // 2)
    wanted = min(max(1, count // SCANS_A_POISON), len(first_half))
    poisoned = set(rng.sample(first_half, wanted))
    return [poison if number in poisoned else rng.choice(good) for number in range(count)]
