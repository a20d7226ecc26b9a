"""Scans received by DICOM: known instances, the link to the original study, and the results to be
sent back.

The link is created only if a result is to be sent back, encrypted with a separate key, and deleted
once all results of its scan have been sent or canceled or are not wanted, or after
`DICOM_KEEP_LINKS_DAYS`. It is never logged.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import InvalidToken
from flask import current_app
from sqlalchemy import ColumnElement, Row, insert, or_, select, update

from webapp.dicom_peers import Answered
from webapp.extensions import database_now, db
from webapp.models import (
    JobStatus,
    ReceivedScan,
    ResultDelivery,
    Scan,
    cancel,
    failed_or_retrying,
    new_id,
    queue_again,
)
from webapp.sealing import keyed_hash, sealer

LINK = "link to an original study"
INSTANCE = "received instance"
DAY_S = 24 * 3600
OPEN = (JobStatus.QUEUED, JobStatus.RUNNING)


class LinkGone(LookupError):
    """The link to an original study is no longer stored, or cannot be read; the message is a
    sentence for administrators.
    """


@dataclass(frozen=True, repr=False)
class Link:
    """The link from a scan to its original study.

    Attributes:
        uids: the original of each UID in the stored copies.
        patient: the original attributes of patient and study, as DICOM JSON (PS3.18 F).
    """

    uids: Mapping[str, str]
    patient: Mapping[str, Any]


def seal(link: Link) -> str:
    """Return an encrypted link."""
    content = json.dumps({"uids": dict(link.uids), "patient": dict(link.patient)})
    return sealer(LINK).encrypt(zlib.compress(content.encode())).decode()


def link_of(scan_id: str) -> Link:
    """Return the link of a scan.

    Raises:
        LinkGone: it is no longer stored.
    """
    sealed = db.session.scalar(
        select(ReceivedScan.sealed_link).where(ReceivedScan.scan_id == scan_id)
    )
    if sealed is None:
        raise LinkGone("The link to the original study is no longer kept.")
    try:
        return Link(**json.loads(zlib.decompress(sealer(LINK).decrypt(sealed))))
    except InvalidToken as err:
        raise LinkGone(
            "The link to the original study was encrypted with another SECRET_KEY."
        ) from err


def study_key(user_id: str, study_uid: str) -> str:
    """Return the keyed hash of a study of that account."""
    return keyed_hash(INSTANCE, user_id, study_uid)


def instance_key(series_uid: str, instance_uid: str, pixels: bytes = b"") -> str:
    """Return the keyed hash of an instance's series, then a hyphen, then that of the instance with
    the digest of its pixels.
    """
    series = keyed_hash(INSTANCE, series_uid, "")[:16]
    return f"{series}-{keyed_hash(INSTANCE, instance_uid, pixels.hex())}"


def received_scans(study_hash: str) -> Sequence[Row[Any]]:
    """Return the scans that were made from a study, newest first: `scan_id`, the keyed hashes of
    their `instances`, their `answers`, and what is stored for them (`study_id`, `original_key`,
    `original_removed_at`, `slice_count`, `stat`).
    """
    received = (ReceivedScan.scan_id, ReceivedScan.instances, ReceivedScan.answers)
    stored = (Scan.study_id, Scan.original_key, Scan.original_removed_at)
    columns: tuple[Any, ...] = (*received, *stored, Scan.slice_count, Scan.stat)
    of_study = (
        select(*columns)
        .join(Scan, Scan.id == ReceivedScan.scan_id)
        .where(ReceivedScan.study_hash == study_hash)
        .order_by(Scan.created_at.desc(), Scan.id)
    )
    return db.session.execute(of_study).all()


def queue_deliveries(scan_ids: Collection[str]) -> None:
    """Queue the results of these scans, which just got one, for the destinations that get them; in
    the caller's transaction, with a number of statements that does not depend on the number of
    scans. A result that could not be sent is replaced by the new one, whose tries start again.
    """
    if not scan_ids:
        return
    linked = db.session.execute(
        select(
            ReceivedScan.scan_id, ReceivedScan.answers, Scan.user_id, Scan.stat, Scan.verdict_state
        )
        .join(Scan, Scan.id == ReceivedScan.scan_id)
        .where(ReceivedScan.scan_id.in_(scan_ids), ReceivedScan.sealed_link.is_not(None))
    ).all()
    if not linked:
        return
    ids = [row.scan_id for row in linked]
    wanted = {
        (row.scan_id, destination): row.user_id
        for row in linked
        for destination, results in (row.answers or {}).items()
        if Answered(results).covers(state=row.verdict_state, stat=row.stat)
    }
    there_are = db.session.execute(
        select(
            ResultDelivery.id,
            ResultDelivery.scan_id,
            ResultDelivery.destination,
            ResultDelivery.status,
        ).where(ResultDelivery.scan_id.in_(ids))
    ).all()
    for row in there_are:
        is_wanted = wanted.pop((row.scan_id, row.destination), None) is not None
        # The delivery of an earlier result had failed.
        if is_wanted and row.status == JobStatus.FAILED:
            queue_again(ResultDelivery, ResultDelivery.id == row.id, tries=0)
    if wanted:
        rows = [
            {"id": new_id(), "user_id": user_id, "scan_id": scan_id, "destination": destination}
            for (scan_id, destination), user_id in wanted.items()
        ]
        db.session.execute(insert(ResultDelivery).values(rows))
    forget_links(ReceivedScan.scan_id.in_(ids))


def forget_links(*which: ColumnElement[bool]) -> None:
    """Delete the links that are no longer needed, for all scans or some. The caller commits."""
    unsent = select(ResultDelivery.id).where(
        ResultDelivery.scan_id == ReceivedScan.scan_id,
        ResultDelivery.status.in_((*OPEN, JobStatus.FAILED)),
    )
    answered = select(Scan.id).where(Scan.id == ReceivedScan.scan_id, Scan.status == JobStatus.DONE)
    kept_s = current_app.config["DICOM_KEEP_LINKS_DAYS"] * DAY_S
    is_useless = answered.exists() & ~unsent.exists()
    is_old = ReceivedScan.received_at < database_now(-kept_s)
    db.session.execute(
        update(ReceivedScan)
        .where(ReceivedScan.sealed_link.is_not(None), or_(is_useless, is_old), *which)
        .values(sealed_link=None),
        execution_options={"synchronize_session": False},
    )


def unsent_results(most: int) -> list[ResultDelivery]:
    """Return the newest results that failed permanently, or at least once and wait for another
    try.
    """
    return failed_or_retrying(ResultDelivery, most)


def retry_delivery(delivery_id: str) -> bool:
    """Send a result again that failed, was canceled or waits for its next attempt. The caller
    commits.

    Returns:
        False if there is no such result, or it was sent.
    """
    is_delivery = ResultDelivery.id == delivery_id
    waits = update(ResultDelivery).where(is_delivery, ResultDelivery.status == JobStatus.QUEUED)
    hurried = db.session.scalar(
        waits.values(retry_at=None).returning(ResultDelivery.id),
        execution_options={"synchronize_session": False},
    )
    return hurried is not None or queue_again(ResultDelivery, is_delivery, tries=0)


def cancel_delivery(delivery_id: str) -> bool:
    """Give up sending a result, including a failed one, and delete the link if nothing else needs
    it. The caller commits.

    Returns:
        False if there is no such result, or it was sent or canceled.
    """
    is_delivery = ResultDelivery.id == delivery_id
    is_canceled = cancel(ResultDelivery, is_delivery)
    if not is_canceled:
        failed = update(ResultDelivery).where(
            is_delivery, ResultDelivery.status == JobStatus.FAILED
        )
        is_canceled = (
            db.session.scalar(
                failed.values(status=JobStatus.CANCELLED).returning(ResultDelivery.id),
                execution_options={"synchronize_session": False},
            )
            is not None
        )
    if is_canceled:
        scan = select(ResultDelivery.scan_id).where(is_delivery).scalar_subquery()
        forget_links(ReceivedScan.scan_id == scan)
    return is_canceled
