"""AlexNet's convolutions in Keras and ONNX, and the SVM on top, against numbers computed by
hand.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ml.errors import ArtifactError
from ml.evaluation.calibration import Platt
from ml.models.inner_folds import inner_folds
from ml.models.svm import Choice, Features, choose, fit_svm, usual_choice
from ml.networks.aggregation import aggregate
from ml.networks.convolutions import build, maps_shape, mirrored, pooled, to_onnx, weights_of
from ml.networks.sample_weights import sample_weights
from ml.networks.svm_graph import head_to_onnx
from ml.networks.weights import load_weights, random_weights, rounded
from tests.ml.tasks import task_of

SIZE = 63
LAYERS = ("conv3", "conv4", "conv5", "pool5")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(0)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).random((3, SIZE, SIZE, 1), np.float32)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_exported_features_are_those_of_keras(
    weights: dict[str, np.ndarray], pictures: np.ndarray, layer: str
) -> None:
    expected = np.asarray(build(weights, layer, SIZE).predict_on_batch(pictures))
    session = onnxruntime.InferenceSession(to_onnx(weights, layer, SIZE))
    result = session.run(["maps"], {"images": pictures})[0]
    side, channels = maps_shape(layer, SIZE)
    assert result.shape == expected.shape == (3, side, side, channels)
    assert np.abs(result - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_maps_of_both_ways_are_those_of_the_picture_and_of_its_mirror_image(
    weights: dict[str, np.ndarray], pictures: np.ndarray
) -> None:
    session = onnxruntime.InferenceSession(to_onnx(weights, "conv5", SIZE, both_ways=True))
    result = session.run(["maps"], {"images": pictures})[0]
    one_way = build(weights, "conv5", SIZE)
    by_hand = (
        one_way.predict_on_batch(pictures)
        + one_way.predict_on_batch(pictures[:, :, ::-1])[:, :, ::-1]
    ) / 2
    assert np.abs(result - by_hand).max() <= 1e-4 * max(1, np.abs(by_hand).max())
    assert np.abs(mirrored(one_way).predict_on_batch(pictures) - by_hand).max() <= 1e-5 * max(
        1, np.abs(by_hand).max()
    )
    turned = session.run(["maps"], {"images": np.ascontiguousarray(pictures[:, :, ::-1])})[0]
    assert np.abs(turned[:, :, ::-1] - result).max() <= 1e-4 * max(1, np.abs(by_hand).max())


def test_alexnet_has_thirteen_cells_a_side_at_224() -> None:
    assert [maps_shape(layer, 224) for layer in LAYERS] == [
        (13, 384),
        (13, 256),
        (13, 256),
        (6, 256),
    ]


def test_the_graph_normalizes_gray_as_imagenet_does() -> None:
    """With a first convolution that passes the middle pixel of one channel on, its output is (x -
    mean) / std.
    """
    weights = {key: np.zeros_like(values) for key, values in random_weights(0).items()}
    weights["conv1_W"][5, 5, 2, 0] = 1.0  # blue
    model = build(weights, "conv3", SIZE)
    first = keras.Model(model.input, model.get_layer("conv1").output)
    result = np.asarray(first.predict_on_batch(np.full((1, SIZE, SIZE, 1), 0.75, np.float32)))
    assert result[0, 5, 5, 0] == pytest.approx((0.75 - 0.406) / 0.225, rel=1e-5)


def test_weights_survive_export_and_half_precision_exactly(
    weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "weights.npz", **weights)  # type: ignore[arg-type]
    read = load_weights(tmp_path / "weights.npz", 0, "conv5")
    assert all(np.array_equal(read[key], weights[key]) for key in weights)
    assert all(np.array_equal(rounded(weights)[key], weights[key]) for key in weights)
    assert all(
        np.array_equal(values, weights[key])
        for key, values in weights_of(build(weights, "conv5", SIZE), weights).items()
    )


def test_the_same_seed_draws_the_same_random_weights() -> None:
    assert np.array_equal(random_weights(4)["conv2_W"], random_weights(4)["conv2_W"])
    assert not np.array_equal(random_weights(4)["conv2_W"], random_weights(5)["conv2_W"])


def test_unusable_initial_weights_are_refused_with_a_sentence(
    weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="There are no initial weights"):
        load_weights(tmp_path / "nothing.npz", 0, "conv5")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ArtifactError, match=r"text.npz is not a readable .npz file"):
        load_weights(tmp_path / "text.npz", 0, "conv5")
    np.savez(tmp_path / "pickled.npz", conv1_W=np.array([{"code": 1}], dtype=object))
    with pytest.raises(ArtifactError, match=r"pickled.npz is not a readable .npz file"):
        load_weights(tmp_path / "pickled.npz", 0, "conv5")
    shallow = {key: values for key, values in weights.items() if key[:5] <= "conv3"}
    np.savez(tmp_path / "shallow.npz", **shallow)  # type: ignore[arg-type]
    assert set(load_weights(tmp_path / "shallow.npz", 0, "conv3")) == set(shallow)
    with pytest.raises(
        ArtifactError, match=r"shallow.npz has no conv4_W; conv4 needs all convolutions up to it"
    ):
        load_weights(tmp_path / "shallow.npz", 0, "conv4")
    np.savez(
        tmp_path / "other.npz", **{**weights, "conv2_W": np.zeros((5, 5, 48, 256), np.float32)}
    )  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"conv2_W of shape \(5, 5, 48, 256\)"):
        load_weights(tmp_path / "other.npz", 0, "conv5")


def test_pooling_is_the_average_and_the_maximum_of_each_map() -> None:
    maps = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    assert pooled(maps, "average").tolist() == [[3, 4]]
    assert pooled(maps, "max").tolist() == [[6, 7]]
    assert pooled(maps, "both").tolist() == [[3, 4, 6, 7]]


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("pooling", ["average", "max", "both"])
@pytest.mark.parametrize("components", [False, True])
def test_the_exported_head_gives_the_calibrated_probability_of_scikit_learn(
    kernel: str, pooling: str, components: bool
) -> None:
    random = np.random.default_rng(1)
    maps = random.standard_normal((60, 3, 3, 4)).astype(np.float32)
    labels = (maps[..., 0].mean(axis=(1, 2)) > 0).astype(int)
    reduced = [("pca", PCA(0.8, svd_solver="full"))] if components else []
    svm = Pipeline([("scaler", StandardScaler()), *reduced, ("svm", SVC(kernel=kernel))]).fit(
        pooled(maps, pooling), labels
    )
    platt, scan_platt = Platt(2.0, 0.3), Platt(1.5, -0.2)
    head = head_to_onnx(svm, platt, scan_platt, pooling, 3, 4)
    session = onnxruntime.InferenceSession(head)
    slices, scan = session.run(["slice_probability", "scan_probability"], {"maps": maps})
    decisions = svm.decision_function(pooled(maps, pooling))
    assert np.abs(slices - platt(decisions)).max() < 1e-5
    assert slices.shape == (60,) and scan == pytest.approx(
        scan_platt(np.array([aggregate(decisions)])), abs=1e-5
    )
    assert session.run(["slice_probability"], {"maps": maps[:1]})[0] == pytest.approx(
        slices[:1], rel=1e-4
    )
    if kernel == "linear":
        constants = {
            constant.name: constant for constant in onnx.load_from_string(head).graph.initializer
        }
        assert list(constants["weights"].dims) == [8 if pooling == "both" else 4, 1], (
            "scaler, components and machine are one row"
        )


def features_by_hand(informative: str, part: str, copies: int = 1) -> Features:
    """Return noise for three channels of conv3 and two of conv5, but for the label of 32 pictures
    in one part of one layer.
    """
    random = np.random.default_rng(0)
    values = random.standard_normal((copies, 32, 10)).astype(np.float32)
    at = {
        ("conv3", "average"): 1,
        ("conv3", "max"): 4,
        ("conv5", "average"): 6,
        ("conv5", "max"): 9,
    }[informative, part]
    values[..., at] = np.tile([-1, 1], 16) + 0.3 * values[..., at]
    return Features(values, {"conv3": 3, "conv5": 2})


@pytest.mark.parametrize(
    ("layer", "pooling"), [("conv3", "max"), ("conv5", "average"), ("conv5", "max")]
)
def test_layer_and_pooling_are_chosen_where_the_label_shows(
    layer: str, pooling: str, tmp_path: Path
) -> None:
    task = task_of(
        "alexnet_svm",
        tmp_path,
        {"layer": "auto", "pooling": "auto", "kernel": "auto", "pca": "auto"},
    )
    choice, score, decisions = choose(
        task,
        features_by_hand(layer, pooling),
        inner_folds(task, one_split=False),
        lambda *args: None,
    )
    assert choice.layer == layer and choice.pooling in (pooling, "both") and score > 0.9
    assert np.isfinite(decisions[:24]).all() and np.isnan(decisions[24:]).all(), (
        "only the training part is looked at"
    )


def test_a_kernel_that_bends_is_chosen_where_a_straight_line_finds_nothing(tmp_path: Path) -> None:
    features = features_by_hand("conv5", "average")
    labels = (np.abs(features.values[0, :, 9]) > 0.6).astype(int)
    task = task_of(
        "alexnet_svm",
        tmp_path,
        {"kernel": "auto", "pooling": "max"},
        labels=labels,
        train=np.arange(32),
    )
    alone = Features(features.values[..., [6, 7, 9, 9]], {"conv5": 2})
    assert (
        choose(task, alone, inner_folds(task, one_split=False), lambda *args: None)[0].kernel
        == "rbf"
    )


def test_columns_of_features_are_those_of_their_layer_and_pooling() -> None:
    features = Features(np.arange(10, dtype=np.float32).reshape(1, 1, 10), {"conv3": 3, "conv5": 2})

    def columns(layer: str, pooling: str) -> list[float]:
        return [
            float(value) for value in features.of(Choice(layer, pooling, "linear", "no", 1.0))[0, 0]
        ]

    assert columns("conv3", "average") == [0, 1, 2] and columns("conv3", "max") == [3, 4, 5]
    assert columns("conv5", "both") == [6, 7, 8, 9] and columns("conv5", "max") == [8, 9]


def test_augmented_copies_together_have_the_weight_of_their_picture(
    tmp_path: Path,
) -> None:
    task = task_of("alexnet_svm", tmp_path)
    one = features_by_hand("conv5", "max")
    choice = Choice("conv5", "both", "linear", "no", 0.01)
    alone = fit_svm(task, one, task.train, choice)
    again = fit_svm(
        task, Features(np.repeat(one.values, 3, axis=0), one.channels), task.train, choice
    )
    assert again.decision_function(one.of(choice)[0]) == pytest.approx(
        alone.decision_function(one.of(choice)[0]), abs=1e-3
    )
    other = fit_svm(task, features_by_hand("conv5", "max", copies=3), task.train, choice)
    assert other["scaler"].n_samples_seen_ == 3 * 24


def test_what_most_fits_chose_is_the_usual_choice() -> None:
    def one(cost: float) -> dict[str, object]:
        return {
            "layer": "conv5",
            "pooling": "both",
            "kernel": "linear",
            "pca": "no",
            "C": cost,
            "inner_auroc": 0.9,
        }

    assert usual_choice([one(0.1), one(0.01), one(0.01)]) == Choice(
        "conv5", "both", "linear", "no", 0.01
    )
    assert usual_choice([one(0.1), one(0.01)]) == Choice("conv5", "both", "linear", "no", 0.1), (
        "ties go to the first"
    )
    assert usual_choice([{"learnt_from": 3}]) is None and usual_choice([]) is None


def test_data_sets_weigh_by_their_groups_and_their_classes_evenly() -> None:
    labels = np.array([1, 0, 0, 0, 1, 0])
    sources = np.array(["a", "a", "a", "a", "b", "b"])
    groups = np.array(["g1", "g1", "g2", "g2", "g3", "g3"])
    # a is worth two groups: 2 for its positive, 2 shared by three negatives; b is worth one.
    raw = np.array([2, 2 / 3, 2 / 3, 2 / 3, 1, 1])
    assert sample_weights(labels, sources, groups) == pytest.approx(raw / raw.mean())


def test_inner_folds_stay_in_the_training_part_and_judge_only_unseen_images(tmp_path: Path) -> None:
    labels, groups = np.tile([0, 1], 30), np.repeat([f"g{n}" for n in range(20)], 3)
    allowed, train = np.arange(60) >= 12, np.arange(48)
    task = task_of(
        "alexnet_svm",
        tmp_path,
        train=train,
        unseen=allowed,
        labels=labels,
        groups=groups,
        sources=np.full(60, "a"),
    )
    folds = inner_folds(task, one_split=False)
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(12, 48))
    assert len(inner_folds(task, one_split=True)) == 1
    for learn, held in [*folds, *inner_folds(task, one_split=True)]:
        assert set(range(12)) <= set(learn.tolist()) <= set(range(48))
        assert not set(groups[learn]) & set(groups[held])
