"""`make run`'s own process set, started, used, stopped and started again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
import requests

from ml.catalogue import STARTER_DIR
from tests.e2e.conftest import eventually, free_port
from webapp.config import PROJECT_ROOT, socket_path
from webapp.embedded import processes
from webapp.embedded.checks import is_alive
from webapp.space import NO_SPACE

PHANTOM = PROJECT_ROOT / "webapp" / "static" / "phantoms" / "phantom-1.png"
READY_S = 90
STOP_S = 40
FULL_S = 8
"""Longer than a sweep and a heartbeat take to come round."""


class MakeRun:
    """What `make run` starts, on a folder and port of its own; `said` is what it has told so
    far.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.with_suffix(".log")
        self.environ = {
            name: value for name, value in os.environ.items() if not name.endswith("_URL")
        }
        self.environ |= {"HEMOSCAN_HOME": str(home), "PORT": str(self.port), "WEB_PROCESSES": "1"}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def begin(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "webapp.embedded"],
                cwd=PROJECT_ROOT,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start it and wait until a scan would be answered."""
        starts = self.output.count("Hemoscan is running at") if self.log.exists() else 0
        self.begin()
        # A run that was killed may still answer for a moment, so this one must have said that it is
        # up.
        eventually(
            lambda: self.output.count("Hemoscan is running at") > starts and self.is_ready(),
            "It is ready",
            READY_S,
        )

    def is_ready(self) -> bool:
        """True if /readyz says so."""
        assert self.process is not None and self.process.poll() is None, self.output
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    def stop(self, by: signal.Signals) -> int:
        """Send the signal as a terminal does, to the whole foreground group; return the exit
        status.
        """
        assert self.process is not None
        os.killpg(self.process.pid, by)
        status = self.process.wait(STOP_S)
        self.process = None
        return status

    def again(self, **environ: str) -> subprocess.CompletedProcess[str]:
        """Try to start another one beside it."""
        return subprocess.run(
            [sys.executable, "-m", "webapp.embedded"],
            cwd=PROJECT_ROOT,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def flask(self, *arguments: str) -> str:
        """Run a command in a second terminal; return the last line it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "webapp", *arguments],
            cwd=PROJECT_ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=True,
        )
        return done.stdout.splitlines()[-1]

    def remains(self) -> list[str]:
        """Return the command lines of all processes that work on this folder."""
        left = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and f"HEMOSCAN_HOME={self.home}\0".encode()
                    in (entry / "environ").read_bytes() + b"\0"
                ):
                    left.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (OSError, ValueError):
                continue  # It has ended meanwhile.
        return left

    def kill(self) -> None:
        """End what a failed test left."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(STOP_S)


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """A folder for `make run`, with a space in its name as folders have."""
    started = MakeRun(tmp_path / "my home")
    yield started
    started.kill()


def test_make_run_is_used_stopped_and_started_again(make_run: MakeRun) -> None:
    make_run.start()
    token = the_first_admin_logs_in(make_run)
    if (STARTER_DIR / "card.json").exists():
        scan = a_phantom_is_answered(make_run, token)

    busy = make_run.again(HEMOSCAN_HOME=f"{make_run.home} 2")
    assert (busy.returncode, busy.stdout) == (
        1,
        f"Port {make_run.port} is already in use. Choose another one:"
        f" PORT={make_run.port + 1} make run\n",
    )
    second = make_run.again(PORT=str(free_port()))
    assert second.returncode == 1
    assert (
        second.stdout
        == f"Another `make run` is using {make_run.home}; stop it first, or choose another"
        " HEMOSCAN_HOME.\n"
    )

    assert make_run.stop(signal.SIGINT) == 0, make_run.output
    assert make_run.remains() == []
    assert make_run.output.endswith("Hemoscan has stopped.\n")
    assert "Traceback" not in make_run.output, make_run.output

    make_run.start()
    assert make_run.output.count("with the password") == 1
    # A line of progress, then the address and how to log in; nothing that looks like an error.
    lines = ("Starting Hemoscan", "Hemoscan is running at", "first administrator is", "has stopped")
    assert [make_run.output.index(each) for each in lines] == sorted(
        map(make_run.output.index, lines)
    )
    assert make_run.output.count("Log in with your account.") == 1
    assert not re.search("warning|oneDNN", make_run.output, re.I), make_run.output
    if (STARTER_DIR / "card.json").exists():
        response = requests.get(
            f"{make_run.url}/api/v1/scans/{scan}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
        )
        assert response.json()["status"] == "done"
    assert make_run.stop(signal.SIGTERM) == 0
    assert make_run.remains() == []


def the_first_admin_logs_in(make_run: MakeRun) -> str:
    """Log in with what the terminal showed; return a token made in a second terminal."""
    shown = re.search(
        r"The first administrator is '(\w+)' with the password (\S+) ", make_run.output
    )
    assert shown, make_run.output
    browser = requests.Session()
    page = browser.get(f"{make_run.url}/login", timeout=10).text
    csrf = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert csrf, page
    form = {"username": shown[1], "password": shown[2], "csrf_token": csrf[1]}
    home = browser.post(f"{make_run.url}/login", data=form, timeout=10)
    assert home.url == f"{make_run.url}/scans", home.text
    assert browser.get(f"{make_run.url}/admin", timeout=10).status_code == 200
    return make_run.flask("create-token", shown[1])


def a_phantom_is_answered(make_run: MakeRun, token: str) -> str:
    """Upload a phantom through the API and wait for the verdict; return the scan's id."""
    headers = {"Authorization": f"Bearer {token}"}
    sent = requests.post(
        f"{make_run.url}/api/v1/scans",
        headers=headers,
        files={"file": PHANTOM.read_bytes()},
        timeout=10,
    )
    assert sent.status_code == 202, sent.text
    scan_id: str = sent.json()["id"]

    def verdict() -> dict[str, object] | None:
        scan = requests.get(
            f"{make_run.url}/api/v1/scans/{scan_id}", headers=headers, timeout=10
        ).json()
        return scan if scan["status"] in ("done", "failed") else None

    scan = eventually(verdict, "The phantom gets a verdict", within_s=60)
    assert scan is not None and scan["status"] == "done", scan
    return scan_id


def test_a_run_that_was_killed_takes_its_processes_along_and_frees_the_folder(
    make_run: MakeRun,
) -> None:
    make_run.start()
    assert make_run.process is not None
    make_run.process.kill()
    make_run.process.wait()
    eventually(
        lambda: not make_run.remains(),
        "Its processes and its broker end by themselves",
        within_s=30,
    )

    make_run.start()
    make_run.process.kill()
    make_run.process.wait()
    make_run.start()

    assert make_run.stop(signal.SIGINT) == 0, make_run.output
    eventually(lambda: not make_run.remains(), "Nothing is left running", within_s=30)


def test_a_killed_process_that_nobody_has_waited_for_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert is_alive(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_alive(child.pid) is not Path("/proc").exists()
    assert not is_alive(child.pid)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_during_its_setup_leaves_nothing_and_shows_the_password(
    make_run: MakeRun, by: signal.Signals
) -> None:
    """`SIGKILL` leaves no time to show it, but its setup must not run beside that of the next."""
    make_run.begin()
    assert make_run.process is not None
    eventually(
        lambda: any("webapp.setup" in each for each in make_run.remains()),
        "The setup runs",
        READY_S,
    )
    if by == signal.SIGKILL:
        make_run.process.kill()
        make_run.process.wait()
        eventually(lambda: not make_run.remains(), "The setup and the broker end", within_s=30)
    else:
        assert make_run.stop(by) == 0, make_run.output
        assert make_run.remains() == []
        assert make_run.output.count("with the password") == 1
        assert "Traceback" not in make_run.output


def test_processes_that_die_are_restarted(make_run: MakeRun) -> None:
    """A process that was killed, then the broker, beside files of it that are damaged."""
    (make_run.home / "broker" / "appendonlydir").mkdir(parents=True)
    for name in ("dump.rdb", "appendonlydir/appendonly.aof.manifest"):
        (make_run.home / "broker" / name).write_bytes(b"REDIS0011 half of what it was")
    make_run.start()
    assert make_run.process is not None
    web = re.findall(r"web started \(pid=(\d+)\)", make_run.output)[-1]
    os.kill(int(web), signal.SIGKILL)
    eventually(
        lambda: make_run.output.count("web started") == 2 and make_run.is_ready(),
        "The web process answers again",
        READY_S,
    )
    assert "exited (status -9) and is being restarted" in make_run.output

    with redis.Redis(unix_socket_path=str(socket_path(make_run.home))) as client:
        killed = int(client.info("server")["process_id"])
        os.kill(killed, signal.SIGKILL)
        eventually(
            lambda: pid_of_broker(make_run) not in (None, killed), "The broker answers again", 30
        )
    assert "The embedded broker exited and is being restarted." in make_run.output
    if (STARTER_DIR / "card.json").exists():
        a_phantom_is_answered(make_run, the_first_admin_logs_in(make_run))

    assert make_run.stop(signal.SIGINT) == 0, make_run.output
    assert make_run.remains() == []
    broker_files = {path.name for path in (make_run.home / "broker").iterdir()}
    assert broker_files == {"valkey.conf", "valkey.log"}


@contextmanager
def a_disk_of_its_own(folder: Path, size_mb: int) -> Iterator[None]:
    """Make `folder` a small file system; only root may."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("A file system of the test's own cannot be mounted here.")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path, leaving_mb: int) -> None:
    """Let a file grow until so much is free."""
    with file.open("ab", buffering=0) as filler, suppress(OSError):
        while shutil.disk_usage(file.parent).free > leaving_mb * 2**20:
            filler.write(bytes(2**16))


def test_a_full_disk_ends_nothing(make_run: MakeRun) -> None:
    with a_disk_of_its_own(make_run.home, 120):
        make_run.environ["MIN_FREE_MB"] = "20"
        make_run.start()
        token = the_first_admin_logs_in(make_run)
        headers = {"Authorization": f"Bearer {token}"}
        scans = f"{make_run.url}/api/v1/scans"

        fill(make_run.home / "filler", leaving_mb=10)
        sent = requests.post(
            scans, headers=headers, files={"file": PHANTOM.read_bytes()}, timeout=20
        )
        assert (sent.status_code, sent.json()["detail"]) == (507, NO_SPACE)
        ready = requests.get(f"{make_run.url}/readyz", timeout=20)
        assert (ready.status_code, ready.json()["checks"]["free_space"]) == (503, False)
        the_first_admin_logs_in(make_run)

        fill(make_run.home / "filler", leaving_mb=0)
        deadline = time.monotonic() + FULL_S
        while time.monotonic() < deadline:
            assert requests.get(scans, headers=headers, timeout=20).status_code == 200
            time.sleep(0.5)
        assert make_run.process is not None and make_run.process.poll() is None, make_run.output
        assert "ended by itself" not in make_run.output, make_run.output

        (make_run.home / "filler").unlink()
        eventually(make_run.is_ready, "It is ready again", READY_S)
        if (STARTER_DIR / "card.json").exists():
            a_phantom_is_answered(make_run, token)
        assert make_run.stop(signal.SIGINT) == 0, make_run.output
        assert make_run.remains() == []


def pid_of_broker(make_run: MakeRun) -> int | None:
    """Return the process that the broker is, None where nobody answers."""
    try:
        with redis.Redis(unix_socket_path=str(socket_path(make_run.home))) as client:
            return int(client.info("server")["process_id"])
    except redis.ConnectionError:
        return None


def test_a_process_that_cannot_work_ends_everything(make_run: MakeRun) -> None:
    make_run.environ["WEB_PROCESSES"] = "many"
    output = make_run.again()

    assert output.returncode == 1
    assert output.stdout.endswith(
        "A process exited unexpectedly (status 1; see above), so all processes were stopped.\n"
    )
    eventually(lambda: not make_run.remains(), "Nothing is left running", within_s=30)


@pytest.mark.parametrize("port", ["http", "0", "65536"])
def test_a_port_that_is_none_is_a_sentence(make_run: MakeRun, port: str) -> None:
    output = make_run.again(PORT=port)

    assert (output.returncode, output.stdout) == (
        1,
        f"PORT must be a number from 1 to 65535, not '{port}'.\n",
    )


def test_a_port_that_is_taken_is_a_sentence_and_nothing_is_begun(make_run: MakeRun) -> None:
    with socket.create_server(("127.0.0.1", make_run.port)):
        output = make_run.again()

    assert (output.returncode, output.stdout) == (
        1,
        f"Port {make_run.port} is already in use. Choose another one:"
        f" PORT={make_run.port + 1} make run\n",
    )
    assert not (make_run.home / "hemoscan.db").exists()


def test_a_missing_key_is_a_sentence(make_run: MakeRun) -> None:
    output = make_run.again(BROKER_URL="redis://127.0.0.1:1")

    assert output.returncode == 1
    assert output.stdout.startswith(
        "DATABASE_URL or BROKER_URL is set, so SECRET_KEY must be set too"
    )


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (64, 4)])
def test_the_one_predict_worker_uses_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    assert processes.threads_of_one_worker() == threads
