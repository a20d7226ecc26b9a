"""`make fuzz`, short: the same 40 spoiled uploads, four messages of DICOMweb, and a form and a
query for each route, on every run; the API is asked in `tests/webapp/test_api_document.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from webapp.config import PROJECT_ROOT

SHORT = ["--inputs", "40", "--requests", "0", "--seed", "7"]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Memory is measured as Linux tells it."
)
def test_whatever_is_sent_is_refused_read_or_answered_with_a_sentence(tmp_path: Path) -> None:
    report = tmp_path / "fuzz.md"
    command = [sys.executable, "-m", "bench.fuzz", *SHORT, "--report", str(report)]
    ran = subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=280, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("Passed: 40 uploads, ")
    assert report.read_text(encoding="utf-8").splitlines()[-1] == ran.stdout.splitlines()[-1]
