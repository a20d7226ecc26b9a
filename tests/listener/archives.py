"""Archives of others, as processes: Orthanc, and the tools of dcmtk; certificates."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import unreachable

PATIENCE_S = 30


def program(name: str) -> str:
    """Return the path of a program that CI has; elsewhere the test skips without it."""
    # pynetdicom has a storescu too, which an active environment puts first.
    others = [part for part in os.get_exec_path() if Path(part) != Path(sys.executable).parent]
    path_of = shutil.which(
        name, path=os.pathsep.join([*others, "/usr/sbin"])
    )  # Orthanc's in Debian
    if path_of is None:
        unreachable(name)
    return str(path_of)


def a_certificate(
    folder: Path, name: str, *, address: str = "127.0.0.1", ended: bool = False
) -> dict[str, str]:
    """Write a certificate for an address that vouches for itself; return settings with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now + timedelta(hours=-1 if ended else 1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    cert, secret = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {
        "DICOM_TLS_CERT": str(cert), "DICOM_TLS_KEY": str(secret), "DICOM_TLS_CA": str(cert)
    }  # fmt: skip


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Orthanc:
    """A running Orthanc."""

    def __init__(self, folder: Path, http_port: int, dicom_port: int) -> None:
        self.url, self.dicom_port = f"http://127.0.0.1:{http_port}", dicom_port
        self.config: dict[str, Any] = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": http_port,
            "DicomPort": dicom_port,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "DicomModalitiesInDatabase": True,
        }

    def ask(self, path: str, body: object = None, method: str = "") -> Any:
        """Return what the REST API answers."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        answer = requests.request(method, self.url + path, data=sent, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content.strip() else None

    def route_to(self, port: int, studies: list[str]) -> Mapping[str, Any]:
        """Send studies to our listener, as a rule of Orthanc would; return what became of it."""
        modality = {"AET": "HEMOSCAN", "Host": "127.0.0.1", "Port": port}
        self.ask("/modalities/hemoscan", modality, "PUT")
        return dict(self.ask("/modalities/hemoscan/store", {"Resources": studies}))


@contextmanager
def running_orthanc(folder: Path, more: Mapping[str, Any] | None = None) -> Iterator[Orthanc]:
    """Run Orthanc with its files in a folder, and with more settings."""
    folder.mkdir(parents=True)
    orthanc = Orthanc(folder, free_port(), free_port())
    orthanc.config.update(more or {})
    (folder / "orthanc.json").write_text(json.dumps(orthanc.config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program("Orthanc"), str(folder / "orthanc.json")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                orthanc.ask("/system")
                break
            except requests.RequestException:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield orthanc
    finally:
        process.terminate()
        process.wait(20)
