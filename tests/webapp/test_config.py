"""The settings: what the environment says and what it need not say."""

from __future__ import annotations

import os
import re
import stat
from base64 import b64encode
from pathlib import Path

import pytest

from webapp import create_app
from webapp.config import (
    LONGEST_SOCKET_PATH,
    SWITCHES,
    ConfigurationError,
    database_url,
    limiter_url,
    settings,
    socket_path,
)


def test_without_any_setting_everything_lies_in_one_folder(tmp_path: Path) -> None:
    known = settings({"HEMOSCAN_HOME": str(tmp_path)})

    assert known["SQLALCHEMY_DATABASE_URI"] == f"sqlite:///{tmp_path}/hemoscan.db"
    assert known["BROKER_URL"] == f"redis+socket://{tmp_path}/broker.sock"
    assert known["RATELIMIT_STORAGE_URI"] == f"redis+unix://{tmp_path}/broker.sock"
    assert known["STORAGE_URL"] == f"file://{tmp_path}/files"


def test_the_embedded_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    home = tmp_path / "new"
    first, second = (settings({"HEMOSCAN_HOME": str(home)})["SECRET_KEY"] for _ in range(2))

    assert first == second == (home / "secret_key").read_text()
    assert len(first) == 64
    assert stat.S_IMODE((home / "secret_key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert os.listdir(home) == ["secret_key"]


@pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL"])
def test_a_service_on_several_machines_must_be_given_a_key(tmp_path: Path, name: str) -> None:
    given = {"HEMOSCAN_HOME": str(tmp_path), name: "sqlite:///here.db"}

    with pytest.raises(ConfigurationError, match="SECRET_KEY must be set too"):
        settings(given)
    assert settings({**given, "SECRET_KEY": "x"})["SECRET_KEY"] == "x"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "understood"),
    [
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
        ("postgres://me:p%40ss@db/x", "postgresql+psycopg://me:p%40ss@db/x"),
        ("postgresql://db/x?sslmode=require", "postgresql+psycopg://db/x?sslmode=require"),
        ("postgresql+psycopg://db/x", "postgresql+psycopg://db/x"),
    ],
)
def test_both_databases_are_understood(url: str, understood: str) -> None:
    assert database_url(url) == understood


@pytest.mark.parametrize("url", ["mysql://db/x", "hemoscan.db"])
def test_another_database_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match="DATABASE_URL must start with sqlite:// or postgresql://"
    ):
        database_url(url)


def test_a_number_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="LEASE_S must be a whole number, not 'soon'."):
        settings({"HEMOSCAN_HOME": str(tmp_path), "LEASE_S": "soon"})


def test_a_negative_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="KEEP_SCANS_DAYS must be 0 or more, not -1."):
        settings({"HEMOSCAN_HOME": str(tmp_path), "KEEP_SCANS_DAYS": "-1"})


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_or_off(tmp_path: Path, name: str) -> None:
    home = {"HEMOSCAN_HOME": str(tmp_path)}

    assert [settings({**home, name: value})[name] for value in ("", "0", "1")] == [
        SWITCHES[name],
        False,
        True,
    ]
    with pytest.raises(ConfigurationError, match=f"{name} must be (0 or 1|1 or 0), not 'true'."):
        settings({**home, name: "true"})


def test_the_rate_limiter_uses_the_broker() -> None:
    assert limiter_url("redis://redis:6379/0") == "redis://redis:6379/0"


def test_a_home_with_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * LONGEST_SOCKET_PATH)

    assert len(os.fsencode(socket_path(deep))) <= LONGEST_SOCKET_PATH
    assert socket_path(deep) == socket_path(deep)
    assert socket_path(deep) != socket_path(deep / "other")


def test_what_is_given_to_create_app_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_FILES_PER_UPLOAD", "7")
    monkeypatch.setenv("LEASE_S", "7")

    app = create_app({"HEMOSCAN_HOME": tmp_path, "SECRET_KEY": "x", "LEASE_S": 3, "TESTING": True})

    assert (app.config["LEASE_S"], app.config["MAX_FILES_PER_UPLOAD"], app.config["TESTING"]) == (
        3,
        7,
        True,
    )


EMAIL = {"NOTIFY_EMAIL_URL": "mailtos://me:secret@smtp.example.org", "PUBLIC_URL": "https://x.org"}
SECRET = "whsec_" + b64encode(bytes(32)).decode()
WEBHOOK = {
    "NOTIFY_WEBHOOK_URL": "https://hook.example.org/a?b=c",
    "NOTIFY_WEBHOOK_SECRET": SECRET,
    "PUBLIC_URL": "https://x.org/",
}


def test_notifications_are_set_up_with_a_public_address(tmp_path: Path) -> None:
    home = {"HEMOSCAN_HOME": str(tmp_path)}
    assert settings(home)["NOTIFY_EMAIL_URL"] == ""
    known = settings({**home, **EMAIL, **WEBHOOK})
    assert known["PUBLIC_URL"] == "https://x.org"
    assert known["NOTIFY_PRIVATE_ADDRESSES"] is False
    inside = {"NOTIFY_WEBHOOK_URL": "http://10.0.0.1:8080/", "NOTIFY_PRIVATE_ADDRESSES": "1"}
    assert settings({**home, **WEBHOOK, **inside})["NOTIFY_PRIVATE_ADDRESSES"] is True


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({**EMAIL, "PUBLIC_URL": ""}, "Notifications need PUBLIC_URL"),
        ({"PUBLIC_URL": "scans.example.org"}, "PUBLIC_URL must be an address"),
        ({**EMAIL, "NOTIFY_EMAIL_URL": "smtp://me:secret@x"}, "must start with mailto"),
        ({**EMAIL, "NOTIFY_CHAT_URL": "secret"}, "that Apprise knows"),
        ({**WEBHOOK, "NOTIFY_WEBHOOK_SECRET": "whsec_secret"}, "needs NOTIFY_WEBHOOK_SECRET"),
        ({**WEBHOOK, "NOTIFY_WEBHOOK_SECRET": ""}, "needs NOTIFY_WEBHOOK_SECRET"),
        ({**WEBHOOK, "NOTIFY_WEBHOOK_URL": "http://hook.example.org/"}, "must start with https"),
        (
            {**WEBHOOK, "NOTIFY_WEBHOOK_URL": "https://me:secret@x.org/"},
            "without user and password",
        ),
    ],
)
def test_a_channel_that_is_set_up_wrongly_is_reported_without_its_secrets(
    tmp_path: Path, given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        settings({"HEMOSCAN_HOME": str(tmp_path), **given})
    assert "secret" not in str(raised.value).replace("random", "")


def test_dicom_peers_and_destinations_are_read_from_lines_or_commas(tmp_path: Path) -> None:
    known = settings(
        {
            "HEMOSCAN_HOME": str(tmp_path),
            "DICOM_DESTINATIONS": "pacs=dimses://ORTHANC@pacs.example.org,"
            " web=https://me:se%20cret@10.1.2.9/dicom-web/",
            "DICOM_PEERS": "CT_ER@10.1.2.0/24 account=er stat\n"
            "ORTHANC@pacs account=radiology answer=pacs+web results=positives",
        }
    )
    scanner, archive = known["DICOM_PEERS"]
    assert (scanner.account, scanner.stat, scanner.answers) == ("er", True, ())
    assert scanner.is_at("10.1.2.77") and scanner.is_at("::ffff:10.1.2.77")
    assert not scanner.is_at("10.1.3.77") and not scanner.is_at("::1")
    assert (archive.answers, archive.results) == (("pacs", "web"), "positives")
    pacs, web = known["DICOM_DESTINATIONS"].values()
    assert (pacs.ae_title, pacs.host, pacs.port, pacs.has_tls) == (
        "ORTHANC", "pacs.example.org", 2762, True
    )  # fmt: skip
    assert (web.is_dimse, web.url) == (False, "https://me:se%20cret@10.1.2.9/dicom-web")
    assert "secret" not in repr(known["DICOM_DESTINATIONS"]).replace("%20", "")
    assert settings({"HEMOSCAN_HOME": str(tmp_path)})["DICOM_PEERS"] == ()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"DICOM_PEERS": "CT1 account=a"}, "'CT1' must be an AE title, @ and an address"),
        ({"DICOM_PEERS": "CT1@10.1.2.300 account=a"}, "must be an AE title, @ and an address"),
        ({"DICOM_PEERS": "A_TITLE_THAT_IS_LONG@10.1.2.3 account=a"}, "must be an AE title"),
        ({"DICOM_PEERS": "CT1@10.1.2.3"}, "CT1@10.1.2.3 needs account="),
        ({"DICOM_PEERS": "CT1@10.1.2.3 account=a stat=1"}, "'stat' is not understood"),
        ({"DICOM_PEERS": "CT1@10.1.2.3 account=a answer=x"}, "DICOM_DESTINATIONS has no 'x'"),
        ({"DICOM_PEERS": "CT1@10.1.2.3 account=a results=all"}, "results= needs answer="),
        ({"DICOM_DESTINATIONS": "dimse://A@b"}, "entry 1 must be a unique name"),
        ({"DICOM_DESTINATIONS": "x=dimse://b:104"}, "the address of x must be dimse://AE_TITLE@"),
        ({"DICOM_DESTINATIONS": "x=ftp://me:secret@b"}, "the address of x must be"),
        ({"DICOM_DESTINATIONS": "x=https://a, x=https://b"}, "entry 2 must be a unique name"),
        ({"DICOM_AE_TITLE": "HEMO SCAN"}, "DICOM_AE_TITLE must have 1 to 16 characters"),
        ({"DICOM_PORT": "65536"}, "DICOM_PORT must be at most 65535."),
        ({"DICOM_TLS_CERT": "/nowhere"}, "DICOM_TLS_CERT and DICOM_TLS_KEY must be set together"),
        ({"DICOM_TLS_CA": "/nowhere"}, "DICOM_TLS_CA: there is no file '/nowhere'"),
    ],
)
def test_what_is_wrong_with_a_dicom_setting_is_reported_without_its_secrets(
    tmp_path: Path, given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)) as raised:
        settings({"HEMOSCAN_HOME": str(tmp_path), **given})
    assert "secret" not in str(raised.value)
