"""Faults in the lab: workers that die in each of its jobs, a data set that is deleted during an
evaluation, damaged files, two promotions at once, a shadow that fails, a curve of a million points.
Each must end as intended, and scans that arrive meanwhile must get their verdicts.
"""

from __future__ import annotations

import http.client
import io
import json
import random
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from sqlalchemy import delete, select

from bench.chaos.neighbors import a_study
from bench.chaos.stack import Stack
from bench.service import descendants
from ml.artifacts.card import CARD, FEATURES, HEAD, Card
from ml.artifacts.folder import write_model
from ml.scans.phantoms import phantom, write_png
from ml.training.progress import Progress
from tests.e2e.pictures import phantom_dataset
from webapp.extensions import db
from webapp.intake import accept_dataset
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    CURVE_STEPS,
    Comparison,
    Dataset,
    Evaluation,
    JobStatus,
    Leased,
    ModelVersion,
    Preview,
    Promotion,
    Report,
    Scan,
    Shadow,
    TrainingRun,
    live_version,
    new_id,
    new_preview,
)
from webapp.models.shadows import MOST_FAILURES
from worker.canary import SLICES as CANARY_SLICES
from worker.training_curves import AVERAGED_STEPS, Curves

NAME = "lab"
PATIENTS = 40
ENDS_WITHIN_S, ANSWERS_WITHIN_S = 180.0, 60.0
TRIES = 10
"""How often a job is requested until its worker was killed before it ended."""
POINTS = 1_000_000
CURVE_WITHIN_S = 5.0
ONE_WINS = [200, 409]


class Unexpected(Exception):
    """Something did not end as intended; the message says what."""


@dataclass
class Lab:
    """Carries out the cases one after the other.

    Attributes:
        ends: how each case ended, by name.
        errors: the cases that ended otherwise.
        scans: ids of the scans that were submitted meanwhile.
    """

    stack: Stack
    rng: random.Random
    ends: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    dataset_id: str = ""

    def carry_out(self) -> None:
        """Carry out all cases, submitting a scan alongside each."""
        for name, case in CASES.items():
            self._submit_picture()
            try:
                self.ends[name] = case(self)
            except Exception as err:  # noqa: BLE001 - reported at the end, like every other.
                self.errors.append(f"lab, {name}: {type(err).__name__}: {err}")

    def import_killed(self) -> str:
        """A data set whose import dies."""
        archive = phantom_dataset(self._folder(), PATIENTS)

        def ask() -> str:
            with self.stack.app.app_context():
                self.dataset_id = accept_dataset(f"{NAME} {new_id()[:6]}", archive, None).id
            return self.dataset_id

        return self._killed(Dataset, ask)

    def evaluation_killed(self) -> str:
        """An evaluation's worker dies, and its data set cannot be deleted before it has ended."""
        body = {"version_id": self._live("slice")[0], "dataset_id": self.dataset_id}
        refused: list[str] = []

        def ask() -> str:
            evaluation_id = str(self._api("POST", "/evaluations", body, 202)["id"])
            problem = self._api("DELETE", f"/datasets/{self.dataset_id}", None, 409)
            refused.append(sentence_of(problem))
            return evaluation_id

        end = self._killed(Evaluation, ask)
        return f"{end}; deleting its data set meanwhile was refused: “{refused[0]}”"

    def comparison_killed(self) -> str:
        """A comparison with the live version loses its worker."""
        copy = select(Shadow.version_id).where(Shadow.reads == "slice")
        body = {"version_id": self._one(copy)}
        return self._killed(
            Comparison, lambda: str(self._api("POST", "/comparisons", body, 202)["id"])
        )

    def preview_killed(self) -> str:
        """A preview of an image of a data set loses its worker."""
        numbers = iter(range(2 * PATIENTS))

        def ask() -> str:
            what = {"dataset": self.dataset_id, "image": next(numbers)}
            with self.stack.app.app_context():
                preview = new_preview(what, {"kind": "picture", "level": 40, "width": 80})
                preview_id = preview.id
                db.session.commit()
                nudge(PREDICT_SCANS)
            return preview_id

        return self._killed(Preview, ask)

    def report_killed(self) -> str:
        """A report of a scan dies."""
        scan_id = self.scans[0]
        self._ended(Scan, scan_id)

        def ask() -> str:
            self._api("POST", f"/scans/{scan_id}/reports/pdf", {}, 202)
            return str(self._one(select(Report.id).where(Report.scan_id == scan_id)))

        return self._killed(Report, ask)

    def version_damaged(self) -> str:
        """The files of a version are damaged: it can neither be evaluated nor promoted."""
        version_id = self._another("series", "damaged")
        features = self.stack.volume / "models" / version_id / FEATURES
        features.write_bytes(features.read_bytes()[:1000])
        body = {"version_id": version_id, "dataset_id": self.dataset_id}
        evaluation_id = str(self._api("POST", "/evaluations", body, 202)["id"])
        status, error, _ = self._ended(Evaluation, evaluation_id)
        require(
            status == JobStatus.FAILED and FEATURES in str(error), f"evaluation: {status} {error}"
        )
        problem = self._api("POST", *self._promotion_of(version_id), 409)
        require(FEATURES in sentence_of(problem), f"promotion: {sentence_of(problem)}")
        require(self._live("series")[0] != version_id, "it went live")
        return f"evaluation failed, “{error}”; promotion refused, “{sentence_of(problem)}”"

    def shadow_fails(self) -> str:
        """A shadow fails on every scan, and is ended."""
        version_id = self._another("series", "fails", fails=True)
        shadow_id = self._api("POST", "/shadows", {"version_id": version_id}, 201)["id"]
        for _ in range(MOST_FAILURES + 1):
            self._submit_series()
        ended = select(Shadow.ended_because).where(Shadow.id == shadow_id)
        because = str(until(lambda: self._one(ended)))
        require(f"failed on {MOST_FAILURES} scans in a row" in because, because)
        return f"ended: “{because}”"

    def promoted_at_once(self) -> str:
        """Two clients promote two versions at once: one of them wins."""
        rivals = [self._another("series", f"rival {number}") for number in (1, 2)]
        asked = [self._promotion_of(version_id) for version_id in rivals]
        answers: list[tuple[int, dict[str, Any]]] = []

        def promote(path: str, body: Mapping[str, str]) -> None:
            answers.append(self._ask("POST", path, body))

        clients = [threading.Thread(target=promote, args=one, daemon=True) for one in asked]
        for client in clients:
            client.start()
        for client in clients:
            client.join(2 * ANSWERS_WITHIN_S)
        require(sorted(status for status, _ in answers) == ONE_WINS, f"{answers}"[:300])
        won = select(Promotion.version_id).where(Promotion.version_id.in_(rivals))
        winner = self._one(won)
        require(winner == self._live("series")[0], f"{winner} was promoted and is not live")
        (refused,) = (sentence_of(answer) for status, answer in answers if status == ONE_WINS[1])
        return f"one went live, the other was refused: “{refused}”"

    def long_curve(self) -> str:
        """A run has reported a million points."""
        run_id = new_id()
        curves = Curves(run_id)
        for number in range(POINTS):
            epoch = {"loss": 1.0, "validation_loss": 1.0, "epoch": 1 + number // 1000}
            curves.add(Progress("fold 1 of 1", number / POINTS, None, epoch))
        with self.stack.app.app_context():
            db.session.add(
                TrainingRun(
                    id=run_id,
                    architecture="alexnet",
                    settings={},
                    initial_weights="random",
                    seed=0,
                    status=JobStatus.CANCELLED,
                )
            )
            db.session.flush()
            curves.write()
            db.session.commit()
        began = time.monotonic()
        answer = self._api("GET", f"/runs/{run_id}", None, 200)
        took_s, points = time.monotonic() - began, len(answer["curves"])
        with self.stack.app.app_context():
            db.session.execute(delete(TrainingRun).where(TrainingRun.id == run_id))
            db.session.commit()
        expected = CURVE_STEPS // AVERAGED_STEPS + CURVE_STEPS
        require(points == expected and took_s < CURVE_WITHIN_S, f"{points}, {took_s:.1f} s")
        return f"{POINTS:,} of each of two metrics became {points:,} rows, read in {took_s:.2f} s"

    def dataset_deleted(self) -> str:
        """The data set is deleted, with its evaluations, once nothing needs it."""
        self._api("DELETE", f"/datasets/{self.dataset_id}", None, 204)
        of_dataset = select(Evaluation.id).where(Evaluation.dataset_id == self.dataset_id)
        require(self._one(of_dataset) is None, "evaluations are left")
        return "deleted with its evaluations"

    def _killed(self, table: type[Leased], ask: Callable[[], str]) -> str:
        """Request a job until its worker was killed in the middle of it; return how it ended.

        Raises:
            Unexpected: it did not end as intended, or was never found running.
        """
        for _ in range(TRIES):
            row_id = ask()
            owner = until(lambda: self._owner_of(table, row_id))  # noqa: B023 - called at once.
            if isinstance(owner, str):
                self._kill(owner)
            status, error, attempts = self._ended(table, row_id)
            require(status == JobStatus.DONE, f"{status}: {error}")
            if attempts:
                return f"done on attempt {attempts + 1}"
        raise Unexpected(f"it always ended before its worker was killed, {TRIES} times")

    def _owner_of(self, table: type[Leased], row_id: str) -> str | bool:
        """Return the worker that runs a job, True if the job has ended and False if it waits."""
        columns = select(table.status, table.lease_owner).where(table.id == row_id)
        row = self.stack.ask(lambda: db.session.execute(columns).one())
        if row is None or JobStatus(row.status) == JobStatus.QUEUED:
            return False
        return row.lease_owner or True

    def _kill(self, owner: str) -> None:
        """Kill a worker with all its processes, given its name in the leases."""
        pid = int(owner.rsplit("-", 2)[1])
        for program in self.stack.programs.values():
            if pid in descendants(program.pid):
                program.send(signal.SIGKILL, "all")

    def _ended(self, table: type[Leased], row_id: str) -> tuple[JobStatus, str | None, int]:
        """Wait for the end of a job; return its status, its message and its worker's deaths."""
        columns = select(table.status, table.error, table.attempts).where(table.id == row_id)

        def look() -> Any:
            row = self.stack.ask(lambda: db.session.execute(columns).one())
            return row if row and JobStatus(row.status).is_final else None

        row = until(look)
        return JobStatus(row.status), row.error, row.attempts

    def _another(self, reads: str, mark: str, *, fails: bool = False) -> str:
        """Store a version like the live one, with files of its own, and return its id; one that
        `fails` answers only the phantom of a health check, since its head accepts only that number
        of slices.
        """
        _, architecture, like = self._live(reads)
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
        if (folder / "predictions.csv").is_file():
            shutil.copy(folder / "predictions.csv", self.stack.volume / prefix)
        with self.stack.app.app_context():
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
            db.session.commit()
        return version_id

    def _live(self, reads: str) -> tuple[str, str, str]:
        """Return id, architecture and folder of the live version for an input."""

        def look() -> tuple[str, str, str] | None:
            version = live_version(reads)
            return version and (version.id, version.architecture, version.storage_prefix)

        found: tuple[str, str, str] = until(lambda: self.stack.ask(look))
        return found

    def _one(self, query: Any) -> Any:
        """Return the one value that a query finds, None where there is none."""
        return self.stack.ask(lambda: db.session.scalars(query).one_or_none())

    def _promotion_of(self, version_id: str) -> tuple[str, dict[str, str]]:
        """Return the path and body of a promotion request in which the checklist is ticked."""
        checklist = self._api("GET", f"/models/{version_id}/checklist", None, 200)
        return f"/models/{version_id}/promote", {
            "reason": NAME,
            "seen": checklist["seen"],
            "confirmation": checklist["confirmation"] or "",
        }

    def _submit_picture(self) -> None:
        path = self._folder() / "slice.png"
        write_png(phantom(self.rng.randrange(1000), hemorrhage=True, size=192), path)
        self.scans.append(self.stack.client().upload("slice", path.read_bytes())["id"])

    def _submit_series(self) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number, header in enumerate(a_study(self.rng)):
                one = io.BytesIO()
                header.save_as(one)
                archive.writestr(f"{number}.dcm", one.getvalue())
        self.scans.append(self.stack.client().upload("series.zip", packed.getvalue())["id"])

    def _folder(self) -> Path:
        folder = self.stack.folder / NAME
        folder.mkdir(exist_ok=True)
        return folder

    def _api(self, method: str, path: str, body: Any, expected: int) -> dict[str, Any]:
        """Return the API's response.

        Raises:
            Unexpected: its status is not the expected one.
        """
        status, answer = self._ask(method, path, body)
        require(status == expected, f"{method} {path} was answered by {status}: {answer}"[:300])
        return answer

    def _ask(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
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


CASES: Mapping[str, Callable[[Lab], str]] = {
    "worker killed during the import of a data set": Lab.import_killed,
    "worker killed during an evaluation whose data set is deleted": Lab.evaluation_killed,
    "worker killed during a comparison": Lab.comparison_killed,
    "worker killed during a preview": Lab.preview_killed,
    "worker killed during a report": Lab.report_killed,
    "damaged files of a version": Lab.version_damaged,
    "a shadow that fails on every scan": Lab.shadow_fails,
    "two promotions at once": Lab.promoted_at_once,
    "a curve of a million points": Lab.long_curve,
    "data set deleted at the end": Lab.dataset_deleted,
}


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


def until(look: Callable[[], Any]) -> Any:
    """Return the first true result of `look`.

    Raises:
        Unexpected: there was none in time.
    """
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not (seen := look()):
        require(time.monotonic() < deadline, f"it did not end within {ENDS_WITHIN_S:g} s")
        time.sleep(0.01)
    return seen
