"""Sends DICOM objects to a destination, by C-STORE (PS3.7) or STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from urllib3 import PoolManager, Timeout
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from webapp import __version__
from webapp.dicom_peers import TOKEN, Destination
from webapp.models import new_id
from worker.sending.attempts import NotDelivered

# pynetdicom's log may contain names; `NotDelivered` says what failed.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

CONNECT_S, ANSWER_S = 10.0, 30.0
DUPLICATE = 0x0111
"""The destination has this instance already, so an earlier attempt succeeded."""
NOT_SUPPORTED = 0x0122
"""The destination does not accept objects of this kind."""
WARNINGS = range(0xB000, 0xC000)
"""Warning statuses: the instance was stored."""
MOST_OF_ANSWER = 2**20
NOT_TRUSTED = (
    "is signed by an authority that is not trusted: name it by ca= in DICOM_DESTINATIONS, or"
    " DICOM_TLS_CA."
)
OF_CERTIFICATE = {
    9: "is not valid yet.",
    10: "has expired.",
    **dict.fromkeys((2, 18, 19, 20, 21), NOT_TRUSTED),
    23: "was revoked.",
}
"""What is wrong with a certificate, by OpenSSL's error code (X509_V_ERR_…)."""
OF_ANOTHER_NAME = (62, 64)
# The first class that matches an error decides.
NO_ANSWER = {
    NameResolutionError: "The destination’s host name cannot be resolved.",
    NewConnectionError: "The destination cannot be reached.",
    ConnectTimeoutError: f"The destination cannot be reached within {CONNECT_S:g} seconds.",
    ReadTimeoutError: f"The destination did not respond within {ANSWER_S:g} seconds.",
    ProtocolError: "The connection was lost before the destination responded.",
}


def send(
    destination: Destination, objects: Sequence[Dataset], config: Mapping[str, Any]
) -> list[Dataset]:
    """Send objects; return those that were stored. Objects of kinds that the destination does not
    support, such as segmentations or structured reports, are left out.

    Args:
        config: `DICOM_AE_TITLE` and the certificates, `DICOM_TLS_…`.

    Raises:
        NotDelivered: one of them was refused, none is of a supported kind, or the destination
            cannot be reached.
    """
    store = _store_by_dimse if destination.is_dimse else _store_by_web
    stored = store(destination, objects, config)
    if not stored:
        raise NotDelivered("The destination accepts none of these kinds of objects.")
    return stored


def tls_of(destination: Destination, config: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS context of the client. It verifies the destination's certificate, by the
    authority configured for the destination or for all, and presents our certificate.

    Raises:
        NotDelivered: a certificate or key cannot be read.
    """
    authority = destination.ca
    try:
        context = ssl.create_default_context(cafile=authority or config["DICOM_TLS_CA"] or None)
    except OSError as err:
        named = f"ca= of {destination.name}" if authority else "DICOM_TLS_CA"
        raise NotDelivered(f"The certificates that {named} names cannot be read.") from err
    try:
        if config["DICOM_TLS_CERT"]:
            context.load_cert_chain(config["DICOM_TLS_CERT"], config["DICOM_TLS_KEY"])
    except OSError as err:
        raise NotDelivered("DICOM_TLS_CERT and DICOM_TLS_KEY cannot be read.") from err
    return context


def _tls_sentence(err: Exception, host: str) -> str:
    """Return what is wrong with the encryption."""
    if isinstance(err, ssl.SSLCertVerificationError):
        if err.verify_code in OF_ANOTHER_NAME:
            return f"The destination’s certificate is for another name than {host}."
        return "The destination’s certificate " + OF_CERTIFICATE.get(
            err.verify_code, f"cannot be verified: {err.verify_message}."
        )
    reason = str(getattr(err, "reason", "") or "")
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "The destination asks for a certificate of ours: DICOM_TLS_CERT and DICOM_TLS_KEY."
    if isinstance(err, ssl.SSLEOFError):
        return (
            "The destination cut the encrypted connection; it may ask for a certificate of ours,"
            " DICOM_TLS_CERT."
        )
    if "ALERT" in reason:
        return f"The destination refused the encryption ({reason.replace('_', ' ').lower()})."
    return "The destination does not use TLS on this port."


def _store_by_dimse(
    destination: Destination, objects: Sequence[Dataset], config: Mapping[str, Any]
) -> list[Dataset]:
    ae = AE(config["DICOM_AE_TITLE"])
    ae.connection_timeout = ae.acse_timeout = CONNECT_S
    ae.dimse_timeout = ae.network_timeout = ANSWER_S
    for kind in dict.fromkeys(str(dataset.SOPClassUID) for dataset in objects):
        ae.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    tls = (tls_of(destination, config), destination.host) if destination.has_tls else None
    association = ae.associate(
        destination.host, destination.port, ae_title=destination.ae_title, tls_args=tls
    )
    try:
        if association.is_rejected:
            raise NotDelivered(
                "The destination refused the association; does it know"
                f" {config['DICOM_AE_TITLE']} and this address?"
            )
        if not association.is_established:
            if destination.has_tls:
                _require_tls(destination, config)
            raise NotDelivered("The destination cannot be reached, or does not speak DICOM.")
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        accepted_objects = [dataset for dataset in objects if str(dataset.SOPClassUID) in accepted]
        for dataset in accepted_objects:
            _store_one(association, dataset)
        return accepted_objects
    finally:
        if association.is_established:
            association.release()


def _require_tls(destination: Destination, config: Mapping[str, Any]) -> None:
    """Find out why an association over TLS failed, which pynetdicom does not report.

    Raises:
        NotDelivered: the encryption failed.
    """
    try:
        at = (destination.host, destination.port)
        with (
            socket.create_connection(at, CONNECT_S) as plain,
            tls_of(destination, config).wrap_socket(plain, server_hostname=destination.host),
        ):
            return
    except ssl.SSLError as err:
        raise NotDelivered(_tls_sentence(err, destination.host)) from err
    except OSError:
        return


def _store_one(association: Association, dataset: Dataset) -> None:
    try:
        answer = association.send_c_store(dataset)
    except RuntimeError as err:
        raise NotDelivered(
            "The destination ended the association before everything was sent."
        ) from err
    if "Status" not in answer:
        raise NotDelivered("The connection was lost, or the destination did not respond in time.")
    if answer.Status and answer.Status != DUPLICATE and answer.Status not in WARNINGS:
        raise NotDelivered(
            f"The destination refused {dataset.SOPClassUID.name} with status 0x{answer.Status:04X}."
        )


def _store_by_web(
    destination: Destination, objects: Sequence[Dataset], config: Mapping[str, Any]
) -> list[Dataset]:
    parts, boundary = destination.parts, new_id()  # A boundary that occurs in no object.
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    headers = {
        "Accept": "application/dicom+json",
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "User-Agent": f"Hemoscan/{__version__}",
    }
    authorization = _authorization_of(destination)
    if authorization:
        headers["Authorization"] = authorization
    options: dict[str, Any] = {}
    if destination.has_tls:
        options["ssl_context"] = tls_of(destination, config)
    try:
        with PoolManager(timeout=Timeout(CONNECT_S, ANSWER_S), **options) as pool:
            answer = pool.request(
                "POST",
                f"{address}/studies",
                body=_body_of(objects, boundary),
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            answer_body = answer.read(MOST_OF_ANSWER)
            answer.close()
    except SSLError as err:
        cause = err.args[0] if err.args and isinstance(err.args[0], Exception) else err
        raise NotDelivered(_tls_sentence(cause, destination.host)) from err
    except HTTPError as err:
        sentences = [NO_ANSWER[kind] for kind in NO_ANSWER if isinstance(err, kind)]
        plain = f"The destination did not respond ({type(err).__name__})."
        raise NotDelivered((*sentences, plain)[0]) from err
    if answer.status in (401, 403):
        raise NotDelivered(_refusal_of(authorization))
    return _stored_of(objects, int(answer.status), answer_body)


def _authorization_of(destination: Destination) -> str:
    """Return the Authorization header for a DICOMweb server; "" if it needs none.

    Raises:
        NotDelivered: the file of the secret cannot be read, or is empty.
    """
    parts = destination.parts
    if destination.token or destination.token_file:
        token = destination.token or _secret_in(destination.token_file, "token", TOKEN)
        return f"Bearer {token}"
    if parts.username is None:
        return ""
    password = unquote(parts.password or "")
    if destination.password_file:
        password = _secret_in(destination.password_file, "password", r"[^\x00-\x1f\x7f]+")
    who = f"{unquote(parts.username)}:{password}"
    return f"Basic {b64encode(who.encode()).decode()}"


def _secret_in(file: str, what: str, pattern: str) -> str:
    try:
        secret = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as err:
        raise NotDelivered(f"The file of the destination’s {what} cannot be read.") from err
    if not re.fullmatch(pattern, secret):
        raise NotDelivered(f"The file of the destination’s {what} must hold it and nothing else.")
    return secret


def _refusal_of(authorization: str) -> str:
    kind = authorization.partition(" ")[0]
    if not kind:
        return "The destination asks for a token, or a user and password."
    return f"The destination refused the {'token' if kind == 'Bearer' else 'user and password'}."


def _body_of(objects: Sequence[Dataset], boundary: str) -> bytes:
    body = BytesIO()
    for dataset in objects:
        body.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        dataset.save_as(body, enforce_file_format=True)
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue()


def _stored_of(objects: Sequence[Dataset], status: int, answer_body: bytes) -> list[Dataset]:
    """Return the objects that are stored according to a STOW-RS response.

    Raises:
        NotDelivered: one was refused for another reason than its kind.
    """
    if 300 <= status < 400:
        raise NotDelivered("The destination responded with a redirect, which is not followed.")
    if status not in (200, 202, 409):
        raise NotDelivered(f"The destination responded with status {status}.")
    failed = _failures_in(answer_body)
    if status == 409 and not failed:
        raise NotDelivered("The destination did not accept the objects (status 409).")
    reasons = [reason for reason in failed.values() if reason not in (DUPLICATE, NOT_SUPPORTED)]
    if reasons:
        raise NotDelivered(
            f"The destination did not store {len(reasons)} of the objects (reason"
            f" 0x{reasons[0]:04X})."
        )
    return [
        dataset for dataset in objects if failed.get(str(dataset.SOPInstanceUID)) != NOT_SUPPORTED
    ]


def _failures_in(answer_body: bytes) -> dict[str, int]:
    """Return the reason for each failure in a STOW-RS response (PS3.18 I) by its instance; 0 if
    none is given.
    """
    try:
        answer = json.loads(answer_body)
        answer = answer[0] if isinstance(answer, list) and answer else answer
        return {
            str(item.get("00081155", {}).get("Value", [number])[0]): int(
                item.get("00081197", {}).get("Value", [0])[0]
            )
            for number, item in enumerate(answer.get("00081198", {}).get("Value", []))
        }
    except (ValueError, TypeError, AttributeError, IndexError):
        return {}
