"""DICOMweb over HTTP, by `dicomweb-client` and by the requests of OHIF's data source: a study comes
in, and what was made of it is found and retrieved.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.web import _load_xml_dataset as load_xml_dataset
from flask import Flask
from PIL import Image
from sqlalchemy import Select, delete, select
from werkzeug.serving import make_server

from tests.conftest import answers, make_user, unreachable
from tests.e2e.conftest import free_port
from tests.ml.made_scans import change, write_series
from tests.webapp.test_api import make_token
from tests.worker.conftest import install_model, wait_for
from tests.worker.reports.readers import require_valid
from tests.worker.test_outlines import install_outlining, submit_bleeding
from webapp import intake
from webapp.dicomweb import store
from webapp.dicomweb.native_model import NAMESPACE, as_xml
from webapp.extensions import db
from webapp.models import JobStatus, Report, Scan, Share, User, score_again
from webapp.storage import storage
from worker import tasks
from worker.heat_maps import draw_next_heatmap
from worker.prediction import answer_next_scans
from worker.reports.making import make_next_report
from worker.retention import remove_old_reports

OHIF_FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
BY_KIND = {
    "SR": "1.2.840.10008.5.1.4.1.1.88.34",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
}


@dataclass
class Service:
    """A running service: its base address, and what a person's requests carry."""

    base: str
    headers: dict[str, str]

    def get(self, path: str, **headers: str) -> requests.Response:
        """Ask for a resource below the base, or at a whole address."""
        url = path if path.startswith("http") else f"{self.base}/{path}"
        return requests.get(url, headers={**self.headers, **headers}, timeout=60)

    def client(self) -> DICOMwebClient:
        """Return somebody else's client."""
        return DICOMwebClient(self.base, headers=dict(self.headers))


@pytest.fixture
def service(worker_app: Flask) -> Iterator[Service]:
    """Ann's, with nothing in it."""
    worker_app.config["DICOMWEB_QUIET_S"] = 0
    worker_app.config["DICOMWEB_ORIGINS"] = ["https://viewer.example.org"]
    server = make_server("127.0.0.1", 0, worker_app, threaded=True)
    # `dicomweb-client` names the host without its port.
    worker_app.config["PUBLIC_URL"] = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    token = make_token(worker_app, rows(select(User.id))[0])
    yield Service(
        f"http://127.0.0.1:{server.server_port}/dicom-web", {"Authorization": f"Bearer {token}"}
    )
    server.shutdown()
    thread.join()
    server.server_close()


def bleeding(folder: Path) -> list[pydicom.Dataset]:
    """Return the slices of a series in which a hemorrhage is outlined."""
    scan = submit_bleeding(folder)
    db.session.execute(delete(Scan).where(Scan.id == scan.id))
    db.session.commit()
    paths = sorted(folder.glob("*.dcm"))
    return [pydicom.dcmread(path) for path in paths]


def rows(statement: Select[Any]) -> list[Any]:
    """Return what a statement selects, and leave no transaction open, which would lock out the
    service.
    """
    rows = list(db.session.scalars(statement))
    db.session.commit()
    return rows


def value(dataset: dict[str, Any], tag: str) -> Any:
    """Return the first value of an element."""
    return dataset[tag]["Value"][0]


def test_a_study_is_stored_analyzed_found_and_retrieved_with_dicomweb_client(
    service: Service, tmp_path: Path
) -> None:
    install_outlining()
    sent = bleeding(tmp_path / "series")
    client = service.client()
    client.set_chunk_size(10_000)  # So that it sends them chunked, as it does large ones.

    stored = client.store_instances(sent)

    assert [item.ReferencedSOPInstanceUID for item in stored.ReferencedSOPSequence] == [
        one.SOPInstanceUID for one in sent
    ]
    assert "FailedSOPSequence" not in stored
    study = stored.RetrieveURL.rsplit("/", 1)[1]
    assert study != sent[0].StudyInstanceUID and study.startswith("2.25.")
    assert client.search_for_studies() == []
    waits = service.get(f"studies/{study}")
    assert (waits.status_code, waits.headers["Retry-After"]) == (503, "5")
    assert waits.json()["detail"].endswith("try again in a few seconds.")
    tasks.predict_scans()

    (match,) = client.search_for_studies()
    assert value(match, "0020000D") == study
    assert value(match, "00081190") == stored.RetrieveURL
    assert sorted(match["00080061"]["Value"]) == ["OT", "SEG", "SR"]
    assert value(match, "00201208") == 3
    series = {value(one, "00080060"): one for one in client.search_for_series(study)}
    instances = {value(one, "00080016"): one for one in client.search_for_instances(study)}
    assert set(series) == set(BY_KIND) and set(instances) == set(BY_KIND.values())
    for modality, sop_class in BY_KIND.items():
        of_series = value(series[modality], "0020000E")
        instance = value(instances[sop_class], "00080018")
        (file,) = client.retrieve_series(study, of_series)
        assert (file.SOPClassUID, file.SOPInstanceUID) == (sop_class, instance)
        assert file.SeriesDescription == value(series[modality], "0008103E")
        (tmp_path / modality).write_bytes(as_file(file))
        require_valid(tmp_path / modality)
        assert client.retrieve_instance(study, of_series, instance) == file
        metadata = client.retrieve_instance_metadata(study, of_series, instance)
        bulk = metadata.pop("7FE00010", None)
        assert value(metadata, "00083002") == file.file_meta.TransferSyntaxUID
        del metadata["00083002"]
        pixels = file.get("PixelData")
        if pixels is None:
            assert bulk is None
        else:
            assert next(iter(client.retrieve_bulkdata(bulk["BulkDataURI"]))) == pixels
            del file.PixelData
        assert pydicom.Dataset.from_json(metadata) == file
    assert len(client.retrieve_study(study)) == len(client.retrieve_study_metadata(study)) == 3


def as_file(file: pydicom.Dataset) -> bytes:
    """Return a file as it was retrieved."""
    content = io.BytesIO()
    file.save_as(content)
    return content.getvalue()


def test_ohif_finds_and_shows_a_study(service: Service, tmp_path: Path) -> None:
    install_outlining()
    service.client().store_instances(bleeding(tmp_path / "series"))
    tasks.predict_scans()
    origin = {"Origin": "https://viewer.example.org"}

    response = requests.options(
        f"{service.base}/studies",
        headers={**origin, "Access-Control-Request-Headers": "authorization"},
        timeout=60,
    )
    assert response.headers["Access-Control-Allow-Origin"] == "https://viewer.example.org"
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    elsewhere = service.get("studies", Origin="https://elsewhere.example.org")
    assert "Access-Control-Allow-Origin" not in elsewhere.headers
    # The list of studies, as its first page asks for it.
    json_only = {"Accept": "application/dicom+json", **origin}
    listed = service.get(
        "studies?limit=101&offset=0&fuzzymatching=false&includefield=all", **json_only
    )
    assert listed.headers["Content-Type"] == "application/dicom+json"
    assert listed.headers["Access-Control-Allow-Origin"] == "https://viewer.example.org"
    (study,) = listed.json()
    uid = value(study, "0020000D")
    filtered = "studies?PatientName=*&ModalitiesInStudy={}&limit=25&offset=0&includefield=00081030"
    assert len(service.get(filtered.format("SEG"), **json_only).json()) == 1
    assert service.get(filtered.format("MR"), **json_only).status_code == 204
    series = service.get(f"studies/{uid}/series?includefield=0008103E,00080021", **json_only).json()
    for one in series:
        of_series = value(one, "0020000E")
        (metadata,) = service.get(f"studies/{uid}/series/{of_series}/metadata", **json_only).json()
        address = f"studies/{uid}/series/{of_series}/instances/{value(metadata, '00080018')}"
        if value(metadata, "00080060") == "SR":
            assert "0040A730" in metadata  # The content, which it reads here.
            assert service.get(f"{address}/frames/1", Accept=OHIF_FRAMES).status_code == 404
            continue
        file = pydicom.dcmread(io.BytesIO(service.get(address, Accept="application/dicom").content))
        frames = file.pixel_array if value(metadata, "00080060") == "SEG" else [file.pixel_array]
        for number, frame in enumerate(frames, start=1):
            answer = service.get(f"{address}/frames/{number}", Accept=OHIF_FRAMES)
            assert answer.headers["Content-Type"].startswith(
                'multipart/related; type="application/octet-stream"; boundary='
            )
            (pixels,) = service.client()._decode_multipart_message(answer, stream=False)
            expected = (
                np.packbits(frame.reshape(-1), bitorder="little") if frame.max() < 2 else frame
            )
            assert pixels == expected.tobytes()
        assert service.get(f"{address}/frames/99", Accept=OHIF_FRAMES).status_code == 404


def test_a_secondary_capture_is_rendered_and_nothing_else(service: Service, tmp_path: Path) -> None:
    install_outlining()
    service.client().store_instances(bleeding(tmp_path / "series"))
    tasks.predict_scans()
    (capture,) = service.get("instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.7").json()
    address = value(capture, "00081190")
    file = pydicom.dcmread(io.BytesIO(service.get(address, Accept="application/dicom").content))

    for accept, kind in (("image/png", "PNG"), ("image/jpeg", "JPEG"), ("*/*", "JPEG")):
        answer = service.get(f"{address}/rendered", Accept=accept)
        picture = Image.open(io.BytesIO(answer.content))
        assert (picture.format, picture.size) == (kind, (file.Columns, file.Rows))
        difference = np.abs(np.asarray(picture, float) - file.pixel_array).mean()
        assert difference <= (0 if kind == "PNG" else 3)
    assert service.get(f"{address}/frames/1/rendered", Accept="image/png").ok
    assert service.get(f"{address}/thumbnail").headers["Content-Type"] == "image/jpeg"
    unquoted = "multipart/related; type=application/dicom; transfer-syntax=*"
    assert service.get(address, Accept=unquoted).content.count(b"DICM") == 1
    assert service.get(f"{address}/rendered", Accept="image/gif").status_code == 406
    (report,) = service.get("instances?Modality=SR").json()
    refused = service.get(f"{value(report, '00081190')}/rendered")
    assert (refused.status_code, refused.json()["detail"]) == (
        406,
        "Only secondary captures are rendered.",
    )


def test_objects_of_other_people_are_found_only_while_they_are_shared(
    worker_app: Flask, service: Service, tmp_path: Path
) -> None:
    install_outlining()
    service.client().store_instances(bleeding(tmp_path / "series"))
    tasks.predict_scans()
    (study,) = service.get("studies").json()
    bob_id = make_user(worker_app, "bob")
    bob = Service(service.base, {"Authorization": f"Bearer {make_token(worker_app, bob_id)}"})
    address = value(study, "00081190")

    assert bob.get("studies").status_code == bob.get("series").status_code == 204
    assert bob.get(address).status_code == bob.get(f"{address}/metadata").status_code == 404
    (scan_id,) = rows(select(Scan.id))
    db.session.add(Share(scan_id=scan_id, with_user_id=bob_id))
    db.session.commit()
    assert bob.get("studies").json() == [study]
    assert bob.get(address).status_code == 200
    assert requests.get(f"{service.base}/studies", timeout=60).status_code == 401


def test_objects_stay_with_their_scan_and_follow_its_newest_result(
    worker_app: Flask, service: Service, tmp_path: Path
) -> None:
    install_outlining()
    service.client().store_instances(bleeding(tmp_path / "series"))
    tasks.predict_scans()
    (scan,) = rows(select(Scan))
    made = set(rows(select(Report.id)))
    db.session.execute(
        Report.__table__.update().values(finished_at=scan.created_at.replace(year=2020))
    )
    db.session.commit()
    remove_old_reports()
    assert set(rows(select(Report.id))) == made
    series = {value(one, "0020000E") for one in service.get("series").json()}

    score_again(scan.id)
    db.session.commit()
    tasks.predict_scans()
    remade = service.get("series").json()
    assert len(remade) == 3 and not {value(one, "0020000E") for one in remade} & series
    assert {value(one, "0020000D") for one in remade} == {scan.study_uid}


def test_a_capture_waits_for_the_heat_map_that_it_shows(
    worker_app: Flask, service: Service, tmp_path: Path
) -> None:
    install_model(reads="series")
    install_model()
    paths = write_series(tmp_path / "series", 4)
    service.client().store_instances([pydicom.dcmread(path) for path in paths])
    answer_next_scans()
    assert make_next_report() and not make_next_report()
    assert [value(one, "00080060") for one in service.get("series").json()] == ["SR"]
    assert draw_next_heatmap() and make_next_report()
    assert {value(one, "00080060") for one in service.get("series").json()} == {"SR", "OT"}


def related(*parts: bytes, boundary: str = "next") -> bytes:
    """Return a message of these parts, as RFC 2046 lets one be written."""
    head = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return (
        b"To whom it concerns"
        + b"".join(head + part for part in parts)
        + f"\r\n--{boundary}--\r\nThe end.".encode()
    )


def test_each_instance_that_is_not_taken_in_is_reported_with_a_reason(
    worker_app: Flask, service: Service, tmp_path: Path
) -> None:
    good, magnetic, cut = write_series(tmp_path / "series", 3)
    change(magnetic, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    file = pydicom.dcmread(magnetic)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.save_as(magnetic)
    damaged = cut.read_bytes()[:-1000]
    client = worker_app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = service.headers["Authorization"]
    kind = 'multipart/related; type="application/dicom"; boundary=next'

    def send(*parts: bytes, path: str = "studies", **options: Any) -> Any:
        return client.post(f"/dicom-web/{path}", data=related(*parts), content_type=kind, **options)

    answer = send(good.read_bytes(), magnetic.read_bytes(), damaged, b"\x89PNG of somebody")
    assert (answer.status_code, answer.mimetype) == (202, "application/dicom+json")
    assert len(answer.headers.getlist("Link")) == 1
    response = pydicom.Dataset.from_json(answer.get_data(as_text=True))
    uid = {path: pydicom.dcmread(path).SOPInstanceUID for path in (good, magnetic, cut)}
    assert [one.ReferencedSOPInstanceUID for one in response.ReferencedSOPSequence] == [uid[good]]
    failed = {one.ReferencedSOPInstanceUID: one.FailureReason for one in response.FailedSOPSequence}
    assert failed == {uid[magnetic]: 0x0122, uid[cut]: 0xC000}
    assert [one.FailureReason for one in response[0x0008119A]] == [0xC000]
    warnings = answer.headers.getlist("Warning")
    assert '299 Hemoscan "The DICOM file is not a CT image: its modality is MR."' in warnings
    nothing = send(magnetic.read_bytes())
    assert nothing.status_code == 409 and "00081199" not in nothing.get_json(force=True)
    elsewhere = send(good.read_bytes(), path="studies/1.2.3")
    assert elsewhere.status_code == 409
    assert value(value(elsewhere.get_json(force=True), "00081198"), "00081197") == 0xA900
    nothing = send()
    assert nothing.status_code == 400
    assert nothing.get_json(force=True)["detail"] == "The request contains no instances."
    assert len(rows(select(Scan))) == 1
    for body, content_type in (
        (related(good.read_bytes())[:-100], kind),
        (b"nothing of the kind", kind),
        (b"{}", "application/json"),
        (b"", 'multipart/related; type="application/dicom+json"; boundary=next'),
    ):
        refused = client.post("/dicom-web/studies", data=body, content_type=content_type)
        assert refused.status_code == (400 if content_type == kind else 415)
        assert refused.mimetype == "application/problem+json"
        assert refused.get_json(force=True)["detail"].endswith(".") or refused.status_code == 415


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("studies?limit=some", 400),
        ("studies?StudyInstanceUID=abc", 400),
        ("studies?StudyDescription=a%00b", 400),
        ("studies/1.2.3/series", 204),
        ("studies/1.2.3", 404),
        ("studies/1.2.3/metadata", 404),
        ("studies/not-a-uid", 400),
        ("studies?accept=application/dicom%2Bxml", 204),
        ("studies?accept=text/html", 406),
        ("studies/1.2.3/metadata?accept=application/dicom%2Bxml", 406),
        ("studies?StudyDate=20200101-&00100020=4711", 204),
        ("studies?0020000D=1.2.3,1.2.4", 204),
        # SQLite refuses conditions that are nested more than 1000 deep.
        (f"studies?StudyInstanceUID={','.join('1' * 2_000)}", 204),
        (f"instances?SOPInstanceUID={','.join(['2.25.1'] * 2_000)}", 204),
        (f"series?{'&'.join(['StudyID=1'] * 2_000)}", 400),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_request_that_finds_nothing_or_cannot_be_understood_gets_a_sentence(
    worker_app: Flask, path: str, status: int
) -> None:
    client = worker_app.test_client()
    token = make_token(worker_app, rows(select(User.id))[0])
    answer = client.get(f"/dicom-web/{path}", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status
    if status >= 400:
        assert answer.get_json(force=True)["detail"].endswith(".")


def test_what_is_ignored_and_what_is_left_out_is_reported(service: Service) -> None:
    answer = service.get("studies?fuzzymatching=true&Rows=512&limit=5000")
    assert answer.status_code == 204
    warning = answer.headers["Warning"]
    assert "fuzzymatching parameter is not supported" in warning
    assert "not supported: Rows" in warning and "At most 1000" in warning


def test_a_study_that_comes_in_several_requests_becomes_one_scan_of_each_series(
    worker_app: Flask, service: Service, tmp_path: Path
) -> None:
    worker_app.config["DICOMWEB_QUIET_S"] = 60
    install_model(reads="series")
    install_model()
    first = [pydicom.dcmread(path) for path in write_series(tmp_path / "first", 5)]
    second = [pydicom.dcmread(path) for path in write_series(tmp_path / "second", 3)]
    for number, series in enumerate((first, second), start=1):
        for place, one in enumerate(series, start=1):
            one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", f"1.2.3.{number}"
            one.SOPInstanceUID = f"1.2.3.{number}.{place}"
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    client = service.client()
    # Of the second slice it is not known whether it arrived, so it comes again.
    replies, links = [], []
    for some in (first[:2], first[1:4], [*first[4:], *second]):
        replies.append(client.store_instances(some))
        links += [scan_id for scan_id in rows(select(Scan.id)) if scan_id not in links]
        if len(links) == 1:
            db.session.add(Share(scan_id=links[0]))
            db.session.commit()

    assert len({reply.RetrieveURL for reply in replies}) == 1
    assert [len(reply.ReferencedSOPSequence) for reply in replies] == [2, 3, 4]
    scans = rows(select(Scan).order_by(Scan.slice_count))
    assert [scan.slice_count for scan in scans] == [3, 5]
    assert len({scan.study_id for scan in scans}) == len({scan.study_uid for scan in scans}) == 1
    other, whole = (scan.id for scan in scans)
    assert rows(select(Share.scan_id)) == [whole]
    db.session.execute(delete(Share))
    db.session.commit()

    def led_to() -> list[str]:
        api = f"{service.base.removesuffix('/dicom-web')}/api/v1/scans"
        return [service.get(f"{api}/{link}").json()["id"] for link in links]

    assert sorted(led_to()) == sorted([whole, whole, whole, other])
    assert led_to()[:2] == [whole, whole]
    assert sorted(storage.keys("originals")) == sorted(scan.original_key for scan in scans)
    tasks.predict_scans()
    assert {scan.status for scan in rows(select(Scan))} == {JobStatus.QUEUED}
    db.session.execute(Scan.__table__.update().values(retry_at=scans[0].created_at))
    db.session.commit()
    tasks.predict_scans()
    assert len(client.search_for_series(scans[0].study_uid)) == 4
    # What is sent again is there already; a new slice makes one scan with those that are stored.
    again = client.store_instances(first)
    assert again.RetrieveURL == replies[0].RetrieveURL
    assert len(again.ReferencedSOPSequence) == 5
    assert sorted(scan.slice_count for scan in rows(select(Scan))) == [3, 5]
    damaged, new = deepcopy(first[0]), write_series(tmp_path / "new", 6)[5]
    damaged.SOPInstanceUID = damaged.file_meta.MediaStorageSOPInstanceUID = "1.2.3.1.9"
    damaged.Rows = damaged.Columns = 60_000
    with pytest.raises(requests.HTTPError, match="409"):
        client.store_instances([damaged])
    assert sorted(scan.id for scan in rows(select(Scan))) == sorted(scan.id for scan in scans)
    (sixth,) = [pydicom.dcmread(new)]
    sixth.StudyInstanceUID, sixth.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    reply = client.store_instances([sixth])
    assert len(reply.ReferencedSOPSequence) == 1
    whole = rows(select(Scan).order_by(Scan.slice_count))[1]
    assert sorted(led_to()) == sorted([*[whole.id] * 3, other])
    assert sorted(scan.slice_count for scan in rows(select(Scan))) == [3, 6]
    assert whole.notes[-1].startswith("Replaces an earlier scan of 5 slices of this series (result")
    assert set(storage.keys("originals")) == {one.original_key for one in rows(select(Scan))}
    # The report names the one that was served before, and says so.
    (served,) = [one["served"] for one in whole.replaces]
    db.session.execute(Scan.__table__.update().values(retry_at=None))
    db.session.commit()
    tasks.predict_scans()
    (report,) = [
        one for one in client.retrieve_study(whole.study_uid)
        if one.Modality == "SR" and "PredecessorDocumentsSequence" in one
    ]  # fmt: skip
    (before,) = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert before.SeriesInstanceUID == served[0]
    assert before.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == served[1]


def one_series(folder: Path, slices: int) -> list[pydicom.Dataset]:
    """Return the slices of a series of a study."""
    made = [pydicom.dcmread(path) for path in write_series(folder, slices)]
    for place, one in enumerate(made, start=1):
        one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", "1.2.3.1"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.{place}"
    return made


@pytest.mark.parametrize("quiet_s", [0, 60])
def test_requests_of_one_series_that_come_at_once_make_one_scan(
    worker_app: Flask,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quiet_s: int,
) -> None:
    worker_app.config["DICOMWEB_QUIET_S"] = quiet_s
    slices = one_series(tmp_path / "series", 6)
    take_along, both = store.taken_along, threading.Barrier(2, timeout=30)
    first_tries = iter([both, both])

    def taken_along_at_once(*args: Any) -> Any:
        if one := next(first_tries, None):
            one.wait()
        return take_along(*args)

    monkeypatch.setattr(store, "taken_along", taken_along_at_once)
    with ThreadPoolExecutor(2) as pool:
        halves = slices[:3], slices[3:]
        replies = list(pool.map(lambda half: service.client().store_instances(half), halves))
    assert [len(reply.ReferencedSOPSequence) for reply in replies] == [3, 3]
    (scan,) = rows(select(Scan))
    assert scan.slice_count == 6
    assert list(storage.keys("originals")) == [scan.original_key]


def test_a_scan_that_a_worker_takes_while_more_of_its_series_comes_is_replaced_all_the_same(
    worker_app: Flask, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_app.config["DICOMWEB_QUIET_S"] = 60
    *first, last = one_series(tmp_path / "series", 4)
    service.client().store_instances(first)
    accept = intake.accept_upload

    def accept_late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(intake, "accept_upload", accept)
        taken = {"status": JobStatus.RUNNING, "retry_at": None}
        db.session.execute(Scan.__table__.update().values(taken))
        db.session.commit()
        return accept(*args, **options)

    monkeypatch.setattr(intake, "accept_upload", accept_late)
    service.client().store_instances([last])
    assert [scan.slice_count for scan in rows(select(Scan))] == [4]


@pytest.mark.parametrize("quiet_s", [0, 60])
def test_a_scan_whose_copies_are_gone_keeps_no_more_of_its_study_out(
    worker_app: Flask, service: Service, tmp_path: Path, quiet_s: int
) -> None:
    worker_app.config["DICOMWEB_QUIET_S"] = quiet_s
    *first, last = one_series(tmp_path / "series", 4)
    service.client().store_instances(first)
    storage.delete(rows(select(Scan.original_key))[0])
    service.client().store_instances([last])
    assert sorted(scan.slice_count for scan in rows(select(Scan))) == [1, 3]


def test_what_people_upload_gets_dicom_objects_where_the_operator_wants_that(
    worker_app: Flask, tmp_path: Path
) -> None:
    worker_app.config["DICOM_RESULTS"] = "all"
    install_outlining()
    scan = submit_bleeding(tmp_path / "series")
    assert (scan.dicom_results, scan.study_uid is not None) == (True, True)
    tasks.predict_scans()
    assert {one.kind for one in rows(select(Report))} == {"sr", "sc", "seg"}


def test_a_request_that_is_too_large_or_has_too_many_parts_leaves_nothing(
    worker_app: Flask, tmp_path: Path
) -> None:
    (path,) = write_series(tmp_path / "series", 1)
    client = worker_app.test_client()
    token = make_token(worker_app, rows(select(User.id))[0])
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=next',
    }
    body = related(path.read_bytes(), path.read_bytes())
    for limit in ("MAX_FILES_PER_UPLOAD", "MAX_CONTENT_LENGTH"):
        before, worker_app.config[limit] = worker_app.config[limit], 1
        answer = client.post("/dicom-web/studies", data=body, headers=headers)
        worker_app.config[limit] = before
        assert (answer.status_code, answer.mimetype) == (413, "application/problem+json")
        assert answer.get_json(force=True)["detail"].endswith((".", "size."))
    assert not rows(select(Scan)) and not storage.keys("originals")


@pytest.fixture
def orthanc(service: Service, tmp_path: Path) -> Iterator[str]:
    """A real Orthanc that knows the service; its address."""
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if not shutil.which("Orthanc") or not plugin.exists():
        unreachable("Orthanc with its DICOMweb plugin (orthanc-dicomweb)")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = {"Url": f"{service.base}/", "HttpHeaders": service.headers}
    settings = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Servers": {"hemoscan": server}},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", tmp_path / "orthanc.json"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, (tmp_path / "orthanc.log").read_text()[-2000:]
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_orthanc_sends_a_study_and_fetches_its_results(
    worker_app: Flask, service: Service, orthanc: str, tmp_path: Path
) -> None:
    worker_app.config["DICOMWEB_QUIET_S"] = 60
    install_outlining()
    paths = write_series(
        tmp_path / "series", 25, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1"
    )

    def ask(path: str, **body: Any) -> Any:
        answer = requests.post(f"{orthanc}/{path}", json=body, timeout=120)
        assert answer.ok, answer.text
        return answer.json()

    sent = [
        requests.post(f"{orthanc}/instances", data=path.read_bytes(), timeout=60).json()["ID"]
        for path in paths
    ]
    for some in (sent[:10], sent[10:20], sent[20:]):
        ask("dicom-web/servers/hemoscan/stow", Resources=some, Synchronous=True)
    (scan,) = rows(select(Scan))
    assert scan.slice_count == 25
    db.session.execute(Scan.__table__.update().values(retry_at=scan.created_at))
    db.session.commit()
    tasks.predict_scans()

    matches = ask("dicom-web/servers/hemoscan/qido", Uri="/studies", Arguments={"limit": "10"})
    assert [one["0020000D"]["Value"] for one in matches] == [scan.study_uid]
    ask(
        "dicom-web/servers/hemoscan/retrieve",
        Resources=[{"Study": scan.study_uid}],
        Synchronous=True,
    )
    stored = ask(
        "tools/find", Level="Series", Expand=True, Query={"StudyInstanceUID": scan.study_uid}
    )
    modalities = {one["MainDicomTags"]["Modality"] for one in stored}
    assert {"SR", "OT"} <= modalities


def native_model_read(content: bytes) -> Any:
    """Return a document of the Native DICOM Model as somebody else's client reads it."""
    return load_xml_dataset(ElementTree.fromstring(content))


def test_answers_are_xml_for_who_asks_for_it(service: Service, tmp_path: Path) -> None:
    install_outlining()
    sent = bleeding(tmp_path / "series")
    headers = {
        **service.headers,
        "Accept": "application/dicom+xml",
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=next',
        "Idempotency-Key": "once",
    }
    files = []
    for one in sent:
        file = io.BytesIO()
        one.save_as(file, enforce_file_format=True)
        files.append(file.getvalue())
    body = related(*files, b"not DICOM")
    answers = [
        requests.post(f"{service.base}/studies", data=body, headers=headers, timeout=60)
        for _ in range(2)
    ]
    assert [one.status_code for one in answers] == [202, 202]
    assert answers[0].headers["Content-Type"] == "application/dicom+xml"
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert answers[0].content == answers[1].content
    content = native_model_read(answers[0].content)
    assert [item.ReferencedSOPInstanceUID for item in content.ReferencedSOPSequence] == [
        one.SOPInstanceUID for one in sent
    ]
    assert content.OtherFailuresSequence[0].FailureReason == 0xC000
    tasks.predict_scans()

    in_parts = 'multipart/related; type="application/dicom+xml"'
    for accept in (in_parts, "application/dicom+xml", f"{in_parts}, application/dicom+json"):
        listing = service.get("series", Accept=accept)
        message = message_from_bytes(
            b"Content-Type: " + listing.headers["Content-Type"].encode() + b"\n\n" + listing.content
        )
        parts = [native_model_read(part.get_payload(decode=True)) for part in message.get_payload()]
        assert {one.Modality for one in parts} == {"SR", "OT", "SEG"}
        assert {one.StudyInstanceUID for one in parts} == {content.RetrieveURL.rsplit("/", 1)[1]}
    both = service.get("series", Accept=f"application/dicom+json, {in_parts}")
    assert both.headers["Content-Type"] == "application/dicom+json"
    all_of_it = service.get("instances?includefield=all", Accept=in_parts)
    assert all_of_it.ok and "JSON has all" in all_of_it.headers["Warning"]


def test_xml_holds_names_in_parts_and_no_character_that_it_cannot() -> None:
    root = ElementTree.fromstring(
        as_xml(
            {
                "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Jane^^Dr"}]},
                "00081030": {"vr": "LO", "Value": ["a <b> \x01 & ü"]},
                "00100020": {"vr": "LO"},
                "00420011": {"vr": "OB", "InlineBinary": "eA=="},  # Its keyword is not known here.
            }
        )
    )
    space = {"": NAMESPACE}
    texts = [one.text for one in root.findall(".//FamilyName", space)]
    assert texts + [one.text for one in root.findall(".//NamePrefix", space)] == ["Roe", "Dr"]
    assert [one.text for one in root.findall(".//Value", space)] == ["a <b> \ufffd & ü"]
    assert [one.get("keyword") for one in root] == ["StudyDescription", "PatientName", "PatientID"]
