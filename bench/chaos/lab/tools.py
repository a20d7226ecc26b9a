"""What the cases of the lab have in common: access to the API, the rows and the stored files of a
running stack, and the things that the cases need: a data set, scans and model versions.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from sqlalchemy import ColumnElement, delete, select

from bench.chaos.neighbors import OWNER, a_study
from bench.chaos.stack import Stack
from ml.artifacts.card import CARD, HEAD, Card
from ml.artifacts.folder import write_model
from ml.scans.phantoms import phantom, write_png
from tests.e2e.pictures import phantom_dataset
from webapp.extensions import db
from webapp.intake import accept_dataset
from webapp.models import (
    Comparison,
    Dataset,
    JobStatus,
    Leased,
    ModelVersion,
    Scan,
    User,
    live_version,
    new_id,
)
from worker.canary import SLICES as CANARY_SLICES
from worker.predictors import PREDICTIONS

NAME = "lab"
PATIENTS, SIZE_PX = 20, 128
"""Half of the patients, of whom there is one slice each, have a hemorrhage; the paper's experiment
needs 10 of either kind.
"""
EVERY = 40
"""Of the predictions of a live version, every such one is kept."""
ENDS_WITHIN_S, ANSWERS_WITHIN_S = 600.0, 60.0
LOOK_S = 0.05


class Unexpected(Exception):
    """Something did not end as intended; the message says what."""


@dataclass(frozen=True)
class End:
    """How a job ended: `error` is its message, `attempts` counts the deaths of its workers, and
    `lasted_s` is the duration of its last attempt.
    """

    status: JobStatus
    error: str | None
    attempts: int
    lasted_s: float


@dataclass
class Lab:
    """A running stack, as the cases use it.

    Attributes:
        ends: how each case ended, by name.
        errors: the cases that ended otherwise.
        scans: ids of the scans that were submitted meanwhile.
        meant_to_fail: ids of the jobs that had to fail.
    """

    stack: Stack
    rng: random.Random
    ends: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    meant_to_fail: set[str] = field(default_factory=set)
    _dataset_ids: dict[int, str] = field(default_factory=dict)
    _scan_id: str = ""

    def api(self, method: str, path: str, body: Any, expected: int) -> dict[str, Any]:
        """Return the API's response.

        Raises:
            Unexpected: its status is not the expected one.
        """
        status, answer = self.respond(method, path, body)
        require(status == expected, f"{method} {path} was answered by {status}: {answer}"[:300])
        return answer

    def respond(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the API's response."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.stack.port, timeout=ANSWERS_WITHIN_S
        )
        headers = {
            "Authorization": f"Bearer {self.stack.token}",
            "Content-Type": "application/json",
        }
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, f"/api/v1{path}", content, headers)
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else {}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Commit what is changed in the database within the context."""
        with self.stack.app.app_context():
            yield
            db.session.commit()

    def one(self, query: Any) -> Any:
        """Return the one value that a query finds, None where there is none."""
        return self.stack.ask(lambda: db.session.scalars(query).one_or_none())

    def columns(
        self, table: Any, names: Sequence[str], *which: ColumnElement[bool]
    ) -> list[dict[str, Any]]:
        """Return these columns of the rows that match `which`."""
        query = select(*(getattr(table, name).label(name) for name in names)).where(*which)

        def look() -> tuple[list[dict[str, Any]]]:
            rows = [dict(row._mapping) for row in db.session.execute(query)]
            return (sorted(rows, key=repr),)

        found: list[dict[str, Any]] = until(lambda: self.stack.ask(look))[0]
        return found

    def digests(self, prefix: str) -> dict[str, str]:
        """Return the hashes of the stored files whose keys begin with `prefix`, by the rest of the
        key.
        """
        folder = (self.stack.volume / prefix).parent
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        keys = {str(path.relative_to(self.stack.volume)): path for path in paths}
        return {
            key.removeprefix(prefix): hashlib.sha256(path.read_bytes()).hexdigest()
            for key, path in keys.items()
            if key.startswith(prefix)
        }

    def ended(self, table: type[Leased], row_id: str) -> End:
        """Wait for the end of a job, and return it.

        Raises:
            Unexpected: it does not end.
        """
        columns = select(
            table.status, table.error, table.attempts, table.started_at, table.finished_at
        ).where(table.id == row_id)

        def look() -> Any:
            row = self.stack.ask(lambda: db.session.execute(columns).one())
            return row if row and JobStatus(row.status).is_final else None

        row = until(look)
        lasted = (row.finished_at - row.started_at).total_seconds() if row.started_at else 0.0
        return End(JobStatus(row.status), row.error, row.attempts, lasted)

    def done(self, table: type[Leased], row_id: str) -> End:
        """Wait for the end of a job, and return it.

        Raises:
            Unexpected: it failed, or does not end.
        """
        end = self.ended(table, row_id)
        require(end.status == JobStatus.DONE, f"{end.status}: {end.error}")
        return end

    def user_id(self) -> str:
        """Return the id of the administrator."""
        return str(self.one(select(User.id).where(User.username == OWNER)))

    def live(self, reads: str) -> tuple[str, str, str]:
        """Return id, architecture and folder of the live version for an input."""

        def look() -> tuple[str, str, str] | None:
            version = live_version(reads)
            return version and (version.id, version.architecture, version.storage_prefix)

        found: tuple[str, str, str] = until(lambda: self.stack.ask(look))
        return found

    def another_version(self, reads: str, mark: str, *, fails: bool = False) -> str:
        """Store a version like the live one, with files of its own, and return its id; one that
        `fails` answers only the phantom of a health check, since its head accepts only that number
        of slices.
        """
        _, architecture, like = self.live(reads)
        folder, version_id = self.stack.volume / like, new_id()
        card = Card.from_json((folder / CARD).read_text(encoding="utf-8"))
        files: dict[str, Path | bytes] = {name: folder / name for name in card.files}
        graph = onnx.load(str(folder / HEAD))
        graph.doc_string = mark
        if fails:
            sides = graph.graph.input[0].type.tensor_type.shape.dim
            sides[0].dim_value = CANARY_SLICES[reads]
        files[HEAD] = graph.SerializeToString()
        prefix = f"models/{version_id}"
        written = write_model(self.stack.volume / prefix, card, files)
        # Without predictions.csv: comparing versions that have one takes minutes.
        with self.changing():
            db.session.add(
                ModelVersion(
                    id=version_id,
                    card_id=written.id,
                    architecture=architecture,
                    reads=reads,
                    storage_prefix=prefix,
                    card=json.loads(written.to_json()),
                )
            )
        return version_id

    def shorten_predictions(self) -> None:
        """Keep a few of the out-of-fold predictions of the live versions, by which others are
        compared with them: comparisons on thousands of images take minutes.
        """
        for reads in ("slice", "series"):
            table = self.stack.volume / self.live(reads)[2] / PREDICTIONS
            head, *rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
            table.write_text("".join([head, *rows[::EVERY]]), encoding="utf-8")

    def request_import(self, name: str = "imported") -> str:
        """Request the import of a data set of phantoms, which replaces the previous one of that
        name, and return its id.
        """
        self.delete_dataset(name)
        folder = self._folder()
        archive = folder / "phantoms.zip"
        if not archive.is_file():
            phantom_dataset(folder, PATIENTS, SIZE_PX, slices=1)
        with self.stack.app.app_context():
            return accept_dataset(name, archive, None).id

    def delete_dataset(self, name: str) -> None:
        """Delete the data set of this name, if there is one: what is computed from a data set
        depends on its name, so another one with equal results must have the same.
        """
        known = self.one(select(Dataset.id).where(Dataset.name == name))
        if known is not None:
            self.api("DELETE", f"/datasets/{known}", None, 204)

    def delete_comparisons(self) -> None:
        """Delete the comparisons that are still queued: each promotion and evaluation requests
        several, which would take minutes, because a process of the train worker carries out one.
        """
        with self.changing():
            db.session.execute(delete(Comparison).where(Comparison.status == JobStatus.QUEUED))

    def dataset(self, number: int = 0) -> str:
        """Return the id of an imported data set, which all cases share; there may be several."""
        if number not in self._dataset_ids:
            dataset_id = self.request_import(f"shared {number}")
            self.done(Dataset, dataset_id)
            self._dataset_ids[number] = dataset_id
        return self._dataset_ids[number]

    def scan(self) -> str:
        """Return the id of an analyzed scan, which all cases share."""
        if not self._scan_id:
            scan_id = self.submit_picture()
            self.done(Scan, scan_id)
            self._scan_id = scan_id
        return self._scan_id

    def submit_picture(self, number: int | None = None) -> str:
        """Submit a phantom as one slice, and return the id of the scan."""
        if number is None:
            number = self.rng.randrange(1000)
        path = self._folder() / "slice.png"
        write_png(phantom(number, hemorrhage=True, size=192), path)
        return self._submitted("slice", path.read_bytes())

    def submit_series(self) -> str:
        """Submit a series of DICOM slices, and return the id of the scan."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number, header in enumerate(a_study(self.rng)):
                one = io.BytesIO()
                header.save_as(one)
                archive.writestr(f"{number}.dcm", one.getvalue())
        return self._submitted("series.zip", packed.getvalue())

    def _submitted(self, name: str, content: bytes) -> str:
        scan_id = str(self.stack.client().upload(name, content)["id"])
        self.scans.append(scan_id)
        return scan_id

    def _folder(self) -> Path:
        folder = self.stack.folder / NAME
        folder.mkdir(exist_ok=True)
        return folder


def require(holds: bool, otherwise: str) -> None:
    """Raise `Unexpected` if something does not hold."""
    if not holds:
        raise Unexpected(otherwise)


def sentence_of(problem: Mapping[str, Any]) -> str:
    """Return the message in an API response that is meant for people.

    Raises:
        Unexpected: there is none.
    """
    sentence = str(problem.get("detail") or "")
    require(bool(sentence), f"refused without a sentence: {problem}"[:300])
    return sentence


def until(look: Callable[[], Any], every_s: float = LOOK_S) -> Any:
    """Return the first true result of `look`.

    Raises:
        Unexpected: there was none in time.
    """
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not (seen := look()):
        require(time.monotonic() < deadline, f"it did not end within {ENDS_WITHIN_S:g} s")
        time.sleep(every_s)
    return seen
