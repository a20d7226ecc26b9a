from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ml.artifacts.card import Card
from ml.artifacts.folder import read_card, write_model
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.errors import ArtifactError
from ml.typed_json import to_json
from tests.ml.conftest import a_card, type_figures_of_card

MakeCard = Callable[..., Card]
FILES = {"features.onnx": b"features", "head.onnx": b"head"}


def rewrite(folder: Path, **changed: object) -> None:
    """Change fields of a card, as somebody would who leaves no checksum behind."""
    card = json.loads((folder / "card.json").read_text())
    card.update({"checksum": "", **changed})
    (folder / "card.json").write_text(json.dumps(card))


@pytest.fixture
def folder(tmp_path: Path, make_card: MakeCard) -> Path:
    write_model(tmp_path / "model", make_card(), FILES)
    return tmp_path / "model"


def test_a_card_is_read_as_it_was_written(tmp_path: Path, make_card: MakeCard) -> None:
    written = write_model(tmp_path / "model", make_card(), FILES)
    assert read_card(tmp_path / "model") == written
    assert written == dataclasses.replace(
        make_card(), id=written.id, files=written.files, checksum=written.checksum
    )


def test_files_come_from_bytes_or_from_paths(tmp_path: Path, make_card: MakeCard) -> None:
    (tmp_path / "other.name").write_bytes(b"head")
    write_model(tmp_path / "model", make_card(), {**FILES, "head.onnx": tmp_path / "other.name"})
    assert (tmp_path / "model" / "head.onnx").read_bytes() == b"head"


def test_the_id_hangs_on_the_files_alone(tmp_path: Path, make_card: MakeCard) -> None:
    one = write_model(tmp_path / "one", make_card(), FILES)
    same = write_model(tmp_path / "same", make_card(seed=8), FILES)
    other = write_model(tmp_path / "other", make_card(), {**FILES, "head.onnx": b"another head"})
    assert one.id == same.id != other.id
    assert len(one.id) == 12


def test_a_model_is_never_written_over_another(folder: Path, make_card: MakeCard) -> None:
    with pytest.raises(ArtifactError, match="already exists"):
        write_model(folder, make_card(seed=9), FILES)
    assert read_card(folder).seed == 7


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        ({"features.onnx": b"features"}, {}),
        ({**FILES, "seen.json": Path("no/such/file")}, {}),
        ({**FILES, "../outside": b""}, {}),
        ({**FILES, "card.json": b""}, {}),
        (FILES, {"threshold": float("nan")}),
        (FILES, {"threshold": 1.5}),
    ],
)
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, make_card: MakeCard, files: dict[str, Path | bytes], changed: dict[str, object]
) -> None:
    with pytest.raises((ArtifactError, OSError, ValueError)):
        write_model(tmp_path / "models" / "model", make_card(**changed), files)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["features.onnx", "head.onnx"])
def test_an_altered_or_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"altered")
    with pytest.raises(ArtifactError, match=f"{name} was changed after it was written"):
        read_card(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_card(folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no readable card\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]"])
def test_a_card_that_is_no_json_object_is_refused(folder: Path, text: bytes) -> None:
    (folder / "card.json").write_bytes(text)
    with pytest.raises(ArtifactError, match="is not"):
        read_card(folder)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"format": 2}, "this version reads format 1"),
        ({"threshold": "0.5"}, r"expected `float`, got `str` at `\$\.threshold`"),
        ({"threshold": True}, "expected `float`, got `bool`"),
        ({"threshold": 2}, "must lie in order within 0 and 1"),
        ({"uncertain_low": 0.7}, "must lie in order within 0 and 1"),
        ({"reads": "volume"}, "reads 'volume'"),
        ({"id": "0" * 12}, "does not belong to its files"),
        ({"files": {}}, "does not name features.onnx and head.onnx"),
        (
            {"files": {"features.onnx": "", "head.onnx": "", "../../etc/passwd": ""}},
            "was changed after it was written",
        ),
    ],
)
def test_a_card_with_a_wrong_value_is_refused_and_the_value_named(
    folder: Path, changed: dict[str, object], sentence: str
) -> None:
    rewrite(folder, **changed)
    with pytest.raises(ArtifactError, match=sentence):
        read_card(folder)


@pytest.mark.parametrize(
    "figures",
    [
        "yes",
        {"given": True},
        {"given": 1, "slices": 4, "of_slices": 9, "patients": 2, "of_patients": 3, "scores": []},
        {
            "given": True,
            "slices": 4,
            "of_slices": 9,
            "patients": "2",
            "of_patients": 3,
            "scores": [],
        },
        {"given": True, "slices": 4, "of_slices": 9, "patients": 2, "of_patients": 3},
        {
            "given": True,
            "slices": 4,
            "of_slices": 9,
            "patients": 2,
            "of_patients": 3,
            "scores": [{"rank": 1}],
        },
        {
            **to_json(type_figures_of_card()["epidural"]),
            "patient": {"auroc": {"value": 0.5, "low": 0.4, "high": 0.6}},
        },
        {**to_json(type_figures_of_card()["epidural"]), "slice": {"auroc": 0.5}},
        {
            **to_json(type_figures_of_card()["epidural"]),
            "slice": {"auroc": {"value": "x", "low": None, "high": None}},
        },
    ],
)
def test_a_card_with_incomplete_figures_of_a_type_is_refused(figures: object) -> None:
    card = json.loads(a_card(types=type_figures_of_card()).to_json())
    assert Card.from_json(json.dumps(card)).types == type_figures_of_card()
    card["types"]["epidural"] = figures
    with pytest.raises(ArtifactError, match=r"at `\$\.types\[|epidural"):
        Card.from_json(json.dumps(card))


def test_a_card_cannot_point_out_of_its_folder(folder: Path) -> None:
    rewrite(folder, files={**read_card(folder).files, "../secret": ""})
    with pytest.raises(ArtifactError, match=r"cannot be named '\.\./secret'"):
        read_card(folder)


def test_a_missing_field_is_named(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    del card["protocol"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ArtifactError, match="missing required field `protocol`"):
        read_card(folder)


def test_a_field_of_a_later_version_is_left_out(folder: Path) -> None:
    rewrite(folder, carbon_grams=12)
    assert read_card(folder).seed == 7


@pytest.mark.parametrize("name", ["card.json", "features.onnx", "head.onnx"])
def test_one_flipped_bit_anywhere_is_refused_or_says_the_same(folder: Path, name: str) -> None:
    before, content = read_card(folder), (folder / name).read_bytes()
    refused = 0
    # Writing a byte in its place is far quicker than the whole file anew.
    with (folder / name).open("r+b", buffering=0) as file:
        for place in range(8 * len(content)):
            at = place // 8
            os.pwrite(file.fileno(), bytes([content[at] ^ 1 << place % 8]), at)
            try:
                assert (
                    dataclasses.replace(read_card(folder), checksum=before.checksum) == before
                )  # A blank is a tab now, or the checksum has another name.
            except ArtifactError:
                refused += 1
            os.pwrite(file.fileno(), content[at : at + 1], at)
    assert (folder / name).read_bytes() == content
    assert refused >= 8 * len(content) * 0.85


def test_a_card_of_before_there_were_checksums_is_read(folder: Path) -> None:
    written = read_card(folder)
    rewrite(folder)
    assert read_card(folder) == dataclasses.replace(written, checksum="")


@pytest.mark.parametrize("shipped", [STARTER_DIR, STARTER_SERIES_DIR])
def test_a_shipped_card_is_written_as_it_was_read(shipped: Path) -> None:
    written = json.loads((shipped / "card.json").read_text(encoding="utf-8"))
    again = json.loads(read_card(shipped).to_json())
    # Later fields are added empty.
    assert {name: value for name, value in again.items() if value or name in written} == written
