"""STOW-RS requests whose multipart message or DICOM files are corrupted, and what comes of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from flask.testing import FlaskClient
from sqlalchemy import select, update

from bench.fuzz.mutations import spoiled
from bench.fuzz.odd import odd_text
from bench.fuzz.seeds import Seed
from bench.fuzz.service import BATCH, Service
from bench.fuzz.tally import Tally
from webapp.extensions import db
from webapp.models import JobStatus, Report, Scan
from worker.prediction import answer_next_scans
from worker.reports.making import make_next_report

DICOMWEB = "DICOMweb"
"""The kind of these scans and reports in the tally."""
STORE = "POST /dicom-web/studies (corrupted messages)"
QUIET_S = 30
"""How long stored studies wait for more: the messages of a batch find those before them."""
SHARE_OF_MESSAGES = 0.5
"""The share of messages that are correct themselves; their files may be corrupted."""
STATUSES = (200, 202, 400, 409, 413, 415, 422)
FINAL = (JobStatus.DONE, JobStatus.FAILED)
PART = b"Content-Type: application/dicom\r\n"
RELATED = 'multipart/related; type="application/dicom"; boundary='
CONTENT_TYPES = (
    *("", "application/dicom", "multipart/form-data; boundary=b", "multipart/related"),
    *(RELATED, f"{RELATED}other", f'{RELATED}"b', f"{RELATED}{'b' * 500}", f'{RELATED}""'),
    *(f'{RELATED}"b"; boundary=c', f"{RELATED}b; start=<1>; start-info", f"{RELATED}%00"),
    *(f"{RELATED}b\u00e9", "multipart/related; boundary*=utf-8''b; boundary*1=c", "multipart/"),
    *("multipart/related; type=application/dicom; boundary=b", 'multipart/mixed; boundary="b"'),
    'multipart/related; type="application/dicom+xml"; boundary=b',
)
ODD_HEADERS = (
    *(b"", b"\r\n", b": \r\n", b"Content-Type\r\n", b"Content-Type: \xff\xfe\r\n", b"a: b\n"),
    *(b"Content-Length: -1\r\n", b"Content-Length: 999999999999\r\n", b"\0: \0\r\n"),
    *(
        b"Content-Transfer-Encoding: base64\r\n",
        b"a: b\r\n" * 500,
        b"a: " + b"b" * 70_000 + b"\r\n",
    ),
    *(b" folded\r\n", b"Content-Type: application/dicom; charset=\xc3\xa9\r\n"),
    b"Content-Type: multipart/related; boundary=c\r\n\r\n--c\r\n\r\n\r\n--c--\r\n",
)

Part = tuple[bytes, bytes]
"""The headers and the content of a part."""


def store_corrupted_studies(
    service: Service, seeds: Sequence[Seed], messages: int, seed: int, tally: Tally
) -> None:
    """Send that many messages, run the worker, and check that every scan and every report ends, and
    that nothing is left after the scans have been deleted.
    """
    service.app.config["DICOMWEB_QUIET_S"] = QUIET_S
    client = service.client()
    for first in range(0, messages, BATCH):
        for number in range(first, min(first + BATCH, messages)):
            rng = random.Random(f"{seed} message {number}")
            content_type, body = corrupted_message(rng, seeds)
            _store(client, rng, content_type, body, tally)
            tally.check_incoming(service.home, STORE)
        _work_off(service, tally)
        _look_at(client, tally)
        with service.app.app_context():
            scan_ids = list(db.session.scalars(select(Scan.id)))
        for scan_id in scan_ids:
            deleted = client.delete(f"/api/v1/scans/{scan_id}").status_code
            tally.check(deleted == 204, f"a stored scan could not be deleted: {deleted}")
        left = sorted({key.split("/")[0] for key in service.files()})
        tally.check(not left, f"files of stored scans are left in {left}")


def corrupted_message(rng: random.Random, seeds: Sequence[Seed]) -> tuple[str, bytes]:
    """Return the content type and the body of a message, of which something is corrupted: the
    files, a part, the separation of the parts, or the content type.
    """
    parts = [_part(rng, seeds) for _ in range(rng.choice((1, 1, 2, 5)))]
    content_type = f"{RELATED}b"
    if rng.random() < SHARE_OF_MESSAGES:
        return content_type, _joined(parts)
    match rng.randrange(6):
        case 0:
            content_type = rng.choice(CONTENT_TYPES)
        case 1:
            parts = rng.choice(LISTS)(parts)
        case 2:
            place = rng.randrange(len(parts))
            parts[place] = rng.choice(ODD_HEADERS), parts[place][1]
    body = _joined(parts)
    match rng.randrange(5):
        case 0:
            body = rng.choice(SEPARATIONS)(body)
        case 1:
            body = body[: rng.randrange(len(body) + 1)]
        case 2:
            body = spoiled(Seed("message", body), [Seed("message", body)], rng)
    return content_type, body


def _part(rng: random.Random, seeds: Sequence[Seed]) -> Part:
    of_dicom = [sound for sound in seeds if sound.kind == "DICOM"]
    sound = rng.choice(of_dicom if rng.random() < 0.9 else seeds)
    is_sound = sound.kind == "DICOM" and rng.random() < 0.5
    return PART, sound.content if is_sound else spoiled(sound, [sound], rng)


def _joined(parts: Sequence[Part], boundary: bytes = b"b") -> bytes:
    written = b"".join(
        b"--" + boundary + b"\r\n" + headers + b"\r\n" + content + b"\r\n"
        for headers, content in parts
    )
    return written + b"--" + boundary + b"--\r\n"


def _nested(parts: list[Part]) -> list[Part]:
    return [(b"Content-Type: multipart/related; boundary=c\r\n", _joined(parts, b"c"))]


LISTS: tuple[Callable[[list[Part]], list[Part]], ...] = (
    _nested,
    lambda parts: _nested(_nested(_nested(parts))),
    lambda _: [],
    lambda parts: [*parts, (PART, b"")],
    lambda _: [(PART, b"")] * 5_000,
    lambda _: [(b"", b"")] * 900,
    lambda parts: parts * 20,
    lambda parts: [*parts, (PART, _joined(parts))],
    lambda parts: [(PART, parts[0][1] + parts[-1][1])],
)
"""Other lists of parts: nested, none, empty ones, thousands, and the same ones again."""
SEPARATIONS: tuple[Callable[[bytes], bytes], ...] = (
    lambda body: body.replace(b"\r\n--b", b"\n--b"),
    lambda body: body.replace(b"--b--", b""),
    lambda body: body.replace(b"--b\r\n", b"--b \t\r\n"),
    lambda body: body.replace(b"--b\r\n", b"--bb\r\n"),
    lambda body: b"preamble" * 1_000 + b"\r\n" + body,
    lambda body: body + b"epilogue" * 100_000,
    lambda body: body + body,
    lambda body: b"--b--\r\n" + body,
    lambda body: body.replace(b"\r\n\r\n", b"\r\n", 1),
    lambda body: b"\r\n" * 50_000 + body,
    lambda _: b"--b",
    lambda _: b"",
)
"""Other ways in which the parts are separated, or not."""


def _store(
    client: FlaskClient, rng: random.Random, content_type: str, body: bytes, tally: Tally
) -> None:
    headers = {"Content-Type": content_type.encode().decode("latin-1")}
    if rng.random() < 0.1:
        headers["Content-Length"] = str(max(0, len(body) + rng.choice((-1, 1, 10_000))))
    if rng.random() < 0.1:
        headers["Accept"] = odd_text(rng).encode("ascii", "ignore").decode().replace("\n", "")[:200]
    if rng.random() < 0.1:
        headers["Idempotency-Key"] = odd_text(rng).encode("ascii", "ignore").decode()[:200]
    study = rng.choice(("/1.2.3", "/2.25.1", "/x", "/" + "1" * 65)) if rng.random() < 0.1 else ""
    began = time.monotonic()
    headers = {name: value.replace("\r", "").replace("\n", "") for name, value in headers.items()}
    with client.post(f"/dicom-web/studies{study}", data=body, headers=headers) as answer:
        tally.answered(STORE, answer.status_code, time.monotonic() - began)
        expected = answer.status_code in STATUSES or (
            answer.status_code == 406 and "Accept" in headers
        )
        tally.check(expected, f"a stored message was answered with {answer.status_code}")


def _work_off(service: Service, tally: Tally) -> None:
    """Run the worker until nothing waits, and check that everything has ended."""
    with service.app.app_context():
        db.session.execute(update(Scan).values(retry_at=None))
        db.session.commit()
        while answer_next_scans() or make_next_report():
            pass
        for row in (*db.session.scalars(select(Scan)), *db.session.scalars(select(Report))):
            kind = type(row).__name__.lower()
            tally.outcomes[DICOMWEB, f"{kind} {row.status.value}"] += 1
            tally.check(row.status in FINAL, f"a {kind} of DICOMweb is {row.status}")
            has_sentence = row.status == JobStatus.DONE or (row.error or "").endswith(".")
            tally.check(has_sentence, f"a {kind} of DICOMweb failed without an error message")
        db.session.rollback()


def _look_at(client: FlaskClient, tally: Tally) -> None:
    """Search for the results and retrieve them."""
    found = client.get("/dicom-web/instances?includefield=all")
    addresses = [row["00081190"]["Value"][0] for row in found.get_json() or ()]
    for address in ("/dicom-web/studies", "/dicom-web/series", *addresses):
        began = time.monotonic()
        with client.get(address) as answer:
            label = "GET /dicom-web (results of corrupted messages)"
            tally.answered(label, answer.status_code, time.monotonic() - began)
            tally.check(
                answer.status_code < 400, f"a result was answered with {answer.status_code}"
            )
