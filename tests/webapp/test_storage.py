"""The storage: the same promises in a folder and on S3."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from webapp.storage import MissingFile, Storage, StorageError, StorageUnavailable, new_key


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A new storage of each kind."""
    new = Storage(
        f"file://{tmp_path / 'files'}"
        if request.param == "folder"
        else str(request.getfixturevalue("s3_url"))
    )
    new.start()
    return new


def test_what_was_put_is_read_back(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "local.bin").write_bytes(b"from a file")
    storage.put("originals/a.png", b"bytes")
    storage.put("datasets/b.zip", tmp_path / "local.bin")

    assert storage.get("originals/a.png") == b"bytes"
    with storage.open("datasets/b.zip") as content:
        content.seek(5)
        assert content.read() == b"a file"
    assert storage.get("datasets/b.zip", 5, 6) == b"a"
    assert storage.get("datasets/b.zip", 5, 1000) == storage.get("datasets/b.zip", 5) == b"a file"
    storage.fetch("datasets/b.zip", tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == b"from a file"


def test_putting_again_replaces(storage: Storage) -> None:
    storage.put("images/a.png", b"old")
    storage.put("images/a.png", b"new")

    assert storage.get("images/a.png") == b"new"
    assert storage.keys("images") == ["images/a.png"]


def test_keys_are_listed_by_folder(storage: Storage) -> None:
    for key in ("models/x/card.json", "models/x/head.onnx", "models/y/card.json"):
        storage.put(key, b"")

    assert storage.keys("models/x") == ["models/x/card.json", "models/x/head.onnx"]
    assert storage.keys("heatmaps") == []


def test_deleting_takes_a_file_or_a_folder_and_nothing_is_fine_too(storage: Storage) -> None:
    for key in ("models/x/card.json", "models/x/head.onnx", "models/y/card.json"):
        storage.put(key, b"")

    storage.delete("models/x")
    storage.delete("models/y/card.json")
    storage.delete("models/z")

    assert storage.keys("models") == []
    assert not storage.exists("models/y/card.json")


@pytest.mark.parametrize("read", ["get", "open", "fetch"])
def test_what_is_not_there_is_a_sentence(storage: Storage, tmp_path: Path, read: str) -> None:
    arguments = ["originals/none.png", *([tmp_path / "none"] if read == "fetch" else [])]

    storage.put("originals/other.png", b"x")
    with pytest.raises(MissingFile, match="A stored file no longer exists."):
        getattr(storage, read)(*arguments)


def test_a_folder_that_is_away_is_no_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="A stored file cannot be read.") as refusal:
        Storage(f"file://{tmp_path / 'unmounted'}").get("originals/a.png")
    assert not isinstance(refusal.value, MissingFile)


def test_a_storage_with_something_in_it_answers(storage: Storage) -> None:
    storage.put("originals/a.png", b"x")
    assert storage.answers()


def test_a_folder_over_which_nothing_is_mounted_does_not_answer(tmp_path: Path) -> None:
    assert not Storage(f"file://{tmp_path / 'unmounted'}").answers()
    (tmp_path / "unmounted").mkdir()
    assert not Storage(f"file://{tmp_path / 'unmounted'}").answers()


@pytest.mark.parametrize("is_there", [True, False])
def test_nothing_is_put_under_a_mount_point_so_that_the_storage_stays_away(
    tmp_path: Path, is_there: bool
) -> None:
    if is_there:
        (tmp_path / "unmounted").mkdir()
    away = Storage(f"file://{tmp_path / 'unmounted'}")

    with pytest.raises(StorageUnavailable, match="The storage cannot be reached"):
        away.put("originals/a.png", b"x")

    assert not [path for path in tmp_path.rglob("*") if path.name != "unmounted"]
    assert not away.answers()


def test_a_new_storage_that_was_started_answers_and_holds_no_file(tmp_path: Path) -> None:
    new = Storage(f"file://{tmp_path / 'new' / 'files'}")
    new.start()
    new.start()

    assert new.answers()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_when_a_file_was_written_is_reported(storage: Storage) -> None:
    storage.put("originals/just-now.png", b"x")
    assert (
        abs(
            (
                datetime.now(UTC) - storage.written("originals")["originals/just-now.png"]
            ).total_seconds()
        )
        < 60
    )


def test_a_folder_that_cannot_be_written_is_a_sentence_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "files").write_bytes(b"a file where the folder should be")

    with pytest.raises(StorageError, match="The storage did not accept a file"):
        Storage(f"file://{tmp_path / 'files'}").put("originals/a.png", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("ask", ["get", "exists", "keys", "delete", "put"])
def test_an_s3_that_does_not_answer_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
    }.items():
        monkeypatch.setenv(name, value)
    away = Storage("s3://hemoscan/some/where")
    with pytest.raises(StorageError):
        getattr(away, ask)("originals/a.png", *([b"x"] if ask == "put" else []))
    assert not away.discard("originals/a.png")
    assert not away.answers()


def test_a_missing_bucket_is_a_sentence(s3_url: str) -> None:
    with pytest.raises(StorageError, match="The storage did not accept a file"):
        Storage("s3://nobodys-bucket/x").put("originals/a.png", b"x")


@pytest.mark.parametrize("url", ["ftp://host/x", "/folder", "file://", "memory://x"])
def test_another_kind_of_storage_is_refused(url: str) -> None:
    with pytest.raises(
        ValueError, match="STORAGE_URL must be file:///folder or s3://bucket/prefix"
    ):
        Storage(url)


def test_a_key_cannot_be_guessed_and_keeps_its_kind() -> None:
    first, second = new_key("originals", ".dcm"), new_key("originals", ".dcm")

    assert first != second
    assert (
        first.startswith("originals/")
        and first.endswith(".dcm")
        and len(first) == len("originals/.dcm") + 32
    )
