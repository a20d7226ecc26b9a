"""LSTM and GRU over slices and over rows: their graphs, any number of slices, what they learn
from.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ml.datasets.examples import UNKNOWN
from ml.evaluation.calibration import Platt
from ml.evaluation.metrics import auroc
from ml.models.contract import FitTask, Fitted, fit_of
from ml.models.recurrent import rows_of
from ml.models.recurrent_batches import scans_drawn
from ml.models.recurrent_network import NOISE, Network, build_network
from ml.networks.cells import evidence_nodes, evidence_of
from ml.networks.fine_tuning import Tuned, computed_by
from ml.networks.onnx_graph import model_of, serialized
from tests.ml.tasks import largest_difference, task_of

SMALL: dict[str, object] = {"layer": "conv3", "epochs": 2, "units": 4, "projection": 4}
LENGTHS = (1, 3, 2, 5, 1, 4, 2, 2, 3, 1, 4, 4)


def task_on_scans(
    name: str, folder: Path, settings: dict[str, object] | None = None, **changed: object
) -> FitTask:
    """Return a task on 12 scans of 1 to 5 slices; those of odd number bleed, in every other
    slice.
    """
    scans = np.repeat(np.arange(12), LENGTHS)
    pictures = np.random.default_rng(1).random((32, 63, 63, 1), np.float32) * 0.2
    labels = (scans % 2) * (np.arange(32) % 2 == 0)
    for scan in np.unique(scans):
        if scan % 2 and not labels[scans == scan].any():
            labels[np.flatnonzero(scans == scan)[0]] = 1
    pictures[labels == 1, 20:40, 20:40] += 0.7
    groups = np.array([f"g{scan:02d}" for scan in scans])
    given = {
        "images": pictures,
        "labels": labels,
        "groups": groups,
        "scans": scans,
        "train": np.flatnonzero(scans < 10),
        **changed,
    }
    return task_of(name, folder, {**SMALL, **(settings or {})}, **given)


@pytest.fixture(scope="module", params=["cnn_lstm", "cnn_gru"])
def fitted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FitTask, Fitted]:
    task = task_on_scans(
        request.param,
        tmp_path_factory.mktemp("scans"),
        {"epochs": 40, "units": 8, "projection": 32, "dropout": 0.0, "learning_rate": 0.01},
    )
    return task, fit_of(request.param)(task)


def test_the_graphs_answer_as_keras_for_any_number_of_slices(
    fitted: tuple[FitTask, Fitted],
) -> None:
    task, result = fitted
    assert result.chosen["sequence"] == "slices"
    assert largest_difference(result, [task.images[:length] for length in (1, 2, 7, 19)]) < 1e-4


def test_slices_and_scans_are_distinguished_by_what_they_show(
    fitted: tuple[FitTask, Fitted],
) -> None:
    task, result = fitted
    truth = np.arange(12) % 2
    assert auroc(task.labels[task.train], result.decisions[task.train]) > 0.9
    assert auroc(truth[:10], result.scan_decisions[:10]) > 0.9


def test_a_scan_of_one_slice_has_that_slices_decision(fitted: tuple[FitTask, Fitted]) -> None:
    task, result = fitted
    for scan in (0, 4, 9):
        assert result.scan_decisions[scan] == result.decisions[task.scans == scan][0]
    platt, scan_platt = Platt(1.0, 0.0), Platt(0.5, 0.2)
    _, slices, whole = result.reference(task.images[:1], platt, scan_platt)
    assert slices[0] == pytest.approx(whole)


def test_what_was_held_out_is_whole_scans(fitted: tuple[FitTask, Fitted]) -> None:
    task, result = fitted
    held = result.held_out
    assert set(task.scans[held.slices].tolist()) == set(held.scans.tolist()) < set(range(10))
    assert len(held.decisions) == len(held.slices) == np.isin(task.scans, held.scans).sum()


def test_the_order_of_the_slices_counts(fitted: tuple[FitTask, Fitted]) -> None:
    task, result = fitted
    platt = Platt(1.0, 0.0)
    upwards, downwards = (
        result.reference(images, platt, platt)[1]
        for images in (task.images[6:11], task.images[10:5:-1])
    )
    assert not np.allclose(upwards, downwards[::-1], atol=1e-6), (
        "the two directions have weights of their own"
    )


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", ["cnn_lstm", "cnn_gru"])
def test_one_direction_exports_too(name: str, tmp_path: Path) -> None:
    task = task_on_scans(name, tmp_path, {"bidirectional": "no"})
    assert largest_difference(fit_of(name)(task), [task.images[:1], task.images[:4]]) < 1e-4


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ({}, "cells"),
        ({"bidirectional": "no", "layer": "conv4"}, "cells"),
        ({"reads": "maps"}, "maps"),
        ({"restructure": "autoencoder"}, "maps"),
    ],
)
def test_fine_tuned_cells_are_read_and_corrected_where_that_is_asked(
    settings: dict[str, object], read: str, tmp_path: Path
) -> None:
    result = fit_of("cnn_lstm")(
        task_on_scans(
            "cnn_lstm", tmp_path, {"fine_tune_epochs": 1, "learning_rate": 0.05, **settings}
        )
    )
    assert result.chosen["read"] == read and result.chosen["tuned_by"] == computed_by()
    images = task_on_scans("cnn_lstm", tmp_path).images
    assert largest_difference(result, [images[:length] for length in (1, 2, 19)]) < 1e-4
    channels = 384 if settings.get("layer") != "conv4" else 256
    assert result.descriptions.shape == (
        32,
        2 * channels * (2 if "restructure" in settings else 1),
    ), "types are told from maps"


def test_a_network_that_corrects_begins_with_what_the_cells_say() -> None:
    settings = {"units": 4, "projection": 4, "bidirectional": "yes", "dropout": 0.4}
    network = Network(
        build_network("lstm", 3, settings, 0, own=(-2.0, 4.0)),
        np.array([-2.0, 0, 0]),
        np.array([4.0, 1, 1]),
    )
    evidence = np.random.default_rng(0).normal(0, 3, (5, 3)).astype(np.float32)
    steps, wholes = network.decide([evidence])
    np.testing.assert_allclose(steps[0], evidence[:, 0], atol=1e-5)
    mean_odds = np.exp(evidence[:, 0].astype(np.float64)).mean()
    assert wholes[0] == pytest.approx(np.log(mean_odds), abs=1e-5)


def test_noise_falls_on_what_is_read_and_not_on_what_is_corrected() -> None:
    model = build_network(
        "lstm",
        2,
        {"units": 4, "projection": 4, "bidirectional": "yes", "dropout": 0.0},
        0,
        own=(0.0, 3.0),
    )
    given = {"features": np.ones((1, 40, 2), np.float32), "present": np.ones((1, 40), np.float32)}

    def largest_change() -> float:
        clean, learning = (
            keras.ops.convert_to_numpy(model(given, training=training)["steps"])
            for training in (False, True)
        )
        return float(np.abs(clean - learning).max())

    assert NOISE > 0 and largest_change() == 0, "an untrained correction is nothing"
    kernel, bias = model.get_layer("step").get_weights()
    model.get_layer("step").set_weights([kernel + 1, bias])
    assert largest_change() > 0.01, "the correction reads noise while it learns"


@pytest.mark.parametrize("side", [1, 3, 4, 5, 13, 27])
def test_evidence_is_the_decision_and_the_most_of_each_region(side: int) -> None:
    random = np.random.default_rng(side)
    maps, tuned = (
        random.random((6, side, side, 8), np.float32),
        Tuned({}, random.normal(size=8), -1.0, "a test"),
    )
    nodes, constants = evidence_nodes(tuned, side, 8)
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", "f"])]
    given = [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, 8])]
    model = serialized(model_of(nodes, "evidence", given, outputs, constants))
    result = evidence_of(maps, tuned)
    by_graph = onnxruntime.InferenceSession(model).run(None, {"maps": maps})[0]
    np.testing.assert_allclose(by_graph, result, atol=1e-5)
    cells = maps @ tuned.cell_weights - 1.0
    parts = min(4, side)
    assert result.shape == (6, 1 + parts**2)
    np.testing.assert_allclose(
        result[:, 0], np.log(np.exp(cells).sum(axis=(1, 2))) - np.log(10), atol=1e-5
    )
    np.testing.assert_allclose(
        result[:, 1:].max(axis=1),
        cells.max(axis=(1, 2)),
        atol=1e-5,
        err_msg="no cell is in no region",
    )


@pytest.mark.parametrize("name", ["cnn_lstm", "cnn_gru"])
def test_single_pictures_are_read_row_by_row(name: str, tmp_path: Path) -> None:
    task = task_of(name, tmp_path, {**SMALL, "epochs": 15, "dropout": 0.0, "learning_rate": 0.01})
    result = fit_of(name)(task)
    assert result.chosen["sequence"] == "rows"
    assert auroc(task.labels[24:], result.decisions[24:]) > 0.9
    assert largest_difference(result, [task.images[:1], task.images[:5]]) < 1e-4


@pytest.mark.usefixtures("untraced")
def test_an_unlabeled_slice_is_part_of_its_scan_but_not_trained_on(
    tmp_path: Path,
) -> None:
    labels = task_on_scans("cnn_gru", tmp_path).labels.copy()
    labels[2] = UNKNOWN
    train = np.flatnonzero((np.repeat(np.arange(12), LENGTHS) < 10) & (labels != UNKNOWN))
    result = fit_of("cnn_gru")(task_on_scans("cnn_gru", tmp_path, labels=labels, train=train))
    assert np.isfinite(result.decisions).all() and 2 not in result.held_out.slices


def test_rows_are_averages_and_maxima_along_the_width() -> None:
    maps = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    assert rows_of(maps).tolist() == [[[1, 2, 2, 3], [5, 6, 6, 7]]]


@pytest.mark.parametrize("bright_bleeds", [0, 1])
def test_scans_that_are_labeled_as_wholes_teach_the_answer_for_a_scan(
    bright_bleeds: int, tmp_path: Path
) -> None:
    # Twelve scans with labeled slices, and eight without, which are bright or striped: what that
    # means is told of whole scans alone.
    base = task_on_scans("cnn_gru", tmp_path)
    weak_scans = np.repeat(np.arange(12, 20), 2)
    pictures = np.random.default_rng(2).random((16, 63, 63, 1), np.float32) * 0.2
    bright = weak_scans % 2 == 0
    pictures[bright] += 0.4
    pictures[~bright, ::4] += 0.8
    scans = np.concatenate([base.scans, weak_scans])
    settings = {"epochs": 25, "units": 8, "projection": 32, "dropout": 0.0, "learning_rate": 0.01}
    given_scan_labels = {
        scan: bright_bleeds if scan % 2 == 0 else 1 - bright_bleeds for scan in range(12, 20)
    }
    task = task_on_scans(
        "cnn_gru",
        tmp_path / str(bright_bleeds),
        settings,
        images=np.concatenate([base.images, pictures]),
        labels=np.concatenate([base.labels, np.full(16, UNKNOWN)]),
        groups=np.array([f"g{scan:02d}" for scan in scans]),
        scans=scans,
        sources=np.full(48, "a"),
        masks=np.full((48, 14, 14), 255, np.uint8),
        unseen=np.ones(48, bool),
        given_scan_labels=given_scan_labels,
        weak_scans=np.arange(12, 20),
    )
    result = fit_of("cnn_gru")(task)
    assert auroc(np.array(list(given_scan_labels.values())), result.scan_decisions[12:]) > 0.9
    assert set(result.held_out.scans.tolist()) & set(range(12, 20)), "some of them calibrate"
    assert not set(result.held_out.slices.tolist()) & set(range(32, 48)), (
        "nobody knows of their slices"
    )


def test_a_scan_that_is_labeled_as_a_whole_is_never_drawn_in_parts(tmp_path: Path) -> None:
    scans = np.repeat([0, 1, 2, 3], [4, 4, 70, 3])
    labels = np.array([0, 1, 0, 0, *[0] * 4, *[UNKNOWN] * 73])
    sizes = {
        "groups": scans.astype(str),
        "sources": np.full(81, "a"),
        "images": np.zeros((81, 63, 63, 1)),
        "masks": np.zeros((81, 2, 2)),
    }
    task = task_of(
        "cnn_gru",
        tmp_path,
        labels=labels,
        scans=scans,
        train=np.arange(8),
        given_scan_labels={2: 1, 3: 0},
        weak_scans=np.array([2, 3]),
        **sizes,
    )
    features = np.broadcast_to(scans[None, :, None], (1, 81, 1)).astype(np.float32)
    _, draw = scans_drawn(task, features, task.train, task.weak_scans)
    lengths: dict[int, set[tuple[int, float, bool]]] = {2: set(), 3: set()}
    for seed in range(20):
        for inputs, truth, weights in draw(seed):
            for row, present in enumerate(inputs["present"].sum(axis=1).astype(int)):
                scan = int(inputs["features"][row, 0, 0])
                if scan in lengths:
                    assert not weights["steps"][row].any(), "nobody knows of its slices"
                    lengths[scan].add(
                        (
                            int(present),
                            float(truth["whole"][row, 0]),
                            bool(weights["whole"][row] > 0),
                        )
                    )
    assert lengths == {2: {(70, 1.0, True)}, 3: {(3, 0.0, True)}}
