"""Checkpoint files of a training, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        # The names are keywords of savez, whose stub takes them for its flags.
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return what `save_arrays` wrote there, None if there is nothing."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as opened:
        return {name: opened[name] for name in opened.files}


def save_json(path: Path, value: object) -> None:
    """Write a value as JSON."""
    save_text(path, json.dumps(value, indent=1, sort_keys=True))


def save_text(path: Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_json(path: Path) -> Any:
    """Return what `save_json` wrote there, None if there is nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def digest(*parts: object) -> str:
    """Return the SHA-256 (hex) of the parts' text, in order."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
