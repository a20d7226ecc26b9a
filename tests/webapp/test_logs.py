"""Events as lines of JSON: what they tell, and what they never do."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from tests.worker.conftest import wait_for
from webapp import logs
from webapp.config import PROJECT_ROOT, ConfigurationError, settings
from webapp.jobs import QUEUE_OF_TABLE

SCAN, OTHER = "a" * 32, "b" * 32


def line_of(message: str = "It is done.", **parts: Any) -> dict[str, Any]:
    """Return what is written of an event."""
    record = logging.LogRecord(
        "webapp.scans.pages",
        logging.WARNING,
        "a.py",
        1,
        message,
        parts.pop("args", ()),
        parts.pop("exc_info", None),
    )
    record.__dict__.update(parts)
    written = logs.JsonLines().format(record)
    assert "\n" not in written
    event: dict[str, Any] = json.loads(written)
    return event


def test_an_event_tells_when_how_bad_where_and_what() -> None:
    event = line_of("%d scans are done.", args=(2,))
    assert datetime.fromisoformat(event.pop("time")).utcoffset() is not None
    assert event == {
        "level": "WARNING",
        "logger": "webapp.scans.pages",
        "message": "2 scans are done.",
    }


def test_an_event_tells_its_worker_and_the_jobs_that_are_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_process", {})
    logs.name_worker("predict-host-1-abc")
    with logs.about(heatmap_ids=[OTHER]), logs.about(scan_ids=(SCAN, OTHER)):
        event, its_own = line_of(), line_of(scan_ids=[SCAN])
    assert (event["worker"], event["scan_ids"], event["heatmap_ids"]) == (
        "predict-host-1-abc",
        [SCAN, OTHER],
        [OTHER],
    )
    assert its_own["scan_ids"] == [SCAN]
    assert "scan_ids" not in line_of()


def test_every_queue_has_its_field() -> None:
    assert [logs.ids_field(table) for table in QUEUE_OF_TABLE] == [
        "scan_ids",
        "heatmap_ids",
        "report_ids",
        "replay_ids",
        "shadow_answer_ids",
        "preview_ids",
        "notification_ids",
        "result_delivery_ids",
        "dataset_ids",
        "dataset_analysis_ids",
        "site_figures_ids",
        "comparison_ids",
        "evaluation_ids",
        "run_ids",
        "paper_experiment_ids",
    ]


def test_an_exception_stays_in_its_line() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        event = line_of(exc_info=sys.exc_info())
    assert event["exc_info"].startswith("Traceback (most recent call last):\n")


def test_what_a_library_hands_along_is_not_reported() -> None:
    assert "data" not in line_of(data={"args": "patient-tag"}, filename_given="smith_john.dcm")


def test_a_request_tells_ids_of_its_address_and_no_secret(app: Flask) -> None:
    with app.test_request_context(f"/scans/{SCAN}"):
        assert line_of()["scan_ids"] == [SCAN]
    for address in ("/reset/the-secret-of-a-link", "/scans/smith_john.dcm", "/nowhere"):
        with app.test_request_context(address):
            assert set(line_of()) == {"time", "level", "logger", "message"}


def test_another_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    home = {"HEMOSCAN_HOME": str(tmp_path)}
    assert (
        settings(home)["LOG_FORMAT"],
        settings({**home, "LOG_FORMAT": "json"})["LOG_FORMAT"],
    ) == ("text", "json")
    with pytest.raises(ConfigurationError, match="LOG_FORMAT must be text or json, not 'xml'."):
        settings({**home, "LOG_FORMAT": "xml"})


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_web_processes_write_nothing_but_lines_of_json_where_these_are_wanted(
    tmp_path: Path, log_format: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "HEMOSCAN_HOME": str(tmp_path),
        # A probe of /readyz is an event then.
        "DATABASE_URL": f"sqlite:///{tmp_path}/nowhere/none.db",
        "SECRET_KEY": "not a secret",
        "LOG_FORMAT": log_format,
        "PORT": str(port),
        "WEB_PROCESSES": "1",
    }
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--config",
        "webapp/gunicorn.conf.py",
        "webapp:create_app()",
    ]
    with (
        (tmp_path / "log").open("wb") as sink,
        subprocess.Popen(command, cwd=PROJECT_ROOT, env=environ, stdout=sink, stderr=sink) as web,
    ):

        def answers() -> bool:
            try:
                return (
                    requests.get(f"http://127.0.0.1:{port}/readyz", timeout=20).status_code == 503
                )
            except requests.ConnectionError:
                return False

        try:
            wait_for(answers)
        finally:
            web.send_signal(signal.SIGTERM)
            web.wait(20)
    lines = (tmp_path / "log").read_text().splitlines()
    failures = [line for line in lines if "The database cannot be read" in line]
    assert failures
    if log_format == "text":
        assert not failures[0].startswith("{")
    else:
        events = [json.loads(line) for line in lines]
        assert {event["logger"] for event in events if "database" in event["message"]} == {
            "webapp.health"
        }
