"""Spoiled files go the whole way of an upload: API, intake, storage, worker, child that decodes, verdict, deletion."""

from __future__ import annotations

import io
import logging
import random
import re
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage

from bench.fuzz.mutations import spoiled
from bench.fuzz.seeds import Seed, seeds
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from webapp import create_app
from webapp.cli import install_starter
from webapp.extensions import db
from webapp.models import ApiToken, JobStatus, Scan, User
from webapp.models.accounts import new_secret, secret_hash
from worker import decoder
from worker.prediction import answer_next_scans
from worker.presence import Presence, work_folder_of

BATCH = 8
"""Uploads between two rounds of the worker: what it claims at once."""
REFUSALS = (413, 415, 422)
UPLOAD_MB = 32
"""What one upload may add to the memory of the process that takes it in; it streams, whatever the file says of itself."""
FILE_NAMES = ("slice.dcm", "", "../../etc/passwd", "Doe^John.png", "\u202e.zip", "x" * 300, "a\tb;c", "é.jpg")
UNHANDLED = 1
"""Exit status of a child that met an exception which nobody expected. Signals are what limits and crashing decoders end in."""


@dataclass
class Tally:
    """What came of everything that was sent.

    Attributes:
        outcomes: by kind of the file that was spoiled, then "refused" uploads, and scans by status.
        sentences: what people were told, by kind, numbers left out.
        statuses: of the API's answers, by operation.
        deaths: of the child that decodes, by exit status; a new one took its place.
    """

    broken: list[str] = field(default_factory=list)
    inputs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    sentences: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    upload_mb: float = 0.0
    decoder_mb: float = 0.0

    def check(self, holds: bool, complaint: str) -> None:
        """Note `complaint` unless it holds."""
        if not holds:
            self.broken.append(complaint)


class Overheard(logging.Handler):
    """Hears what the log says: an error is broken by itself, and a child that died is counted."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.WARNING)
        self.tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one line of the log."""
        if record.name == decoder.__name__ and isinstance(record.args, tuple) and record.args:
            self.tally.deaths[int(str(record.args[0]))] += 1
            self.tally.check(record.args[0] != UNHANDLED, "a file met an exception in the decoder that nobody expected")
        if record.levelno >= logging.ERROR:
            self.tally.broken.append(f"the log says: {self.format(record)}")


class Service:
    """Hemoscan in this process, on SQLite in a folder, with the models that ship; its queue is asked directly."""

    def __init__(self, home: Path) -> None:
        self.app = create_app(
            {
                "SECRET_KEY": "of the fuzzer",
                "HEMOSCAN_HOME": home,
                "DATABASE_URL": f"sqlite:///{home / 'fuzz.db'}",
                "BROKER_URL": f"redis+socket://{home / 'nobody.sock'}",
                "STORAGE_URL": f"file://{home / 'files'}",
                "RATELIMIT_ENABLED": False,
                "QUOTA_MB": 0,
                "CHECK_HEAD_CT": "0",  # What can be read is scored, whatever it shows: that is a longer way.
            }
        )
        self.home = home
        self.app.config["PREDICT_BATCH"] = BATCH
        self.token = new_secret()
        with self.app.app_context():
            db.create_all()
            for folder in (STARTER_DIR, STARTER_SERIES_DIR):
                install_starter(folder)
            user = User(username="fuzz", password="nobody logs in with it")
            db.session.add(user)
            db.session.flush()
            db.session.add(ApiToken(user_id=user.id, name="fuzz", secret_hash=secret_hash(self.token)))
            db.session.commit()
        self.app.extensions["presence"] = Presence(self.app, "predict")

    def client(self) -> FlaskClient:
        """Return a client of the API."""
        client = self.app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {self.token}"
        return client

    def files(self) -> set[str]:
        """Return the keys of all files in the storage but the models'."""
        root = self.home / "files"
        found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        return {key for key in found if not key.startswith(("models/", "databases/"))}


@contextmanager
def service(home: Path, tally: Tally) -> Iterator[Service]:
    """Give the service; what its log says and what its children took goes into `tally`."""
    overheard = Overheard(tally)
    root = logging.getLogger()
    given = Service(home)
    root.addHandler(overheard)
    try:
        yield given
    finally:
        root.removeHandler(overheard)
        if decoder._decoder is not None:
            decoder._decoder.close()
        tally.decoder_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        tally.check(tally.decoder_mb <= given.app.config["DECODE_MEMORY_MB"], f"the decoder took {tally.decoder_mb:.0f} MB")
        with given.app.app_context():
            db.engine.dispose()


def upload_spoiled_files(given: Service, inputs: int, seed: int, tally: Tally, keep: Path | None) -> None:
    """Send so many files, let the worker answer, look at every row and file, and delete all that came of them.

    Args:
        keep: where the files of a batch that broke something are left; their numbers begin their names.
    """
    by_kind: dict[str, list[Seed]] = {}
    for one in seeds():
        by_kind.setdefault(one.kind, []).append(one)
    client = given.client()
    for first in range(0, inputs, BATCH):
        before = len(tally.broken)
        batch: list[tuple[str, bytes]] = []
        kinds: dict[str, str] = {}
        for number in range(first, min(first + BATCH, inputs)):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choice(list(by_kind))
            batch.append((f"{number}.{kind}", spoiled(rng.choice(by_kind[kind]), by_kind[kind], rng)))
            kinds |= dict.fromkeys(_upload(given, client, kind, batch[-1][1], rng, tally), kind)
        with given.app.app_context():
            while answer_next_scans():
                pass
            _judge(given, kinds, tally)
        for scan_id in kinds:
            tally.check(client.delete(f"/api/v1/scans/{scan_id}").status_code == 204, "a scan could not be deleted")
        tally.check(not given.files(), "files are left of deleted scans")
        if tally.broken[before:]:
            where = f" (uploads {first} to {first + len(batch) - 1})"
            tally.broken[before:] = [complaint + where for complaint in tally.broken[before:]]
            for name, content in batch if keep else ():
                (keep / name).write_bytes(content)  # type: ignore[operator]


def _upload(given: Service, client: FlaskClient, kind: str, content: bytes, rng: random.Random, tally: Tally) -> list[str]:
    """Send one file and return the ids of its scans, none where it was refused."""
    tally.inputs[kind] += 1
    form = {"file": FileStorage(io.BytesIO(content), rng.choice(FILE_NAMES)), "together": rng.choice("01"), "keep_names": rng.choice("01")}
    held = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The highest mark begins anew.
    answer = client.post("/api/v1/scans", data=form)
    used = memory_mb("VmHWM") - held
    tally.upload_mb = max(tally.upload_mb, used)
    tally.check(used <= UPLOAD_MB, f"an upload took {used:.0f} MB")
    left = [path for path in (given.home / "incoming").rglob("*") if path.is_file()]
    tally.check(not left, f"{len(left)} files are left in incoming")
    if answer.status_code == 202:
        return [scan["id"] for scan in answer.get_json()["scans"]]
    tally.outcomes[kind, "refused"] += 1
    tally.check(answer.status_code in REFUSALS, f"an upload was answered with {answer.status_code}")
    _note_sentence(kind, answer.get_json()["detail"], tally)
    return []


def _judge(given: Service, kinds: dict[str, str], tally: Tally) -> None:
    """Check that each scan has one verdict, done or a sentence, and that the storage holds what rows name and nothing else."""
    scans = db.session.scalars(select(Scan)).all()
    tally.check({scan.id for scan in scans} == set(kinds), "there are other scans than were accepted")
    named: set[str] = set()
    for scan in scans:
        kind = kinds.get(scan.id, "")
        tally.outcomes[kind, scan.status.value] += 1
        tally.check(scan.status in (JobStatus.DONE, JobStatus.FAILED), f"a scan is {scan.status}")
        named.add(scan.original_key)
        if scan.status == JobStatus.DONE:
            tally.check(scan.prediction is not None and 0 <= scan.prediction.probability <= 1, "a scan is done without a probability")
            named |= {key for key in (scan.image_key, scan.thumbnail_key, scan.volume_key) if key}
        else:
            _note_sentence(kind, scan.error or "", tally)
    db.session.rollback()
    there = given.files()
    tally.check(there == named, f"{len(there - named)} files without a row, {len(named - there)} rows without a file")
    work = work_folder_of(given.app)
    tally.check(not any(path.is_file() for path in work.rglob("*")), "files are left in the work folder")


def _note_sentence(kind: str, sentence: str, tally: Tally) -> None:
    is_one = (
        sentence.endswith(".") and len(sentence) < 400 and "Traceback" not in sentence and not re.search("Error|Exception|0x", sentence)
    )
    tally.check(is_one, f"this is no sentence: {sentence[:200]!r}")
    tally.sentences[kind, re.sub(r"“.*”: |[0-9][0-9.e+]*", lambda found: "" if found[0].startswith("“") else "N", sentence)] += 1


def memory_mb(what: str) -> float:
    """Return a figure of this process from /proc, such as VmRSS."""
    found = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
