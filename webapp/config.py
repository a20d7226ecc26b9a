"""Every setting, from the environment, with its default and the reason for it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

PROJECT_ROOT = Path(__file__).resolve().parent.parent
LONGEST_SOCKET_PATH = 100  # The kernel allows 107 bytes (103 on macOS).


class ConfigurationError(RuntimeError):
    """The environment asks for something that cannot work; the text says what to set."""


def settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the Flask configuration for this environment.

    *Embedded* means that neither `DATABASE_URL` nor `BROKER_URL` is set: everything lives under
    `HEMOSCAN_HOME`, where a second terminal finds the same key, database and broker socket.

    Raises:
        ConfigurationError: a `SECRET_KEY` is missing outside the embedded default, or a value is
            malformed.
    """
    home = Path(environ.get("HEMOSCAN_HOME") or PROJECT_ROOT / "instance").resolve()
    embedded = not environ.get("DATABASE_URL") and not environ.get("BROKER_URL")
    broker_socket = socket_path(home)

    def number(name: str, default: int) -> int:
        try:
            return int(environ.get(name) or default)
        except ValueError as err:
            raise ConfigurationError(
                f"{name} must be a whole number, not {environ[name]!r}."
            ) from err

    def choice(name: str, choices: tuple[str, ...]) -> str:
        if (chosen := environ.get(name) or choices[0]) not in choices:
            raise ConfigurationError(f"{name} must be {' or '.join(choices)}, not {chosen!r}.")
        return chosen

    def days(name: str) -> int:
        if (kept := number(name, 0)) < 0:
            raise ConfigurationError(f"{name} must be a number of days, or 0 for ever, not {kept}.")
        return kept

    database = database_url(environ.get("DATABASE_URL") or f"sqlite:///{home / 'hemoscan.db'}")
    return {
        "HEMOSCAN_HOME": home,
        "BROKER_SOCKET": broker_socket,
        "SQLALCHEMY_DATABASE_URI": database,
        # A database that was restarted costs no request, and one that hangs holds none up for long.
        "SQLALCHEMY_ENGINE_OPTIONS": (
            {"pool_pre_ping": True, "connect_args": {"connect_timeout": 5}}
            if "psycopg" in database
            else {}
        ),
        "BROKER_URL": environ.get("BROKER_URL") or f"redis+socket://{broker_socket}",
        "STORAGE_URL": environ.get("STORAGE_URL") or f"file://{home / 'files'}",
        "SECRET_KEY": (
            environ.get("SECRET_KEY")
            or (secret_key_file(home) if embedded else missing_secret_key())
        ),
        # 1 says that browsers speak TLS to a proxy in front that does not say so itself
        # (TRUSTED_PROXIES).
        "SESSION_COOKIE_SECURE": environ.get("SESSION_COOKIE_SECURE", "0") == "1",
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_HTTPONLY": True,
        # The cookie ends with the login, LOGIN_DAYS after it was given.
        "SESSION_REFRESH_EACH_REQUEST": False,
        "PERMANENT_SESSION_LIFETIME": timedelta(days=number("LOGIN_DAYS", 14)),
        # How many proxies in front may be believed about the client's address and scheme.
        "TRUSTED_PROXIES": number("TRUSTED_PROXIES", 0),
        # The names that this service has, with commas between; a request for any other is refused,
        # so that no link to a new password leads to a host that somebody else put into the request.
        # A machine may always ask itself, as health checks do.
        "TRUSTED_HOSTS": trusted_hosts(environ.get("TRUSTED_HOSTS") or ""),
        # A login ends after LOGIN_DAYS at the latest, and when its browser has asked for nothing
        # for LOGIN_IDLE_HOURS: a shift and a night.
        "LOGIN_DAYS": number("LOGIN_DAYS", 14),
        "LOGIN_IDLE_HOURS": number("LOGIN_IDLE_HOURS", 24),
        # 1 keeps administrators without a second factor out of the administration.
        "REQUIRE_SECOND_FACTOR": environ.get("REQUIRE_SECOND_FACTOR", "0") == "1",
        "RESET_LINK_HOURS": number("RESET_LINK_HOURS", 24),
        # One slice is 0.5 MB as DICOM, a thin-sliced head 150 MB.
        "MAX_UPLOAD_MB": number("MAX_UPLOAD_MB", 512),
        # What any request may send, with room for a form's other parts; the import of data sets has
        # a limit of its own.
        "MAX_CONTENT_LENGTH": (number("MAX_UPLOAD_MB", 512) + 1) * 2**20,
        "MAX_FILES_PER_UPLOAD": number("MAX_FILES_PER_UPLOAD", 2000),
        "MAX_FORM_PARTS": number("MAX_FILES_PER_UPLOAD", 2000) + 20,
        # What an archive may unpack to.
        "MAX_UNPACKED_MB": number("MAX_UNPACKED_MB", 1024),
        # The longest series, and its pixels in all: 570 slices of 512 x 512, which a worker holds
        # in 600 MB.
        "MAX_SLICES": number("MAX_SLICES", 2000),
        "MAX_SERIES_PIXELS": number("MAX_SERIES_PIXELS", 150_000_000),
        # What one person's submitted files may take in all, not counting what the workers make of
        # them; 0 sets no limit.
        "QUOTA_MB": number("QUOTA_MB", 20_000),
        "UPLOADS_PER_MINUTE": number("UPLOADS_PER_MINUTE", 600),
        # A person's urgent scans that wait at once: if all were urgent, nobody's would be.
        "MAX_STAT": number("MAX_STAT", 20),
        "MAX_PIXELS": number("MAX_PIXELS", 16_000_000),
        # What decoding one scan may take (`worker/decoder.py`): a thousand slices of 512 x 512 take
        # half of each.
        "DECODE_MEMORY_MB": number("DECODE_MEMORY_MB", 2048),
        "DECODE_S": number("DECODE_S", 60),
        "MAX_DATASET_MB": number("MAX_DATASET_MB", 4096),
        "MAX_FORM_MEMORY_SIZE": 500_000,
        # A worker that is silent for LEASE_S is presumed dead; it speaks every HEARTBEAT_S.
        "LEASE_S": number("LEASE_S", 20),
        "HEARTBEAT_S": number("HEARTBEAT_S", 5),
        "SWEEP_S": number("SWEEP_S", 5),
        # A training's checkpoint goes to the storage at most this often: what is lost if its
        # machine dies.
        "CHECKPOINT_S": number("CHECKPOINT_S", 300),
        # For so many days after its end a scan's submitted file, and then the whole scan, is kept;
        # 0 is for ever.
        "KEEP_ORIGINALS_DAYS": days("KEEP_ORIGINALS_DAYS"),
        "KEEP_SCANS_DAYS": days("KEEP_SCANS_DAYS"),
        # Scans that one claim takes: large enough to fill a batch, small enough that two workers
        # share a queue of twenty.
        "PREDICT_BATCH": number("PREDICT_BATCH", 8),
        # Threads of one predict worker's ONNX session; more machines, not more threads, is how it
        # scales.
        "PREDICT_THREADS": number("PREDICT_THREADS", 1),
        # 0 scores every picture that can be read, whatever it shows; for operators whose scans the
        # check refuses wrongly.
        "CHECK_HEAD_CT": environ.get("CHECK_HEAD_CT", "1") != "0",
        # Lines for people, or a line of JSON for each event, for a collector.
        "LOG_FORMAT": choice("LOG_FORMAT", ("text", "json")),
        # 1 blackens what lies beside the head, where names are burned in, in all that is shown or
        # made of a scan; originals stay.
        "COVER_BESIDE_HEAD": environ.get("COVER_BESIDE_HEAD", "0") == "1",
        # What a scrape of /metrics must carry as bearer token; without one there is no such page.
        "METRICS_TOKEN": environ.get("METRICS_TOKEN") or "",
        # Where an operator may put ImageNet weights of AlexNet (`ml.catalogue.IMAGENET_WEIGHTS`) to
        # offer them as initial weights.
        "WEIGHTS_DIR": Path(environ.get("WEIGHTS_DIR") or home / "weights"),
        "RATELIMIT_STORAGE_URI": limiter_url(
            environ.get("BROKER_URL") or f"redis+socket://{broker_socket}"
        ),
        # A dead broker must not take logins down with it, nor hold them up.
        "RATELIMIT_STORAGE_OPTIONS": {"socket_connect_timeout": 0.3, "socket_timeout": 0.3},
        "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": True,
        "RATELIMIT_HEADERS_ENABLED": True,
        # A form left open over a long shift must still be accepted; the session bounds it.
        "WTF_CSRF_TIME_LIMIT": None,
        "API_TITLE": "Hemoscan",
        "API_VERSION": "v1",
        "OPENAPI_VERSION": "3.1.0",
        "OPENAPI_URL_PREFIX": "/api/v1",
        "OPENAPI_JSON_PATH": "openapi.json",
    }


def trusted_hosts(text: str) -> list[str] | None:
    """Return the hosts that may be asked for, or None for all.

    Raises:
        ConfigurationError: one of them is no host name.
    """
    hosts = [host.strip() for host in text.split(",") if host.strip()]
    for host in hosts:
        if not re.fullmatch(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:[0-9]+)?", host):
            raise ConfigurationError(
                f"TRUSTED_HOSTS must be host names with commas between, without scheme or path, not"
                f" {host!r}."
            )
    return [*hosts, "127.0.0.1", "localhost"] if hosts else None


def database_url(url: str) -> str:
    """Return the URL with the driver this project installs (psycopg 3 for PostgreSQL).

    Raises:
        ConfigurationError: it is neither SQLite nor PostgreSQL.
    """
    backend = make_url(url).get_backend_name() if "://" in url else url
    if backend == "sqlite":
        return url
    if backend in ("postgres", "postgresql"):
        return "postgresql+psycopg://" + url.split("://", 1)[1]
    raise ConfigurationError(
        f"DATABASE_URL must begin with sqlite:// or postgresql://, not {backend!r}."
    )


def limiter_url(broker_url: str) -> str:
    """Return the broker's address in the notation of the rate limiter's library."""
    return broker_url.replace("redis+socket://", "redis+unix://", 1)


def socket_path(home: Path) -> Path:
    """Return where the embedded broker listens: under `home`, unless the kernel finds that path too
    long.
    """
    path = home / "broker.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    return (
        Path(tempfile.gettempdir())
        / f"hemoscan-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
        / "broker.sock"
    )


def secret_key_file(home: Path) -> str:
    """Return the key kept under `home`, made at first use and readable by its owner only."""
    path = home / "secret_key"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = home / f"secret_key.{secrets.token_hex(4)}"
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32))
        try:
            os.link(fresh, path)  # Fails if another process was first: then its key counts.
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text()


def missing_secret_key() -> str:
    """Refuse to start: several machines can only share logins if they are given the same key."""
    raise ConfigurationError(
        "DATABASE_URL or BROKER_URL is set, so SECRET_KEY must be set too: the same long random"
        " text for every process."
    )
