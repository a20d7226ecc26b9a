"""All settings: read from the environment, each with its default and the reason for it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from base64 import b64decode
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from webapp import dicom_peers

PROJECT_ROOT = Path(__file__).resolve().parent.parent
LONGEST_SOCKET_PATH = 100  # The kernel allows 107 bytes (103 on macOS).


LAST_PORT = 65_535
NUMBERS = {
    # A login expires after LOGIN_DAYS, or after LOGIN_IDLE_HOURS without a request, which is long
    # enough for a shift and the night after it.
    "LOGIN_DAYS": 14,
    "LOGIN_IDLE_HOURS": 24,
    "RESET_LINK_HOURS": 24,
    # For how many days an API token is valid unless its owner chooses otherwise, and for how many
    # at most: a forgotten one must not work forever. 0: no limit.
    "TOKEN_DAYS": 90,
    "TOKEN_MAX_DAYS": 365,
    # Number of reverse proxies whose X-Forwarded-* headers are trusted.
    "TRUSTED_PROXIES": 0,
    # A DICOM slice has 0.5 MB, a head CT of thin slices 150 MB.
    "MAX_UPLOAD_MB": 512,
    "MAX_FILES_PER_UPLOAD": 2000,
    # Maximum unpacked size of an archive.
    "MAX_UNPACKED_MB": 1024,
    # Maximum slices and total pixels of a series: 570 slices of 512 x 512, for which a worker needs
    # 600 MB.
    "MAX_SLICES": 2000,
    "MAX_SERIES_PIXELS": 150_000_000,
    "MAX_PIXELS": 16_000_000,
    # Maximum total size of one person's submitted files, without the files that workers derive from
    # them; 0 for no limit.
    "QUOTA_MB": 20_000,
    # The same for all people together; 0 sets no limit but the disk.
    "TOTAL_QUOTA_MB": 0,
    # Uploads are refused that would leave less free where they wait or where files live: a full
    # disk stops the database, and with it logins and the analysis of scans.
    "MIN_FREE_MB": 1024,
    "UPLOADS_PER_MINUTE": 600,
    # Requests of one person to the API: a hundred scans polled every two seconds are half of it. 0
    # for no limit.
    "API_REQUESTS_PER_MINUTE": 6000,
    # How long a study that DICOMweb stored waits for more of it, since archives send one in several
    # requests; 0 analyzes what each request brings by itself.
    "DICOMWEB_QUIET_S": 15,
    # Maximum STAT scans of one person in the queue: if everything is STAT, nothing is.
    "MAX_STAT": 20,
    # Limits on decoding one scan (`worker/decoder.py`); a thousand slices of 512 x 512 need half of
    # each.
    "DECODE_MEMORY_MB": 2048,
    "DECODE_S": 60,
    # Maximum size of a data set's archive; such imports have a limit of their own.
    "MAX_DATASET_MB": 4096,
    # Workers report every HEARTBEAT_S; after LEASE_S of silence they are presumed dead.
    "LEASE_S": 20,
    "HEARTBEAT_S": 5,
    "SWEEP_S": 5,
    # How often a training's checkpoint is stored at most, and so how much training is lost if the
    # machine dies.
    "CHECKPOINT_S": 300,
    # Retention in days after a scan has finished: of the submitted file, and of the whole scan; 0
    # for no limit.
    "KEEP_ORIGINALS_DAYS": 0,
    "KEEP_SCANS_DAYS": 0,
    # Retention of the audit log in days; 0 for no limit.
    "KEEP_AUDIT_DAYS": 0,
    # Percentage of the scans shared with the reviewers that the review queue chooses at random:
    # enough for figures of the usual scans, few enough to be read.
    "REVIEW_PERCENT": 10,
    # Where the DICOM listener waits for studies; it starts only where DICOM_PEERS names somebody.
    "DICOM_PORT": 11112,
    # A study is complete after this time without another instance of it: longer than the pauses of
    # scanners between series that belong together, short enough for an emergency.
    "DICOM_QUIET_S": 60,
    # Associations at one time, and the silence after which one is ended.
    "DICOM_MAX_ASSOCIATIONS": 10,
    "DICOM_TIMEOUT_S": 30,
    # How long the encrypted link to the original study is kept at most, for results that could not
    # be sent yet.
    "DICOM_KEEP_LINKS_DAYS": 7,
    # Scans per claim: enough to fill a batch, few enough that two workers share a queue of twenty.
    "PREDICT_BATCH": 8,
    # Threads that compute slices in a predict worker. To scale, start more workers rather than more
    # threads.
    "PREDICT_THREADS": 1,
}
"""The settings that are whole numbers, with their defaults."""

SWITCHES = {
    # On if browsers use TLS to a proxy that does not forward the scheme; not needed with
    # TRUSTED_PROXIES.
    "SESSION_COOKIE_SECURE": False,
    # Keeps administrators without a second factor out of the administration.
    "REQUIRE_SECOND_FACTOR": False,
    # Off scores every readable image, whatever it shows; for operators whose scans are wrongly
    # rejected by the check.
    "CHECK_HEAD_CT": True,
    # Blacks out everything outside the head, where names may be burned in, in all images that are
    # shown or derived; submitted files are not changed.
    "MASK_OUTSIDE_HEAD": False,
    # Takes a study for complete as soon as its sender releases the association, for senders that
    # send a study in one.
    "DICOM_CLOSE_ON_RELEASE": False,
    # Lets the webhook lead to addresses of private networks and this machine, and use http.
    "NOTIFY_PRIVATE_ADDRESSES": False,
}
"""The settings that are 0 or 1, with their defaults."""

CHOICES = {
    # Plain text for people, or one line of JSON per event for a log collector.
    "LOG_FORMAT": ("text", "json"),
    # Of which DICOM scans results are made as DICOM objects unasked: of those that DICOMweb took
    # in, or of all, for a viewer that shows what people upload; each takes a worker a second.
    "DICOM_RESULTS": ("dicomweb", "all"),
}
"""The settings that are one of several words; the first is the default."""

FIXED = {
    "SESSION_COOKIE_SAMESITE": "Lax",
    "SESSION_COOKIE_HTTPONLY": True,
    # The cookie expires with the login, LOGIN_DAYS after it was set.
    "SESSION_REFRESH_EACH_REQUEST": False,
    "MAX_FORM_MEMORY_SIZE": 500_000,
    # Logins must work, without delay, while the broker is down.
    "RATELIMIT_STORAGE_OPTIONS": {"socket_connect_timeout": 0.3, "socket_timeout": 0.3},
    "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": True,
    # Of requests that wait for the broker when it is given up, one begins to count in memory, and
    # the others are answered without being counted.
    "RATELIMIT_SWALLOW_ERRORS": True,
    "RATELIMIT_HEADERS_ENABLED": True,
    # Not its own name: `webapp.web_extensions.keep_retry_after` sends it where it makes sense.
    "RATELIMIT_HEADER_RETRY_AFTER": "X-RateLimit-Retry-After",
    # A form left open over a long shift must still be accepted; the login limits its age.
    "WTF_CSRF_TIME_LIMIT": None,
    "API_TITLE": "Hemoscan",
    "API_VERSION": "v1",
    "OPENAPI_VERSION": "3.1.0",
    "OPENAPI_URL_PREFIX": "/api/v1",
    "OPENAPI_JSON_PATH": "openapi.json",
    "DICOMWEB_URL_PREFIX": "/dicom-web",
}
"""Configuration of Flask and its extensions that the environment does not change."""


class ConfigurationError(RuntimeError):
    """The environment is missing a setting or has an invalid one; the message says which."""


def settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the Flask configuration for this environment.

    The embedded default applies when neither `DATABASE_URL` nor `BROKER_URL` is set: key, database,
    files and broker socket are then under `HEMOSCAN_HOME`.

    Raises:
        ConfigurationError: a value is invalid, or `SECRET_KEY` is missing without the embedded
            default.
    """
    numbers = {name: whole_number(environ, name, default) for name, default in NUMBERS.items()}
    switches = {
        name: choice(environ, name, ("1", "0") if default else ("0", "1")) == "1"
        for name, default in SWITCHES.items()
    }
    choices = {name: choice(environ, name, words) for name, words in CHOICES.items()}
    return {
        **FIXED,
        **numbers,
        **switches,
        **choices,
        **locations(environ),
        # The host names of this service, separated by commas. Requests for other hosts are refused,
        # so that a forged Host header cannot end up in a password-reset link. Requests from the
        # machine itself, such as health checks, are always allowed.
        "TRUSTED_HOSTS": trusted_hosts(environ.get("TRUSTED_HOSTS") or ""),
        # The address at which people reach this service, for links in notifications.
        "PUBLIC_URL": public_url(environ.get("PUBLIC_URL") or ""),
        **notifications(environ, switches["NOTIFY_PRIVATE_ADDRESSES"]),
        # Websites that browsers let read DICOMweb's answers: where a viewer runs, such as OHIF.
        "DICOMWEB_ORIGINS": origins(environ.get("DICOMWEB_ORIGINS") or ""),
        **dicom(environ),
        # Bearer token for /metrics; without it the page does not exist.
        "METRICS_TOKEN": environ.get("METRICS_TOKEN") or "",
        "PERMANENT_SESSION_LIFETIME": timedelta(days=numbers["LOGIN_DAYS"]),
        # The limit of any request, with room for the other fields of a form.
        "MAX_CONTENT_LENGTH": (numbers["MAX_UPLOAD_MB"] + 1) * 2**20,
        "MAX_FORM_PARTS": numbers["MAX_FILES_PER_UPLOAD"] + 20,
    }


def locations(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return where database, broker, files and weights are, and the key that processes share.

    Raises:
        ConfigurationError: the database is of an unknown kind, or `SECRET_KEY` is missing without
            the embedded default.
    """
    home = Path(environ.get("HEMOSCAN_HOME") or PROJECT_ROOT / "instance").resolve()
    is_embedded = not environ.get("DATABASE_URL") and not environ.get("BROKER_URL")
    broker_socket = socket_path(home)
    broker = environ.get("BROKER_URL") or f"redis+socket://{broker_socket}"
    database = database_url(environ.get("DATABASE_URL") or f"sqlite:///{home / 'hemoscan.db'}")
    return {
        "HEMOSCAN_HOME": home,
        "SECRET_KEY": (
            environ.get("SECRET_KEY")
            or (secret_key_file(home) if is_embedded else missing_secret_key())
        ),
        # Where uploads wait while they are taken in.
        "INCOMING_DIR": home / "incoming",
        "SQLALCHEMY_DATABASE_URI": database,
        # Survive a restart of the database, and do not wait long for one that hangs.
        "SQLALCHEMY_ENGINE_OPTIONS": (
            {"pool_pre_ping": True, "connect_args": {"connect_timeout": 5}}
            if "psycopg" in database
            else {}
        ),
        "BROKER_SOCKET": broker_socket,
        "BROKER_URL": broker,
        "RATELIMIT_STORAGE_URI": limiter_url(broker),
        "STORAGE_URL": environ.get("STORAGE_URL") or f"file://{home / 'files'}",
        # Folder with ImageNet weights (`ml.catalogue.IMAGENET_WEIGHTS`) that are offered as initial
        # weights.
        "WEIGHTS_DIR": Path(environ.get("WEIGHTS_DIR") or home / "weights"),
    }


def whole_number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a setting that is a whole number, 0 or more.

    Raises:
        ConfigurationError: it is not such a number.
    """
    try:
        number = int(environ.get(name) or default)
    except ValueError as err:
        raise ConfigurationError(f"{name} must be a whole number, not {environ[name]!r}.") from err
    if number < 0:
        raise ConfigurationError(f"{name} must be 0 or more, not {number}.")
    return number


def choice(environ: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Return a setting that is one of `choices`; the first is the default.

    Raises:
        ConfigurationError: it is another value.
    """
    if (chosen := environ.get(name) or choices[0]) not in choices:
        raise ConfigurationError(f"{name} must be {' or '.join(choices)}, not {chosen!r}.")
    return chosen


def public_url(text: str) -> str:
    """Return an address without a slash at its end, or "" without one.

    Raises:
        ConfigurationError: it is not the address of a website.
    """
    if text and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ConfigurationError(
            f"PUBLIC_URL must be an address such as https://scans.example.org, not {text!r}."
        )
    return text.rstrip("/")


def notifications(environ: Mapping[str, str], allows_private: bool) -> dict[str, Any]:
    """Return the settings of notifications; a channel without an address is not offered.

    Their values are not repeated in errors, since they hold passwords. `allows_private` is
    `NOTIFY_PRIVATE_ADDRESSES`.

    Raises:
        ConfigurationError: one of them is invalid, or one that it needs is missing.
    """
    # Apprise addresses (https://appriseit.com/services): the outgoing mail server, to which the
    # recipient is added, and a chat that everybody's notifications go to.
    email, chat = environ.get("NOTIFY_EMAIL_URL") or "", environ.get("NOTIFY_CHAT_URL") or ""
    # A program that is notified by HTTP POST, signed with the secret.
    webhook = environ.get("NOTIFY_WEBHOOK_URL") or ""
    secret = environ.get("NOTIFY_WEBHOOK_SECRET") or ""
    if email and not re.match(r"mailtos?://", email):
        raise ConfigurationError("NOTIFY_EMAIL_URL must start with mailto:// or mailtos://.")
    if chat and "://" not in chat:
        raise ConfigurationError("NOTIFY_CHAT_URL must be an address that Apprise knows.")
    if webhook and not re.fullmatch(r"https?://[^\s/?#@]+([/?][^\s#]*)?", webhook):
        raise ConfigurationError("NOTIFY_WEBHOOK_URL must be an address without user and password.")
    if webhook.startswith("http://") and not allows_private:
        raise ConfigurationError(
            "NOTIFY_WEBHOOK_URL must start with https:// unless NOTIFY_PRIVATE_ADDRESSES is 1."
        )
    if webhook and not is_webhook_secret(secret):
        raise ConfigurationError(
            "NOTIFY_WEBHOOK_URL needs NOTIFY_WEBHOOK_SECRET: whsec_ followed by 24 to 64 random"
            " bytes in base64 (echo whsec_$(openssl rand -base64 32))."
        )
    if (email or chat or webhook) and not environ.get("PUBLIC_URL"):
        raise ConfigurationError("Notifications need PUBLIC_URL, for the links in them.")
    return {
        "NOTIFY_EMAIL_URL": email,
        "NOTIFY_CHAT_URL": chat,
        "NOTIFY_WEBHOOK_URL": webhook,
        "NOTIFY_WEBHOOK_SECRET": secret,
    }


def dicom(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of the DICOM listener and of the destinations of results.

    Raises:
        ConfigurationError: one of them is invalid, or one that it needs is missing.
    """
    title = environ.get("DICOM_AE_TITLE") or "HEMOSCAN"
    if not re.fullmatch(dicom_peers.AE_TITLE, title):
        raise ConfigurationError(
            f"DICOM_AE_TITLE must have 1 to 16 characters and no spaces, not {title!r}."
        )
    if whole_number(environ, "DICOM_PORT", NUMBERS["DICOM_PORT"]) > LAST_PORT:
        raise ConfigurationError(f"DICOM_PORT must be at most {LAST_PORT}.")
    try:
        destinations = dicom_peers.destinations_of(environ.get("DICOM_DESTINATIONS") or "")
        peers = dicom_peers.peers_of(environ.get("DICOM_PEERS") or "", destinations)
    except ValueError as err:
        raise ConfigurationError(str(err)) from err
    # PEM files: this service's certificate and key, without which the listener speaks no TLS, and
    # the authority that peers' certificates must be from.
    files = {
        name: environ.get(name) or ""
        for name in ("DICOM_TLS_CERT", "DICOM_TLS_KEY", "DICOM_TLS_CA")
    }
    if bool(files["DICOM_TLS_CERT"]) != bool(files["DICOM_TLS_KEY"]):
        raise ConfigurationError("DICOM_TLS_CERT and DICOM_TLS_KEY must be set together.")
    for name, file in files.items():
        if file and not Path(file).is_file():
            raise ConfigurationError(f"{name}: there is no file {file!r}.")
    return {
        "DICOM_HOST": environ.get("DICOM_HOST") or "0.0.0.0",
        "DICOM_AE_TITLE": title,
        "DICOM_PEERS": peers,
        "DICOM_DESTINATIONS": destinations,
        **files,
    }


def is_webhook_secret(text: str) -> bool:
    """Return whether this is a secret as Standard Webhooks writes it."""
    try:
        return text.startswith("whsec_") and 24 <= len(b64decode(text[6:], validate=True)) <= 64
    except ValueError:
        return False


def trusted_hosts(text: str) -> list[str] | None:
    """Return the host names that requests may use, or None for all.

    Raises:
        ConfigurationError: one of them is not a host name.
    """
    hosts = [host.strip() for host in text.split(",") if host.strip()]
    for host in hosts:
        if not re.fullmatch(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:[0-9]+)?", host):
            raise ConfigurationError(
                f"TRUSTED_HOSTS must be host names separated by commas, without scheme or path, not"
                f" {host!r}."
            )
    return [*hosts, "127.0.0.1", "localhost"] if hosts else None


def origins(text: str) -> list[str]:
    """Return the origins of websites, as browsers send them.

    Raises:
        ConfigurationError: one of them is no origin.
    """
    listed = [origin.strip() for origin in text.split(",") if origin.strip()]
    for origin in listed:
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]+)?", origin):
            raise ConfigurationError(
                "DICOMWEB_ORIGINS must be origins separated by commas, such as"
                f" https://viewer.example.org, not {origin!r}."
            )
    return listed


def database_url(url: str) -> str:
    """Return the URL with the driver this project installs (psycopg 3 for PostgreSQL).

    Raises:
        ConfigurationError: it is neither SQLite nor PostgreSQL.
    """
    # Not by SQLAlchemy, which the supervisor of `make run` does without.
    backend = url.partition("://")[0].partition("+")[0]
    if backend == "sqlite":
        return url
    if backend in ("postgres", "postgresql"):
        return "postgresql+psycopg://" + url.split("://", 1)[1]
    raise ConfigurationError(
        f"DATABASE_URL must start with sqlite:// or postgresql://, not {backend!r}."
    )


def limiter_url(broker_url: str) -> str:
    """Return the broker's address in the notation of the rate limiter's library."""
    return broker_url.replace("redis+socket://", "redis+unix://", 1)


def socket_path(home: Path) -> Path:
    """Return the socket of the embedded broker: under `home`, unless that path is too long for the
    kernel.
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
    """Return the secret key stored under `home`; it is created on first use, readable by its owner
    only.
    """
    path = home / "secret_key"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = home / f"secret_key.{secrets.token_hex(4)}"
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32))
        try:
            os.link(fresh, path)  # Fails if another process was faster; its key is used then.
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text()


def missing_secret_key() -> str:
    """Refuse to start: machines can only share logins if they have the same key."""
    raise ConfigurationError(
        "DATABASE_URL or BROKER_URL is set, so SECRET_KEY must be set too: one long random string,"
        " the same for every process."
    )
