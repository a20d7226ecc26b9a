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
    # How many days an API token is valid by default, and at most: a forgotten one must not work
    # forever. 0: no limit.
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
    # Maximum total size of one user's submitted files, not counting the files that workers derive
    # from them; 0 for no limit.
    "QUOTA_MB": 20_000,
    # The same for all users together; with 0, only the disk limits it.
    "TOTAL_QUOTA_MB": 0,
    # Uploads are refused if they would leave less free space than this where they are spooled or
    # stored: a full disk stops the database, and with it logins and the analysis of scans.
    "MIN_FREE_MB": 1024,
    "UPLOADS_PER_MINUTE": 600,
    # A user's maximum API requests; polling a hundred scans every two seconds takes half of it. 0
    # for no limit.
    "API_REQUESTS_PER_MINUTE": 6000,
    # How long a study stored by DICOMweb waits for more of its files, because archives send one
    # study in several requests; with 0, the files of each request are analyzed separately.
    "DICOMWEB_QUIET_S": 15,
    # Maximum STAT scans of one user in the queue: if everything is STAT, nothing is.
    "MAX_STAT": 20,
    # Limits on decoding one scan (`worker/decoder.py`); a thousand slices of 512 x 512 need half of
    # each.
    "DECODE_MEMORY_MB": 2048,
    "DECODE_S": 60,
    # Maximum size of a data set's archive; imports have this separate limit.
    "MAX_DATASET_MB": 4096,
    # Workers report every HEARTBEAT_S; after LEASE_S of silence they are presumed dead.
    "LEASE_S": 20,
    "HEARTBEAT_S": 5,
    "SWEEP_S": 5,
    # Minimum time between the checkpoints of a training run, and therefore the maximum training
    # time lost if the machine dies.
    "CHECKPOINT_S": 300,
    # Retention in days after a scan has finished, for the submitted file and for the whole scan; 0
    # for no limit.
    "KEEP_ORIGINALS_DAYS": 0,
    "KEEP_SCANS_DAYS": 0,
    # Retention of the audit log in days; 0 for no limit.
    "KEEP_AUDIT_DAYS": 0,
    # Percentage of the scans shared with the reviewers that the review queue selects at random:
    # enough for figures on typical scans, few enough to be read.
    "REVIEW_PERCENT": 10,
    # Where the DICOM listener waits for studies; it starts only if DICOM_PEERS has an entry.
    "DICOM_PORT": 11112,
    # A study is complete when no instance of it has arrived for this time: longer than the pauses
    # of scanners between series that belong together, short enough for an emergency.
    "DICOM_QUIET_S": 60,
    # Maximum number of simultaneous associations, and the idle time after which one is ended.
    "DICOM_MAX_ASSOCIATIONS": 10,
    "DICOM_TIMEOUT_S": 30,
    # Maximum time for which the encrypted link to the original study is kept, for results that
    # could not be sent yet.
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
    # Blacks out everything outside the head, where names may be burned in, in all displayed or
    # derived images; submitted files are not changed.
    "MASK_OUTSIDE_HEAD": False,
    # Treats a study as complete as soon as its sender releases the association, for senders that
    # send each study in a single association.
    "DICOM_CLOSE_ON_RELEASE": False,
    # Allows webhook addresses in private networks and on this machine, and http.
    "NOTIFY_PRIVATE_ADDRESSES": False,
}
"""The settings that are 0 or 1, with their defaults."""

CHOICES = {
    # Plain text for people, or one line of JSON per event for a log collector.
    "LOG_FORMAT": ("text", "json"),
    # The DICOM scans whose results are made into DICOM objects automatically: those stored through
    # DICOMweb, or all, for viewers that display uploads; each takes a worker a second.
    "DICOM_RESULTS": ("dicomweb", "all"),
}
"""The settings that are one of several words; the first is the default."""

FIXED = {
    "SESSION_COOKIE_SAMESITE": "Lax",
    "SESSION_COOKIE_HTTPONLY": True,
    # The cookie expires with the session, LOGIN_DAYS after it was set.
    "SESSION_REFRESH_EACH_REQUEST": False,
    "MAX_FORM_MEMORY_SIZE": 500_000,
    # Logins must work, without delay, while the broker is down.
    "RATELIMIT_STORAGE_OPTIONS": {"socket_connect_timeout": 0.3, "socket_timeout": 0.3},
    "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": True,
    # When the broker is given up, one of the requests that wait for it starts counting in memory,
    # and the others are answered without being counted.
    "RATELIMIT_SWALLOW_ERRORS": True,
    "RATELIMIT_HEADERS_ENABLED": True,
    # Not set to a header name: `webapp.web_extensions.keep_retry_after` sends it where it makes
    # sense.
    "RATELIMIT_HEADER_RETRY_AFTER": "X-RateLimit-Retry-After",
    # A form left open over a long shift must still be accepted; the session limits its age.
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
        # The public address of this service, for links in notifications.
        "PUBLIC_URL": public_url(environ.get("PUBLIC_URL") or ""),
        **notifications(environ, switches["NOTIFY_PRIVATE_ADDRESSES"]),
        # Origins of websites that may read DICOMweb's responses in browsers, such as an OHIF
        # viewer.
        "DICOMWEB_ORIGINS": origins(environ.get("DICOMWEB_ORIGINS") or ""),
        **dicom(environ),
        # Bearer token for /metrics; without it the page returns 404.
        "METRICS_TOKEN": environ.get("METRICS_TOKEN") or "",
        "PERMANENT_SESSION_LIFETIME": timedelta(days=numbers["LOGIN_DAYS"]),
        # The limit of any request, with room for the other fields of a form.
        "MAX_CONTENT_LENGTH": (numbers["MAX_UPLOAD_MB"] + 1) * 2**20,
        "MAX_FORM_PARTS": numbers["MAX_FILES_PER_UPLOAD"] + 20,
    }


def locations(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings for database, broker, files and weights, and the key that processes
    share.

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
        # Where uploads are spooled while they are processed.
        "INCOMING_DIR": home / "incoming",
        "SQLALCHEMY_DATABASE_URI": database,
        # Reconnect after a restart of the database, and do not wait long for one that hangs.
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
    """Return an address without a trailing slash, or "" if there is none.

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

    Errors do not repeat the values, because they contain passwords. `allows_private` is
    `NOTIFY_PRIVATE_ADDRESSES`.

    Raises:
        ConfigurationError: one of them is invalid, or a required one is missing.
    """
    # Apprise addresses (https://appriseit.com/services): the outgoing mail server, to which the
    # recipient is added, and a chat that receives everybody's notifications.
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
        ConfigurationError: one of them is invalid, or a required one is missing.
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
    # PEM files: this service's certificate and key, without which the listener uses no TLS, and the
    # authority that must have signed the peers' certificates.
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
    """Return whether this is a secret in the format of Standard Webhooks."""
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
        ConfigurationError: one of them is not an origin.
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
    # Without SQLAlchemy, which the supervisor of `make run` does not load.
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
    """Refuse to start: machines can only share sessions if they have the same key."""
    raise ConfigurationError(
        "DATABASE_URL or BROKER_URL is set, so SECRET_KEY must be set too: one long random string,"
        " the same for every process."
    )
