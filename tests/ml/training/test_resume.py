"""A training that is killed again and again ends like one that nobody disturbed, on whatever
machine it goes on.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml.artifacts.card import Card
from ml.artifacts.folder import read_card
from ml.datasets.read import Dataset, read_dataset
from ml.inference.predictor import Predictor
from ml.scans.phantoms import phantom, write_png
from ml.scans.slices import Series, Slice
from ml.training import cross_validation
from ml.training.progress import Progress, TrainingStopped
from ml.training.run import TrainConfig, train
from webapp.config import PROJECT_ROOT

PATIENTS, SLICES = 12, 2
MOST_HEAT_MAPS = 1
SHARED = {"folds": "2", "controls": "none", "input_size": "160"}
SETTINGS = {
    "alexnet": {**SHARED, "epochs": "2", "frozen": "5", "fully_connected": "16"},
    "alexnet_svm": {**SHARED, "layer": "conv3", "pooling": "average"},
    "cnn_gru": {
        **SHARED,
        "layer": "conv3",
        "epochs": "1",
        "units": "4",
        "projection": "4",
        "bidirectional": "no",
    },
}
FEWEST_CHECKPOINTS = {"alexnet": 9, "alexnet_svm": 3, "cnn_gru": 6}
"""Two epochs and an end of each of three fits; features and an end of each of two folds; an epoch
of both networks of three fits, each of which compiles anew after a stop.
"""


def config_of(architecture: str) -> TrainConfig:
    """Return the smallest training that has epochs or folds."""
    return TrainConfig(architecture, SETTINGS[architecture], seed=3, init="random")


def scans_of_phantoms(root: Path) -> Dataset:
    """Write two slices of each of twelve patients, half of whom bleed."""
    rows = ["filename,label,patient,slice"]
    for number in range(PATIENTS * SLICES):
        patient = number // SLICES
        write_png(
            phantom(36 + number, hemorrhage=patient % 2 == 1, size=128), root / f"{number:02d}.png"
        )
        rows.append(f"{number:02d}.png,{patient % 2},p{patient},{number % SLICES}")
    (root / "labels.csv").write_text("\n".join(rows))
    return read_dataset(root, "phantoms")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The data set that all trainings here learn from."""
    return scans_of_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(autouse=True, scope="module")
def few_heat_maps() -> Iterator[None]:
    """They are the slowest part, and have no state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "MOST_HEAT_MAPS", MOST_HEAT_MAPS)
        yield


@pytest.fixture(scope="module")
def undisturbed(phantoms: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of trainings that nobody disturbed, by architecture."""
    result = {}
    for architecture in SETTINGS:
        result[architecture] = tmp_path_factory.mktemp(architecture)
        train(config_of(architecture), [phantoms], result[architecture])
    return result


def reached(folder: Path) -> dict[str, int]:
    """Return what of a training's checkpoint a worker keeps in the storage, with its times."""
    files = (
        path
        for path in (folder / "checkpoint").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def on_another_machine(folder: Path, number: int) -> Path:
    """Return a folder with nothing of a training but what a worker keeps in the storage."""
    other = folder.with_name(f"machine-{number}")
    shutil.copytree(
        folder / "checkpoint", other / "checkpoint", ignore=shutil.ignore_patterns(".*")
    )
    return other


def assert_alike(expected: Path, actual: Path) -> None:
    """Compare the figures exactly, and to 1e-5 what both models say of heads that neither has seen,
    as slices and as a scan.
    """
    cards = [read_card(folder / "model") for folder in (expected, actual)]
    assert figures_of(cards[0]) == figures_of(cards[1])
    heads = [
        Slice(phantom(200 + number, bool(number % 2), size=128).astype(np.float32), "hu")
        for number in range(4)
    ]
    probes = [Series((head,)) for head in heads] + [Series(tuple(heads))]
    answers = []
    for folder in (expected, actual):
        results = Predictor(folder / "model", checks_head_ct=False).predict_many(probes)
        answers.append(
            [
                value
                for result in results
                for value in (result.probability, *result.slice_probabilities)
            ]
        )
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert len({round(value, 5) for value in answers[0]}) > 3, "the probes tell heads apart"


def figures_of(card: Card) -> tuple[object, ...]:
    """Return all that a card says of how good its model is."""
    return (
        card.metrics,
        card.patient_metrics,
        card.confusion,
        card.band,
        card.heat_maps,
        card.threshold,
        card.scan_threshold,
    )


@pytest.mark.parametrize("architecture", SETTINGS)
def test_a_training_stopped_at_every_checkpoint_ends_like_an_undisturbed_one(
    architecture: str, phantoms: Dataset, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    folder, stops = tmp_path / "machine-0", 0
    while not (folder / "model").exists():
        before = reached(folder)
        try:
            train(
                config_of(architecture),
                [phantoms],
                folder,
                should_stop=lambda: reached(folder) != before,  # noqa: B023 - called at once
            )
        except TrainingStopped:
            stops += 1
            folder = on_another_machine(folder, stops)
    assert stops >= FEWEST_CHECKPOINTS[architecture]
    assert_alike(undisturbed[architecture], folder)


def test_a_training_that_was_killed_in_an_epoch_goes_on_from_the_last_one(
    phantoms: Dataset, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    code = (
        "import sys; from tests.ml.training.test_resume import train_until_killed;"
        " train_until_killed(*sys.argv[1:])"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, phantoms.root, tmp_path],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {"checkpoint/fold-0.json", "checkpoint/fold-1/state.npz"} <= set(reached(tmp_path))
    reports: list[Progress] = []
    train(config_of("alexnet"), [phantoms], tmp_path, reports.append)
    assert (
        next(progress.metrics["epoch"] for progress in reports if "epoch" in progress.metrics) == 2
    )
    assert_alike(undisturbed["alexnet"], tmp_path)


def train_until_killed(root: str, folder: str) -> None:
    """Train, and kill this process in the second epoch of the second fold."""

    def kill(progress: Progress) -> None:
        if progress.stage == "fold 2 of 2" and progress.metrics.get("epoch") == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    cross_validation.MOST_HEAT_MAPS = MOST_HEAT_MAPS
    train(config_of("alexnet"), [read_dataset(Path(root), "phantoms")], Path(folder), kill)
