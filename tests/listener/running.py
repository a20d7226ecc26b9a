"""A listener on an application, and studies to send."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import numpy as np
import pydicom
from flask import Flask
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE, VerificationPresentationContexts
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket
from sqlalchemy import select

from listener.closing import Closer
from listener.scp import Listener
from listener.spool import Spool
from tests.webapp.intake.made import dicom_file
from webapp.extensions import db
from webapp.models import ReceivedStudy, Scan


def _shut_down_and_close(connection: AssociationSocket) -> None:
    """Close a socket, even if its other end has hung up: pynetdicom leaves that to the garbage
    collector, whose warning would fail some later test.
    """
    if connection.socket is not None:
        with suppress(OSError):
            connection.socket.shutdown(SHUT_RDWR)
        connection.socket.close()


AssociationSocket._shutdown_socket = _shut_down_and_close  # type: ignore[method-assign]

PATIENT = {
    "PatientName": "Müller^Änne",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19580203",
    "PatientSex": "F",
    "AccessionNumber": "A-0815",
    "StudyDate": "20261129",
    "StudyTime": "113000",
    "StudyID": "77",
    "ReferringPhysicianName": "House^Greg",
    "SpecificCharacterSet": "ISO_IR 100",
}


def a_study(slices: int = 3, *, study: str | None = None, **tags: Any) -> list[Dataset]:
    """Return a series of a study, from foot to head; every slice has other pixels."""
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    made = []
    for index in range(slices):
        content = dicom_file(
            **{
                **PATIENT,
                "StudyInstanceUID": study,
                "SeriesInstanceUID": series,
                "FrameOfReferenceUID": frame,
                "SeriesNumber": "2",
                "InstanceNumber": str(index + 1),
                "ImagePositionPatient": [0, 0, 5.0 * index],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [0.5, 0.5],
                "RescaleSlope": "1",
                "RescaleIntercept": "-1024",
                "PixelData": np.full(64 * 64, 100 + index, "<i2").tobytes(),
                **tags,
            }
        )
        made.append(pydicom.dcmread(io.BytesIO(content)))
    return made


class Running:
    """A listener that is running; studies are closed when `close` is called."""

    def __init__(self, app: Flask, home: Path, tls: Any = None) -> None:
        self.app, self.home = app, home
        app.config["DICOM_PORT"], app.config["DICOM_HOST"] = 0, "127.0.0.1"
        app.config["INCOMING_DIR"] = home / "incoming"
        self.spool = Spool(home)
        self.listener = Listener(app, self.spool, tls)
        self.closer = Closer(app, self.spool, self.listener.busy)
        self.port = self.listener.start()

    @contextmanager
    def associated(self, title: str = "CT1", called: str = "HEMOSCAN") -> Iterator[Association]:
        """Associate as a peer."""
        ae = AE(title)
        ae.requested_contexts = VerificationPresentationContexts
        ae.add_requested_context(CTImageStorage)
        association = ae.associate("127.0.0.1", self.port, ae_title=called)
        yield association
        if association.is_established:
            association.release()

    def echo(self, title: str = "CT1", called: str = "HEMOSCAN") -> int | None:
        """Return the status of a C-ECHO; None where no association is made."""
        with self.associated(title, called) as association:
            return association.send_c_echo().Status if association.is_established else None

    def send(self, datasets: list[Dataset], title: str = "CT1") -> list[int]:
        """Send instances in one association; return the status of each."""
        with self.associated(title) as association:
            return [association.send_c_store(one).Status for one in datasets]

    def close(self) -> None:
        """Close what came, whether it is quiet or not."""
        self.app.config["DICOM_QUIET_S"] = 0
        self.closer.close_due()

    def scans(self) -> list[Scan]:
        """Return all scans, the oldest first."""
        with self.app.app_context():
            return list(db.session.scalars(select(Scan).order_by(Scan.queued_at, Scan.title)))

    def sentences(self) -> list[str]:
        """Return what administrators read of the studies that were closed."""
        with self.app.app_context():
            rows = select(ReceivedStudy.sentence).order_by(ReceivedStudy.closed_at)
            return [sentence or "" for sentence in db.session.scalars(rows)]

    def spooled(self) -> list[Path]:
        """Return the files that wait."""
        return sorted(self.home.rglob("*.dcm"))

    def stop(self) -> None:
        """Stop listening; what waits stays on the disk."""
        self.listener.stop()
