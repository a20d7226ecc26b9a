"""Logging as lines of JSON for log collectors (`LOG_FORMAT=json`); the default is plain text.

Each line is an object with `time`, `level`, `logger` and `message`, the `worker` that wrote it, and
the ids of the rows it is about as lists: `scan_ids`, `heatmap_ids`, `report_ids`, `preview_ids`,
`replay_ids`, `shadow_answer_ids`, `notification_ids`, `result_delivery_ids`, `dataset_ids`,
`dataset_analysis_ids`, `site_figures_ids`, `comparison_ids`, `paper_experiment_ids`,
`evaluation_ids`, `run_ids`. Any other fields of a log record are dropped, because they may contain
file names or personal data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flask import has_request_context, request
from pythonjsonlogger.json import JsonFormatter

from webapp.forms import is_id
from webapp.models import Leased

FIELDS = ("time", "level", "logger", "message", "worker", "exc_info")

_about: ContextVar[dict[str, list[str]]] = ContextVar("about")
_process: dict[str, str] = {}


def ids_field(table: type[Leased]) -> str:
    """Return the name of the field for ids of rows of `table`."""
    return f"{str(table.__tablename__).removeprefix('training_')}_ids"  # type: ignore[attr-defined]


@contextmanager
def about(**ids: Collection[str]) -> Iterator[None]:
    """Add these ids to all log records of this thread within the context."""
    token = _about.set(
        {**_about.get({}), **{field: list(of_field) for field, of_field in ids.items()}}
    )
    try:
        yield
    finally:
        _about.reset(token)


def name_worker(name: str) -> None:
    """Add the name of the worker to all log records of this process."""
    _process["worker"] = name


class JsonLines(JsonFormatter):
    """Formats a log record as a line of JSON."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a log record; ids that it was logged with override those of its
        context.
        """
        known = {**_process, **_ids_of_request(), **_about.get({}), **log_data}
        return {field: known[field] for field in FIELDS if field in known} | {
            field: value for field, value in known.items() if field.endswith("_ids")
        }


def _ids_of_request() -> dict[str, list[str]]:
    """Return the ids in the URL of the current request, but not the secret of a reset link."""
    parts = (request.view_args or {}) if has_request_context() else {}
    return {
        f"{name}s": [str(value)]
        for name, value in parts.items()
        if name.endswith("_id") and is_id(str(value))
    }


def json_logging(level: int | str = "WARNING") -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig`: Hemoscan's own records from INFO
    up, those of libraries from `level` up.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            **{package: {"level": "INFO"} for package in ("webapp", "worker", "listener", "ml")},
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            # Its lines contain URLs, and therefore the secrets of reset links.
            "gunicorn.access": {"level": "WARNING"},
        },
    }
