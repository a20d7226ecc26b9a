"""Files that are there whole or not at all, and what is made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ml.checkpoints import (
    load_arrays,
    load_json,
    load_or_make_arrays,
    replacing,
    save_arrays,
    save_json,
    save_text,
)


def test_a_file_appears_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists() and unfinished.name.startswith(".")
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


def test_a_file_stays_as_it_was_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    with replacing(path) as unfinished:
        unfinished.write_text("after")
    assert path.read_text() == "after", "what an earlier try left is overwritten"


def test_saved_values_are_loaded_unchanged(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3), "b": np.eye(2, dtype=np.float16)}
    save_arrays(tmp_path / "arrays.npz", arrays)
    loaded = load_arrays(tmp_path / "arrays.npz")
    assert loaded is not None and loaded.keys() == arrays.keys()
    assert all(
        loaded[name].dtype == values.dtype and (loaded[name] == values).all()
        for name, values in arrays.items()
    )
    save_json(tmp_path / "value.json", {"b": [1, None]})
    assert load_json(tmp_path / "value.json") == {"b": [1, None]}
    save_text(tmp_path / "text", "ö\r\n")
    assert (tmp_path / "text").read_bytes() == "ö\r\n".encode()
    assert load_arrays(tmp_path / "nothing") is load_json(tmp_path / "nothing") is None


def test_arrays_are_made_once(tmp_path: Path) -> None:
    path, made = tmp_path / "own" / "weights.npz", list[int]()

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"w": np.full(2, len(made))}

    assert load_or_make_arrays(path, make)["w"].tolist() == [1, 1]
    assert load_or_make_arrays(path, make)["w"].tolist() == [1, 1] and len(made) == 1
