"""Sockets that send slowly, or nothing, beside everybody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import requests

from tests.worker.conftest import wait_for
from webapp import serving
from webapp.config import PROJECT_ROOT
from webapp.serving import PacedInput, is_upload

IDLE = 40
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
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where one web process listens, with the configuration that ships."""
    home = tmp_path_factory.mktemp("home")
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
            wait_for(answers)
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


@pytest.mark.parametrize(
    ("begun", "upload"),
    [
        (b"", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", None),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", False),
        (b"POST / HTTP/1.1\r\nCONTENT-LENGTH:20000\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", True),
    ],
)
def test_a_request_gets_a_thread_when_it_is_there(begun: bytes, upload: bool | None) -> None:
    assert is_upload(begun) is upload
