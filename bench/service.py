"""Benchmark of the service: upload response, first verdict, worker start, memory.

    python -m bench.service [--requests 200]

Starts the processes of `make run` with an empty folder on a free port, measures, and stops them.
The last line is the verdict; the exit status is 1 if a limit is exceeded. Linux only (memory is
read from /proc).
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.alone import report
from ml.scans.phantoms import phantom, write_dicom
from webapp.config import PROJECT_ROOT

LIMITS = {
    "upload_median_ms": 100.0,
    "first_verdict_s": 3.0,
    "predict_ready_s": 3.0,
    "web_rss_mb": 120.0,
    "series_of_40_verdict_s": 6.0,
    "series_of_200_reply_s": 3.0,
    "series_of_200_verdict_s": 20.0,
}
SERIES = {40: 5.0, 200: 1.0}
"""Slices of the uploaded series, and their spacing in mm."""
HEADS = 10  # number of different phantoms, which are repeated in a series


class Refused(RuntimeError):
    """The service responded with an error; the message is its status and body.

    Attributes:
        retry_after: the header of that name, empty if missing.
    """

    def __init__(self, status: int, body: str, retry_after: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.retry_after = status, retry_after


class Client:
    """A keep-alive connection to the JSON API; files go to the path `scans`."""

    def __init__(self, port: int, token: str, scans: str = "/api/v1/scans") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.headers = {"Authorization": f"Bearer {token}"}
        self.scans = scans

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON response.

        Raises:
            Refused: it is an error.
        """
        self.connection.request(method, path, body, {**self.headers, **(headers or {})})
        response = self.connection.getresponse()
        content = response.read()
        if response.status >= 400:
            text = content.decode(errors="replace")
            raise Refused(response.status, text, response.headers.get("Retry-After", ""))
        answer: dict[str, Any] = json.loads(content)
        return answer

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Submit a file like a browser."""
        boundary = uuid.uuid4().hex
        disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"'
        head = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return self.call(
            "POST",
            self.scans,
            body,
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def seconds_until(condition: Any, limit_s: float) -> float:
    """Return the seconds until `condition()` is true; raise an error after `limit_s`."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        if condition():
            return time.perf_counter() - begin
        time.sleep(0.02)
    raise TimeoutError(f"Not within {limit_s:g} s.")


def is_ready(port: int, path: str = "/readyz") -> bool:
    """Return whether database, broker and a predict worker are ready, or, with `/healthz`, the web
    application.
    """
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False


def commands() -> dict[int, tuple[int, str]]:
    """Return parent and command line of every process."""
    processes = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                status = (entry / "status").read_text()
                parent = int(re.search(r"^PPid:\s+(\d+)", status, re.M).group(1))  # type: ignore[union-attr]
            except (OSError, AttributeError):
                continue
            processes[int(entry.name)] = (parent, command)
    return processes


def descendants(root_pid: int) -> dict[int, str]:
    """Return the command lines of all processes below `root_pid`."""
    everyone, below = commands(), {root_pid}
    while True:
        more = {pid for pid, (parent, _) in everyone.items() if parent in below} - below
        if not more:
            return {pid: everyone[pid][1] for pid in below if pid in everyone}
        below |= more


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = re.search(r"^VmRSS:\s+(\d+)", status, re.M)
    return int(resident.group(1)) / 1024  # type: ignore[union-attr]


def percentile(values: list[float], share: float) -> float:
    """Return the quantile `share` of the values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@dataclass
class Service:
    """The processes of `make run`, with an administrator's token; `ready_s` is how long their start
    took.
    """

    port: int
    token: str
    pid: int
    environ: dict[str, str]
    ready_s: float


@contextmanager
def running_service(**settings: str) -> Iterator[Service]:
    """Start the processes of `make run` with an empty folder on a free port; stop them at the
    end.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as home:
        environ = {**os.environ, "HEMOSCAN_HOME": home, "PORT": str(port), **settings}
        for name in ("DATABASE_URL", "BROKER_URL", "STORAGE_URL"):
            environ.pop(name, None)
        flask("setup", environ)
        service = subprocess.Popen(
            [sys.executable, "-m", "webapp.embedded"],
            cwd=PROJECT_ROOT,
            env=environ,
            stdout=subprocess.DEVNULL,
        )
        try:
            ready_s = seconds_until(lambda: is_ready(port), 120)
            flask("create-admin bench", {**environ, "HEMOSCAN_PASSWORD": uuid.uuid4().hex})
            token = flask("create-token bench", environ).strip().splitlines()[-1]
            yield Service(port, token, service.pid, environ, ready_s)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(60)


def a_slice() -> bytes:
    """Return a PNG image of a phantom."""
    phantoms = PROJECT_ROOT / "webapp" / "static" / "phantoms"
    return sorted(phantoms.glob("*.png"))[0].read_bytes()


def measure(requests: int) -> dict[str, float]:
    """Run the service and return the results."""
    with running_service() as service:
        figures = {"ready_s": service.ready_s}
        client = Client(service.port, service.token)
        begin = time.perf_counter()
        wait_for_verdict(client, client.upload("slice.png", a_slice())["id"], 30)
        figures["first_verdict_s"] = time.perf_counter() - begin
        for slices, distance_mm in SERIES.items():
            figures |= figures_of_series(client, slices, distance_mm)
        figures |= figures_of_uploads(client, a_slice(), requests)

        processes = descendants(service.pid)
        figures["web_rss_mb"] = max(
            rss_mb(pid) for pid, command in processes.items() if "gunicorn" in command
        )
        predict = [pid for pid, command in processes.items() if "-Q predict" in command]
        figures["predict_rss_mb"] = max(map(rss_mb, predict))
        figures["predict_ready_s"] = predict_worker_ready_s(service.environ)
    return figures


def flask(command: str, environ: dict[str, str]) -> str:
    """Run one of the application's commands and return what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "webapp", *command.split()],
        cwd=PROJECT_ROOT,
        env=environ,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def wait_for_verdict(client: Client, scan_id: str, limit_s: float) -> None:
    """Return when the scan is done or has failed; raise an error after `limit_s`."""
    seconds_until(
        lambda: client.call("GET", f"/api/v1/scans/{scan_id}")["status"] in ("done", "failed"),
        limit_s,
    )


def figures_of_series(client: Client, slices: int, distance_mm: float) -> dict[str, float]:
    """Upload a series, wait until its heat maps are drawn, and return the seconds until the reply
    and until the verdict.
    """
    archive = series(slices, distance_mm)
    begin = time.perf_counter()
    scan_id = client.upload("series.zip", archive)["id"]
    reply_s = time.perf_counter() - begin
    wait_for_verdict(client, scan_id, 60)
    verdict_s = time.perf_counter() - begin
    seconds_until(lambda: is_drawn(client.call("GET", f"/api/v1/scans/{scan_id}")), 120)
    return {f"series_of_{slices}_reply_s": reply_s, f"series_of_{slices}_verdict_s": verdict_s}


def figures_of_uploads(client: Client, slice_file: bytes, requests: int) -> dict[str, float]:
    """Upload a slice many times and return the times of the replies and the throughput."""
    replies_ms, last = [], ""
    begin = time.perf_counter()
    for _ in range(requests):
        sent = time.perf_counter()
        last = client.upload("slice.png", slice_file)["id"]
        replies_ms.append((time.perf_counter() - sent) * 1000)
    wait_for_verdict(client, last, 120)
    return {
        "upload_median_ms": statistics.median(replies_ms),
        "upload_p95_ms": percentile(replies_ms, 0.95),
        "scans_per_s": requests / (time.perf_counter() - begin),
    }


def series(slices: int, distance_mm: float) -> bytes:
    """Return phantoms of 512 x 512 as DICOM files of one series in a ZIP."""
    heads = [phantom(number, hemorrhage=number % 2 == 0) for number in range(HEADS)]
    content = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for number in range(slices):
            path = Path(folder) / f"{number:03}.dcm"
            write_dicom(
                heads[number % HEADS], path, number=number, position_mm=number * distance_mm
            )
            archive.write(path, path.name)
    return content.getvalue()


def is_drawn(scan: dict[str, Any]) -> bool:
    """Return whether all heat maps of a scan are done."""
    result = scan["result"]
    return result is None or result["heatmap_url"] is None or bool(result["heatmap_slices"])


def predict_worker_ready_s(environ: dict[str, str], limit_s: float = 60) -> float:
    """Return the seconds from the start of a second predict worker until its heartbeat is in the
    database.
    """
    database = Path(environ["HEMOSCAN_HOME"]) / "hemoscan.db"

    def workers() -> int:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return int(
                connection.execute(
                    "SELECT count(*) FROM worker WHERE queue = 'predict'"
                ).fetchone()[0]
            )

    before = workers()
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker.app",
        "worker",
        "-Q",
        "predict",
        "-c",
        "1",
        "-n",
        "bench@%h",
    ]
    worker = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return seconds_until(lambda: workers() > before, limit_s)
    finally:
        worker.terminate()
        worker.wait(30)


def main() -> int:
    """Measure, print a line per result and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200, help="number of uploads (default 200)")
    figures = measure(parser.parse_args().requests)
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
    )
    return report(figures, LIMITS)


if __name__ == "__main__":
    sys.exit(main())
