"""The client: against answers that a service may give, and against the application itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from sqlalchemy import select

from hemoscan_client import (
    ApiError,
    AsyncClient,
    Choices,
    Client,
    HemoscanError,
    Job,
    NothingToSend,
    Unreachable,
    client,
    operations,
)
from hemoscan_client.__main__ import main, moment
from hemoscan_client.watching import Callbacks, Memory, Watcher
from ml.scans.phantoms import phantom, write_png
from tests.conftest import make_user
from tests.webapp.scans.test_reports import finish
from tests.webapp.scans.test_scans import add_verdict
from tests.webapp.test_api import make_token
from webapp.extensions import db
from webapp.models import JobStatus, Scan

URL = "https://scans.example.org"
Answer = httpx.Response | Exception


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """No address and no token; pauses are noted and not made."""
    for name in ("HEMOSCAN_URL", "HEMOSCAN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    pauses: list[float] = []
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    return pauses


class Answers:
    """A service that gives these answers, one after the other, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> Client:
        """Return a client that asks here."""
        return Client(URL, "secret", transport=httpx.MockTransport(self), **options)


def scan_json(scan_id: str = "a", status: str = "done", **other: Any) -> dict[str, Any]:
    """Return a scan as the API tells it."""
    result = {
        "state": "suspected",
        "verdict": "Brain Hemorrhage Detected.",
        "probability": 0.9,
        "threshold": 0.5,
        "warnings": [],
        "types": {"subdural": 0.4},
        "slices": [{"index": 0, "probability": 0.9, "types": {}, "area_mm2": None}],
        "first_slices": [0],
        "volume_ml": 1.5,
        "model_version": {"id": "v", "architecture": "alexnet_svm"},
        "something_new": 1,
    }
    return {
        "id": scan_id,
        "study_id": "s",
        "status": status,
        "progress": 1.0,
        "error": None,
        "title": "Phantom",
        "submitter": "ann",
        "kind": "png",
        "slice_count": 1,
        "stat": False,
        "notes": [],
        "created_at": "2026-11-29T10:00:00+00:00",
        "finished_at": "2026-11-29T10:00:05+00:00",
        "result": result if status == "done" else None,
        **other,
    }


def job(scan_id: str = "a") -> dict[str, str]:
    """Return a job as the API tells it."""
    return {"id": scan_id, "status": "queued", "url": f"{URL}/api/v1/scans/{scan_id}"}


ACCEPTED = {"scans": [job()], **job()}


@pytest.fixture
def slice_file(tmp_path: Path) -> Path:
    """A file to submit."""
    path = tmp_path / "slice.png"
    path.write_bytes(b"pixels " * 20_000)
    return path


def test_an_upload_is_sent_again_under_its_key_until_it_is_taken_in(
    slice_file: Path, environment: list[float]
) -> None:
    service = Answers(
        httpx.ConnectError("refused"),
        httpx.Response(429, headers={"Retry-After": "7"}),
        httpx.Response(503),
        httpx.ReadTimeout("nothing"),
        httpx.Response(409, headers={"Retry-After": "2"}, json={"detail": "Still."}),
        httpx.Response(202, json=ACCEPTED),
    )
    sent: list[tuple[int, int]] = []
    with service.client() as ours:
        jobs = ours.submit(
            [slice_file],
            Choices("A title", stat=True),
            on_sent=lambda done, total: sent.append((done, total)),
        )

    assert jobs == [Job("a", "queued", f"{URL}/api/v1/scans/a")]
    assert [request.url.path for request in service.requests] == ["/api/v1/scans"] * 6
    assert len({request.headers["Idempotency-Key"] for request in service.requests}) == 1
    for request in service.requests:
        assert request.headers["Authorization"] == "Bearer secret"
        assert slice_file.read_bytes() in request.content and b"A title" in request.content
        assert b'name="stat"' in request.content and b'name="uncut"' not in request.content
    assert (environment[1], environment[4]) == (7.0, 2.0)
    assert 0 < environment[0] <= 0.5 and environment[2] <= 2 < 2 * environment[3] <= 8
    assert sent[0] == (0, 140_000) and sent[-1] == (140_000, 140_000)


def test_a_client_gives_up_in_the_end_and_says_why(environment: list[float]) -> None:
    refused = Answers(httpx.Response(422, json={"detail": "Invalid title."}))
    with refused.client() as ours, pytest.raises(ApiError, match=r"Invalid title\.") as raised:
        ours.scan("a")
    assert raised.value.status == 422 and not environment
    away = Answers(httpx.ConnectError("Connection refused"))
    with away.client(patience_s=0) as ours, pytest.raises(Unreachable, match="Connection refused"):
        ours.scan("a")
    busy = Answers(httpx.Response(503, text="<html>", headers={"Retry-After": "60"}))
    with busy.client(patience_s=30) as ours, pytest.raises(ApiError, match="answered 503"):
        ours.scan("a")
    with pytest.raises(HemoscanError, match="HEMOSCAN_URL"):
        Client(token="secret")
    with pytest.raises(HemoscanError, match="HEMOSCAN_TOKEN"):
        Client(URL)


def test_scans_are_awaited_with_conditional_requests(environment: list[float]) -> None:
    service = Answers(
        httpx.Response(200, json=scan_json("a", "running"), headers={"ETag": '"1"'}),
        httpx.Response(200, json=scan_json("b")),
        httpx.Response(304),
        httpx.Response(200, json=scan_json("a", "failed", error="It cannot be read.")),
    )
    changes: list[str] = []
    with service.client() as ours:
        scans = ours.wait(["a", "b"], on_change=lambda scan: changes.append(scan.status))

    assert [(scan.id, scan.status) for scan in scans] == [("a", "failed"), ("b", "done")]
    assert service.requests[2].headers["If-None-Match"] == '"1"'
    assert changes == ["running", "done", "failed"] and len(environment) == 2
    result = scans[1].result
    assert result is not None and (result.state, result.volume_ml) == ("suspected", 1.5)
    assert result.model_version.architecture == "alexnet_svm"
    assert result.slices[0].probability == 0.9 and scans[1].raw["result"]["something_new"] == 1


def test_lists_are_read_page_by_page() -> None:
    following = "http://inside/api/v1/scans?status=done&cursor=x"
    service = Answers(
        httpx.Response(200, json={"items": [scan_json("a"), scan_json("b")], "next": following}),
        httpx.Response(200, json={"items": [scan_json("c")], "next": None}),
    )
    with service.client() as ours:
        assert [scan.id for scan in ours.scans(status="done")] == ["a", "b", "c"]
    urls = [request.url for request in service.requests]
    assert {url.host for url in urls} == {"scans.example.org"}
    assert dict(urls[1].params) == {"status": "done", "cursor": "x"}


def test_results_since_then_are_asked_of_the_service() -> None:
    since = datetime(2026, 11, 29, tzinfo=UTC)
    without_result = scan_json("b", result=None)
    service = Answers(
        httpx.Response(200, json={"items": [scan_json("a"), without_result], "next": None})
    )
    with service.client() as ours:
        assert [scan.id for scan in ours.results(since)] == ["a"]
    parameters = dict(service.requests[0].url.params)
    assert parameters == {"status": "done", "finished_since": since.isoformat()}


def test_an_answer_from_another_service_is_reported_in_a_sentence(tmp_path: Path) -> None:
    moved = httpx.Response(308, headers={"Location": "https://new.example.org/"})
    service = Answers(moved, httpx.Response(200, text="<h1>Log in</h1>"))
    with service.client() as ours:
        with pytest.raises(ApiError, match="another address: https://new"):
            ours.scan("a")
        with pytest.raises(ApiError, match="is not Hemoscan's API"):
            ours.scan("a")
    for url, token in (("https://a:b", "a"), ("https://", "a"), (URL, "ö")):
        with pytest.raises(HemoscanError):
            Client(url, token)
    (tmp_path / "state").write_text("This is no database. " * 100)
    for path in (tmp_path, tmp_path / "state"):
        with pytest.raises(HemoscanError, match=str(path)):
            Memory(path)


def test_the_asynchronous_client_does_the_same(
    slice_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_pause(_seconds: float) -> None:
        return None

    monkeypatch.setattr(client.asyncio, "sleep", no_pause)
    service = Answers(
        httpx.Response(503),
        httpx.Response(202, json=ACCEPTED),
        httpx.Response(200, json=scan_json("a", "queued")),
        httpx.Response(200, json=scan_json("a")),
        httpx.Response(200, json={"items": [scan_json("a")], "next": None, "total": 1}),
        httpx.Response(200, json=scan_json("b")),
        httpx.Response(202, json={}),
        httpx.Response(202, headers={"Retry-After": "1"}),
        httpx.Response(200, content=b"%PDF-1.7"),
    )

    async def journey() -> tuple[list[str], list[str], bytes]:
        transport = httpx.MockTransport(service)
        async with AsyncClient(URL, "secret", transport=transport) as ours:
            jobs = await ours.submit([slice_file])
            scans = await ours.wait([job.id for job in jobs])
            listed = [scan.id async for scan in ours.results()]
            return [scan.status for scan in scans], listed, await ours.report("a")

    assert asyncio.run(journey()) == (["done"], ["a"], b"%PDF-1.7")
    assert slice_file.read_bytes() in service.requests[1].content
    # The report is that of the scan that has replaced it.
    assert {request.url.path for request in service.requests[-2:]} == {
        "/api/v1/scans/b/reports/pdf"
    }


def public(kind: type) -> set[str]:
    """Return the names of the methods of a client."""
    return {name for name in vars(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    assert public(Client) == public(AsyncClient)


def test_folders_are_sent_with_the_names_below_them(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "series").mkdir(parents=True)
    for name in ("series/2.dcm", "series/1.dcm", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    names = [name for name, _ in operations.files_below([folder, folder / "series/1.dcm"])]
    assert names == ["study/series/1.dcm", "study/series/2.dcm", "1.dcm"]
    with pytest.raises(NothingToSend, match="no file or folder"):
        operations.files_below([tmp_path / "missing"])


class Service:
    """A client for the watcher: takes uploads in once for each key, dies or refuses if told to."""

    def __init__(self) -> None:
        self.taken: dict[str, list[str]] = {}
        self.tries = 0
        self.dies_after: BaseException | None = None
        self.refuses: Exception | None = None

    def submit(
        self, paths: Sequence[Any], choices: Choices, *, key: str | None, root: Path | None
    ) -> list[Job]:
        """Take files in."""
        self.tries += 1
        if self.refuses is not None:
            raise self.refuses
        names = [path.relative_to(root).as_posix() for path in paths]
        assert self.taken.setdefault(str(key), names) == names
        if self.dies_after is not None:
            death, self.dies_after = self.dies_after, None
            raise death
        return [Job("a", "queued", "")]


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A folder that a scanner writes into."""
    folder = tmp_path / "out"
    (folder / "study").mkdir(parents=True)
    for number in range(3):
        (folder / "study" / f"{number}.dcm").write_bytes(b"slice")
    return folder


def watcher(service: Service, folder: Path, memory: Memory, **options: Any) -> Watcher:
    """Return a watcher for which everything settles at the second look."""
    return Watcher(service, folder, memory, Choices(), **{"quiet_s": 0.0, **options})


def test_each_study_is_submitted_once_also_by_a_client_that_starts_again(
    watched: Path, tmp_path: Path
) -> None:
    service, state = Service(), tmp_path / "state.sqlite"
    with Memory(state) as memory:
        ours = watcher(service, watched, memory)
        ours.look()
        (watched / "loose.dcm").write_bytes(b"slice")
        (watched / "later.dcm.part").write_bytes(b"half")
        ours.look()
        ours.look()
        with pytest.raises(HemoscanError, match="Another"):
            Memory(state)
    with Memory(state) as memory:
        watcher(service, watched, memory).look()
        (watched / "study" / "9.dcm").write_bytes(b"late")
        watcher(service, watched, memory).look()
    assert sorted(service.taken.values()) == [
        ["loose.dcm"],
        ["study/0.dcm", "study/1.dcm", "study/2.dcm"],
        ["study/9.dcm"],
    ]


def test_a_client_that_died_after_sending_sends_the_same_under_the_same_key(
    watched: Path, tmp_path: Path
) -> None:
    service, state = Service(), tmp_path / "state.sqlite"
    service.dies_after = KeyboardInterrupt()
    with Memory(state) as memory, pytest.raises(KeyboardInterrupt):
        watcher(service, watched, memory).look()
    (watched / "study" / "9.dcm").write_bytes(b"late")
    with Memory(state) as memory:
        watcher(service, watched, memory).look()
    assert [len(files) for files in service.taken.values()] == [3, 1]
    assert service.tries == 3


def test_a_study_has_settled_when_nothing_of_it_changes_any_more(
    watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("hemoscan_client.watching.time.monotonic", lambda: now)
    service = Service()
    with Memory(tmp_path / "state.sqlite") as memory:
        ours = watcher(service, watched, memory, quiet_s=10.0)
        for now, content in ((0.0, b"a"), (9.0, b"ab"), (18.0, b"ab"), (18.9, b"ab")):
            (watched / "study" / "0.dcm").write_bytes(content) if now < 10 else None
            ours.look()
            assert not service.taken
        now = 19.0
        ours.look()
    assert len(service.taken) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ApiError(422, "Not an image."), "refused"),
        (ApiError(507, "The disk is full."), "waits"),
        (Unreachable("Away."), "waits"),
        (ApiError(401, "Unknown API token."), "ends"),
    ],
)
def test_a_watcher_retries_only_temporary_failures(
    watched: Path, tmp_path: Path, error: Exception, outcome: str
) -> None:
    service, events = Service(), []
    service.refuses = error
    callbacks = Callbacks(
        on_refused=lambda batch, why: events.append(("refused", batch.name, why)),
        on_wait=lambda batch, why: events.append(("waits", batch.name, why)),
    )
    with Memory(tmp_path / "state.sqlite") as memory:
        ours = watcher(service, watched, memory, callbacks=callbacks)
        if outcome == "ends":
            with pytest.raises(ApiError):
                ours.look()
        else:
            ours.look()
            assert events == [(outcome, "study", str(error))]
        service.refuses = None
        ours.look()
    assert len(service.taken) == (0 if outcome == "refused" else 1)


@pytest.fixture
def real(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The command line leads to the application; call it to answer all scans."""
    token = make_token(app, make_user(app, "ann"))
    monkeypatch.setenv("HEMOSCAN_URL", "http://localhost")
    monkeypatch.setenv("HEMOSCAN_TOKEN", token)
    made = httpx.Client

    def inside(**options: Any) -> httpx.Client:
        return made(**{**options, "transport": httpx.WSGITransport(app=app)})

    monkeypatch.setattr(client.httpx, "Client", inside)

    def answer() -> None:
        with app.app_context():
            ids = list(db.session.scalars(select(Scan.id).where(Scan.status == JobStatus.QUEUED)))
        for scan_id in ids:
            add_verdict(app, scan_id)

    return answer


def test_the_command_line_submits_lists_and_downloads_from_the_application(
    app: Flask,
    real: Callable[[], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = tmp_path / "study"
    study.mkdir()
    write_png(phantom(1, True, size=128), study / "a.png")
    write_png(phantom(2, True, size=128), tmp_path / "b.png")
    (tmp_path / "text.png").write_text("nothing")

    assert main(["submit", str(study), str(tmp_path / "b.png"), "--json", "--stat"]) == 0
    submitted = json.loads(capsys.readouterr().out)
    assert [(scan["status"], scan["stat"]) for scan in submitted] == [("queued", True)] * 2
    assert main(["submit", str(tmp_path / "text.png")]) == 1
    assert "not a PNG, JPEG, DICOM or NIfTI image" in capsys.readouterr().err.replace("\n", " ")
    assert main(["results"]) == 0 and submitted[0]["id"] not in capsys.readouterr().out
    monkeypatch.setattr(client.time, "sleep", lambda _: real())
    assert main(["submit", str(tmp_path / "b.png"), "--wait", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["status"] == "done"
    assert main(["results", "--since", "1h", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["results", "--since", "2999-01-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    monkeypatch.setattr(client.time, "sleep", lambda _: finish(app))
    monkeypatch.setattr("webapp.scans.reports.WAIT_S", 0.0)
    assert main(["report", submitted[0]["id"], "--pdf", str(tmp_path / "report.pdf")]) == 0
    assert (tmp_path / "report.pdf").read_bytes() == b"%PDF-1.7"
    monkeypatch.chdir(tmp_path)
    assert main(["report", submitted[0]["id"], "--pdf"]) == 0
    assert (tmp_path / f"{submitted[0]['id']}.pdf").exists()
    assert main(["report", "0" * 32, "--pdf", str(tmp_path / "none.pdf")]) == 1
    assert not (tmp_path / "none.pdf").exists()


def test_a_submission_that_was_interrupted_is_continued_by_the_same_command(
    app: Flask,
    real: Callable[[], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = []
    for number in (1, 2):
        folder = tmp_path / f"study{number}"
        folder.mkdir()
        write_png(phantom(number, True, size=128), folder / "a.png")
        paths.append(str(folder))
    submit, sent = Client.submit, []

    def interrupted(self: Client, paths: Sequence[Any], *args: Any, **options: Any) -> list[Job]:
        if sent:
            raise KeyboardInterrupt
        sent.append(paths)
        return submit(self, paths, *args, **options)

    monkeypatch.setattr(Client, "submit", interrupted)
    assert main(["submit", *paths]) == 130
    monkeypatch.setattr(Client, "submit", submit)

    def submitted(*options: str) -> tuple[list[str], str]:
        assert main(["submit", *paths, "--json", *options]) == 0
        printed = capsys.readouterr()
        return [scan["id"] for scan in json.loads(printed.out)], printed.err.replace("\n", " ")

    ids, said = submitted()
    assert said.count("submitted before") == 1 and "study1: submitted before" in said
    with app.app_context():
        assert set(db.session.scalars(select(Scan.id))) == set(ids) and len(ids) == 2
    assert submitted()[0] == ids
    for options in (("--again",), ("--title", "Another title")):
        others, said = submitted(*options)
        assert not set(others) & set(ids) and "submitted before" not in said
    write_png(phantom(3, True, size=128), tmp_path / "study1" / "a.png")
    assert submitted()[0][0] != ids[0] and submitted()[0][1] == ids[1]


def test_the_watcher_submits_to_the_application(
    app: Flask, real: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    write_png(phantom(1, True, size=128), folder / "a.png")

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hemoscan_client.watching.time.sleep", stop)
    for _ in range(2):
        assert main(["watch", str(folder), "--quiet", "0"]) == 130
    with app.app_context():
        assert len(db.session.scalars(select(Scan)).all()) == 1
    assert main(["watch", str(tmp_path / "missing")]) == 1


def test_a_moment_is_a_date_a_time_or_so_long_ago() -> None:
    assert moment("2026-11-29T14:00+01:00") == datetime(2026, 11, 29, 13, tzinfo=UTC)
    then = moment("2d")
    ago = datetime.now(UTC) - then
    assert timedelta(days=2) <= ago < timedelta(days=2, minutes=1)
    assert moment("2026-11-29").tzinfo is not None


def test_a_command_that_cannot_be_understood_gets_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["results", "--since", "soon"])
    assert ended.value.code == 2 and "neither a date" in capsys.readouterr().err
