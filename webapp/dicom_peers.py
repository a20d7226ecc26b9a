"""The operator's DICOM peers: who may send studies, and where results are sent."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import SplitResult, unquote, urlsplit

from ml.verdict import State

AE_TITLE = r"[!-\[\]-~]{1,16}"
"""An AE title as defined in PS3.5 6.2, without spaces."""
NAME = r"[A-Za-z0-9_.-]{1,64}"
TOKEN = r"[A-Za-z0-9._~+/-]+=*"
"""A bearer token (RFC 6750, 2.1)."""
DIMSE = ("dimse", "dimses")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAID_OF_DESTINATION = ("token", "token_file", "password_file", "ca")
PORTS = {"dimse": 104, "dimses": 2762, "http": 80, "https": 443}


class Answered(StrEnum):
    """Which results of a peer's studies are sent back."""

    ALL = "all"
    POSITIVES = "positives"
    STAT = "stat"

    def covers(self, *, state: State | None, stat: bool) -> bool:
        """Return whether a result is sent; inconclusive ones count as positives."""
        if self is Answered.POSITIVES:
            return state in ("suspected", "inconclusive")
        return stat or self is Answered.ALL


@dataclass(frozen=True)
class Peer:
    """A program that may send studies, by its AE title and address together.

    Attributes:
        address: an IP address, a network such as 10.1.2.0/24, or a host name.
        account: the username of the account that owns the scans.
        stat: its scans are read before all others.
        answers: the names of the destinations that results are sent to.
        results: which results these get.
    """

    ae_title: str
    address: str
    account: str
    stat: bool = False
    answers: tuple[str, ...] = ()
    results: Answered = Answered.ALL

    def is_at(self, address: str) -> bool:
        """Return whether this is the peer's IP address; host names are resolved."""
        caller = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped:
            caller = caller.ipv4_mapped
        try:
            return caller in ipaddress.ip_network(self.address, strict=False)
        except ValueError:
            pass
        try:
            addresses = socket.getaddrinfo(self.address, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return any(
            ipaddress.ip_address(str(at[0]).partition("%")[0]) == caller for *_, at in addresses
        )


@dataclass(frozen=True)
class Destination:
    """Where results are sent: a DICOM node (`dimse://AE_TITLE@host:port`, `dimses` with TLS) or a
    DICOMweb server (`https://host/dicom-web`).

    Attributes:
        token: the bearer token for a DICOMweb server.
        token_file, password_file: files that contain the token, or the password for the user in the
            address; read each time, so that they may change.
        ca: a PEM file with the authority that signed its certificate, if not that of
            `DICOM_TLS_CA`.
    """

    name: str
    url: str = field(repr=False)  # It may contain a password.
    token: str = field(default="", repr=False)
    token_file: str = ""
    password_file: str = ""
    ca: str = ""

    @property
    def parts(self) -> SplitResult:
        """Its address, parsed."""
        return urlsplit(self.url)

    @property
    def is_dimse(self) -> bool:
        """Whether results are sent by C-STORE; otherwise by STOW-RS."""
        return self.parts.scheme in DIMSE

    @property
    def ae_title(self) -> str:
        """Its AE title; empty for a DICOMweb server."""
        return unquote(self.parts.username or "") if self.is_dimse else ""

    @property
    def host(self) -> str:
        """The name or address of its host."""
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        """Its port."""
        return self.parts.port or PORTS[self.parts.scheme]

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.parts.scheme in ("dimses", "https")


def destinations_of(text: str) -> dict[str, Destination]:
    """Return the destinations from `DICOM_DESTINATIONS`.

    Raises:
        ValueError: it cannot be parsed; the message says why, without the address, which may
            contain a password.
    """
    by_name: dict[str, Destination] = {}
    for number, entry in enumerate(_entries(text), start=1):
        name, is_named, rest = entry.partition("=")
        name, (url, *words) = name.strip(), rest.split() or [""]
        if not is_named or not re.fullmatch(NAME, name) or name in by_name:
            raise ValueError(
                f"DICOM_DESTINATIONS: entry {number} must be a unique name, = and an address."
            )
        if not _is_address(url):
            raise ValueError(
                f"DICOM_DESTINATIONS: the address of {name} must be dimse://AE_TITLE@host:port,"
                " dimses:// for TLS, or that of a DICOMweb server, https://host/dicom-web."
            )
        by_name[name] = _destination(name, url.rstrip("/"), words)
    return by_name


def _destination(name: str, url: str, words: list[str]) -> Destination:
    options = dict(word.partition("=")[::2] for word in words)
    where = f"DICOM_DESTINATIONS: {name}"
    if options.keys() - SAID_OF_DESTINATION or len(options) < len(words) or "" in options.values():
        # What cannot be parsed may be part of a secret, so it is not repeated.
        raise ValueError(
            f"{where}: after the address, only these are allowed:"
            f" {', '.join(SAID_OF_DESTINATION)}, each"
            " once, followed by = and a value without spaces or commas."
        )
    destination = Destination(name, url, **options)
    secrets = [word for word in options if word != "ca"]
    if len(secrets) + bool(destination.parts.password) > 1:
        raise ValueError(f"{where}: a token or a password is enough, given once.")
    if secrets and destination.is_dimse:
        raise ValueError(f"{where}: only a DICOMweb server asks for a token or password.")
    if destination.token and not re.fullmatch(TOKEN, destination.token):
        raise ValueError(f"{where}: token= has characters that no bearer token has.")
    if destination.password_file and not destination.parts.username:
        raise ValueError(f"{where}: password_file= needs the user in the address, https://user@….")
    if secrets and not destination.has_tls and destination.host not in LOOPBACK:
        raise ValueError(
            f"{where}: a token or password needs https://; otherwise anyone could read it."
        )
    if destination.ca and not destination.has_tls:
        raise ValueError(f"{where}: ca= needs https:// or dimses://.")
    return destination


def peers_of(text: str, destinations: Mapping[str, Destination]) -> tuple[Peer, ...]:
    """Return the peers from `DICOM_PEERS`.

    Raises:
        ValueError: it cannot be parsed; the message says why.
    """
    peers: list[Peer] = []
    for entry in _entries(text):
        who, *words = entry.split()
        matched = re.fullmatch(rf"({AE_TITLE}?)@([A-Za-z0-9:./_-]+)", who)
        if matched is None or not _is_host(matched[2]):
            raise ValueError(
                f"DICOM_PEERS: {who!r} must be an AE title, @ and an address, such as CT1@10.1.2.3."
            )
        peers.append(_peer(matched[1], matched[2], words, destinations))
    return tuple(peers)


def _peer(
    ae_title: str, address: str, words: list[str], destinations: Mapping[str, Destination]
) -> Peer:
    options = dict(word.partition("=")[::2] for word in words)
    where = f"DICOM_PEERS: {ae_title}@{address}"
    unknown = sorted(options.keys() - {"account", "stat", "answer", "results"})
    if unknown or options.get("stat"):
        raise ValueError(
            f"{where}: {(unknown or ['stat'])[0]!r} is not understood; there are account=NAME,"
            " stat, answer=DESTINATION and results=all, positives or stat."
        )
    if not options.get("account"):
        raise ValueError(f"{where} needs account=, the username of the account for its scans.")
    answers = tuple(name for name in options.get("answer", "").split("+") if name)
    for name in answers:
        if name not in destinations:
            raise ValueError(f"{where}: DICOM_DESTINATIONS has no {name!r}.")
    if "results" in options and not answers:
        raise ValueError(f"{where}: results= needs answer=, the destination that gets them.")
    try:
        results = Answered(options.get("results", Answered.ALL))
    except ValueError:
        raise ValueError(f"{where}: results= must be all, positives or stat.") from None
    return Peer(ae_title, address, options["account"], "stat" in options, answers, results)


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in re.split(r"[,\n]", text) if entry.strip()]


def _is_host(text: str) -> bool:
    """Return whether this is an IP address, a network or a host name."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return bool(re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", text)) and not re.fullmatch(
            r"[0-9.]+", text
        )
    return True


def _is_address(url: str) -> bool:
    """Return whether this is a valid address of a destination."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    if re.search(r"\s", url) or parts.query or parts.fragment or not named:
        return False
    if parts.scheme in DIMSE:
        title = unquote(parts.username or "")
        is_title = bool(re.fullmatch(AE_TITLE, title)) and parts.password is None
        return is_title and parts.path in ("", "/")
    return parts.scheme in ("http", "https")
