"""Decode scans in a separate process, to contain malicious files: `python -m ml.decode MEMORY_MB
FOLDER`. All files lie in that folder, and nothing else is read or written (`ml.confinement`).

A request is one line of JSON on standard input, and its response one line on standard output; the
process ends at the end of the input. A request:

    {"paths": [...], "folder": "...", "limit_s": 60, "limits": {"max_pixels": ...}, "redact": true}

The response is one of these:

    {"unit": "hu", "spacing_mm": [[0.5, 0.5], ...], "distance_mm": 5.0, "steps_mm": [...],
     "warnings": [...]}                      pixels in folder/pixels.npy
    {"error": "The file is empty."}          text of an `ImageError`
    {"error": null}                          out of memory
    {"full": "No space left on device"}      out of disk space

`limits` are those of `ml.scans.read.read_series`; `redact` blackens everything outside the head
(`ml.preprocessing.redaction`). Any other failure, and a scan that exceeds the time limit, ends the
process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ml.confinement import confine
from ml.errors import ImageError
from ml.preprocessing.redaction import covered
from ml.scans.read import read_series
from ml.scans.slices import FloatArray, Series

PIXELS = "pixels.npy"


def main(arguments: list[str]) -> int:
    """Respond to requests until the input ends."""
    memory_bytes, folder = int(arguments[0]) * 2**20, Path(arguments[1])
    # a core dump would contain patient images
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cv2.setNumThreads(0)  # no thread can be started afterwards
    # everything that is written was in memory before
    confine(folder, file_bytes=memory_bytes, memory_bytes=memory_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The output of a library must not be mistaken for a response.
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        # The alarm is not handled, so it kills this process even if a decoder hangs and nobody
        # waits for it.
        signal.alarm(request["limit_s"])
        response = respond_to(request)
        signal.alarm(0)
        responses.write(json.dumps(response) + "\n")
        responses.flush()
    return 0


def respond_to(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the pixels of one request and return its response."""
    try:
        series = read_series([Path(path) for path in request["paths"]], **request["limits"])
        if request.get("redact"):
            series = covered(series)
    except ImageError as err:
        return {"error": str(err)}
    except MemoryError:
        return {"error": None}
    try:
        write_pixels(series, Path(request["folder"]) / PIXELS)
    except OSError as err:
        return {"full": str(err.strerror)}
    return {
        "unit": series.slices[0].unit,
        "spacing_mm": [slice_.spacing_mm for slice_ in series.slices],
        "distance_mm": series.distance_mm,
        "steps_mm": series.steps_mm,
        "warnings": series.warnings,
    }


def write_pixels(series: Series, path: Path) -> None:
    """Write all slices as one array (n, height, width), slice by slice: int16 if that represents
    every value exactly, as it does the Hounsfield units of most scanners, else float32.
    """
    shape = (len(series.slices), *series.slices[0].pixels.shape)
    kind = "<i2" if all(_are_int16(slice_.pixels) for slice_ in series.slices) else "<f4"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": kind, "fortran_order": False, "shape": shape}
        )
        for slice_ in series.slices:
            file.write(slice_.pixels.astype(kind, order="C", copy=False).data)


def _are_int16(pixels: FloatArray) -> bool:
    with np.errstate(invalid="ignore"):  # out-of-range values and NaN, which then differ
        return np.array_equal(pixels, pixels.astype(np.int16))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
