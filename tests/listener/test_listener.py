"""What comes by DICOM: nothing is lost, nothing doubled, nobody unknown is heard."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, JPEGLSLossless, generate_uid
from pynetdicom import AE
from pynetdicom.acse import ACSE
from sqlalchemy import select, update

from listener import closing
from listener.__main__ import CannotStart, main, only_listener_on, tls_of
from listener.spool import ABOUT, Spool
from tests.conftest import make_user
from tests.listener.archives import a_certificate, program
from tests.listener.running import PATIENT, Running, a_study
from tests.worker.conftest import wait_for
from webapp.deletion import delete_scan
from webapp.dicom_peers import Peer
from webapp.extensions import db, utc_now
from webapp.intake.completing import Changed
from webapp.models import CUT_OFF, MORE_ARRIVED, Act, AuditEvent, ReceivedScan, Scan, Share, User
from webapp.models.totals import totals_of
from webapp.review.sharing import successor_of
from webapp.storage import StorageError, storage

Listen = Callable[..., Running]
NO_ROOM, NOT_UNDERSTOOD = 0xA700, 0xC000
REPLACES = (
    "Replaces an earlier scan of {} slices of this series; the series was completed or sent again."
)


def everything_below(folder: Path) -> bytes:
    """Return the bytes of all files."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_study_becomes_a_scan_and_no_name_or_uid_is_kept(listen: Listen, tmp_path: Path) -> None:
    running = listen()
    study = a_study()
    assert running.send(study) == [0, 0, 0]
    assert len(running.spooled()) == 3 and running.scans() == []
    running.close()

    (scan,) = running.scans()
    assert (scan.kind, scan.slice_count, scan.title, scan.stat) == ("dicom", 3, "CT1", False)
    assert running.spooled() == [] and running.sentences() == [""]
    with running.app.app_context():
        (event,) = db.session.scalars(select(AuditEvent).where(AuditEvent.object_id == scan.id))
        assert (event.act, event.address) == (Act.SCAN_SUBMITTED, "DICOM CT1")
        assert db.session.scalars(select(ReceivedScan.sealed_link)).all() == [None]
    stored = everything_below(tmp_path)
    first = study[0]
    for secret in (*PATIENT.values(), first.StudyInstanceUID, first.SOPInstanceUID):
        if len(secret) > 3 and secret != PATIENT["SpecificCharacterSet"]:
            assert secret.encode() not in stored and secret.encode("latin-1") not in stored, secret


def test_only_a_known_title_from_a_known_address_is_heard(listen: Listen) -> None:
    running = listen(
        DICOM_PEERS="CT1@127.0.0.1 account=ann, CT2@10.9.8.7 account=ann, CT3@127.0.0.1 account=bob"
    )
    assert running.echo() == 0
    refused: list[tuple[dict[str, str], int]] = [
        ({"title": "CT9"}, 0x03),  # The calling AE title is not recognized,
        ({"title": "CT2"}, 0x03),  # also a known one at another address;
        ({"called": "SOMEBODY"}, 0x07),  # nor is the called one;
        ({"title": "CT3"}, 0x01),  # and there is no bob.
    ]
    for names, reason in refused:
        with running.associated(**names) as association:
            assert association.is_rejected
            assert association.acceptor.primitive.diagnostic == reason
    with running.app.app_context():
        db.session.execute(update(User).values(disabled_at=utc_now()))
        db.session.commit()
    assert running.echo() is None


def test_an_unknown_address_is_cut_off_before_it_says_anything(listen: Listen) -> None:
    running = listen(DICOM_PEERS="CT1@10.9.8.7 account=ann")
    with socket.create_connection(("127.0.0.1", running.port), 5) as caller:
        assert caller.recv(10) == b""


def test_a_study_that_is_sent_again_is_the_same_scan(listen: Listen) -> None:
    running = listen()
    study = a_study()
    for _ in range(2):
        assert running.send(study) == [0, 0, 0]
        assert running.send(study[:1]) == [0]
        running.close()
    assert [scan.slice_count for scan in running.scans()] == [3]
    assert running.sentences() == ["", ""]

    # Pixels that changed take the place of the earlier ones, which are not taken for new again.
    earlier = study[1].PixelData
    for pixels in (np.full(64 * 64, 7, "<i2").tobytes(), earlier):
        study[1].PixelData = pixels
        running.send(study)
        running.close()
    (corrected,) = running.scans()
    assert corrected.slice_count == 3 and corrected.notes == [REPLACES.format(3)]
    with running.app.app_context():
        assert storage.keys("originals") == [corrected.original_key]
        delete_scan(corrected.id)  # One that was deleted may come again.
    running.send(study)
    running.close()
    assert len(running.scans()) == 1


def test_instances_received_before_an_abort_are_kept_and_completed_later(listen: Listen) -> None:
    running = listen()
    *study, last = a_study(6)
    with running.associated() as association:
        assert [association.send_c_store(one).Status for one in study[:2]] == [0, 0]
        association.abort()
    (key,) = running.spool.due(0)
    assert wait_for(lambda: 'cut_off": true' in (running.home / "open" / key / ABOUT).read_text())
    running.close()
    (scan,) = running.scans()
    assert (scan.slice_count, scan.notes) == (2, [CUT_OFF])
    assert running.sentences() == [CUT_OFF]
    assert running.send(study[2:4]) == [0] * 2  # The rest,
    running.close()
    shorter, (longer,) = scan.id, running.scans()
    with running.app.app_context():
        assert successor_of(shorter, longer.user_id) == longer.id
    assert (longer.slice_count, longer.notes) == (4, [REPLACES.format(2)])
    assert running.send(study) == [0] * 5  # and all of it again, while it is shared.
    with running.app.app_context():
        db.session.add(Share(scan_id=longer.id))
        db.session.commit()
    running.close()
    kept, whole = running.scans()
    assert (kept.id, kept.notes[1:]) == (longer.id, [MORE_ARRIVED])
    assert whole.slice_count == 5 and "4 slices of this series, which is kept" in whole.notes[0]
    running.send([last])  # What both scans have is taken along once.
    running.close()
    assert [scan.slice_count for scan in running.scans()] == [4, 6]
    running.send(a_study(2, study=study[0].StudyInstanceUID))  # Another series of the study.
    running.close()
    assert [scan.slice_count for scan in running.scans()] == [4, 6, 2]


def test_two_modalities_and_two_associations_of_one_study_do_not_mix(listen: Listen) -> None:
    running = listen(DICOM_PEERS="CT1@127.0.0.1 account=ann, CT2@127.0.0.1 account=ann stat")
    shared, other = a_study(6), a_study(5)
    with running.associated() as one, running.associated("CT2") as two:
        for index in range(6):
            sender = (one, two)[index % 2]
            assert sender.send_c_store(shared[index]).Status == 0
            if index < 5:
                assert one.send_c_store(other[index]).Status == 0
    running.close()
    by_title = {scan.title: (scan.slice_count, scan.stat) for scan in running.scans()}
    assert by_title == {"CT1": (5, False), "CT1, CT2": (6, True)}


def test_nothing_is_lost_or_doubled_by_a_restart_at_any_moment(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = listen()
    study = a_study()
    running.send(study[:2])
    running.stop()
    again = listen()  # Before the study was closed,
    again.send(study[2:])
    (key,) = again.spool.due(0)
    again.spool.close(key)
    again.stop()
    third = listen()  # while it was being closed,
    monkeypatch.setattr(third.spool, "remove", lambda study: None)
    third.close()
    third.stop()
    assert [scan.slice_count for scan in third.scans()] == [3] and len(third.spooled()) == 3
    last = listen()  # and after it was.
    last.close()
    assert [scan.slice_count for scan in last.scans()] == [3] and last.spooled() == []


def test_a_storage_that_is_away_delays_a_study(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = listen()
    study = a_study()
    running.send(study[:2])
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise StorageError("It is away.")

        with running.app.app_context():
            patch.setattr(storage._get_current_object(), "put", refuse)  # type: ignore[attr-defined]
        running.close()
    assert running.scans() == [] and running.sentences() == [] and len(running.spooled()) == 2
    running.send(study[2:])
    running.close()
    assert running.scans() == []  # It is not tried again at once.
    running.closer._put_off.clear()
    running.close()
    assert [scan.slice_count for scan in running.scans()] == [3] and running.spooled() == []


def test_refused_instances_are_reported_to_sender_and_administrator(listen: Listen) -> None:
    running = listen()
    study = a_study(5)
    study[4].Rows = study[4].Columns = 60_000
    with running.associated() as association:
        answers = [association.send_c_store(one) for one in study]
    assert [one.Status for one in answers] == [0, 0, 0, 0, NOT_UNDERSTOOD]
    assert answers[4].ErrorComment.startswith("The image is too large: 60000 x 60000 pixels")
    assert running.send(a_study(1, StudyInstanceUID="")) == [NOT_UNDERSTOOD]
    localizer = a_study(2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert running.send(localizer) == [0, 0]  # Part of many studies, so no failure of sending.
    running.close()
    (scan,) = running.scans()
    assert scan.slice_count == 4 and scan.notes[-1].startswith("Refused on arrival (1): The im")
    sentences = sorted(running.sentences())
    assert sentences[0].startswith("Refused on arrival (1): The image is too large")
    assert sentences[1].endswith(
        "The DICOM file is a localizer, an overview to plan the scan by; please send the slices."
    )


def test_one_series_that_is_refused_takes_no_other_with_it(listen: Listen) -> None:
    running = listen(MAX_SLICES=4)
    uid = generate_uid()
    running.send([*a_study(5, study=uid), *a_study(3, study=uid), *a_study(4, study=uid)])
    running.close()
    scans = running.scans()
    assert sorted(scan.slice_count for scan in scans) == [3, 4]
    assert len({(scan.study_id, scan.created_at) for scan in scans}) == 1
    with running.app.app_context():
        assert totals_of(scans[0].user_id)[:2] == (2, 1)
    assert running.sentences() == ["The series has 5 slices; at most 4 are supported."]


def test_a_study_closed_by_two_listeners_at_once_is_one_scan(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = listen()
    running.send(a_study(4))
    (key,) = running.spool.due(0)
    study = running.spool.close(key)
    accept = closing.accept_upload

    def accept_late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(closing, "accept_upload", accept)
        db.session.rollback()
        with running.app.app_context():
            closing.take_in(study)
        return accept(*args, **options)

    monkeypatch.setattr(closing, "accept_upload", accept_late)
    with running.app.app_context(), pytest.raises(Changed):
        closing.take_in(study)
    running.spool.reopen(study)
    running.close()
    (scan,) = running.scans()
    assert scan.slice_count == 4
    with running.app.app_context():
        assert list(storage.keys("originals")) == [scan.original_key]


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ({"MIN_FREE_MB": 10**9}, 0),
        ({"MAX_FILES_PER_UPLOAD": 2}, 2),
        ({"MAX_FILES_PER_UPLOAD": 3}, 3),
        ({"QUOTA_MB": 1}, 3),
    ],
)
def test_instances_without_room_are_refused_with_the_right_status(
    listen: Listen, settings: dict[str, int], accepted: int
) -> None:
    running, study = listen(**settings), a_study()
    for _ in range(2):  # What comes again needs no more room.
        assert running.send(study) == [0] * accepted + [NO_ROOM] * (3 - accepted)
    running.close()
    assert [scan.slice_count for scan in running.scans()] == [accepted] * bool(accepted)
    if "QUOTA_MB" in settings:
        with running.app.app_context():
            db.session.execute(update(Scan).values(size=2**20))
            db.session.commit()
        assert running.send(a_study(1)) == [NO_ROOM]


def test_a_study_whose_sender_got_success_waits_for_room_of_its_account(
    listen: Listen,
) -> None:
    running = listen(QUOTA_MB=1)
    assert running.send(a_study()) == [0, 0, 0]
    with running.app.app_context():
        user_id = db.session.scalar(select(User.id))
        large = Scan(user_id=user_id, kind="png", original_key="x", size=2**20)
        db.session.add(large)
        db.session.commit()
        running.close()
        assert len(running.spooled()) == 3
        assert running.sentences()[0].startswith("The study is waiting because its account has")
        delete_scan(large.id)
    running.closer._put_off.clear()
    running.close()
    assert [scan.slice_count for scan in running.scans()] == [3]


def test_an_instance_that_is_too_large_ends_its_association(listen: Listen) -> None:
    running = listen(MAX_UPLOAD_MB=1)
    large = a_study(1, Rows=1024, Columns=1024, PixelData=bytes(2 * 2**20))[0]
    with running.associated() as association, pytest.raises((RuntimeError, AttributeError)):
        association.send_c_store(large).Status  # noqa: B018
    assert running.echo() == 0
    assert running.spooled() == [] and list(running.spool.arriving.iterdir()) == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(5000),
        b"\x01\0\xff\xff\xff\xff" + bytes(5000),  # A request of 4 GB.
        b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x03",  # Data before any request.
        b"\x01\0\0\0\0\x04\0\x01\0\0",
    ],
)
def test_garbage_affects_no_other_connection(listen: Listen, garbage: bytes) -> None:
    running = listen(DICOM_TIMEOUT_S=2)
    with socket.create_connection(("127.0.0.1", running.port), 5) as caller:
        caller.sendall(garbage)
        study = a_study()
        assert running.send(study) == [0, 0, 0]
    running.close()
    assert len(running.scans()) == 1


def test_associations_are_limited_and_silent_ones_are_ended(
    listen: Listen,
) -> None:
    running = listen(DICOM_MAX_ASSOCIATIONS=1, DICOM_TIMEOUT_S=1)
    with running.associated() as association:
        assert association.is_established
        assert running.echo() is None
    assert wait_for(lambda: running.echo() == 0)  # Once the thread of the other has ended.
    with socket.create_connection(("127.0.0.1", running.port), 10) as silent:
        assert silent.recv(10) == b""


def test_who_hangs_up_without_a_word_takes_no_place(listen: Listen) -> None:
    running = listen(DICOM_MAX_ASSOCIATIONS=1, DICOM_TIMEOUT_S=600)
    for _ in range(10):
        socket.create_connection(("127.0.0.1", running.port), 5).close()
    assert wait_for(lambda: running.echo() == 0)


def test_a_release_ends_a_study_where_the_operator_says_so(listen: Listen) -> None:
    running = listen(DICOM_CLOSE_ON_RELEASE=1)
    running.app.config["DICOM_QUIET_S"] = 600
    study = a_study(2)
    with running.associated() as other:
        other.send_c_store(study[0])
        running.send(study[1:])
        running.closer.close_due()
        assert running.scans() == []  # Somebody still sends it.
    (scan,) = wait_for(lambda: running.closer.close_due() or running.scans())
    assert scan.slice_count == 2
    running.send(a_study(1))
    assert wait_for(lambda: running.spool.due(600, ()))


def test_a_sender_that_closes_the_connection_with_its_release_did_not_break_off(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, confirm = listen(DICOM_CLOSE_ON_RELEASE=1), ACSE.send_release

    def confirm_and_linger(acse: ACSE, is_response: bool = False) -> None:
        confirm(acse, is_response)
        if is_response:  # The sender closes before this thread announces the release.
            wait_for(lambda: not running.listener.busy())

    monkeypatch.setattr(ACSE, "send_release", confirm_and_linger)
    running.send(a_study(2))
    (key,) = wait_for(lambda: running.spool.due(600))
    assert not running.spool.close(key).about.is_cut_off


def test_dcmtk_sends_what_we_read(listen: Listen, tmp_path: Path) -> None:
    running = listen()
    folder = tmp_path / "series"
    folder.mkdir()
    for index, one in enumerate(a_study()):
        one.save_as(folder / f"{index}.dcm")
    frames = a_study(
        1,
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames="3",
        PixelData=bytes(3 * 64 * 64 * 2),
    )[0]
    frames.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    frames.save_as(folder / "enhanced.dcm")
    peer = ["-aet", "CT1", "-aec", "HEMOSCAN", "127.0.0.1", str(running.port)]
    for command in (
        [program("echoscu"), *peer],
        [program("storescu"), "+sd", *peer, str(folder)],
        [program("dcmsend"), "--scan-directories", *peer, str(folder)],
    ):
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    refused = [program("echoscu"), "-aet", "CT9", *peer[2:]]
    assert subprocess.run(refused, timeout=60, capture_output=True, check=False).returncode
    running.close()
    assert sorted(scan.slice_count for scan in running.scans()) == [3, 3]
    ae = AE("CT1")
    ae.add_requested_context(EnhancedCTImageStorage, JPEGLSLossless)
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.4")  # MR
    association = ae.associate("127.0.0.1", running.port, ae_title="HEMOSCAN")
    assert [str(one.transfer_syntax[0]) for one in association.accepted_contexts] == [
        JPEGLSLossless
    ]
    association.release()


def test_with_tls_only_certified_peers_are_heard_and_nobody_waits_for_a_handshake(
    listen: Listen, tmp_path: Path
) -> None:
    ours, others = a_certificate(tmp_path, "ours"), a_certificate(tmp_path, "others")
    running = listen(tls_of(ours), DICOM_TIMEOUT_S=3)

    def is_heard(shown: dict[str, str] | None) -> bool:
        client = ssl.create_default_context(cafile=ours["DICOM_TLS_CA"])
        if shown:
            client.load_cert_chain(shown["DICOM_TLS_CERT"], shown["DICOM_TLS_KEY"])
        with socket.create_connection(("127.0.0.1", running.port), 5) as plain:
            try:
                with client.wrap_socket(plain, server_hostname="127.0.0.1") as caller:
                    caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return caller.recv(1) == b"\x07"  # The association is aborted.
            except OSError:
                return False

    with socket.create_connection(("127.0.0.1", running.port), 5):  # It never shakes hands.
        assert is_heard(ours)
    assert not is_heard(None) and not is_heard(others)
    with socket.create_connection(("127.0.0.1", running.port), 5) as caller:
        caller.sendall(b"\x01\0\0\0\0\0")
        with suppress(ConnectionResetError):
            assert not caller.recv(100).startswith(b"\x02")  # Not without TLS.


def test_the_listener_does_not_start_without_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEMOSCAN_HOME", str(tmp_path))
    assert main() == 1
    assert capsys.readouterr().err.startswith("DICOM_PEERS is empty, so no sender is allowed.")
    monkeypatch.setenv("DICOM_PEERS", "CT1@127.0.0.1 acount=ann")
    assert main() == 1
    assert "'acount' is not understood" in capsys.readouterr().err
    with ExitStack() as held:
        held.enter_context(only_listener_on(tmp_path / "received"))
        with pytest.raises(CannotStart, match="Another listener is using"):
            held.enter_context(only_listener_on(tmp_path / "received"))
        (tmp_path / "a_file").touch()
        with pytest.raises(CannotStart, match="The listener cannot write to .*Not a directory"):
            held.enter_context(only_listener_on(tmp_path / "a_file" / "received"))


def test_a_study_of_an_account_that_is_gone_is_refused_in_a_sentence(listen: Listen) -> None:
    running = listen()
    make_user(running.app, "root")
    running.send(a_study())
    with running.app.app_context():
        db.session.execute(update(User).values(disabled_at=utc_now()))
        db.session.commit()
    running.close()
    assert running.scans() == [] and running.spooled() == []
    assert running.sentences() == ["The account “ann” does not exist or is disabled."]


def datasets_of(count: int) -> list[Dataset]:
    """Return that many studies of one slice."""
    return [a_study(1)[0] for _ in range(count)]


def test_an_error_of_ours_ends_with_a_refusal(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = listen()
    running.send(datasets_of(1))

    def fail(*_: object, **__: object) -> None:
        raise LookupError("A bug.")

    monkeypatch.setattr("listener.closing.accept_upload", fail)
    for _ in range(6):
        running.close()
        running.closer._put_off = {
            key: type(one)(0.0, one.wait_s, one.failures)
            for key, one in running.closer._put_off.items()
        }
    assert running.spooled() == [] and running.sentences()[0].startswith(
        "The study could not be stored"
    )


def test_a_folder_that_was_being_made_or_deleted_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, spool = Peer("CT1", "127.0.0.1", "alice"), Spool(tmp_path)

    def add(key: str) -> None:
        path = spool.arriving / "came"
        path.write_bytes(b"a slice")
        spool.add(key, peer, "alice", path, "name")

    with monkeypatch.context() as full:
        full.setattr("listener.spool._write", Mock(side_effect=OSError(ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            add("made")
    assert spool.due(0) == []
    add("made")
    assert spool.due(0) == ["made"]

    with monkeypatch.context() as killed:
        killed.setattr("listener.spool.shutil.rmtree", Mock(side_effect=OSError))
        study = spool.close("made")
        with pytest.raises(OSError):
            spool.remove(study)
    spool.reopen(study)
    assert spool.due(0) == []
    add("made")
    assert Spool(tmp_path).due(0) == ["made"]
    assert not study.folder.exists()
