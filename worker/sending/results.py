"""Sends results to their destinations, in the background of the sweeps, with retries.

An object that is sent again has the same UIDs, so a destination stores it once.
"""

from __future__ import annotations

import logging
import threading

from flask import Flask, current_app
from sqlalchemy import delete, select
from sqlalchemy.orm import joinedload

from webapp.extensions import database_now, db
from webapp.models import (
    JobStatus,
    Prediction,
    ReceivedScan,
    ReceivedStudy,
    ReportKind,
    ReportRefused,
    ResultDelivery,
    Scan,
    report_kinds,
)
from webapp.routing import LinkGone, forget_links, link_of
from webapp.storage import MissingFile, StorageError, StorageUnavailable
from worker import leases
from worker.heartbeat import heartbeat
from worker.retries import in_transaction, storage_is_back
from worker.sending.attempts import (
    NotAllowed,
    NotDelivered,
    note_failure,
    place_of,
    send_meanwhile,
    within,
)

log = logging.getLogger(__name__)

RETRY_S = (10, 60, 300, 1800, 7200, 4 * 3600, 8 * 3600, 24 * 3600)
"""The wait after each failure, two days in total, because an archive may be down overnight; one
more failure is final.
"""
MOST_S = 120.0
"""An attempt that takes longer than this has failed."""
KEEP_S = 30 * 24 * 3600
"""Retention of the rows about received and sent objects."""
UNEXPECTED = "An unexpected error occurred; administrators can find the details in the log."

_sending = threading.Lock()


def send_results_meanwhile(app: Flask) -> None:
    """Send due results in a thread, so that no sweep waits for a destination."""
    send_meanwhile(app, _sending, send_due)


def send_due() -> None:
    """Send due results one after another, until this worker stops or the storage, which contains
    their sources, is unavailable.
    """
    mine, last = heartbeat(), ""

    def claim() -> list[ResultDelivery]:
        return leases.claim(ResultDelivery, mine.owner, after=last)

    while not mine.stopping() and storage_is_back() and (claimed := in_transaction(claim)):
        last = claimed[0].user_id
        with mine.holding(ResultDelivery, [claimed[0].id]):
            send(claimed[0])


def send(delivery: ResultDelivery) -> None:
    """Send a claimed result, and record the outcome."""
    owner, ids = heartbeat().owner, [delivery.id]
    try:
        kinds = deliver(delivery)
    except StorageUnavailable:
        in_transaction(lambda: leases.hand_back(ResultDelivery, owner, ids))
    except (NotAllowed, ReportRefused, LinkGone, MissingFile) as err:
        sentences = {delivery.id: str(err)}
        in_transaction(lambda: leases.fail(ResultDelivery, owner, sentences))
    except (NotDelivered, StorageError) as err:
        sentence = str(err)
        same = ResultDelivery.destination == delivery.destination
        in_transaction(lambda: note_failure(delivery, sentence, RETRY_S, same))
    except Exception as err:  # noqa: BLE001 - logged without its message, which may quote a header.
        db.session.rollback()
        log.error("result_delivery=%s failed unexpectedly: %s", delivery.id, place_of(err))
        in_transaction(lambda: leases.fail(ResultDelivery, owner, {ids[0]: UNEXPECTED}))
    else:
        in_transaction(lambda: note_sent(delivery, kinds))


def deliver(delivery: ResultDelivery) -> list[ReportKind]:
    """Send all objects of a result; return the kinds that the destination accepted.

    Raises:
        NotAllowed, ReportRefused, LinkGone: it may not or cannot be sent.
        NotDelivered: it was not accepted.
        StorageError: the sources of the objects cannot be read.
    """
    with_result = joinedload(Scan.prediction)
    scan = db.session.scalar(
        select(Scan)
        .where(Scan.id == delivery.scan_id)
        .options(
            with_result.joinedload(Prediction.model_version),
            with_result.joinedload(Prediction.heatmap),
        )
        .execution_options(populate_existing=True)
    )
    destination = current_app.config["DICOM_DESTINATIONS"].get(delivery.destination)
    if destination is None:
        raise NotAllowed("This destination is no longer configured.")
    if scan is None or scan.prediction is None:
        raise NotAllowed("This scan no longer has a result.")
    kinds: list[ReportKind] = [*report_kinds(scan)]
    kinds.remove(ReportKind.PDF)
    if not kinds:
        raise NotAllowed(
            "The scan’s DICOM files are no longer stored, so no object can be created."
        )
    link = link_of(scan.id)
    # Imported here because they take a second and 60 MB, which workers avoid until a result is to
    # be sent.
    from worker.reports.making import dicom_objects_of
    from worker.reports.original_study import in_original_study, stable_uid
    from worker.sending.destinations import send as send_to

    uids: dict[ReportKind, str] = {
        kind: stable_uid(scan.prediction.id, kind.value) for kind in kinds
    }
    sent = dict.fromkeys(replaced["sent"] for replaced in scan.replaces or () if replaced["sent"])
    reports = [stable_uid(each, ReportKind.STRUCTURED_REPORT.value) for each in sent]
    files = dicom_objects_of(scan, uids, [(stable_uid(each, "series"), each) for each in reports])
    objects = [in_original_study(content, link, replaces=bool(sent)) for content in files.values()]
    # No transaction is open while waiting for a destination.
    db.session.commit()
    stored: list[str] = []
    config = dict(current_app.config)

    def send_all() -> None:
        stored.extend(
            str(instance.SOPInstanceUID) for instance in send_to(destination, objects, config)
        )

    within(MOST_S, send_all)
    return [kind for kind in kinds if uids[kind] in stored]


def note_sent(delivery: ResultDelivery, kinds: list[ReportKind]) -> None:
    """Record that a result was sent, and delete the link to its study if nothing else needs it. The
    caller commits.
    """
    sent = ", ".join(kind.value for kind in kinds)
    leases.finish(ResultDelivery, heartbeat().owner, [delivery.id], sent=sent)
    forget_links(ReceivedScan.scan_id == delivery.scan_id)


def remove_old_deliveries() -> None:
    """Delete links that are no longer needed, and rows about what was received or sent `KEEP_S`
    ago.
    """
    in_transaction(forget_links)
    ended = ResultDelivery.status.in_([status for status in JobStatus if status.is_final])
    old = ResultDelivery.finished_at < database_now(-KEEP_S)
    in_transaction(lambda: db.session.execute(delete(ResultDelivery).where(ended, old)))
    closed = ReceivedStudy.closed_at < database_now(-KEEP_S)
    in_transaction(lambda: db.session.execute(delete(ReceivedStudy).where(closed)))
