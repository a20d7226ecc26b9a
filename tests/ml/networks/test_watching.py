"""What a training is watched on: it learns the same to the bit, and the figures are those of what
it would leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ml.checkpoints import RESUMED
from ml.models import alexnet, recurrent
from ml.models.contract import FitTask, HeldOut, fit_of
from ml.networks import fine_tuning
from ml.networks.convolutions import AlexNet
from ml.networks.fine_tuning import LabeledSlices, Schedule, fine_tune
from ml.networks.training_loop import run_epochs
from ml.networks.watching import MOST_WATCHED, Watch, watched_of
from ml.networks.weights import random_weights
from tests.ml.tasks import learning_pictures, task_of

LOSS, AREA = "validation_loss", "validation_auroc"
Said = list[dict[str, float]]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is two batches of eight pictures."""
    for module in (fine_tuning, alexnet):
        monkeypatch.setattr(module, "BATCH", 8)
        monkeypatch.setattr(module, "MOST_BATCHES", 2)


def of_epochs(said: Said) -> Said:
    return [figures for figures in said if LOSS in figures]


def fit_said(task: FitTask, name: str) -> tuple[np.ndarray, Said]:
    """Return the decisions of a fit, and what it reported."""
    said: Said = []
    fitted = fit_of(name)(replace(task, report=lambda share, figures: said.append(dict(figures))))
    return fitted.decisions, said


def test_as_many_of_each_class_are_watched_evenly_spread_and_in_whole_batches() -> None:
    labels = np.array([0] * 300 + [1] * 300)
    held_back = np.arange(0, 600, 2)
    at = watched_of(labels, held_back, 100_000, 32)
    assert len(np.unique(at)) == len(at) == MOST_WATCHED
    assert set(at) <= set(held_back) and labels[at].tolist() == [0, 1] * 64
    assert at[0] == 0 and at[-1] > 590
    assert len(watched_of(labels, held_back, 1024, 32)) == 128
    assert len(watched_of(labels, held_back, 600, 32)) == 64
    assert len(watched_of(labels, held_back, 10, 32)) == 32
    assert watched_of(labels, np.array([0, 2, 4, 400]), 1024, 32).tolist() == [0, 400]
    assert len(watched_of(labels, held_back[:20], 1024, 32)) == 0
    assert len(watched_of(labels, held_back[:0], 1024, 32)) == 0


def test_the_figures_are_those_of_the_running_average_and_the_network_keeps_its_own_weights(
    tmp_path: Path,
) -> None:
    inputs = np.arange(8, dtype=np.float32)[:, np.newaxis]
    labels = (inputs > 3).astype(np.float32)
    seen: list[np.ndarray] = []

    class Spy(Watch):
        def figures(self, network: keras.Model) -> dict[str, float]:
            seen.append(np.asarray(network.get_layer("one").get_weights()[0]).ravel())
            return super().figures(network)

    def train(watch: Watch | None, name: str) -> tuple[np.ndarray, Said]:
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="one")])
        said: Said = []
        run_epochs(
            network,
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            epochs=3,
            batches=2,
            learning_rate=0.1,
            averaging=0.9,
            seed=0,
            draw=lambda seed: [(inputs, labels)] * 2,
            state=tmp_path / name,
            report=lambda share, figures: said.append({"share": share, **figures}),
            watch=watch,
        )
        return np.concatenate([np.ravel(v) for v in network.get_weights()]), said

    spy = Spy([(inputs, labels)] * 2, lambda batch, outputs: (batch[1][:, 0], outputs[:, 0]))
    with_watch, said = train(spy, "a.npz")
    without, _ = train(None, "b.npz")
    assert np.array_equal(with_watch, without)
    assert seen[-1] == with_watch[0], "what the training leaves"
    weight, bias = with_watch
    logits = weight * inputs + bias
    expected = float(np.mean(np.logaddexp(0, logits) - labels * logits))
    last = said[-1]
    assert last[LOSS] == pytest.approx(expected, rel=1e-5)
    assert (last["share"], last["epoch"], last[AREA]) == (1.0, 3, float(weight > 0))
    assert [figures["epoch"] for figures in of_epochs(said)] == [1, 2, 3]


@pytest.mark.usefixtures("small_batches")
def test_fine_tuning_learns_the_same_to_the_bit_whether_it_is_watched_or_not(
    tmp_path: Path,
) -> None:
    """Traced as for a user."""
    weights = random_weights(0)
    slices = LabeledSlices(*learning_pictures(), np.arange(24))
    said: Said = []
    tuned = [
        fine_tune(
            weights,
            AlexNet("conv3"),
            replace(slices, held_back=held_back),
            Schedule(2, 5),
            tmp_path / f"{len(held_back)}.npz",
            lambda share, figures: said.append(dict(figures)),
        )
        for held_back in (np.arange(24, 32), np.arange(0))
    ]
    watched, alone = (one.arrays() for one in tuned)
    assert watched.keys() == alone.keys()
    assert all(np.array_equal(watched[name], alone[name]) for name in watched)
    assert [figures["epoch"] for figures in of_epochs(said)] == [1, 2]
    assert all(figures.keys() == {LOSS, AREA, "epoch"} for figures in of_epochs(said))


@pytest.mark.usefixtures("untraced", "small_batches")
def test_an_interrupted_fine_tuning_says_the_same_figures_when_it_continues(tmp_path: Path) -> None:
    slices = LabeledSlices(*learning_pictures(), np.arange(24), np.arange(24, 32))

    def run(name: str, report: Callable[[float, Mapping[str, float]], None]) -> Any:
        given = random_weights(0), AlexNet("conv3"), slices, Schedule(3, 5)
        return fine_tune(*given, tmp_path / name, report)

    straight: Said = []
    run("a.npz", lambda share, figures: straight.append(dict(figures)))
    broken: Said = []

    class Stopped(Exception):
        pass

    def stop(share: float, figures: Mapping[str, float]) -> None:
        broken.append(dict(figures))
        if LOSS in figures and figures["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run("b.npz", stop)
    resumed: list[tuple[float, Mapping[str, float]]] = []
    run("b.npz", lambda share, figures: resumed.append((share, dict(figures))))
    assert resumed[0] == (1 / 3, {RESUMED: 1.0})
    told = of_epochs([*broken, *(figures for _, figures in resumed)])
    assert [figures["epoch"] for figures in told] == [1, 2, 2, 3]
    assert [told[n] for n in (0, 2, 3)] == of_epochs(straight)


@pytest.mark.usefixtures("untraced", "small_batches")
@pytest.mark.parametrize(
    ("name", "settings", "module"),
    [
        ("alexnet", {"epochs": 2, "fully_connected": 16}, alexnet),
        ("cnn_gru", {"layer": "conv3", "epochs": 2, "units": 4, "projection": 4}, recurrent),
    ],
)
def test_other_networks_too(
    name: str,
    settings: dict[str, object],
    module: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched, said = fit_said(task_of(name, tmp_path / "watched", settings), name)
    told = of_epochs(said)
    assert [figures["epoch"] for figures in told] == [1, 2]
    assert all(0 <= figures[AREA] <= 1 and figures[LOSS] > 0 for figures in told)
    owner = module._Learner if module is recurrent else module
    monkeypatch.setattr(owner, "_watch", lambda *given: None)
    alone, said = fit_said(task_of(name, tmp_path / "alone", settings), name)
    assert not of_epochs(said)
    assert np.array_equal(watched, alone)


@pytest.mark.usefixtures("untraced", "small_batches")
def test_sequences_of_slices_are_judged_by_slice(tmp_path: Path) -> None:
    scans = np.arange(32) // 2
    task = task_of(
        "cnn_lstm",
        tmp_path,
        {"layer": "conv3", "epochs": 1, "units": 4, "projection": 4},
        scans=scans,
        groups=np.array([f"g{scan:02d}" for scan in scans]),
    )
    _, said = fit_said(task, "cnn_lstm")
    (figures,) = of_epochs(said)
    assert figures.keys() == {LOSS, AREA, "epoch"}


@pytest.mark.usefixtures("untraced", "small_batches")
def test_a_final_fit_learns_from_everything_so_nothing_is_watched(tmp_path: Path) -> None:
    at = np.arange(24)
    held_out = HeldOut(at, np.linspace(-1, 1, 24), at, np.linspace(-1, 1, 24))
    task = task_of("alexnet", tmp_path, {"epochs": 1, "fully_connected": 16}, held_out=held_out)
    assert not of_epochs(fit_said(task, "alexnet")[1])
