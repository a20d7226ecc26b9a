"""Benchmark of claiming a batch among ten thousand queued scans of several users.

    python -m bench.claims [--people 20]

Runs on a new SQLite file and, if `BENCH_POSTGRES` is set (postgresql://user@host:port), on a new
PostgreSQL database, which is dropped afterwards. It reports times and has no limits.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import insert

from webapp import create_app
from webapp.extensions import db
from webapp.models import Scan, User
from worker import leases

QUEUED, FINISHED, BATCH, CLAIMS = 10_000, 100_000, 8, 40
MOST_MS = 20.0
"""Target for a claim on PostgreSQL, in milliseconds, for teams with several workers."""


@contextmanager
def postgres_database(server: str) -> Iterator[str]:
    """Create a database on that server, yield its URL, and drop it."""
    name = f"hemoscan_bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{server}/{name}"
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def claim_ms(database: str, home: Path, people: int, queued: int = QUEUED) -> list[float]:
    """Return the milliseconds per claim including the commit; every other scan belongs to the first
    user.
    """
    app = create_app(
        {
            "SECRET_KEY": "bench",
            "HEMOSCAN_HOME": home,
            "DATABASE_URL": database,
            "BROKER_URL": "redis://127.0.0.1:9",
        }
    )
    with app.app_context():
        db.create_all()
        users = [User(username=f"person {number}", password="bench") for number in range(people)]
        db.session.add_all(users)
        db.session.flush()
        owners = [users[number % people if number % 2 else 0].id for number in range(queued)]
        db.session.execute(
            insert(Scan),
            [{"user_id": owner, "kind": "png", "original_key": "none"} for owner in owners],
        )
        done = [
            {
                "user_id": owners[number % queued],
                "kind": "png",
                "original_key": "none",
                "status": "done",
            }
            for number in range(FINISHED)
        ]
        db.session.execute(insert(Scan), done)
        db.session.commit()
        took = []
        for number in range(CLAIMS):
            began = time.perf_counter()
            leases.claim(Scan, f"worker {number}", BATCH)
            db.session.commit()
            took.append((time.perf_counter() - began) * 1000)
        db.session.remove()
        db.engine.dispose()
    return took


def main() -> int:
    """Measure and print a line per database."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--people",
        type=int,
        default=20,
        help="number of users who submitted the scans (default 20)",
    )
    people = parser.parse_args().people
    among = f"{QUEUED} queued scans of {people} people, {FINISHED} finished"
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores; {CLAIMS} claims of {BATCH} among {among}\n"
    )

    def tell(kind: str, took: list[float]) -> None:
        middle, worst = statistics.median(took), max(took)
        sys.stdout.write(
            f"{kind:12} median {middle:6.1f} ms   first {took[0]:6.1f} ms   worst {worst:6.1f} ms\n"
        )

    with tempfile.TemporaryDirectory() as home:
        tell("SQLite", claim_ms(f"sqlite:///{home}/bench.db", Path(home), people))
        if server := os.environ.get("BENCH_POSTGRES"):
            with postgres_database(server) as database:
                took = claim_ms(database, Path(home), people)
            tell("PostgreSQL", took)
            return int(statistics.median(took) > MOST_MS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
