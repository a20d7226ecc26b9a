"""Sends one signed POST to a program (Standard Webhooks, https://www.standardwebhooks.com).

The host name is resolved once, all its addresses are checked, and the connection is made to one
that was checked, so that a second look-up cannot return another address. Redirects are not
followed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from webapp import __version__
from worker.sending.attempts import NotAllowed, NotDelivered

TIMEOUT = Timeout(connect=3.0, read=10.0)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
ASSIGNED = ipaddress.IPv6Network("2000::/3")
"""All public IPv6 addresses (IANA); the rest is private, reserved, or embeds an IPv4 address."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def post(
    url: str, body: bytes, headers: Mapping[str, str], *, allows_private: bool = False
) -> None:
    """Send `body` (JSON) to `url`; any status from 200 to 299 accepts it.

    Raises:
        NotAllowed: an address of the host is not public, and `allows_private` is False.
        NotDelivered: it was not accepted.
    """
    target = urlsplit(url)
    addresses = looked_up(target)
    if not allows_private and not all(map(is_public, addresses)):
        raise NotAllowed("The webhook points to a private address, which is not allowed here.")
    for address in addresses:
        try:
            status = _post_to(address, target, body, headers)
            break
        except (ConnectTimeoutError, NewConnectionError):
            continue
        except HTTPError as err:
            raise NotDelivered(f"The webhook did not respond ({type(err).__name__}).") from err
    else:
        raise NotDelivered("The webhook's host cannot be reached.")
    if 300 <= status < 400:
        raise NotDelivered("The webhook responded with a redirect, which is not followed.")
    if not 200 <= status < 300:
        raise NotDelivered(f"The webhook responded with status {status}.")


def _post_to(address: Address, target: SplitResult, body: bytes, headers: Mapping[str, str]) -> int:
    """Return the status of the response from that address, whose certificate must be the host's."""
    host = target.hostname or ""
    common: dict[str, Any] = {"port": target.port, "timeout": TIMEOUT, "retries": False}
    pool = (
        HTTPSConnectionPool(
            str(address), cert_reqs="CERT_REQUIRED", assert_hostname=host, server_hostname=host,
            **common,
        )
        if target.scheme == "https"
        else HTTPConnectionPool(str(address), **common)
    )  # fmt: skip
    sent = {
        **headers,
        "Host": target.netloc,
        "Content-Type": "application/json",
        "User-Agent": f"Hemoscan/{__version__}",
    }
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    with pool:
        answer = pool.urlopen(
            "POST", path, body, sent, retries=False, redirect=False, preload_content=False
        )
        answer.close()  # The body of the response is not read.
        return int(answer.status)


def looked_up(target: SplitResult) -> list[Address]:
    """Return the IP addresses of the host in a URL.

    Raises:
        NotDelivered: there are none.
    """
    try:
        addresses = socket.getaddrinfo(target.hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as err:
        raise NotDelivered("The webhook's host name cannot be resolved.") from err
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in addresses]


def is_public(address: Address) -> bool:
    """Return whether an address is public: not of this machine or a private network, nor one that
    embeds such an address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if inner is not None:
            return is_public(inner)
        if address not in ASSIGNED:
            return False
    return address.is_global and not address.is_multicast


def signed(delivery_id: str, timestamp: int, body: bytes, secret: str) -> dict[str, str]:
    """Return the headers by which a receiver verifies the sender and the time of `body`, and
    recognizes duplicates.

    Args:
        delivery_id: the same for every attempt to send a message.
        timestamp: seconds since 1970, of this attempt.
        secret: "whsec_" and base64.
    """
    content = f"{delivery_id}.{timestamp}.".encode() + body
    key = b64decode(secret.removeprefix("whsec_"))
    signature = b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
