"""Events as lines of JSON, for those who collect them (`LOG_FORMAT=json`); by default they are
lines for people.

Each line is an object with `time`, `level`, `logger` and `message`, the `worker` that wrote it, and
the ids of what it is about, always
as lists: `scan_ids`, `heatmap_ids`, `dataset_ids`, `run_ids`. Nothing else that a library hands to
its logger comes along: it might be a file's name or a person's.
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

TOLD = ("time", "level", "logger", "message", "worker", "exc_info")

_about: ContextVar[dict[str, list[str]]] = ContextVar("about")
_process: dict[str, str] = {}


def ids_field(table: type[Leased]) -> str:
    """Return the field for the ids of rows of `table`."""
    return f"{str(table.__tablename__).removeprefix('training_')}_ids"  # type: ignore[attr-defined]


@contextmanager
def about(**ids: Collection[str]) -> Iterator[None]:
    """Let all events meanwhile, in this thread, tell these ids, by their fields."""
    token = _about.set(
        {**_about.get({}), **{field: list(of_field) for field, of_field in ids.items()}}
    )
    try:
        yield
    finally:
        _about.reset(token)


def name_worker(name: str) -> None:
    """Let all events of this process tell which worker it is."""
    _process["worker"] = name


class JsonLines(JsonFormatter):
    """Writes an event as a line of JSON."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Return what is told of an event; ids that were logged with it go before those of its
        surroundings.
        """
        known = {**_process, **_ids_of_request(), **_about.get({}), **log_data}
        return {field: known[field] for field in TOLD if field in known} | {
            field: value for field, value in known.items() if field.endswith("_ids")
        }


def _ids_of_request() -> dict[str, list[str]]:
    """Return the ids in the address that is asked for; a reset link's secret is none."""
    parts = (request.view_args or {}) if has_request_context() else {}
    return {
        f"{name}s": [str(value)]
        for name, value in parts.items()
        if name.endswith("_id") and is_id(str(value))
    }


def json_logging(level: int | str = "WARNING") -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig`: our own events from INFO on, those
    of libraries from `level` on.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            **{package: {"level": "INFO"} for package in ("webapp", "worker", "ml")},
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            # Its lines hold addresses, and in these the secrets of reset links.
            "gunicorn.access": {"level": "WARNING"},
        },
    }
