"""Readers that others wrote, by which tests judge the files of reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pypdfium2
import pytest


def text_of(pdf: bytes) -> str:
    """Return the text of a PDF of one page, as PDFium (the reader of Chromium) finds it."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        assert len(document) == 1
        assert document[0].render(scale=0.2).to_pil().getextrema() != ((255, 255),) * 3
        return str(document[0].get_textpage().get_text_range())
    finally:
        document.close()


def require_valid(path: Path) -> str:
    """Fail where dciodvfy (D. Clunie's dicom3tools) finds an error in a DICOM object; return what
    it says of a structured report, else nothing.
    """
    tools = Path(sys.executable).parent
    completed = subprocess.run(
        [tools / "dciodvfy", "-new", path], capture_output=True, text=True, check=False, timeout=60
    )
    errors = [
        line for line in (completed.stdout + completed.stderr).splitlines() if "Error" in line
    ]
    assert errors == [] and completed.returncode == 0
    return completed.stdout


def dumped_by_dcmtk(tool: str, path: Path, *options: str) -> str:
    """Return what a tool of dcmtk (dsrdump, dcmdump) prints of a file; CI has it, elsewhere the
    test skips.
    """
    if shutil.which(tool) is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {tool}.")
        pytest.skip(f"{tool} is not installed here.")
    completed = subprocess.run(
        [tool, *options, path], capture_output=True, text=True, check=True, timeout=60
    )
    return completed.stdout
