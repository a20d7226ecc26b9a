"""What a decoder that a file has taken over can still do: as good as nothing, whichever of the two
large measures a host allows.

Each attempt is made in a process of its own, and once without any measure: there it must succeed,
or else its failure would prove nothing.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from webapp.config import PROJECT_ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone confines so.")

SETUP = """
import ctypes, importlib, json, os, pathlib, socket, subprocess, sys, threading
import ml.confinement as confinement
folder, outside, port, abstract, without = sys.argv[1:]
if without != "all":
    if without:
        def refuse(*_): raise OSError("not on this host")
        setattr(confinement, without, refuse)
    holding = confinement.confine(
        pathlib.Path(folder), file_bytes=1000, memory_bytes=2**30
    )

def connect(family, kind, address):
    with socket.socket(family, kind) as client:
        client.connect(address)
        client.send(b"x")

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def start_thread():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()

attempts = {
    "environment of the parent": lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(),
    "tcp": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(port))),
    "abstract socket": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + abstract),
    "signal": lambda: os.kill(os.getppid(), 0),
    "fork": fork,
    "thread": start_thread,
    "program": lambda: subprocess.run(["/bin/true"], check=True),
    "read outside": lambda: open(outside + "/file").read(),
    "list outside": lambda: os.listdir(outside),
    "write outside": lambda: open(outside + "/new", "w"),
    "overwrite outside": lambda: open(outside + "/file", "w"),
    "remove outside": lambda: os.unlink(outside + "/file"),
    "large file": lambda: pathlib.Path(folder, "large").write_bytes(bytes(2000)),
    "many files": lambda: [open(folder + "/file") for _ in range(200)],
    "key beside the code": lambda: open("LICENSE").read(),
    "new namespaces again": lambda: confinement._call("unshare", 0x20000000),
}
succeeded = []
for name, attempt in attempts.items():
    try:
        kept = attempt()
    except (OSError, RuntimeError):
        continue
    succeeded.append(name)
    del kept
open(folder + "/new", "w").write("x")
read = open(folder + "/file").read()
modules = [importlib.import_module(name).__name__ for name in ("PIL.Image", "csv")]
print(json.dumps({"succeeded": succeeded, "all": sorted(attempts)}))
"""


@pytest.fixture
def abstract_socket() -> Iterator[str]:
    """The name of an abstract socket that somebody listens at."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")  # The kernel chooses a name.
        server.listen()
        yield server.getsockname()[1:].decode()


@pytest.fixture
def port() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def successes(tmp_path: Path, port: int, abstract: str, without: str) -> set[str]:
    """Return what can be done by a process that is confined without that measure."""
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    folders = (str(tmp_path / "inside"), str(tmp_path / "outside"))
    ran = subprocess.run(
        [sys.executable, "-c", SETUP, *folders, str(port), abstract, without],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    content = json.loads(ran.stdout)
    assert len(content["all"]) == 16
    return set(content["succeeded"])


def holding() -> set[str]:
    """Return the measures that this host allows."""
    ran = subprocess.run(
        [sys.executable, "-m", "ml.confinement"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stdout.splitlines())


def test_without_any_measure_every_attempt_succeeds(
    tmp_path: Path, port: int, abstract_socket: str
) -> None:
    done = successes(tmp_path, port, abstract_socket, "all")

    assert len(done | {"new namespaces again"}) == 16


def test_with_all_measures_nothing_succeeds(
    tmp_path: Path, port: int, abstract_socket: str
) -> None:
    if not {"namespaces", "Landlock"} <= holding():
        pytest.skip("This host does not allow both large measures.")

    assert successes(tmp_path, port, abstract_socket, "") == set()


def test_without_landlock_namespaces_keep_from_secrets_network_and_processes(
    tmp_path: Path, port: int, abstract_socket: str
) -> None:
    if "namespaces" not in holding():
        pytest.skip("This host allows no namespaces.")

    done = successes(tmp_path, port, abstract_socket, "_restrict_to")

    assert done == {
        "read outside",
        "list outside",
        "write outside",
        "overwrite outside",
        "remove outside",
        "key beside the code",
        "signal",
    }


def test_without_namespaces_landlock_keeps_from_secrets_files_and_network(
    tmp_path: Path, port: int, abstract_socket: str
) -> None:
    if "Landlock" not in holding():
        pytest.skip("This host has no Landlock.")

    done = successes(tmp_path, port, abstract_socket, "_leave_namespaces")

    # To root, the process limit does not apply.
    assert done <= {"fork", "thread"}
