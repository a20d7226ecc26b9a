"""`python -m ml` as a person calls it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml.__main__ import main
from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.inference.gate import GATE_DIR
from ml.scans.phantoms import phantom, write_dicom, write_png
from ml.scans.read import read_series
from tests.ml.conftest import types_graph, types_judged


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of sixteen phantoms, one folder a class."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    for seed in range(16):
        name = "hemorrhage" if seed % 2 else "normal"
        (root / name).mkdir(parents=True, exist_ok=True)
        write_png(
            phantom(seed + 50, hemorrhage=seed % 2 == 1, size=128), root / name / f"{seed}.png"
        )
    return root


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    path = folder.parent / "zipped.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for image in sorted(folder.rglob("*.png")):
            opened.write(image, f"zipped/{image.relative_to(folder)}")
    return path


@pytest.fixture(scope="module")
def model(archive: Path, few_repetitions: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    arguments = [
        "train",
        str(archive),
        "--architecture",
        "alexnet_svm",
        "--out",
        str(out),
        "--init",
        "random",
        "--seed",
        "3",
    ]
    assert (
        main(
            [
                *arguments,
                "--set",
                "folds=2",
                "--set",
                "layer=conv3",
                "--set",
                "input_size=160",
                "--note",
                "Made by a test.",
            ]
        )
        == 0
    )
    return out / "model"


def test_training_from_a_zip_writes_a_model_with_its_command(model: Path, archive: Path) -> None:
    card = json.loads((model / "card.json").read_text())
    assert card["data"]["datasets"] == ["zipped"] and card["seed"] == 3
    assert (
        card["command"].startswith("python -m ml train ") and "--set layer=conv3" in card["command"]
    )
    assert (
        card["notes"] == ["Made by a test."]
        and "--note" not in card["command"]
        and "Made by" not in card["command"]
    )


def test_the_card_is_readable_and_agrees_with_its_json(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(model)]) == 0
    text, card = capsys.readouterr().out, json.loads((model / "card.json").read_text())
    assert text.startswith(f"# Model {card['id']}: alexnet_svm, reads one slice")
    auroc = card["metrics"]["auroc"]
    assert f"| auroc | {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}) |" in text
    assert card["command"] in text and "Made by a test." in text and "drawn at random" in text
    assert "not for diagnosis" in text


SHIPPED = {"starter": STARTER_DIR, "starter-series": STARTER_SERIES_DIR}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_is_the_one_that_its_json_makes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", name]) == 0
    assert capsys.readouterr().out == (SHIPPED[name] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_passed_its_check_and_names_no_file_or_machine(name: str) -> None:
    folder = SHIPPED[name]
    card = read_card(folder)
    assert card.reads == ("series" if name == "starter-series" else "slice")
    assert card.export_check.passed and card.metrics.auroc.value > 0.90
    seen = (folder / "seen.json").read_text()
    assert ".png" not in seen and ".jpg" not in seen
    assert (
        "/work" not in card.to_json()
        and "/home" not in card.to_json()
        and "/tmp" not in card.to_json()
    )


def test_all_that_ships_is_small() -> None:
    folders = (STARTER_DIR, STARTER_SERIES_DIR, GATE_DIR)
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 12 * 2**20


def test_explore_writes_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layout"], facts["positive"], facts["negative"]) == ("folders", 8, 8)


def test_explore_speaks_plainly_without_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "near duplicates: []" in said
    assert "told from the labels by border pixels: AUROC " in said


def test_explore_writes_a_report_and_tells_sources_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "wide"
    for seed in range(8):
        name = "hemorrhage" if seed % 2 else "normal"
        (other / name).mkdir(parents=True, exist_ok=True)
        write_png(phantom(seed, hemorrhage=seed % 2 == 1, size=160), other / name / f"{seed}.png")
    assert (
        main(["explore", str(folder), str(other), "--out", str(tmp_path / "report"), "--json"]) == 0
    )
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [facts["images"] for facts in found["datasets"]] == [16, 8]
    (pair,) = found["sources"]
    assert pair["sources"] == ["phantoms", "wide"]
    assert (
        next(probe for probe in pair["probes"] if probe["name"] == "width and height")["auroc"][
            "value"
        ]
        == 1
    )
    assert (tmp_path / "report" / "index.html").is_file() and "index.html" in said.err


def test_explore_takes_a_set_of_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    for seed in range(3):
        write_png(phantom(seed, hemorrhage=True, size=96), tmp_path / "set" / f"{seed}.png")
    (tmp_path / "set" / "labels.csv").write_text("filename,label\n0.png,1\n1.png,1\n2.png,\n")
    assert (
        main(["explore", str(tmp_path / "set"), "--out", str(tmp_path / "report"), "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert (facts["positive"], facts["negative"], facts["unknown"]) == (2, 0, 1)
    assert facts["probes"][0]["auroc"]["reason"] == "fewer than two groups of a class"


def test_pictures_of_a_folder_are_read_in_the_order_of_their_numbers(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in ("slice_10.png", "slice_2.png", "slice_1.png", "b_11_of_30.png", "b_3_of_30.png"):
        write_png(phantom(1, False, size=96), series / name)
    read: list[str] = []
    monkeypatch.setattr(
        "ml.cli.commands.read_series",
        lambda paths: read.extend(p.name for p in paths) or read_series(paths),
    )
    assert main(["predict", str(tiny_model()), str(series)]) == 0
    assert read == ["slice_1.png", "slice_2.png", "slice_10.png", "b_3_of_30.png", "b_11_of_30.png"]
    assert "put in order by the last number in their names" in capsys.readouterr().err


def test_predict_never_refuses_what_is_no_head_ct_and_says_so(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.linear_gradient("L").save(tmp_path / "bars.png")
    assert main(["predict", str(tiny_model()), str(tmp_path / "bars.png"), "--format", "json"]) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert 0 <= row["probability"] <= 1 and row["error"] is None and row["types"] == {}
    assert (
        "does not look like a head CT" in said.err
        and "does not look like a head CT" in " ".join(row["warnings"])
    )


def test_predict_and_evaluate_say_what_they_had_to_assume(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    colours = np.zeros((96, 96, 3), np.uint8)
    colours[..., 2] = np.random.default_rng(0).integers(0, 256, (96, 96))
    for number in range(2):
        Image.fromarray(colours).save(tmp_path / "set" / f"{number}.png")
    (tmp_path / "set" / "labels.csv").write_text("filename,label\n0.png,1\n1.png,0\n")
    assert (
        main(["predict", str(tiny_model()), str(tmp_path / "set" / "0.png"), "--format", "json"])
        == 0
    )
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    sentence = next(warning for warning in row["warnings"] if "colo" in warning)
    assert f"{tmp_path / 'set' / '0.png'}: {sentence}\n" in said.err
    assert (
        main(
            [
                "evaluate",
                str(tiny_model()),
                str(tmp_path / "set"),
                "--out",
                str(tmp_path / "out"),
                "--json",
            ]
        )
        == 0
    )
    assert f"2 of 2 images: {sentence}" in json.loads(capsys.readouterr().out)["problems"]


def test_predict_tells_the_types_of_bleeding(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(phantom(1, hemorrhage=True, size=128), tmp_path / "a.png")
    model = tiny_model(types=types_judged(), types_onnx=types_graph())
    assert main(["predict", str(model), str(tmp_path / "a.png"), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["types"] == pytest.approx(
        {"epidural": 0.75 * row["probability"], "subdural": 0.25 * row["probability"]}, abs=1e-6
    )


def test_predict_writes_a_table_with_a_series_as_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for number in range(2):
        write_dicom(
            phantom(70 + number, True, size=128),
            series / f"{number}.dcm",
            number=number + 1,
            position_mm=5.0 * number,
        )
    write_png(phantom(80, False, size=128), tmp_path / "a.png")
    assert main(["predict", str(model), str(tmp_path / "a.png"), str(series)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == [str(tmp_path / "a.png"), str(series)]
    for row in rows:
        assert row["positive"] == str(float(row["probability"]) >= float(row["threshold"]))


def test_predict_goes_on_after_a_file_that_is_no_image(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("hello")
    image = folder / "normal" / "0.png"
    assert main(["predict", str(model), str(tmp_path / "text.png"), str(image), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["probability"] is None and rows[0]["error"]
    assert 0 <= rows[1]["probability"] <= 1 and rows[1]["error"] is None


def test_predict_names_the_file_of_a_series_that_cannot_be_read(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for number in range(3):
        write_png(phantom(number, False, size=96), series / f"slice_{number}.png")
    (series / "slice_1.png").write_bytes((series / "slice_1.png").read_bytes()[:100])
    assert main(["predict", str(tiny_model()), str(series)]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"{series}: slice_1.png: The picture is damaged or incomplete and cannot be decoded.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explore", "nothing-here"], "There is no data set at nothing-here."),
        (["predict", "nothing-here", "a.png"], "The model folder has no readable card.json."),
        (["predict", "starter", "a.png"], "a.png: The file cannot be opened."),
    ],
)
def test_an_expected_error_is_one_sentence_and_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == sentence + "\n"


def test_a_wrong_setting_is_one_sentence_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        "train",
        str(folder),
        "--architecture",
        "alexnet_svm",
        "--out",
        str(tmp_path / "out"),
        "--init",
        "random",
    ]
    assert main([*train, "--set", "folds=1"]) == 2
    assert capsys.readouterr().err == "folds must lie between 2 and 10, not 1.\n"
    assert main([*train, "--set", "folds"]) == 2
    assert capsys.readouterr().err == "--set needs key=value, not 'folds'.\n"


def test_a_file_in_the_place_of_the_folder_is_one_sentence_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["explore", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path / 'file'}: File exists."
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("seed", ["-1", "2147483648", "one"])
def test_a_seed_that_no_generator_takes_is_refused(
    seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "x", "--architecture", "autoencoder", "--out", "y", f"--seed={seed}"])
    assert "must be a whole number from 0 to 2147483647" in capsys.readouterr().err


def test_the_module_runs_and_exploring_loads_no_tensorflow(folder: Path) -> None:
    code = (
        "import sys; from ml.__main__ import main; main(['explore', sys.argv[1]]);"
        " print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    helped = subprocess.run(
        [sys.executable, "-m", "ml", "--help"], capture_output=True, text=True, check=True
    )
    assert "explore" in helped.stdout and "train" in helped.stdout
