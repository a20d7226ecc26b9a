"""`make chaos`, short: the same faults on every run. A database is restarted, a worker and the
DICOM listener are killed, the broker is flushed, and an archive cuts the connection. Without them,
what can go wrong in the lab.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from bench.chaos import faults
from bench.chaos.lab import CASES
from bench.chaos.servers import NotInstalled, postgres_programs
from bench.chaos.stack import Program
from tests.conftest import unreachable
from webapp.config import PROJECT_ROOT

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
        "Held: 26 scans, 2 of them by DICOM and answered, 5 faults, nothing lost, doubled or stuck"
    )
    assert report.read_text(encoding="utf-8").splitlines()[2] == ran.stdout.splitlines()[-1]


@pytest.mark.timeout(600)
def test_whatever_goes_wrong_in_the_lab_ends_as_it_should(tmp_path: Path) -> None:
    only = ["--stack", "embedded", "--scans", "0", "--faults", "0", "--trainings", "0"]
    report = tmp_path / "chaos.md"
    command = [sys.executable, "-m", "bench.chaos", *only, *PATIENCE, "--report", str(report)]
    ran = subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=580, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].endswith(f"; {len(CASES)} lab cases ended as intended.")
    page = report.read_text(encoding="utf-8")
    assert all(f"| {case} | " in page for case in CASES)


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
