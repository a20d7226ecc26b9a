"""The proxy that faces the network, by the configuration of compose, with a real nginx."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from tests.conftest import unreachable
from tests.worker.conftest import wait_for
from webapp.config import PROJECT_ROOT, settings

CONFIGURATION = PROJECT_ROOT / "proxy" / "nginx.conf"


@dataclass
class Proxied:
    """A proxy and what reached the server behind it."""

    http: int
    https: int
    certificate: Path
    connections: list[tuple[str, int]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], int]] = field(default_factory=list)

    def get(self, path: str, **options: object) -> requests.Response:
        """Ask over TLS."""
        url = f"https://127.0.0.1:{self.https}{path}"
        return requests.get(url, verify=str(self.certificate), timeout=20, **options)  # type: ignore[arg-type]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_of(seen: Proxied) -> ThreadingHTTPServer:
    """Return a server that notes what reaches it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            seen.connections.append(self.client_address)
            super().setup()

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            read = len(self.rfile.read(size))
            seen.requests.append((self.command, self.path, dict(self.headers), read))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        do_POST = do_GET  # noqa: N815 - as the library calls it

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    """The proxy before a server."""
    nginx, openssl = shutil.which("nginx"), shutil.which("openssl")
    if nginx is None or openssl is None:
        unreachable("nginx and openssl")
    seen = Proxied(free_port(), free_port(), tmp_path / "tls" / "cert.pem")
    for folder in ("tls", "cache"):
        (tmp_path / folder).mkdir()
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(seen.certificate)]
    made += ["-keyout", str(tmp_path / "tls" / "key.pem")]
    subprocess.run(made, check=True, capture_output=True)
    with server_of(seen) as server:
        text = CONFIGURATION.read_text()
        for there, here in {
            "web:8000": f"127.0.0.1:{server.server_port}",
            "listen 8080": f"listen 127.0.0.1:{seen.http}",
            "listen 8443": f"listen 127.0.0.1:{seen.https}",
            "/tls/": f"{tmp_path}/tls/",
            "/var/cache/nginx": f"{tmp_path}/cache",
            "/tmp/nginx.pid": f"{tmp_path}/nginx.pid",
        }.items():
            assert there in text
            text = text.replace(there, here)
        (tmp_path / "nginx.conf").write_text(text)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        with subprocess.Popen([*command, "-g", "daemon off; user root;"]) as process:
            try:
                wait_for(lambda: answers(seen))
                seen.connections.clear()
                seen.requests.clear()
                yield seen
            finally:
                process.terminate()
                process.wait(10)
                server.shutdown()


def answers(proxied: Proxied) -> bool:
    """True once the proxy does."""
    try:
        return proxied.get("/").status_code == 200
    except requests.ConnectionError:
        return False


def test_everything_goes_by_tls_and_forged_headers_stay_outside(proxied: Proxied) -> None:
    plain = requests.get(
        f"http://127.0.0.1:{proxied.http}/scans?page=2", allow_redirects=False, timeout=20
    )
    assert plain.status_code == 308
    assert plain.headers["Location"] == "https://127.0.0.1/scans?page=2"

    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "http",
    }
    assert proxied.get("/login", headers=forged).text == "ok"
    ((_, path, headers, _),) = proxied.requests
    values = {name: headers[name] for name in (*forged, "Host")}
    assert path == "/login"
    assert values == {
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Host": f"127.0.0.1:{proxied.https}",
        "X-Forwarded-Proto": "https",
        "Host": f"127.0.0.1:{proxied.https}",
    }
    assert proxied.get("/metrics").status_code == 404
    assert len(proxied.requests) == 1


def test_slow_senders_reach_no_server_and_whole_bodies_do(proxied: Proxied) -> None:
    tls = ssl.create_default_context(cafile=str(proxied.certificate))
    begun = b"POST /api/v1/scans HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nhalf"
    with ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", proxied.https), 20))
            slow = stack.enter_context(tls.wrap_socket(sock, server_hostname="127.0.0.1"))
            slow.sendall(begun)
        assert proxied.get("/healthz").text == "ok"
        assert [path for _, path, _, _ in proxied.requests] == ["/healthz"]
        # None where nginx goes on with the connection it kept from before.
        assert len(proxied.connections) <= 1
        body = b"x" * 3_000_000
        url = f"https://127.0.0.1:{proxied.https}/api/v1/scans"
        certificate = str(proxied.certificate)
        # In chunks, without a length: the server gets it whole, with one.
        sent = requests.post(url, data=iter([body]), verify=certificate, timeout=20)
        assert sent.text == "ok"
        method, _, headers, read = proxied.requests[-1]
        assert (method, read, headers["Content-Length"]) == ("POST", len(body), str(len(body)))


def test_the_limits_on_bodies_are_those_of_the_settings(tmp_path: Path) -> None:
    known = settings({"HEMOSCAN_HOME": str(tmp_path)})
    text = CONFIGURATION.read_text()

    assert f"\n  client_max_body_size {known['MAX_UPLOAD_MB'] + 1}m;" in text
    assert f"\n      client_max_body_size {known['MAX_DATASET_MB'] + 1}m;" in text
