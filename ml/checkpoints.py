"""Checkpoint files of a training run, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RESUMED = "resumed"
"""A metric that marks a report of progress as reached without computing: what lies before it came
from a checkpoint, so it says nothing about the speed.
"""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path` (whose folder is created); what the block writes
    there becomes `path` once all of it is on disk, unless the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    yield unfinished
    flush_to_disk(unfinished)
    unfinished.replace(path)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the list of names in a folder, so that it would survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one .npz file."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        # The names are keyword arguments of savez, whose type stub mistakes them for its flags.
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return what `save_arrays` wrote there, None if there is nothing."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as opened:
        return {name: opened[name] for name in opened.files}


def load_or_make_arrays(
    path: Path, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays in that file; if it does not exist, call `make`, save its result there and
    return it.
    """
    arrays = load_arrays(path)
    if arrays is None:
        arrays = dict(make())
        save_arrays(path, arrays)
    return arrays


def save_json(path: Path, value: object) -> None:
    """Write a value as JSON."""
    save_text(path, json.dumps(value, indent=1, sort_keys=True))


def save_text(path: Path, text: str) -> None:
    """Write text as UTF-8, with line endings unchanged."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def load_json(path: Path) -> Any:
    """Return what `save_json` wrote there, None if there is nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def digest(*parts: object) -> str:
    """Return the SHA-256 (hex) of the parts' text, in order."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
