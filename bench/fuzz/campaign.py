"""Send mutated files through the entire pipeline: API or form, intake, storage, worker, decoder,
verdict, pages, deletion.
"""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage

from bench.fuzz.mutations import FILE_NAMES, spoiled
from bench.fuzz.pages import Browser
from bench.fuzz.seeds import Seed
from bench.fuzz.service import BATCH, Service
from bench.fuzz.tally import Tally
from webapp.extensions import db
from webapp.models import JobStatus, Scan
from worker.heartbeat import work_folder_of
from worker.prediction import answer_next_scans

REFUSALS = (413, 415, 422)
UPLOAD_MB = 32
"""Maximum memory growth of the receiving process per upload, in MB; uploads are streamed, whatever
size the file claims to have.
"""
BY_FORM = 0.25
"""The share of uploads by web form; the others use the API."""


def upload_spoiled_files(
    service: Service,
    valid: Sequence[Seed],
    inputs: int,
    seed: int,
    tally: Tally,
    keep: Path | None,
) -> None:
    """Send that many files, run the worker, check every row and file, and delete the results.

    Args:
        valid: the files that are mutated.
        keep: folder for the files of a batch that violated a guarantee; their names start with
            their numbers.
    """
    by_kind: dict[str, list[Seed]] = {}
    for sound in valid:
        by_kind.setdefault(sound.kind, []).append(sound)
    client, browser = service.client(), Browser(service)
    for first in range(0, inputs, BATCH):
        before = len(tally.broken)
        batch: list[tuple[str, bytes]] = []
        kinds: dict[str, str] = {}
        for number in range(first, min(first + BATCH, inputs)):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choice(list(by_kind))
            batch.append(
                (f"{number}.{kind}", spoiled(rng.choice(by_kind[kind]), by_kind[kind], rng))
            )
            accepted = _upload(service, client, browser, kind, batch[-1][1], rng, tally)
            kinds |= dict.fromkeys(accepted, kind)
        with service.app.app_context():
            while answer_next_scans():
                pass
            _judge(service, kinds, tally)
        for scan_id in kinds:
            browser.look_at(scan_id, tally)
            tally.check(
                client.delete(f"/api/v1/scans/{scan_id}").status_code == 204,
                "a scan could not be deleted",
            )
        tally.check(not service.files(), "files of deleted scans are left")
        if tally.broken[before:]:
            where = f" (uploads {first} to {first + len(batch) - 1})"
            tally.broken[before:] = [complaint + where for complaint in tally.broken[before:]]
            for name, content in batch if keep else ():
                (keep / name).write_bytes(content)  # type: ignore[operator]


def _upload(
    service: Service,
    client: FlaskClient,
    browser: Browser,
    kind: str,
    content: bytes,
    rng: random.Random,
    tally: Tally,
) -> list[str]:
    """Send one file and return the ids of its scans, none if it was refused."""
    tally.inputs[kind] += 1
    send = browser.upload if rng.random() < BY_FORM else lambda *args: _send(client, *args)
    before_mb = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Reset the peak memory.
    ids, refusal = send(content, rng, tally)
    used = memory_mb("VmHWM") - before_mb
    tally.upload_mb = max(tally.upload_mb, used)
    tally.check(used <= UPLOAD_MB, f"an upload took {used:.0f} MB")
    tally.check_incoming(service.home, "an upload")
    if not ids:
        tally.outcomes[kind, "refused"] += 1
        _note_sentence(kind, refusal, tally)
    return ids


def _send(
    client: FlaskClient, content: bytes, rng: random.Random, tally: Tally
) -> tuple[list[str], str]:
    """Send one file to the API; return the ids of its scans, none if it was refused, and the error
    message.
    """
    form = {
        "file": FileStorage(io.BytesIO(content), rng.choice(FILE_NAMES)),
        "together": rng.choice("01"),
        "keep_names": rng.choice("01"),
    }
    began = time.monotonic()
    answer = client.post("/api/v1/scans", data=form)
    tally.answered(
        "POST /api/v1/scans (mutated files)", answer.status_code, time.monotonic() - began
    )
    if answer.status_code == 202:
        return [scan["id"] for scan in answer.get_json()["scans"]], ""
    tally.check(answer.status_code in REFUSALS, f"an upload was answered with {answer.status_code}")
    return [], answer.get_json()["detail"]


def _judge(service: Service, kinds: dict[str, str], tally: Tally) -> None:
    """Check that each scan is done, or failed with an error message, and that the storage holds
    exactly the files that rows name.
    """
    scans = db.session.scalars(select(Scan)).all()
    tally.check(
        {scan.id for scan in scans} == set(kinds), "the scans are not those that were accepted"
    )
    named: set[str] = set()
    for scan in scans:
        kind = kinds.get(scan.id, "")
        tally.outcomes[kind, scan.status.value] += 1
        tally.check(scan.status in (JobStatus.DONE, JobStatus.FAILED), f"a scan is {scan.status}")
        named.add(scan.original_key)
        if scan.status == JobStatus.DONE:
            tally.check(
                scan.prediction is not None and 0 <= scan.prediction.probability <= 1,
                "a scan is done without a probability",
            )
            keys = scan.image_key, scan.thumbnail_key, scan.volume_key, scan.outline_key
            named |= {key for key in keys if key}
        else:
            _note_sentence(kind, scan.error or "", tally)
    db.session.rollback()
    there = service.files()
    tally.check(
        there == named,
        f"{len(there - named)} files without a row, {len(named - there)} rows without a file",
    )
    work = work_folder_of(service.app)
    tally.check(
        not any(path.is_file() for path in work.rglob("*")), "files are left in the work folder"
    )


def _note_sentence(kind: str, sentence: str, tally: Tally) -> None:
    is_one = (
        sentence.endswith(".")
        and len(sentence) < 400
        and "Traceback" not in sentence
        and not re.search("Error|Exception|0x", sentence)
    )
    tally.check(is_one, f"this is not a proper error message: {sentence[:200]!r}")
    tally.sentences[
        kind,
        re.sub(
            r"“.*”: |[0-9][0-9.e+]*",
            lambda match: "" if match[0].startswith("“") else "N",
            sentence,
        ),
    ] += 1


def memory_mb(what: str) -> float:
    """Return a value of this process from /proc, such as VmRSS."""
    line = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line[1]) / 1024 if line else 0.0
