"""A model folder calibrated to a site shares the graphs and answers with the site's calibration."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml.__main__ import main
from ml.artifacts.folder import read_card, write_model
from ml.datasets.read import read_dataset
from ml.errors import DatasetError
from ml.evaluation.answers import write_answers
from ml.evaluation.calibration import Platt
from ml.inference.predictor import Predictor
from ml.models.cells import head_to_onnx
from ml.networks.fine_tuning import Tuned
from ml.scans.read import read_series
from ml.validation.site_calibration import calibrate, simulate_sites
from tests.ml.conftest import CELLS, a_card, features_graph


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose decision is the brightness of the picture; one half from a gray of .5 on."""
    tuned = Tuned({}, np.array([12.0], np.float32), float(np.log(10 / 64) - 6.0), "a test")
    head = head_to_onnx(tuned, Platt(1.0, 0.0), Platt(2.0, 0.5), CELLS, 1, smooths=False)
    files = {
        "features.onnx": features_graph(),
        "head.onnx": head,
        "seen.json": json.dumps({"features": [], "head": []}).encode(),
    }
    write_model(tmp_path / "model", a_card(), files)
    return tmp_path / "model"


def write_site(folder: Path, levels: list[tuple[int, float]]) -> Path:
    """Write pictures of these labels and gray levels, a patient each."""
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "label", "patient"])
        for number, (label, level) in enumerate(levels):
            pixels = np.full((64, 64), round(255 * level), np.uint8)
            noise = np.random.default_rng(number).integers(-12, 13, (64, 64))
            pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            table.writerow([f"images/{number}.png", label, f"p{number}"])
    return folder


def test_a_site_whose_pictures_are_brighter_is_calibrated(model: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    site = write_site(
        tmp_path / "site",
        [(label, random.uniform(*((0.7, 0.9) if label else (0.5, 0.68)))) for label in [0, 1] * 20],
    )
    assert main(["calibrate", str(model), str(site), "--out", str(tmp_path / "out")]) == 0
    before, after = read_card(model), read_card(tmp_path / "out" / "model")
    assert after.id != before.id and after.threshold == before.threshold
    assert after.points == {}, "this model had none for scans"
    local = after.data.local_calibration
    assert local and local.model == before.id
    figures = local.slice
    assert figures and figures.scans > 30, "near-duplicates are left out"
    before_there, after_there = figures.before.specificity.value, figures.after.specificity.value
    assert before_there is not None and after_there is not None and after_there > before_there
    assert after.files["features.onnx"] == before.files["features.onnx"]
    picture = read_series([site / "images" / "0.png"])
    shipped, calibrated = (
        Predictor(folder, checks_head_ct=False).predict(picture).probability
        for folder in (model, tmp_path / "out" / "model")
    )
    platt = figures.platt
    expected = platt["slope"] * np.log(shipped / (1 - shipped)) + platt["offset"]
    assert np.log(calibrated / (1 - calibrated)) == pytest.approx(expected, abs=1e-3)
    seen = json.loads((tmp_path / "out" / "model" / "seen.json").read_bytes())
    assert len(seen["head"]) == figures.scans, "what calibrated is no test any more"


@pytest.mark.parametrize("labels", [[1] * 30, [0, 1] * 5])
def test_one_class_or_too_few_scans_are_refused_and_no_model_is_written(
    model: Path, tmp_path: Path, labels: list[int]
) -> None:
    site = write_site(
        tmp_path / "site", [(label, 0.3 + 0.01 * number) for number, label in enumerate(labels)]
    )
    dataset = read_dataset(site, needs_both_classes=False)
    with pytest.raises(DatasetError, match="needs at least 20 scans"):
        calibrate(model, dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


def test_a_simulated_site_of_series_has_the_threshold_of_series(tmp_path: Path) -> None:
    """Forty healthy and forty bleeding patients a site, with probabilities around .5 and .8: the
    threshold of a slice is .4, that of a series .7.
    """
    rows = []
    for site, slices in (("series", 3), ("images", 1)):
        for number in range(80):
            label, patient = number % 2, f"{site} {number}"
            probability = 0.5 + 0.3 * label + 0.001 * number
            row = {
                "dataset": site,
                "patient": patient,
                "label": label,
                "group": patient,
                "repeat": 0,
                "fold": 0,
                "probability": probability,
                "predicted": 1,
            }
            rows += [
                {**row, "level": "slice", "filename": f"{patient} {each}"} for each in range(slices)
            ]
            rows.append({**row, "level": "patient", "filename": ""})
    write_answers(tmp_path / "predictions.csv", rows)
    card = a_card(
        settings={"folds_by": "data set"},
        threshold=0.4,
        uncertain_low=0.4,
        uncertain_high=0.4,
        scan_threshold=0.7,
        scan_uncertain_low=0.7,
        scan_uncertain_high=0.7,
    )
    files = {"features.onnx": features_graph(), "head.onnx": features_graph()}
    write_model(tmp_path / "model", card, files)
    result = {row["site"]: row for row in simulate_sites(tmp_path) if row["size"] == 20}
    assert result["series"]["specificity_before"] == result["series"]["sensitivity_before"] == 1.0
    assert result["images"]["specificity_before"] == 0.0
