"""Sockets that send slowly, or nothing, beside everybody else."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from gunicorn.http.errors import InvalidHeader

from tests.conftest import empty_sqlite_database
from tests.worker.conftest import wait_for
from webapp import serving
from webapp.config import PROJECT_ROOT
from webapp.errors import OVERLOADED
from webapp.serving import Line, PacedInput, is_upload, unquoted

IDLE = 40
STARTED_S = 120
"""A machine that is busy otherwise is slow, not broken."""
UPLOAD = b"POST /api/v1/scans HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nhalf"
BEGUN = {
    "nothing": b"",
    "half a header": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
    "half a form": b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nusername=",
    "half an upload": UPLOAD,
    "half a chunk": (
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nusername="
    ),
    "half a second request": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty database."""
    home = tmp_path_factory.mktemp("home")
    (home / "test.db").write_bytes(empty_sqlite_database())
    return home


@pytest.fixture(scope="module")
def port(home: Path) -> Iterator[int]:
    """Where one web process listens, with the configuration that ships."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environ = {
        **os.environ,
        "HEMOSCAN_HOME": str(home),
        "DATABASE_URL": f"sqlite:///{home}/test.db",
        "BROKER_URL": f"redis+socket://{home}/nobody.sock",
        "SECRET_KEY": "not a secret",
        "PORT": str(port),
        "WEB_PROCESSES": "1",
    }
    command = [sys.executable, "-m", "gunicorn", "--config", "webapp/gunicorn.conf.py"]

    def answers() -> bool:
        try:
            return health(port).status_code == 200
        except requests.ConnectionError:
            return False

    with subprocess.Popen([*command, "webapp:create_app()"], cwd=PROJECT_ROOT, env=environ) as web:
        try:
            wait_for(answers, STARTED_S)
            yield port
        finally:
            began = time.monotonic()
            web.send_signal(signal.SIGTERM)
            web.wait(30)
    assert time.monotonic() - began < 20


def health(port: int) -> requests.Response:
    """Ask whether the process is up."""
    return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=20)


def connect(port: int, begun: bytes) -> socket.socket:
    """Return a connection on which so much of a request was sent."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.sendall(begun)
    return sock


def test_the_application_opens_nothing_that_must_not_be_forked(home: Path) -> None:
    code = (
        "import os, threading\n"
        "def opened(): return {os.readlink(e.path) for e in os.scandir('/proc/self/fd')"
        " if os.path.exists(e.path)}\n"
        "before = opened()\n"
        "from webapp import create_app; create_app()\n"
        "print(opened() - before, threading.enumerate()[1:])"
    )
    environ = {
        **os.environ,
        "HEMOSCAN_HOME": str(home),
        "DATABASE_URL": f"sqlite:///{home}/test.db",
        "BROKER_URL": f"redis+socket://{home}/nobody.sock",
        "SECRET_KEY": "not a secret",
    }
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, env=environ, capture_output=True, text=True
    )
    assert completed.stdout == "set() []\n", completed.stderr


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_health_and_pages_are_answered_beside_idle_sockets(port: int, begun: bytes) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port, begun)) for _ in range(IDLE)]
        opened = time.monotonic()
        time.sleep(0.5)
        for path in ("healthz", "login"):
            began = time.monotonic()
            assert requests.get(f"http://127.0.0.1:{port}/{path}", timeout=20).status_code == 200
            assert time.monotonic() - began < 2
        if begun != BEGUN["half a header"]:
            return  # One kind is enough to wait for.
        for sock in idle:
            while sock.recv(4096):
                pass
        assert time.monotonic() - opened < serving.REQUEST_S + 5


def test_a_request_that_comes_in_pieces_is_answered(port: int) -> None:
    with connect(port, b"") as sock:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_requests_that_come_at_once_are_all_answered(port: int) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(port, request * 2 + last) as sock:
        answers = b""
        while came := sock.recv(4096):
            answers += came
    assert answers.count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"3;\x01=\r\na=b\r\n0\r\n\r\n",
        b"3\r\na=bc\r\n0\r\n\r\n",
        b"3\r\na=b\r\n0\r\nno trailer\r\n\r\n",
        b"3\r\na=b\r\n0\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
    ids=["no size", "extension", "longer than its size", "trailer", "trailers"],
)
def test_a_malformed_chunk_is_refused_and_not_a_failure(port: int, body: bytes) -> None:
    head = (
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    with connect(port, head + body) as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /reset/a-secret\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBearer a-secret\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: a-secret\r\n\r\n", 417),
    ],
)
def test_a_malformed_request_is_quoted_neither_in_the_answer_nor_in_the_log(
    port: int, request_: bytes, status: int
) -> None:
    with connect(port, request_) as sock:
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"a-secret" not in answer
    assert str(unquoted(InvalidHeader("a-secret"))) == "InvalidHeader"


def test_a_large_body_that_goes_on_is_read(port: int) -> None:
    body = b"x" * 400_000
    form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d" % len(body)
    head = b"POST /login HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % form
    with connect(port, head) as sock:
        for start in range(0, len(body), 100_000):
            time.sleep(0.1)
            sock.sendall(body[start : start + 100_000])
        assert sock.recv(4096).startswith(b"HTTP/1.1 4")


def test_whoever_sends_too_slowly_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE_S", 0.3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        slow = PacedInput(ours)
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            while True:
                theirs.sendall(b"a byte")
                slow.recv(100)
                slow.recv(100)
        assert time.monotonic() - began < 2
        assert ours.gettimeout() is None


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the database's write lock, so that what writes waits."""
    with closing(sqlite3.connect(home / "test.db")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def an_upload(size: int = 100) -> bytes:
    """Return a request that submits a file with a token that nobody has."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    body = part + b"x" * size + b"\r\n--b--\r\n"
    head = [
        b"POST /api/v1/scans HTTP/1.1",
        b"Host: x",
        b"Authorization: Bearer nobodys",
        b"Content-Type: multipart/form-data; boundary=b",
        b"Connection: close",
        b"Content-Length: %d" % len(body),
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_health_is_answered_while_every_thread_is_busy(port: int, home: Path) -> None:
    page = (
        b"POST /api/v1/scans/x/cancel HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nobodys\r\n\r\n"
    )
    with locked(home), ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(port, page))
        time.sleep(0.5)
        for _ in range(5):
            began = time.monotonic()
            assert health(port).status_code == 200
            assert time.monotonic() - began < 1


def test_uploads_that_would_wait_for_too_long_are_refused_early(port: int, home: Path) -> None:
    statuses: Counter[bytes] = Counter()
    slowest = 0.0
    with ExitStack() as stack:
        with locked(home):
            sent = [stack.enter_context(connect(port, an_upload())) for _ in range(400)]
            refused = [connect(port, an_upload(2_000_000)) for _ in range(5)]
            for sock in refused:  # Also what is still sending reads its answer.
                with sock:
                    answer = b""
                    while came := sock.recv(4096):
                        answer += came
                head, _, body = answer.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 429 ")
                assert re.search(rb"\r\nRetry-After: [1-9][0-9]*\r\n", head)
                assert json.loads(body)["detail"] == OVERLOADED
            for _ in range(5):
                began = time.monotonic()
                assert health(port).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
        for sock in sent:
            statuses[sock.recv(4096)[:12]] += 1
    assert slowest < 1
    assert statuses.total() == 400
    assert set(statuses) <= {b"HTTP/1.1 401", b"HTTP/1.1 429", b"HTTP/1.1 503"}
    assert statuses[b"HTTP/1.1 429"] >= 50


def test_one_address_cannot_have_all_connections(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port, b"GET /")) for _ in range(serving.MOST_IDLE + 20)]
        began = time.monotonic()
        assert idle[0].recv(10) == b""
        assert time.monotonic() - began < serving.REQUEST_S - 3
        assert health(port).status_code == 200
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(10)


def test_one_address_cannot_have_all_threads_for_uploads() -> None:
    line = Line(threads=4, of_one_address=2)
    mine = [SimpleNamespace(client=("10.0.0.1", port)) for port in range(5)]
    theirs = SimpleNamespace(client=("10.0.0.2", 1))
    for conn in [*mine, theirs]:
        line.join(conn)
    assert [line.next(), line.next(), line.next()] == [*mine[:2], theirs]
    assert line.next() is None
    line.leave(mine[0], 1)
    assert line.next() is mine[2]
    behind_a_proxy = Line(threads=4, of_one_address=4)
    for conn in mine:
        behind_a_proxy.join(conn)
    assert [behind_a_proxy.next() for _ in range(5)] == [*mine[:4], None]


def test_the_wait_is_estimated_from_how_long_uploads_take(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(threads=2, of_one_address=2)
    conns = [SimpleNamespace(client=("10.0.0.1", port)) for port in range(12)]
    for conn in conns:
        line.join(conn)
    for _ in range(2):
        line.next()
    assert line.wait_s == pytest.approx(10 * serving.FIRST_GUESS_S / 2)
    for _ in range(200):
        line.running["10.0.0.1"] += 1
        line.leave(conns[0], 1000)
    assert line.wait_s == pytest.approx(10 * serving.LONGEST_S / 2, rel=0.01)
    assert line.late() is None
    monkeypatch.setattr(serving, "MOST_WAIT_S", -1)
    assert line.late() is conns[2]


@pytest.mark.parametrize(
    ("begun", "upload"),
    [
        (b"", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", None),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", False),
        (b"POST / HTTP/1.1\r\nCONTENT-LENGTH:20000\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; b=x\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", True),
    ],
)
def test_a_request_gets_a_thread_when_it_is_there(begun: bytes, upload: bool | None) -> None:
    assert is_upload(begun) is upload
