"""Benchmark of a worklist of 100,000 scans: sorting by each column, filters, late pages.

    python -m bench.worklist [--scans 100000]

Times whole requests, from the URL to the page's HTML, of a user who has all these scans; half of
them are series in studies of four. Runs on a new SQLite file and, if `BENCH_POSTGRES` is set
(postgresql://user@host:port), on a new PostgreSQL database, which is dropped afterwards. The last
line is the verdict; the exit status is 1 if a request takes longer than the limit. Linux only (the
CPU time of the database is read from /proc).
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import insert, text

from bench.claims import postgres_database
from ml.verdict import state_of
from webapp import create_app
from webapp.extensions import db, utc_now
from webapp.models import JobStatus, Scan, User, new_id
from webapp.scans.worklist_query import COLUMNS

MOST_MS = 200.0
SERIES, TIMES, AT_ONCE = 4, 5, 5_000
PASSWORD = "only for this benchmark"
FILTERS = {
    "suspected": "verdict=suspected",
    "STAT, waiting": "priority=stat&status=queued",
    "text in the title": "title=number+99",
    "text that is nowhere": "title=zebra",
    "of three days": "since=2026-01-10&until=2026-01-12",
    "all at once": "verdict=suspected&status=done&priority=routine&title=9&since=2020-01-01",
}


def addresses(scans: int) -> Iterator[tuple[str, str]]:
    """Yield a description of each measured URL, and the URL."""
    for order in ("newest", "risk", "uncertainty", *COLUMNS, *(f"-{name}" for name in COLUMNS)):
        yield f"by {order}", f"/scans?order={order}"
    yield "last page", last_page_of(scans)
    yield "last page by title", f"{last_page_of(scans)}&order=title"
    for what, query in FILTERS.items():
        yield what, f"/scans?{query}"
        yield f"{what}, by -probability", f"/scans?{query}&order=-probability"


def some_scans(user_id: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield the columns of that user's scans, half of them in studies."""
    chance = random.Random(0)
    now = utc_now()
    number = 0
    while number < count:
        size = SERIES if chance.random() < 2 / (SERIES + 2) else 1
        study_id, at = new_id(), now - timedelta(seconds=60 * number)
        for index in range(min(size, count - number)):
            risk, done = chance.random(), chance.random() < 0.9
            state = state_of(positive=risk > 0.4, uncertain=0.35 < risk < 0.45)
            yield {
                "user_id": user_id,
                "study_id": study_id,
                "title": f"Number {number} · Series {index + 1}",
                "kind": "dicom",
                "slice_count": chance.randint(1, 60),
                "original_key": "none",
                "stat": chance.random() < 0.02,
                "status": JobStatus.DONE if done else chance.choice(list(JobStatus)),
                "risk": risk if done else 0.0,
                "margin": abs(risk - 0.4) if done else 1.0,
                "verdict_state": state if done else None,
                "created_at": at,
                "finished_at": at + timedelta(seconds=5) if done else None,
            }
            number += 1


def fill(database: str, home: Path, scans: int) -> None:
    """Create a user with that many scans."""
    with application(database, home).app_context():
        db.create_all()
        user = User(username="reader", email="reader@example.org", name="Reader", password=PASSWORD)
        db.session.add(user)
        db.session.flush()
        rows = list(some_scans(user.id, scans))
        for first in range(0, len(rows), AT_ONCE):
            db.session.execute(insert(Scan), rows[first : first + AT_ONCE])
        db.session.commit()
        if db.engine.dialect.name == "postgresql":
            autocommit = db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            with autocommit as connection:
                connection.execute(text("VACUUM ANALYZE scan"))
        db.session.remove()
        db.engine.dispose()


def processor_s(pids: list[int]) -> float:
    """Return the CPU time of this process and of the database's sessions."""
    of_sessions = (Path(f"/proc/{pid}/schedstat").read_text().split()[0] for pid in pids)
    return time.process_time() + sum(map(int, of_sessions)) / 1e9


def sessions(app: Flask) -> list[int]:
    """Return the process ids of the sessions of a PostgreSQL database on this machine."""
    with app.app_context():
        if db.engine.dialect.name != "postgresql":
            return []
        mine = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        return list(db.session.scalars(mine))


def application(database: str, home: Path) -> Flask:
    """Return the application on that database, without a broker."""
    return create_app(
        {
            "SECRET_KEY": "bench",
            "HEMOSCAN_HOME": home,
            "DATABASE_URL": database,
            "BROKER_URL": "redis://127.0.0.1:9",
            "WTF_CSRF_ENABLED": False,
            "RATELIMIT_ENABLED": False,
        }
    )


def a_reader(database: str, home: Path) -> FlaskClient:
    """Return the browser of the logged-in user."""
    client = application(database, home).test_client()
    client.post("/login", data={"username": "reader", "password": PASSWORD})
    client.get("/scans")
    return client


def last_page_of(scans: int) -> str:
    """Return the URL of the last page of a worklist."""
    return f"/scans?page={max(1, scans // 100)}"


def measured(database: str, home: Path, scans: int) -> dict[str, tuple[float, float]]:
    """Return, for each URL, the milliseconds of the fastest request (since other programs only add
    to them) and the milliseconds of CPU time that it used.
    """
    fill(database, home, scans)
    client = a_reader(database, home)
    app = client.application
    pids = sessions(app)
    figures = {}
    for what, address in addresses(scans):
        took, used = [], []
        for _ in range(TIMES):
            began, before = time.perf_counter(), processor_s(pids)
            answer = client.get(address)
            used.append((processor_s(pids) - before) * 1000)
            took.append((time.perf_counter() - began) * 1000)
            if answer.status_code != 200:
                raise RuntimeError(f"{address} was answered with {answer.status}.")
        figures[what] = min(took), min(used)
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
    return figures


def main() -> int:
    """Measure, print a line per address and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=100_000, help="how many (default 100000)")
    scans = parser.parse_args().scans
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores; {scans} scans; the fastest of"
        f" {TIMES} requests\n"
    )
    broken = []
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hemoscan-worklist-")))
        databases = {"SQLite": f"sqlite:///{home}/bench.db"}
        if server := os.environ.get("BENCH_POSTGRES"):
            databases["PostgreSQL"] = stack.enter_context(postgres_database(server))
        for kind, database in databases.items():
            for what, (took, used) in measured(database, home, scans).items():
                sys.stdout.write(
                    f"{kind:12} {what:40} {took:7.1f} ms, {used:6.1f} ms of a processor\n"
                )
                if took > MOST_MS:
                    broken.append(f"{kind} {what}")
    limit = f"{MOST_MS:g} ms"
    sys.stdout.write(f"over {limit}: {', '.join(broken)}\n" if broken else f"all below {limit}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
