"""Webhooks: where they may lead, how they are signed, and what is taken for an answer."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import standardwebhooks

from worker.sending.webhooks import NotAllowed, NotDelivered, is_public, post, signed

SECRET = "whsec_" + b64encode(bytes(range(32))).decode()


class Receiver:
    """A program on this machine that is called; it keeps the requests that came."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None] | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.requests.append((self.path, headers, self.rfile.read(length)))
                if answer is None:
                    self.send_response(204)
                    self.end_headers()
                else:
                    answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?from=hemoscan"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def receiving(
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None,
) -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(answer)
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return an answer with that status."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def test_a_receiver_can_verify_who_sent_what_and_when() -> None:
    body = b'{"type": "scan.result"}'
    with receiving() as receiver:
        headers = signed("ab" * 16, 1_000_000, body, SECRET)
        post(receiver.url, body, headers, allows_private=True)

    ((path, came, content),) = receiver.requests
    assert path == "/hook?from=hemoscan"
    assert came["content-type"] == "application/json"
    assert came["webhook-id"] == "ab" * 16
    verifier = standardwebhooks.Webhook(SECRET)
    with pytest.raises(standardwebhooks.WebhookVerificationError, match="too old"):
        verifier.verify(content, came)
    now = int(time.time())
    fresh = signed("ab" * 16, now, body, SECRET)
    assert verifier.verify(body, fresh) == {"type": "scan.result"}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(body + b" ", fresh)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(body, {**fresh, "webhook-id": "another"})


def test_a_redirection_to_this_machine_is_not_followed() -> None:
    with receiving() as inside, receiving(status(302, Location=inside.url)) as outside:
        with pytest.raises(NotDelivered, match="redirect, which is not followed"):
            post(outside.url, b"{}", {}, allows_private=True)
        assert (len(outside.requests), inside.requests) == (1, [])


@pytest.mark.parametrize("code", [400, 404, 410, 500])
def test_only_a_status_of_success_accepts_a_message(code: int) -> None:
    with (
        receiving(status(code)) as receiver,
        pytest.raises(NotDelivered, match=f"status {code}"),
    ):
        post(receiver.url, b"{}", {}, allows_private=True)


def test_a_private_address_is_refused_after_the_name_was_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with receiving() as receiver:
        with pytest.raises(NotAllowed, match="private address"):
            post(receiver.url, b"{}", {})

        def lookup(host: str, *_: object, **__: object) -> list[object]:
            assert host == "looks-public.example.org"
            return [(2, 1, 6, "", (address, 0)) for address in ("93.184.216.34", "127.0.0.1")]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        port = receiver.server.server_port
        with pytest.raises(NotAllowed, match="private address"):
            post(f"http://looks-public.example.org:{port}/", b"{}", {})
        assert receiver.requests == []


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up = []

    def lookup(host: str, *_: object, **__: object) -> list[object]:
        looked_up.append(host)
        # A second look-up would lead elsewhere.
        return [(2, 1, 6, "", ("127.0.0.1" if len(looked_up) == 1 else "192.0.2.1", 0))]

    real = socket.getaddrinfo
    with receiving() as receiver:
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **kwargs: (
                lookup(host) if host == "hook.example.org" else real(host, *args, **kwargs)
            ),
        )
        port = receiver.server.server_port
        post(f"http://hook.example.org:{port}/", b"{}", {}, allows_private=True)

    assert looked_up == ["hook.example.org"]
    assert receiver.requests[0][1]["host"] == f"hook.example.org:{port}"


def test_a_host_that_is_unknown_or_listens_to_nobody_is_reported_in_a_sentence() -> None:
    with pytest.raises(NotDelivered, match="host name cannot be resolved"):
        post("https://no-such-host.invalid/", b"{}", {})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(NotDelivered, match="cannot be reached"):
        post(f"http://127.0.0.1:{port}/", b"{}", {}, allows_private=True)


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    with (
        receiving() as receiver,
        pytest.raises(NotDelivered, match="did not respond"),
    ):
        post(receiver.url.replace("http:", "https:"), b"{}", {}, allows_private=True)
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("2606:4700::1111", True), ("::1", False), ("::", False), ("fe80::1", False),
        ("fc00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False), ("2001:0:7f00:1::", False),
        ("::7f00:1", False), ("64:ff9b:1::7f00:1", False), ("fec0::1", False), ("4000::1", False),
    ],
)  # fmt: skip
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
