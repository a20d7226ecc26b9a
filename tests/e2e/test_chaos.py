"""`make chaos`, short: the same faults on every run. A database is restarted, a worker and the
DICOM listener are killed, the broker is flushed, and an archive cuts the connection. Without them,
some of what can go wrong in the lab.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

from bench.chaos import faults
from bench.chaos.lab.cases import CASES
from bench.chaos.lab.kill_points import kill_point
from bench.chaos.lab.killed_jobs import JOBS, differing, empty_parts
from bench.chaos.lab.maintenance import WORK
from bench.chaos.servers import NotInstalled, postgres_programs
from bench.chaos.stack import INSIDE, Program, Stack
from tests.conftest import unreachable
from webapp.config import PROJECT_ROOT
from webapp.jobs import MAINTENANCE, QUEUE_OF_TASK
from webapp.models import Leased

SHORT = [
    "--stack",
    "postgres",
    "--scans",
    "24",
    "--faults",
    "5",
    "--trainings",
    "0",
    "--seed",
    "299",
    "--no-lab",
]
PATIENCE = ["--within", "240"]  # A machine that is busy otherwise is slow, not broken.


def test_whatever_dies_every_scan_ends_in_one_verdict(tmp_path: Path) -> None:
    try:
        postgres_programs()
    except NotInstalled as err:
        unreachable(str(err))
    report = tmp_path / "chaos.md"
    command = [sys.executable, "-m", "bench.chaos", *SHORT, *PATIENCE, "--report", str(report)]
    ran = subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=280, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith(
        "Passed: 26 scans (2 by DICOM, with results delivered), 5 faults; nothing lost, duplicated"
        " or stuck; "
    )
    assert report.read_text(encoding="utf-8").splitlines()[2] == ran.stdout.splitlines()[-1]


@pytest.mark.timeout(600)  # It takes a minute or two on an idle machine.
def test_what_goes_wrong_in_the_lab_ends_as_it_should(tmp_path: Path) -> None:
    # A few of the cases, of each queue, and one without a lease; `make chaos` carries out all.
    cases = [
        "worker killed during: creation of a report",
        "worker killed during: import of a data set",
        "worker killed during: sending of a notification",
        "process killed during: sealing of the audit log",
    ]
    only = ["--stack", "embedded", "--scans", "0", "--faults", "0", "--trainings", "0"]
    report = tmp_path / "chaos.md"
    command = [sys.executable, "-m", "bench.chaos", *only, *PATIENCE, "--report", str(report)]
    for case in cases:
        command += ["--case", case]
    ran = subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=580, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].endswith(f"; {len(cases)} lab cases ended as intended.")
    page = report.read_text(encoding="utf-8")
    assert [case for case in CASES if f"| {case} | " in page] == [
        case for case in CASES if case in cases
    ]


def test_the_worker_of_every_kind_of_job_is_killed() -> None:
    assert {job.table for job in JOBS.values()} == set(Leased.__subclasses__())


def test_a_process_is_killed_in_every_task_that_runs_by_the_clock_and_in_work_without_a_lease() -> (
    None
):
    assert {work.task for work in WORK.values()} >= {
        task for task, queue in QUEUE_OF_TASK.items() if queue == MAINTENANCE
    }
    without_a_lease = {"check of a version", "description of a version"}
    assert without_a_lease < set(WORK)


ADDS_A_ROW = """
import sys, worker.leases
from sqlalchemy import create_engine, text
with create_engine(f"sqlite:///{sys.argv[1]}").begin() as connection:
    connection.execute(text("CREATE TABLE IF NOT EXISTS picture (size INTEGER)"))
    connection.execute(text("INSERT INTO picture VALUES (:size)"), {"size": 7})
"""


def test_a_process_dies_before_the_commit_that_a_kill_point_names_and_the_next_one_does_not(
    tmp_path: Path,
) -> None:
    points = tmp_path / "points"
    (points / "kills").mkdir(parents=True)
    stack = SimpleNamespace(points=points)
    environ = os.environ | {"PYTHONPATH": str(INSIDE), "CHAOS_POINTS": str(points)}
    command = [sys.executable, "-c", ADDS_A_ROW, str(tmp_path / "rows.db")]

    def add_row() -> int:
        return subprocess.run(command, cwd=PROJECT_ROOT, env=environ, check=False).returncode

    with kill_point(cast(Stack, stack), "commit INSERT INTO picture .*7") as point:
        assert (add_row(), point.kills) == (-signal.SIGKILL, 1)
        assert (add_row(), point.kills) == (0, 1)
    with sqlite3.connect(tmp_path / "rows.db") as database:
        assert database.execute("SELECT size FROM picture").fetchall() == [(7,)]
    with kill_point(cast(Stack, stack), "open .*/rows.db", always=True) as point:
        command[2:] = ["import sys; open(sys.argv[1])", str(tmp_path / "rows.db")]
        assert [add_row(), add_row()] == [-signal.SIGKILL] * 2 and point.kills == 2


def test_results_in_which_there_is_nothing_are_named() -> None:
    result = {"rows": [{"p": None}], "files": {}, "same": False, "errors": []}
    assert empty_parts(result, ["errors"]) == ["rows", "files"]
    assert empty_parts([], ()) == ["result"] and empty_parts(0, ()) == []


def test_differences_between_results_are_named() -> None:
    undisturbed = {"files": {"a.png": "1f", "b.png": "2e"}, "rows": [{"p": 0.5}]}
    assert differing(undisturbed, undisturbed) == []
    assert differing({"files": {"a.png": "1f"}, "rows": [{"p": 0.25}]}, undisturbed) == [
        ".files.b.png None '2e'",
        ".rows[0].p 0.25 0.5",
    ]
    assert differing([1, 1], [1]) == [" [1, 1] [1]"], "a result twice"


def test_a_full_disk_passes_over_confined_decoders_only_and_says_where_it_limited_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = {7: "python -m celery", 8: "python -m ml.decode 2048 /tmp/home"}
    forbidden = {8}

    def prlimit(pid: int, *_limit: object) -> None:
        if pid in forbidden:
            raise PermissionError

    monkeypatch.setattr(faults, "descendants", lambda pid: running)
    monkeypatch.setattr(faults.resource, "prlimit", prlimit)
    assert faults.limit_files(7, 20_000) == 1
    forbidden.add(7)
    with pytest.raises(PermissionError):
        faults.limit_files(7, 20_000)

    def ended(*_limit: object) -> NoReturn:
        raise ProcessLookupError

    monkeypatch.setattr(faults.resource, "prlimit", ended)
    assert faults.limit_files(7, 20_000) == 0
    program = Program("web", "true", {}, Path("web.log"))
    assert faults.NOTHING_LIMITED in faults.fill_disk_of(program, 0)
