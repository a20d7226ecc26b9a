"""The neighbors of a campaign, in its own process: a scanner that sends studies by DICOM, an
archive that gets the results, and a program that is notified.
"""

from __future__ import annotations

import os
import queue
import random
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE, evt

from bench.service import free_port
from ml.scans.phantoms import phantom, write_dicom

OWNER = "chaos"
SLICES, SIZE_PX = 4, 128
QUIET_S = 10
"""Longer than it takes to restart a killed listener and connect to it."""
NO_ROOM = 0xA700


@dataclass
class Archive:
    """A Storage SCP in this process, which fails on command; `stored` holds the UID of the study
    and the number of arrivals of each object.
    """

    port: int = field(default_factory=free_port)
    mode: str = ""
    hangs_s: float = 0.0
    met: int = 0
    stored: dict[str, str] = field(default_factory=dict)
    arrivals: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _server: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Listen."""
        ae = AE("ARCHIVE")
        for kind in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, SegmentationStorage):
            ae.add_supported_context(kind)
        handlers: Any = [(evt.EVT_C_STORE, self._take)]
        self._server = ae.start_server(("127.0.0.1", self.port), False, None, handlers)

    def stop(self) -> None:
        """Cut all connections and refuse new ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _take(self, event: evt.Event) -> int:
        mode = self.mode
        self.met += bool(mode)
        if mode == "slow":
            time.sleep(self.hangs_s)
        if mode == "refuses":
            return NO_ROOM
        instance = event.dataset
        uid, study = str(instance.SOPInstanceUID), str(instance.StudyInstanceUID)
        with self._lock:
            if self.stored.setdefault(uid, study) != study:
                self.wrong.append("an object was sent with two studies")
            self.arrivals[uid] += 1
        if mode == "cuts in the middle":  # It is stored, but its sender never learns that.
            event.assoc.abort()
        return 0


@dataclass
class Webhook:
    """A program in this process that is notified; `arrivals` counts the arrivals of each
    notification by its delivery id.
    """

    port: int = field(default_factory=free_port)
    hangs_s: float = 0.0
    arrivals: Counter[str] = field(default_factory=Counter)
    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen."""
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                webhook.arrivals[self.headers["webhook-id"]] += 1
                time.sleep(webhook.hangs_s)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class Scanner(threading.Thread):
    """Sends studies, each as often as needed until every instance of it was accepted."""

    def __init__(self, port: int) -> None:
        super().__init__(name="scanner", daemon=True)
        self.port = port
        self.studies: list[str] = []
        self.tries = 0
        self.arrived = threading.Event()
        """Whether the first instance of the current study was accepted."""
        self.aborts = 0
        self._waiting: queue.Queue[list[Dataset] | None] = queue.Queue()

    @property
    def is_done(self) -> bool:
        """Whether all studies were taken."""
        return self._waiting.unfinished_tasks == 0

    def submit(self, rng: random.Random) -> None:
        """Send another study as soon as possible."""
        study = a_study(rng)
        self.studies.append(str(study[0].StudyInstanceUID))
        self.arrived.clear()
        self._waiting.put(study)

    def finish(self) -> None:
        """Wait until all studies were accepted, and end."""
        self._waiting.put(None)
        self.join()

    def run(self) -> None:
        """Send what is submitted."""
        while (study := self._waiting.get()) is not None:
            while not self._is_taken(study):
                time.sleep(0.3)
            self._waiting.task_done()
        self._waiting.task_done()

    def _is_taken(self, study: list[Dataset]) -> bool:
        self.tries += 1
        ae = AE("SCANNER")
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 10
        ae.add_requested_context(CTImageStorage)
        association = ae.associate("127.0.0.1", self.port, ae_title="HEMOSCAN")
        try:
            for instance in study:
                answer = association.send_c_store(instance)
                if "Status" not in answer or answer.Status != 0:
                    return False
                self.arrived.set()
                if self.aborts:
                    self.aborts -= 1
                    association.abort()
                    return False
                time.sleep(0.1)  # About as fast as a scanner reconstructs slices.
        except (RuntimeError, OSError, ValueError):  # The association ended.
            return False
        finally:
            if association.is_established:
                association.release()
        return True


@dataclass
class Neighbors:
    """The scanner, the archive and the notified program of a stack."""

    listener_port: int = field(default_factory=free_port)
    archive: Archive = field(default_factory=Archive)
    webhook: Webhook = field(default_factory=Webhook)

    def __post_init__(self) -> None:
        self.scanner = Scanner(self.listener_port)

    @property
    def settings(self) -> dict[str, str]:
        """The settings by which Hemoscan knows them."""
        return {
            "DICOM_HOST": "127.0.0.1",
            "DICOM_PORT": str(self.listener_port),
            "DICOM_QUIET_S": str(QUIET_S),
            "DICOM_PEERS": f"SCANNER@127.0.0.1 account={OWNER} answer=archive",
            "DICOM_DESTINATIONS": f"archive=dimse://ARCHIVE@127.0.0.1:{self.archive.port}",
            "PUBLIC_URL": "http://127.0.0.1",
            "NOTIFY_WEBHOOK_URL": f"http://127.0.0.1:{self.webhook.port}/",
            "NOTIFY_WEBHOOK_SECRET": f"whsec_{b64encode(os.urandom(32)).decode()}",
            "NOTIFY_PRIVATE_ADDRESSES": "1",
        }

    def start(self) -> None:
        """Have all run."""
        self.archive.start()
        self.webhook.start()
        self.scanner.start()

    def stop(self) -> None:
        """Stop the servers."""
        self.archive.stop()
        self.webhook.stop()


def a_study(rng: random.Random) -> list[Dataset]:
    """Return the slices of a phantom's study."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    kind = rng.randrange(1000)
    slices: list[Dataset] = []
    with tempfile.TemporaryDirectory(prefix="hemoscan-chaos-") as folder:
        path = Path(folder) / "one.dcm"
        for number in range(SLICES):
            hu = phantom(kind, hemorrhage=kind % 2 == 0, size=SIZE_PX)
            hu[0, 0] = number  # Each slice has different pixels.
            write_dicom(hu, path, number=number + 1, position_mm=5.0 * number)
            header = pydicom.dcmread(path)
            header.StudyInstanceUID, header.SeriesInstanceUID = study, series
            header.FrameOfReferenceUID, header.SOPInstanceUID = frame, generate_uid()
            header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
            slices.append(header)
    return slices
