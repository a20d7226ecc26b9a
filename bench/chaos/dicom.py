"""The faults of DICOM input and output, and what must hold for each study: it becomes exactly one
scan, and its results are in the archive exactly once.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError

from bench.chaos.neighbors import OWNER, SLICES
from bench.chaos.stack import Stack
from webapp.extensions import db
from webapp.models import JobStatus, ReceivedScan, ResultDelivery, User
from webapp.routing import retry_delivery, study_key

MET_WITHIN_S = 150.0
"""Seconds that a fault of the archive waits for a result that it affects."""
SENT_WITHIN_S = 120.0
HANGS_S = (2.0, 34.0)
"""Seconds that the archive hangs; an attempt fails after 30 s without a response."""


def kill_listener(stack: Stack, rng: random.Random) -> str:
    """SIGKILL to the listener while a study arrives."""
    stack.neighbors.scanner.submit(rng)
    has_arrived = stack.neighbors.scanner.arrived.wait(SENT_WITHIN_S)
    stack.programs["dicom-listen"].send(signal.SIGKILL, "all")
    return "in the middle of a study" if has_arrived else "nothing arrived at the time"


def abort_association(stack: Stack, rng: random.Random) -> str:
    """Abort an association in the middle of a study; the scanner sends the study again."""
    stack.neighbors.scanner.aborts += 1
    stack.neighbors.scanner.submit(rng)
    wait_until(lambda: not stack.neighbors.scanner.aborts, SENT_WITHIN_S)
    return ""


def fail_archive(mode: str) -> Callable[[Stack, random.Random], str]:
    """Return a fault in which the archive is down, slow, refuses, or cuts the connection, until an
    attempt to send it a result was affected.
    """

    def fail(stack: Stack, rng: random.Random) -> str:
        archive = stack.neighbors.archive
        archive.hangs_s, archive.met, before = rng.uniform(*HANGS_S), 0, tries_of(stack)
        stack.neighbors.scanner.submit(rng)
        archive.mode = mode
        if mode == "down":
            archive.stop()
        try:
            wait_until(lambda: bool(archive.met) or tries_of(stack) > before, MET_WITHIN_S)
        finally:
            if mode == "down":
                archive.start()
            archive.mode = ""
        failed = max(0, tries_of(stack) - before)
        return f"{failed} attempts failed by then, {archive.met} objects affected"

    fail.__doc__ = f"The archive {mode} until an attempt to send it a result was affected."
    return fail


def tries_of(stack: Stack) -> int:
    """Return the number of failed attempts to send a result; 0 while the database is down."""
    tries = stack.ask(lambda: db.session.scalars(select(ResultDelivery.tries)).all())
    return sum(tries or ())


def wait_until(holds: Callable[[], bool], within_s: float) -> None:
    """Wait for a condition, for at most that many seconds."""
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)


def send_what_waits(stack: Stack) -> None:
    """Press *Send now* for results that failed and would otherwise wait for up to a day."""
    with stack.app.app_context(), suppress(OperationalError, InterfaceError):
        waiting = db.session.scalars(
            select(ResultDelivery.id).where(
                ResultDelivery.status == JobStatus.QUEUED, ResultDelivery.retry_at.is_not(None)
            )
        ).all()
        for delivery_id in waiting:
            retry_delivery(delivery_id)
        db.session.commit()


def is_settled(stack: Stack) -> bool:
    """Whether every study that was sent has become a scan."""
    folders = [stack.home / "received" / name for name in ("open", "closed")]
    waiting = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return stack.neighbors.scanner.is_done and not waiting


@dataclass(frozen=True)
class DicomOutcome:
    """What became of the studies: how many there were and how often they were sent, the objects in
    the archive, and how many of them arrived more than once.
    """

    studies: int = 0
    sent: int = 0
    objects: int = 0
    again: int = 0


def judge_dicom(stack: Stack) -> tuple[DicomOutcome, list[str], set[str]]:
    """Return what became of the studies, the violated guarantees, and the ids of their scans."""
    scanner, archive = stack.neighbors.scanner, stack.neighbors.archive
    user_id = db.session.scalars(select(User.id).where(User.username == OWNER)).one()
    received = db.session.scalars(select(ReceivedScan)).all()
    deliveries = db.session.scalars(select(ResultDelivery)).all()
    faults = list(archive.wrong)
    scans_of = Counter(row.study_hash for row in received)
    for study in scanner.studies:
        scans = scans_of.pop(study_key(user_id, study), 0)
        if scans != 1:
            faults.append(f"a study that was sent by DICOM became {scans} scans")
        kinds = [uid for uid, its in archive.stored.items() if its == study]
        if len(kinds) not in (2, 3):
            faults.append(f"the archive has {len(kinds)} objects of a study instead of 2 or 3")
    if scans_of:
        faults.append(f"{len(scans_of)} studies came by DICOM that nobody sent")
    faults += [
        f"a scan has {len(row.instances)} of {SLICES} slices that were sent by DICOM"
        for row in received
        if len(row.instances) != SLICES
    ]
    faults += [
        f"a link to a study is still kept: {row.scan_id}" for row in received if row.sealed_link
    ]
    unsent = [row for row in deliveries if row.status != JobStatus.DONE]
    faults += [f"a result was not sent: {row.status} {row.error}" for row in unsent]
    if strangers := set(archive.stored.values()) - set(scanner.studies):
        faults.append(f"the archive has objects of {len(strangers)} studies that nobody sent")
    arrivals = archive.arrivals.total()
    outcome = DicomOutcome(
        len(scanner.studies), scanner.tries, len(archive.stored), arrivals - len(archive.stored)
    )
    return outcome, faults, {row.scan_id for row in received}
