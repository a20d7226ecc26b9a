"""Starts the DICOM listener: `python -m listener`, `make dicom-listen`."""

from __future__ import annotations

import fcntl
import logging
import logging.config
import os
import resource
import signal
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from listener.closing import Closer
from listener.scp import Listener
from listener.spool import Spool
from webapp import create_app
from webapp.config import ConfigurationError, settings
from webapp.intake.spool import empty_incoming
from webapp.logs import json_logging

log = logging.getLogger("listener")


class CannotStart(RuntimeError):
    """The listener cannot start; the message says why."""


def main() -> int:
    """Listen until a signal arrives; return the exit status."""
    try:
        config = settings(os.environ)
        if not config["DICOM_PEERS"]:
            raise CannotStart(
                "DICOM_PEERS is empty, so no sender is allowed. Set it to, say,"
                " “CT1@10.1.2.3 account=USERNAME”; see docs/operations.md."
            )
        os.umask(0o077)
        set_up_logs(config)
        folder = config["HEMOSCAN_HOME"] / "received"
        with only_listener_on(folder):
            listen(folder)
    except (CannotStart, ConfigurationError) as err:
        sys.stderr.write(f"{err}\n")
        return 1
    return 0


def listen(folder: Path) -> None:
    """Receive studies into `folder` until SIGTERM or SIGINT.

    Raises:
        CannotStart: the port or a certificate cannot be used.
    """
    app = create_app()
    # A separate folder: the web server empties its own when it starts.
    app.config["INCOMING_DIR"] = folder / "incoming"
    empty_incoming(folder / "incoming")
    # All files of a study are open while its scans are made.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536) if most > 0 else 65_536, most))
    over = threading.Event()
    for caught in (signal.SIGTERM, signal.SIGINT):
        signal.signal(caught, lambda *_: over.set())
    spool = Spool(folder)
    tempfile.tempdir = str(spool.arriving)
    listener = Listener(app, spool, tls_of(app.config))
    closer = Closer(app, spool, listener.busy)
    try:
        port = listener.start()
    except OSError as err:
        raise CannotStart(
            f"The listener cannot use DICOM_PORT {app.config['DICOM_PORT']}: {err.strerror}."
        ) from err
    closer.start()
    log.info("%s listens on port %d", app.config["DICOM_AE_TITLE"], port)
    over.wait()
    listener.stop()
    closer.stop()


def tls_of(config: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Return the TLS context of the server; None if no certificate is set. With an authority
    (`DICOM_TLS_CA`) peers must show a certificate that it signed.

    Raises:
        CannotStart: a certificate or key cannot be read.
    """
    if not config["DICOM_TLS_CERT"]:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config["DICOM_TLS_CERT"], config["DICOM_TLS_KEY"])
        if config["DICOM_TLS_CA"]:
            context.load_verify_locations(config["DICOM_TLS_CA"])
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as err:
        raise CannotStart(
            "DICOM_TLS_CERT, DICOM_TLS_KEY or DICOM_TLS_CA cannot be used as PEM files."
        ) from err
    return context


@contextmanager
def only_listener_on(folder: Path) -> Iterator[None]:
    """Lock the folder of incoming studies.

    Raises:
        CannotStart: another listener has locked it, or it is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "lock").open("a")
    except OSError as err:
        raise CannotStart(f"The listener cannot write to {folder}: {err.strerror}.") from err
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"Another listener is using {folder}.") from None
        yield


def set_up_logs(config: Mapping[str, Any]) -> None:
    """Log our own events, as text or as lines of JSON (`LOG_FORMAT`)."""
    if config["LOG_FORMAT"] == "json":
        logging.config.dictConfig(json_logging())
    else:
        logging.basicConfig(
            format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING
        )
    for package in ("listener", "webapp"):
        logging.getLogger(package).setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
