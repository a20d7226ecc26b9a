"""Results on their way back to the archive that a study came from."""

from __future__ import annotations

import io
import json
import ssl
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pydicom
import pytest
from flask import Flask
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE, evt
from sqlalchemy import select, update

from listener.__main__ import tls_of as listener_tls_of
from ml.scans.phantoms import phantom, write_dicom
from tests.conftest import app_on
from tests.listener.archives import a_certificate, running_orthanc
from tests.listener.running import PATIENT, Running
from tests.worker.conftest import as_worker
from tests.worker.reports.readers import require_valid
from tests.worker.test_outlines import BLEEDING, SIDE, install_outlining
from webapp.deletion import delete_scan
from webapp.dicom_peers import Destination, destinations_of
from webapp.extensions import database_now, db, utc_now
from webapp.models import (
    JobStatus,
    ReceivedScan,
    ReceivedStudy,
    ReportKind,
    ResultDelivery,
    Scan,
    User,
)
from webapp.models.predictions import score_again
from webapp.routing import (
    Link,
    cancel_delivery,
    queue_deliveries,
    retry_delivery,
    seal,
    unsent_results,
)
from webapp.storage import StorageUnavailable, storage
from worker import leases, tasks
from worker.retries import storage_answers, storage_is_back
from worker.sending.attempts import NotDelivered
from worker.sending.destinations import send
from worker.sending.results import (
    KEEP_S,
    RETRY_S,
    UNEXPECTED,
    remove_old_deliveries,
    send_due,
)
from worker.sweep import DOING

# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
PEERS = "ORTHANC@127.0.0.1 account=ann answer=pacs"


@pytest.fixture
def routed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A worker and a listener whose peer ORTHANC gets its results at the destination “pacs”."""
    app = app_on(
        f"sqlite:///{tmp_path / 'test.db'}",
        tmp_path,
        DICOM_PEERS=PEERS,
        DICOM_DESTINATIONS="pacs=dimse://ORTHANC@127.0.0.1:1",
        MIN_FREE_MB=0,
    )
    for worker in as_worker(app):
        install_outlining()
        running = Running(worker, tmp_path / "received")
        monkeypatch.setattr(tempfile, "tempdir", str(running.spool.arriving))
        yield running
        running.stop()
        db.session.remove()
        db.engine.dispose()


def bleeding_study(folder: Path) -> list[Dataset]:
    """Return a phantom of six slices, two of which bleed, with everything that names a patient."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for index in range(6):
        hu = phantom(70, index in BLEEDING, size=SIDE)
        if index not in BLEEDING:
            hu[(hu > 42) & (hu < 300)] = 42
        write_dicom(hu, folder / "one.dcm", number=index + 1, position_mm=5.0 * index)
        one = pydicom.dcmread(folder / "one.dcm")
        for name, value in PATIENT.items():
            setattr(one, name, value)
        one.StudyInstanceUID, one.SeriesInstanceUID = study, series
        one.FrameOfReferenceUID, one.SOPInstanceUID = frame, generate_uid()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        made.append(one)
    return made


def as_file(one: Dataset) -> bytes:
    """Return an object as a file."""
    file = io.BytesIO()
    one.save_as(file, enforce_file_format=True)
    return file.getvalue()


def direct(routed: Running, url: str) -> None:
    """Have the destination “pacs” be at this address."""
    routed.app.config["DICOM_DESTINATIONS"] = destinations_of(f"pacs={url}")


def answered(routed: Running, folder: Path, title: str = "ORTHANC") -> list[Dataset]:
    """Have a study come, and be answered; return it."""
    study = bleeding_study(folder)
    assert routed.send(study, title) == [0] * 6
    routed.close()
    tasks.predict_scans()
    return study


def delivery() -> ResultDelivery:
    """Return the only result on its way, as the database has it now."""
    db.session.expire_all()
    return db.session.scalars(select(ResultDelivery)).one()


def links() -> list[str | None]:
    """Return the encrypted links that are kept."""
    return list(db.session.scalars(select(ReceivedScan.sealed_link)))


def due_now() -> None:
    """Have every result that waits be due, and send it."""
    db.session.execute(update(ResultDelivery).values(retry_at=None))
    db.session.commit()
    send_due()


class Archive:
    """A DICOM node that does to what it gets as a test says."""

    def __init__(self) -> None:
        self.got: list[Dataset] = []
        self.status: list[int] = []
        self.on_store: Callable[[evt.Event], None] = lambda event: None
        self.kinds = ["1.2.840.10008.5.1.4.1.1.88.34", SecondaryCaptureImageStorage]
        self.kinds += [SegmentationStorage]
        self._server: Any = None

    @contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Run it; yield its address."""
        ae = AE("ORTHANC")
        ae.network_timeout = ae.acse_timeout = 5
        for kind in self.kinds:
            ae.add_supported_context(kind)
        handlers: Any = [(evt.EVT_C_STORE, self._do)]
        server = ae.start_server(("127.0.0.1", 0), False, tls, handlers)
        try:
            yield f"dimse://ORTHANC@127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()

    def _do(self, event: evt.Event) -> int:
        self.on_store(event)
        one = pydicom.dcmread(event.dataset_path) if event.dataset_path else event.dataset
        self.got.append(one)
        return self.status.pop(0) if self.status else 0


def test_orthanc_routes_a_study_and_finds_the_result_in_it(routed: Running, tmp_path: Path) -> None:
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        direct(routed, f"dimse://ORTHANC@127.0.0.1:{orthanc.dicom_port}")
        study = bleeding_study(tmp_path / "series")
        for one in study:
            orthanc.ask("/instances", as_file(one))
        (study_id,) = orthanc.ask("/studies")
        job = orthanc.route_to(routed.port, [study_id])
        assert (job["InstancesCount"], job["FailedInstancesCount"]) == (6, 0)
        routed.close()
        tasks.predict_scans()
        send_due()

        (delivery,) = db.session.scalars(select(ResultDelivery))
        assert (delivery.status, delivery.error) == (JobStatus.DONE, None)
        assert delivery.sent == "sr, sc, seg"
        assert orthanc.ask("/studies") == [study_id] and len(orthanc.ask("/patients")) == 1
        series = orthanc.ask(f"/studies/{study_id}/series")
        made = {one["MainDicomTags"]["Modality"]: one for one in series}
        assert set(made) == {"CT", "SR", "OT", "SEG"}
        for modality in ("SR", "OT", "SEG"):
            (instance,) = made[modality]["Instances"]
            tags = orthanc.ask(f"/instances/{instance}/simplified-tags")
            for name, value in PATIENT.items():
                if name != "SpecificCharacterSet":
                    assert tags[name] == value, name
        assert db.session.scalars(select(ReceivedScan.sealed_link)).all() == [None]


def test_what_goes_back_belongs_to_the_original_study_and_refers_to_its_slices(
    routed: Running, tmp_path: Path
) -> None:
    archive = Archive()
    with archive.running() as url:
        direct(routed, url)
        study = answered(routed, tmp_path / "series")
        (sealed,) = links()
        database = b"".join(path.read_bytes() for path in tmp_path.glob("test.db*"))
        for secret in (study[0].StudyInstanceUID, study[3].SOPInstanceUID, "MRN-4711"):
            assert sealed and secret.encode() not in database and secret not in sealed
        send_due()
    assert links() == [None] and delivery().status == JobStatus.DONE
    assert {one.Modality for one in archive.got} == {"SR", "OT", "SEG"}
    slices = {one.SOPInstanceUID for one in study}
    for one in archive.got:
        assert one.StudyInstanceUID == study[0].StudyInstanceUID
        assert (one.PatientID, str(one.PatientName)) == ("MRN-4711", "Müller^Änne")
        assert "PatientIdentityRemoved" not in one and one.SpecificCharacterSet == "ISO_IR 192"
        assert one.SeriesInstanceUID not in {each.SeriesInstanceUID for each in study}
        referred = {
            element.value
            for element in one.iterall()
            if element.keyword == "ReferencedSOPInstanceUID"
        }
        assert referred and referred <= slices | {one.SOPInstanceUID}
        if one.Modality == "SEG":
            assert one.FrameOfReferenceUID == study[0].FrameOfReferenceUID
        if one.Modality != "OT":
            (tmp_path / "one.dcm").write_bytes(as_file(one))
            require_valid(tmp_path / "one.dcm")


def test_an_archive_that_is_down_slow_refusing_or_cut_off_gets_the_result_later_and_once(
    routed: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = answered(routed, tmp_path / "series")
    archive = Archive()

    def abort(event: evt.Event) -> None:
        if len(archive.got) == 1:  # In the middle.
            event.assoc.abort()

    def hang(event: evt.Event) -> None:
        threading.Event().wait(1)

    errors: list[str] = []
    send_due()  # It is down.
    errors.append(str(delivery().error))
    assert (delivery().status, delivery().tries) == (JobStatus.QUEUED, 1)
    wait_s = (delivery().retry_at - utc_now()).total_seconds()  # type: ignore[operator]
    assert RETRY_S[0] - 5 < wait_s <= RETRY_S[0]
    with archive.running() as url:
        archive.status = [0, 0xA700]
        direct(routed, url)
        due_now()
        errors.append(str(delivery().error))
        archive.got.clear()
        archive.on_store = abort
        due_now()
        errors.append(str(delivery().error))
        monkeypatch.setattr("worker.sending.destinations.ANSWER_S", 0.3)
        archive.on_store = hang
        due_now()
        errors.append(str(delivery().error))
        monkeypatch.undo()
        archive.on_store = lambda event: None
        archive.got.clear()
        archive.status = [0x0111, 0xB000]
        due_now()
    assert errors == [
        "The destination cannot be reached, or does not speak DICOM.",
        "The destination refused Secondary Capture Image Storage with status 0xA700.",
        "The connection was lost, or the destination did not respond in time.",
        "The connection was lost, or the destination did not respond in time.",
    ]
    assert (delivery().status, delivery().error, delivery().sent) == (
        JobStatus.DONE,
        None,
        "sr, sc, seg",
    )
    assert links() == [None]
    for secret in ("Müller", "MRN-4711", study[0].StudyInstanceUID):
        assert secret not in caplog.text


def test_a_result_that_is_sent_twice_is_one_object(routed: Running, tmp_path: Path) -> None:
    archive = Archive()
    archive.kinds.remove(SegmentationStorage)  # Which it then does without.
    with archive.running() as url:
        direct(routed, url)
        answered(routed, tmp_path / "series")
        sealed = links()
        send_due()
        # As if the worker had died before it wrote that it had sent it.
        db.session.execute(
            update(ResultDelivery).values(
                status=JobStatus.RUNNING, lease_owner="x", lease_expires_at=database_now(-1)
            )
        )
        db.session.execute(update(ReceivedScan).values(sealed_link=sealed[0]))
        leases.reap(ResultDelivery, DOING[ResultDelivery])
        db.session.commit()
        send_due()
    assert delivery().sent == "sr, sc" and len(archive.got) == 4
    assert len({one.SOPInstanceUID for one in archive.got}) == 2
    assert len({one.SeriesInstanceUID for one in archive.got}) == 2


def test_the_result_of_a_completed_series_replaces_the_one_that_was_sent(
    routed: Running, tmp_path: Path
) -> None:
    archive, study = Archive(), bleeding_study(tmp_path / "series")

    def arrives(some: list[Dataset]) -> None:
        assert set(routed.send(some, "ORTHANC")) == {0}
        routed.close()
        tasks.predict_scans()

    with archive.running() as url:
        arrives(study[:2])  # Its result cannot be sent yet, and is not sent any more
        direct(routed, url)
        arrives(study[2:4])  # when the rest arrives, but that of all four slices.
        send_due()
        first = next(one for one in archive.got if one.Modality == "SR")
        assert "PredecessorDocumentsSequence" not in first
        referred = [one for one in first.iterall() if one.keyword == "ReferencedSOPInstanceUID"]
        assert {one.value for one in referred} == {one.SOPInstanceUID for one in study[:4]}
        sent = len(archive.got)
        # No link is kept after that, so the last slices stand alone until all are sent again.
        arrives(study[4:])
        assert "arrived earlier" in routed.scans()[-1].notes[-1]
        arrives(study)
        assert [scan.slice_count for scan in routed.scans()] == [6]
        due_now()
    made = {one.Modality: one for one in archive.got[sent:]}
    assert len(archive.got) == sent + 3 and set(made) == {"SR", "OT", "SEG"}
    for one in made.values():
        assert one.SeriesDescription.endswith(", replaces earlier one")
    (before,) = made["SR"].PredecessorDocumentsSequence
    assert before.StudyInstanceUID == study[0].StudyInstanceUID
    (series,) = before.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == [
        first.SOPInstanceUID
    ]
    (tmp_path / "one.dcm").write_bytes(as_file(made["SR"]))
    require_valid(tmp_path / "one.dcm")


def test_an_unexpected_error_ends_with_a_sentence_and_quotes_nothing_in_the_log(
    routed: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("Müller^Änne cannot be encoded.")

    answered(routed, tmp_path / "series")
    monkeypatch.setattr("worker.sending.destinations.send", fail)
    send_due()
    assert delivery().error == "It could not be sent (ValueError)."
    monkeypatch.setattr("worker.reports.original_study.in_original_study", fail)
    due_now()
    assert (delivery().status, delivery().error) == (JobStatus.FAILED, UNEXPECTED)
    assert "ValueError in " in caplog.text and "Müller" not in caplog.text


def test_after_the_last_try_an_administrator_sends_it_or_gives_up(
    routed: Running, tmp_path: Path
) -> None:
    answered(routed, tmp_path / "series")
    db.session.execute(update(ResultDelivery).values(tries=len(RETRY_S)))
    db.session.commit()
    send_due()
    assert delivery().status == JobStatus.FAILED and links() != [None]
    assert unsent_results(5) == [delivery()]
    assert retry_delivery(delivery().id) and delivery().tries == 0
    db.session.commit()
    routed.app.config["DICOM_DESTINATIONS"] = {}
    send_due()
    assert delivery().error == "This destination is no longer configured."
    assert cancel_delivery(delivery().id)
    db.session.commit()
    assert delivery().status == JobStatus.CANCELLED and links() == [None]
    direct(routed, "dimse://ORTHANC@127.0.0.1:1")
    assert retry_delivery(delivery().id)
    db.session.commit()
    send_due()
    assert delivery().error == "The link to the original study is no longer kept."
    # Nothing stays of a scan that is deleted.
    delete_scan(delivery().scan_id)
    assert db.session.scalars(select(ReceivedScan)).all() == unsent_results(5) == []


def test_with_tls_a_destination_must_show_a_certificate_of_the_operators_authority(
    tmp_path: Path,
) -> None:
    ours, others = a_certificate(tmp_path, "ours"), a_certificate(tmp_path, "others")
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    archive = Archive()
    with archive.running(listener_tls_of(ours)) as url:
        there = Destination("pacs", url.replace("dimse://", "dimses://"))
        config = {"DICOM_AE_TITLE": "HEMOSCAN", **ours}
        assert send(there, [one], config) == [one] and len(archive.got) == 1
        with pytest.raises(NotDelivered, match="certificate is signed by an authority that is"):
            send(there, [one], {**config, **others})
        with pytest.raises(NotDelivered, match="cannot be reached"):
            send(Destination("pacs", url), [one], config)  # Without TLS.
    assert len(archive.got) == 1


class Web(BaseHTTPRequestHandler):
    """A DICOMweb server that answers as a test says, and keeps what it was sent."""

    answers: ClassVar[list[tuple[int, bytes]]] = []
    got: ClassVar[list[tuple[str, Any, bytes]]] = []

    def do_POST(self) -> None:
        """Answer a request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, self.headers, body))
        status, content = self.answers.pop(0) if self.answers else (200, b"{}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def failure(reason: int) -> bytes:
    """Return an answer that says why an instance was not stored."""
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


def test_a_dicomweb_server_gets_results_too(routed: Running, tmp_path: Path) -> None:
    study = answered(routed, tmp_path / "series")
    Web.answers[:] = [
        (503, b""),
        (401, b""),
        (302, b""),
        (409, failure(0xA700)),
        (200, failure(0x0110)),
        (409, failure(0x0111)),  # It has it already.
    ]
    Web.got.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    direct(routed, f"http://hemoscan:se%20cret@127.0.0.1:{server.server_port}/dicom-web/")
    requests = []
    for _ in range(6):
        due_now()
        requests.append(delivery().error)
    server.shutdown()
    server.server_close()
    assert requests == [
        "The destination responded with status 503.",
        "The destination refused the user and password.",
        "The destination responded with a redirect, which is not followed.",
        "The destination did not store 1 of the objects (reason 0xA700).",
        "The destination did not store 1 of the objects (reason 0x0110).",
        None,
    ]
    path, headers, body = Web.got[-1]
    assert path == "/dicom-web/studies"
    assert headers["Authorization"] == "Basic " + b64encode(b"hemoscan:se cret").decode()
    message = message_from_bytes(
        b"Content-Type: " + headers["Content-Type"].encode() + b"\n\n" + body
    )
    parts = [
        pydicom.dcmread(io.BytesIO(one.get_payload(decode=True))) for one in message.get_payload()
    ]
    assert {one.Modality for one in parts} == {"SR", "OT", "SEG"}
    assert {one.StudyInstanceUID for one in parts} == {study[0].StudyInstanceUID}


@pytest.mark.parametrize(
    ("results", "state", "stat", "sent"),
    [
        ("all", "not found", False, True),
        ("positives", "not found", True, False),
        ("positives", "inconclusive", False, True),
        ("positives", "suspected", False, True),
        ("stat", "suspected", False, False),
        ("stat", "not found", True, True),
    ],
)
def test_a_rule_says_which_results_go_back_and_the_links_of_others_go(
    worker_app: Flask, results: str, state: str, stat: bool, sent: bool
) -> None:
    scan = Scan(
        user_id=db.session.scalar(select(User.id)),
        kind="dicom",
        original_key="originals/none.dcm",
        status=JobStatus.DONE,
        verdict_state=state,
        stat=stat,
    )
    db.session.add(scan)
    db.session.flush()
    received = {"scan_id": scan.id, "study_hash": "x", "instances": ["y"]}
    link = seal(Link({"1.2": "3.4"}, {}))
    db.session.add(ReceivedScan(**received, answers={"pacs": results}, sealed_link=link))
    db.session.flush()
    queue_deliveries([scan.id])
    queue_deliveries([scan.id])  # Scored again: it is on its way already.
    db.session.commit()
    assert len(db.session.scalars(select(ResultDelivery)).all()) == sent
    assert links() == ([link] if sent else [None])


def test_a_link_and_rows_of_old_results_go_in_time(worker_app: Flask) -> None:
    user_id = db.session.scalar(select(User.id))
    old = database_now(-worker_app.config["DICOM_KEEP_LINKS_DAYS"] * 24 * 3600 - 60)
    for at, status in ((old, JobStatus.FAILED), (database_now(), JobStatus.FAILED)):
        scan = Scan(user_id=user_id, kind="dicom", original_key="x", status=status)
        db.session.add(scan)
        db.session.flush()
        db.session.add(
            ReceivedScan(
                scan_id=scan.id, study_hash="x", instances=[], sealed_link="y", received_at=at
            )
        )
        ended = {"status": JobStatus.DONE, "finished_at": database_now(-KEEP_S - 60)}
        db.session.add(
            ResultDelivery(user_id=user_id, scan_id=scan.id, destination="pacs", **ended)
        )
    db.session.add(
        ReceivedStudy(sent_by="CT1", files=1, scans=1, closed_at=database_now(-KEEP_S - 60))
    )
    db.session.commit()
    remove_old_deliveries()
    assert sorted(links(), key=str) == [None, "y"]  # An owner may still have it analyzed anyway.
    assert db.session.scalars(select(ResultDelivery)).all() == []
    assert db.session.scalars(select(ReceivedStudy)).all() == []


def test_while_the_storage_is_away_a_result_waits_and_is_not_tried_again_and_again(
    routed: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(routed, tmp_path / "series")
    tried: list[str] = []

    def miss(delivery: ResultDelivery) -> list[ReportKind]:
        tried.append(delivery.id)
        if len(tried) > 1 or storage_answers():
            raise AssertionError("tried again")
        raise StorageUnavailable("away")

    monkeypatch.setattr("worker.sending.results.deliver", miss)
    with monkeypatch.context() as away:
        away.setattr(storage, "answers", lambda: False)
        send_due()
    assert (delivery().status, delivery().tries, len(tried)) == (JobStatus.QUEUED, 0, 1)
    assert storage_is_back()


def test_a_scan_that_is_scored_again_while_its_result_waits_is_answered_with_the_new_one(
    routed: Running, tmp_path: Path
) -> None:
    answered(routed, tmp_path / "series")
    send_due()
    scan_id = delivery().scan_id
    assert score_again(scan_id)
    db.session.commit()
    due_now()
    assert (delivery().status, delivery().error) == (
        JobStatus.FAILED,
        "This scan no longer has a result.",
    )
    tasks.predict_scans()
    assert (delivery().status, delivery().error, delivery().tries) == (JobStatus.QUEUED, None, 0)
    with Archive().running() as url:
        direct(routed, url)
        send_due()
    assert delivery().status == JobStatus.DONE and links() == [None]
