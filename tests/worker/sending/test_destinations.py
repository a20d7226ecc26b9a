"""Destinations of results that are spoken to over TLS, with a token or a password."""

from __future__ import annotations

import re
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from tests.conftest import unreachable
from tests.listener.archives import a_certificate, free_port, program, running_orthanc
from tests.worker.conftest import wait_for
from webapp.config import ConfigurationError, settings
from webapp.dicom_peers import Destination, destinations_of
from worker.sending.attempts import NotDelivered
from worker.sending.destinations import send

ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {cert}; ssl_certificate_key {key};
        if ($http_authorization != "Bearer {token}") {{ return 401; }}
        location / {{ proxy_pass {behind}; proxy_http_version 1.1; }}
    }}
}}
"""


class Web(BaseHTTPRequestHandler):
    """A DICOMweb server that lets one authorization in."""

    wanted: ClassVar[str] = ""

    def do_POST(self) -> None:
        """Answer that all was stored, or that the caller is unknown."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.headers["Authorization"] == self.wanted else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def web_server(certificate: Mapping[str, str] | None, *, asks_ours: bool = False) -> Iterator[str]:
    """Run a DICOMweb server; yield its host and port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate["DICOM_TLS_CERT"], certificate["DICOM_TLS_KEY"])
        if asks_ours:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificate["DICOM_TLS_CA"])
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def an_object() -> Dataset:
    """Return an object that may be sent."""
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid()
    one.PatientID = "MRN-4711"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return one


def config_of(**given: str) -> dict[str, Any]:
    """Return the settings that sending reads."""
    return {
        "DICOM_AE_TITLE": "HEMOSCAN",
        **dict.fromkeys(("DICOM_TLS_CERT", "DICOM_TLS_KEY", "DICOM_TLS_CA"), ""),
        **given,
    }


def outcome(entry: str, **given: str) -> str:
    """Return what Operations says once something was sent to a destination; "" if it was stored."""
    (there,) = destinations_of(f"pacs={entry}").values()
    try:
        send(there, [an_object()], config_of(**given))
    except NotDelivered as err:
        return str(err)
    return ""


def test_a_web_server_gets_the_token_or_password_of_a_setting_or_of_a_file_as_it_is_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = a_certificate(tmp_path, "ours")
    file = tmp_path / "secret"
    with web_server(ours) as at:
        ca = f"ca={ours['DICOM_TLS_CA']}"
        Web.wanted = "Bearer abc.DEF-123=="
        assert outcome(f"https://{at}/dicom-web token=abc.DEF-123== {ca}") == ""
        by_file = f"https://{at}/dicom-web token_file={file} {ca}"
        assert outcome(by_file) == "The file of the destination’s token cannot be read."
        file.write_text("two words\n")
        assert outcome(by_file) == (
            "The file of the destination’s token must hold it and nothing else."
        )
        file.write_text("an-old-one\n")
        assert outcome(by_file) == "The destination refused the token."
        file.write_text("abc.DEF-123==\n")
        assert outcome(by_file) == ""
        Web.wanted = "Basic aGVtb3NjYW46c2UgY3JldA=="
        assert outcome(f"https://hemoscan:se%20cret@{at} {ca}") == ""
        file.write_text("se cret\n")
        assert outcome(f"https://hemoscan@{at} password_file={file} {ca}") == ""
        file.write_text("another")
        assert outcome(f"https://hemoscan@{at} {ca} password_file={file}") == (
            "The destination refused the user and password."
        )
        assert outcome(f"https://{at} {ca}") == (
            "The destination asks for a token, or a user and password."
        )
    for secret in ("abc.DEF", "se cret", "an-old-one", "another", "MRN"):
        assert secret not in caplog.text


def test_what_is_wrong_with_a_certificate_is_one_sentence(tmp_path: Path) -> None:
    ours, others = a_certificate(tmp_path, "ours"), a_certificate(tmp_path, "others")
    ended = a_certificate(tmp_path, "ended", ended=True)
    elsewhere = a_certificate(tmp_path, "elsewhere", address="10.9.8.7")
    token = "token=0123456789"
    Web.wanted = "Bearer 0123456789"
    not_trusted = (
        "The destination’s certificate is signed by an authority that is not trusted: name it by"
        " ca= in DICOM_DESTINATIONS, or DICOM_TLS_CA."
    )
    with web_server(ours) as at:
        there = f"https://{at}/dicom-web {token}"
        assert outcome(there) == not_trusted
        assert outcome(there, DICOM_TLS_CA=ours["DICOM_TLS_CA"]) == ""
        assert outcome(there, DICOM_TLS_CA=others["DICOM_TLS_CA"]) == not_trusted
        # Its own authority goes before that of all.
        own = f"{there} ca={ours['DICOM_TLS_CA']}"
        assert outcome(own, DICOM_TLS_CA=others["DICOM_TLS_CA"]) == ""
        assert outcome(f"{there} ca={tmp_path / 'gone'}") == (
            "The certificates that ca= of pacs names cannot be read."
        )
        assert outcome(f"{there} ca={ours['DICOM_TLS_KEY']}") == (
            "The certificates that ca= of pacs names cannot be read."
        )
    with web_server(ended) as at:
        assert outcome(f"https://{at} {token} ca={ended['DICOM_TLS_CA']}") == (
            "The destination’s certificate has expired."
        )
    with web_server(elsewhere) as at:
        assert outcome(f"https://{at} {token} ca={elsewhere['DICOM_TLS_CA']}") == (
            "The destination’s certificate is for another name than 127.0.0.1."
        )
    with web_server(None) as at:
        assert outcome(f"https://{at} {token}") == (
            "The destination does not use TLS on this port."
        )
        assert outcome(f"http://{at} {token}") == ""
    with web_server(ours, asks_ours=True) as at:
        entry = f"https://{at} {token} ca={ours['DICOM_TLS_CA']}"
        # What is read of its refusal depends on how much was written by then.
        assert re.search("certificate of ours|connection was lost", outcome(entry))
        assert outcome(entry, **ours) == ""
    assert outcome(f"https://127.0.0.1:{free_port()} {token}") == (
        "The destination cannot be reached."
    )
    assert outcome(f"https://nowhere.invalid {token}") == (
        "The destination’s host name cannot be resolved."
    )


def test_orthanc_behind_nginx_with_tls_and_a_token_takes_what_is_sent(tmp_path: Path) -> None:
    if not ORTHANC_DICOMWEB.exists():
        unreachable("orthanc-dicomweb")
    nginx, ours, port = program("nginx"), a_certificate(tmp_path, "ours"), free_port()
    plugins = {"Plugins": [str(ORTHANC_DICOMWEB)]}
    with running_orthanc(tmp_path / "orthanc", plugins) as orthanc:
        configuration = NGINX.format(
            folder=tmp_path,
            port=port,
            cert=ours["DICOM_TLS_CERT"],
            key=ours["DICOM_TLS_KEY"],
            token="t0ken",
            behind=orthanc.url,
        )
        (tmp_path / "nginx.conf").write_text(configuration)
        command = [nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        with (tmp_path / "nginx.log").open("wb") as log:
            running = subprocess.Popen(command, stdout=log, stderr=log)
        entry = f"https://127.0.0.1:{port}/dicom-web ca={ours['DICOM_TLS_CA']}"
        try:
            wait_for(lambda: "reached" not in outcome(f"{entry} token=wrong"))
            assert outcome(f"{entry} token=wrong") == "The destination refused the token."
            assert orthanc.ask("/instances") == []
            assert outcome(f"{entry} token=t0ken") == ""
            assert len(orthanc.ask("/instances")) == 1
        finally:
            running.terminate()
            running.wait(20)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("https://a/b secret", "after the address, only these are allowed: token, token_file"),
        ("https://a/b token=", "after the address, only these are allowed:"),
        ("https://a/b token=secret token=secret", "each once"),
        ("https://a/b token=sec,ret", "entry 2 must be a unique name"),
        ("https://a/b token=sec§ret", "token= has characters that no bearer token has"),
        ("https://me:secret@a/b token=secret", "a token or a password is enough"),
        ("https://a/b token=secret token_file=/x", "a token or a password is enough"),
        ("https://a/b password_file=/x", "password_file= needs the user in the address"),
        ("dimses://A@b token=secret", "only a DICOMweb server asks for a token"),
        ("http://a/b token=secret", "needs https://"),
        ("dimse://A@b ca=/x", "ca= needs https:// or dimses://"),
    ],
)
def test_what_is_wrong_with_a_destination_is_reported_without_its_secret(
    tmp_path: Path, entry: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        settings({"HEMOSCAN_HOME": str(tmp_path), "DICOM_DESTINATIONS": f"pacs={entry}"})
    assert "secret" not in str(raised.value)


def test_a_destination_does_not_show_its_secrets() -> None:
    there = Destination("pacs", "https://me:secret@a/b", token="secret")
    assert "secret" not in repr(there)
