"""What a prediction depends on besides its model version: software, machine and settings. They are
recorded with each prediction, so that it can be replayed.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flask import current_app

from webapp.config import PROJECT_ROOT
from webapp.models import ModelVersion, environment_id
from worker.heartbeat import heartbeat
from worker.retries import in_transaction

PACKAGES = {
    "onnxruntime": "ONNX Runtime",
    "numpy": "NumPy",
    "opencv-python-headless": "OpenCV",
    "pillow": "Pillow",
    "pydicom": "pydicom",
    "pylibjpeg-libjpeg": "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg": "pylibjpeg-openjpeg",
}
"""The libraries between a file and its prediction."""
CODE = ("scans", "preprocessing", "inference", "artifacts")
"""The packages of `ml` between a file and its prediction."""
CPU_FLAGS = frozenset(
    {"sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "asimd", "asimddp", "i8mm", "bf16", "sve"}
)
"""Processor features for which ONNX Runtime has special kernels; the variants of AVX-512 and AMX
are matched by prefix.
"""
CPU_PREFIXES = ("avx512", "amx")


def here() -> str:
    """Return the id under which the environment of this process is stored."""
    mine = heartbeat()
    if mine.environment_id is None:
        content = environment(current_app.config["PREDICT_THREADS"])
        mine.environment_id = in_transaction(lambda: environment_id(content))
    return mine.environment_id


def settings_of(version: ModelVersion) -> dict[str, Any]:
    """Return the settings that this process currently uses with a version."""
    return {
        "slice_threshold": version.slice_threshold,
        "scan_threshold": version.scan_threshold,
        "masks_outside_head": current_app.config["MASK_OUTSIDE_HEAD"],
    }


@cache
def environment(threads: int) -> dict[str, Any]:
    """Return what this process's predictions depend on, by display names."""
    return {
        "Hemoscan's code": _code(),
        "Python": platform.python_version(),
        **{title: version for name, title in PACKAGES.items() if (version := _version_of(name))},
        **_processor(),
        "Threads": str(threads),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[list[str]]:
    """Return what differs between two environments: [name, before, now]."""
    return [
        [name, str(before.get(name, "none")), str(now.get(name, "none"))]
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def _code() -> str:
    digest = hashlib.sha256()
    for package in CODE:
        for path in sorted((PROJECT_ROOT / "ml" / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> dict[str, str]:
    """Return architecture, model and features of the processor, if Linux reports them."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    flags = {
        flag
        for flag in (facts.get("flags") or facts.get("Features") or "").split()
        if flag in CPU_FLAGS or flag.startswith(CPU_PREFIXES)
    }
    model = facts.get("model name") or platform.processor() or "unknown"
    return {
        "Processor": f"{platform.machine()}, {model}",
        "Its features": " ".join(sorted(flags)) or "unknown",
    }
