"""Training on phantoms: protocol, checkpoint, provenance, export. Phantoms are easy; no figure here
says anything about patients.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ml.artifacts.card import InitialWeights
from ml.artifacts.folder import read_card, write_model
from ml.catalogue import BLEEDING_TYPES, STARTER_DIR, STARTER_SERIES_DIR
from ml.checkpoints import save_arrays
from ml.datasets import pool
from ml.datasets.examples import UNKNOWN, Example, slice_of
from ml.datasets.pool import Pool
from ml.datasets.read import Dataset, read_dataset
from ml.datasets.seen_images import marks_of, seen_json
from ml.errors import ArtifactError, DatasetError, SettingError
from ml.evaluation.answers import read_answers
from ml.inference.predictor import Predictor
from ml.networks.weights import random_weights
from ml.preprocessing.model_input import InputSpec
from ml.scans.phantoms import phantom, write_png
from ml.scans.read import read_series
from ml.scans.slices import render
from ml.training import final_model, mistakes, run
from ml.training.experiment import Experiment
from ml.training.progress import Progress, TrainingStopped
from ml.training.run import OtherTraining, TrainConfig, train
from ml.training.run_card import _notes_on_tuning
from tests.ml.oracle import pooled

PHANTOMS = 32
QUICK = {"folds": "2", "layer": "conv3", "pooling": "average", "input_size": "160"}

pytestmark = pytest.mark.usefixtures("few_repetitions")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixteen patients with hemorrhage, sixteen without, one slice each."""
    root = tmp_path_factory.mktemp("phantoms")
    rows = ["filename,label,patient,subtypes"]
    for seed in range(PHANTOMS):
        # From 36 on no two of these simple heads are so alike that they would be joined as the same
        # picture.
        write_png(phantom(36 + seed, hemorrhage=seed % 2 == 1, size=128), root / f"{seed:02d}.png")
        bleeding = "subdural" if seed % 6 == 5 or seed == 1 else "epidural"
        rows.append(f"{seed:02d}.png,{seed % 2},p{seed},{bleeding if seed % 2 else ''}")
    (root / "labels.csv").write_text("\n".join(rows))
    return read_dataset(root, "phantoms")


@pytest.fixture(scope="module", autouse=True)
def types_of_few_patients_are_shown() -> Iterator[None]:
    """Sixteen phantoms tell no types apart, so the rule of
    `ml.training.type_figures.distinguished_types`, which has a test of its own, is set aside.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_model, "distinguished_types", lambda *given: BLEEDING_TYPES)
        yield


@pytest.fixture(scope="module")
def trained(
    phantoms: Dataset, few_repetitions: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Progress]]:
    """A finished training from random weights, and what it told on its way."""
    out, reports = tmp_path_factory.mktemp("trained"), list[Progress]()
    train(
        TrainConfig("alexnet_svm", QUICK, seed=1, init="random", command="python -m ml train …"),
        [phantoms],
        out,
        reports.append,
    )
    return out, reports


def test_a_training_leaves_a_model_and_nothing_else(
    trained: tuple[Path, list[Progress]], phantoms: Dataset
) -> None:
    out, _ = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "mistakes",
        "model",
        "predictions.csv",
        "types.csv",
    ]
    card = read_card(out / "model")
    assert card.architecture == "alexnet_svm" and card.reads == "slice" and card.seed == 1
    assert card.data.datasets == ["phantoms"]
    assert (
        card.data.images,
        card.data.positive,
        card.data.negative,
        card.data.groups,
    ) == (32, 16, 16, 32)
    assert card.command == "python -m ml train …"
    assert (
        card.settings["folds"] == 2
        and card.settings["kernel"] == "linear"
        and "chosen_C" in card.settings
    )
    assert card.metrics.auroc.n == 32 and card.metrics_by_dataset["phantoms"] == card.metrics
    assert sum(vars(card.confusion).values()) == 32
    assert card.uncertain_low <= card.threshold <= card.uncertain_high
    assert [control.name for control in card.controls] == [
        "permuted",
        "metadata",
        "leaked",
        "random_weights",
    ]


def figures_in(value: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every figure of a card as JSON that has an interval, and where it stands."""
    if isinstance(value, dict):
        if value.keys() >= {"value", "low", "high", "n"} and None not in (
            value["value"],
            value["low"],
        ):
            yield path, value
        for name, one in value.items():
            yield from figures_in(one, f"{path}/{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from figures_in(one, f"{path}/{number}")


def test_no_figure_of_a_card_lies_outside_its_interval(
    trained: tuple[Path, list[Progress]],
) -> None:
    for folder in (trained[0] / "model", STARTER_DIR, STARTER_SERIES_DIR):
        result = dict(figures_in(json.loads((folder / "card.json").read_bytes())))
        assert {"/metrics/ece", "/patient_metrics/auroc", "/controls/0/auroc"} < result.keys()
        outside = [name for name, f in result.items() if not f["low"] <= f["value"] <= f["high"]]
        assert not outside


def test_the_worst_mistakes_are_shown_with_what_the_model_of_their_fold_looked_at(
    trained: tuple[Path, list[Progress]], phantoms: Dataset, tmp_path: Path
) -> None:
    answers = read_answers(trained[0])["slice"]
    listed = json.loads((trained[0] / "mistakes" / "mistakes.json").read_bytes())
    wrong = [a for a in answers.values() if a.predicted[0] != (a.label == 1)]
    assert len(listed) == len(wrong) or len(listed) == 2 * mistakes.MOST_MISTAKES
    assert all(one["heat"] for one in listed)
    # A model that is never wrong shows nothing, so what it says is turned around.
    at = np.arange(len(phantoms.examples))
    labels = np.array([example.label for example in phantoms.examples])
    heat = {"at": at[:3], "heat": np.ones((3, 4, 4), np.float32)}
    save_arrays(tmp_path / "fold-0-mistakes.npz", heat | {"outlines": np.ones((3, 8, 8))})
    turned = SimpleNamespace(
        at=at, labels=labels, probabilities=1.0 - labels[None], predicted=labels[None] == 0
    )
    mistakes.write_mistakes(
        tmp_path / "shown", turned, phantoms.examples, InputSpec.from_settings({}), tmp_path
    )
    listed = json.loads((tmp_path / "shown" / "mistakes.json").read_bytes())
    assert len(listed) == 16 and [one["label"] for one in listed] == [1] * 8 + [0] * 8
    with_heat = sorted(path.name for path in (tmp_path / "shown").glob("*-heat.png"))
    assert with_heat == ["mistake-00-heat.png", "mistake-08-heat.png", "mistake-09-heat.png"]
    with Image.open(tmp_path / "shown" / "mistake-00-heat.png") as layer:
        assert layer.mode == "RGBA" and np.asarray(layer)[..., 3].max() == 255  # the outline
        sizes = layer.size, render(slice_of(phantoms.examples[int(at[labels == 1][0])]), 512).size
        assert sizes[0] == sizes[1]


def test_the_exported_model_computes_what_was_trained(trained: tuple[Path, list[Progress]]) -> None:
    check = read_card(trained[0] / "model").export_check
    assert check.passed and check.largest_difference <= check.limit == 1e-4


def test_types_of_bleeding_are_judged_exported_and_served(
    trained: tuple[Path, list[Progress]], phantoms: Dataset
) -> None:
    card = read_card(trained[0] / "model")
    assert card.reported_types == ("epidural", "subdural") and "types.onnx" in card.files
    assert card.types["epidural"].patients == 10 and card.types["epidural"].patient.auroc.n == 32
    assert card.types["subdural"].patients == 6 == len(card.types["subdural"].scores)
    predictor = Predictor(trained[0] / "model")
    result = [
        predictor.predict(read_series([example.path]))
        for example in phantoms.examples
        if example.label == 1
    ]
    for one in result:
        assert one.types == {name: of_slices[0] for name, of_slices in one.slice_types.items()}
        assert (
            set(one.types) == set(card.reported_types)
            and max(one.types.values()) <= one.probability
        )
    assert np.mean([one.types["epidural"] for one in result]) > np.mean(
        [one.types["subdural"] for one in result]
    ), "10 against 6"


def test_the_model_is_served_and_tells_its_phantoms_apart(
    trained: tuple[Path, list[Progress]], phantoms: Dataset
) -> None:
    predictor = Predictor(trained[0] / "model")
    result = {1: list[float](), 0: list[float]()}
    for example in phantoms.examples:
        assert example.label is not None
        result[example.label].append(predictor.predict(read_series([example.path])).probability)
    assert np.mean(result[1]) > np.mean(result[0]) + 0.3


def test_progress_never_falls_and_ends_at_one(trained: tuple[Path, list[Progress]]) -> None:
    fractions = [progress.fraction for progress in trained[1]]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    stages = [progress.stage for progress in trained[1]]
    assert {"reading images", "fold 1 of 2", "fold 2 of 2", "final model", "export", "done"} <= set(
        stages
    )
    assert all(progress.eta_s is None or progress.eta_s >= 0 for progress in trained[1])


@pytest.mark.parametrize("stage", ["reading images", "fold 2 of 2", "export"])
def test_an_interrupted_training_continues_and_ends_with_the_same_model(
    trained: tuple[Path, list[Progress]], phantoms: Dataset, tmp_path: Path, stage: str
) -> None:
    config = TrainConfig(
        "alexnet_svm", QUICK, seed=1, init="random", command="python -m ml train …"
    )
    reports: list[Progress] = []
    with pytest.raises(TrainingStopped):
        train(
            config,
            [phantoms],
            tmp_path,
            reports.append,
            lambda: bool(reports) and reports[-1].stage == stage,
        )
    assert not (tmp_path / "model").exists() and (tmp_path / "checkpoint").is_dir()
    continued = train(config, [phantoms], tmp_path)
    straight = read_card(trained[0] / "model")
    assert continued.id == straight.id and continued.metrics == straight.metrics


def test_a_folder_is_not_mixed_with_another_training(
    phantoms: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig("alexnet_svm", QUICK, init="random")
    with pytest.raises(TrainingStopped):
        train(config, [phantoms], tmp_path, should_stop=lambda: True)
    with pytest.raises(OtherTraining, match="unfinished training with other settings or data"):
        train(replace(config, seed=9), [phantoms], tmp_path)
    with (
        monkeypatch.context() as patched,
        pytest.raises(OtherTraining, match="or of another version"),
    ):
        patched.setattr("ml.training.plan.RECIPE", 0)
        train(config, [phantoms], tmp_path)
    (tmp_path / "checkpoint" / "training.json").rename(tmp_path / "checkpoint" / ".training.json")
    # killed before its first file was there: the folder is still its own
    with pytest.raises(TrainingStopped):
        train(config, [phantoms], tmp_path, should_stop=lambda: True)
    (tmp_path / "checkpoint" / "training.json").unlink()
    (tmp_path / "checkpoint" / "fold-0").mkdir(exist_ok=True)
    with pytest.raises(OtherTraining):
        train(config, [phantoms], tmp_path)


def test_a_finished_training_called_again_returns_its_card(
    trained: tuple[Path, list[Progress]], phantoms: Dataset
) -> None:
    """A worker that died between the last file and its report does no work twice."""
    config = TrainConfig(
        "alexnet_svm", QUICK, seed=1, init="random", command="python -m ml train …"
    )
    (trained[0] / "cache").mkdir()
    assert train(config, [phantoms], trained[0]) == read_card(trained[0] / "model")
    assert sorted(path.name for path in trained[0].iterdir()) == [
        "mistakes",
        "model",
        "predictions.csv",
        "types.csv",
    ]


def test_a_finished_model_is_never_written_over(
    trained: tuple[Path, list[Progress]], phantoms: Dataset
) -> None:
    with pytest.raises(SettingError, match="holds the model of another training"):
        train(TrainConfig("alexnet_svm", QUICK, seed=2, init="random"), [phantoms], trained[0])


def test_too_few_patients_are_refused_with_a_sentence(phantoms: Dataset, tmp_path: Path) -> None:
    few = replace(phantoms, examples=phantoms.examples[:6])
    with pytest.raises(
        DatasetError, match=r"Only 3 groups \(patients\) show hemorrhage; 2 folds need at least 4."
    ):
        train(TrainConfig("alexnet_svm", QUICK, init="random"), [few], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_initial_weights_are_refused(phantoms: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There are no initial weights"):
        train(
            TrainConfig("alexnet_svm", QUICK, init=tmp_path / "none.npz"),
            [phantoms],
            tmp_path / "out",
        )


def test_an_image_that_vanished_is_named(phantoms: Dataset, tmp_path: Path) -> None:
    gone = replace(phantoms.examples[0], path=tmp_path / "gone.png")
    with pytest.raises(DatasetError, match=r"00.png"):
        train(
            TrainConfig("alexnet_svm", QUICK, init="random"),
            [replace(phantoms, examples=(gone, *phantoms.examples[1:]))],
            tmp_path,
        )


def test_fine_tuned_features_are_exported_and_remember_their_images(
    phantoms: Dataset, tmp_path: Path
) -> None:
    settings = {**QUICK, "fine_tune_epochs": "1", "controls": "none"}
    card = train(
        TrainConfig("alexnet_svm", settings, init="random"), [phantoms], tmp_path / "first"
    )
    assert card.export_check.passed
    model = tmp_path / "first" / "model"
    assert set(marks_of(model)) == {(e.sha256[:16], e.dhash) for e in phantoms.examples}
    with pytest.raises(
        DatasetError,
        match="have already seen these images, so no unseen images are left for testing",
    ):
        train(TrainConfig("alexnet_svm", QUICK, init=model), [phantoms], tmp_path / "second")


def test_frozen_features_have_seen_nothing_and_may_be_tested_on_the_same_images(
    trained: tuple[Path, list[Progress]], phantoms: Dataset, tmp_path: Path
) -> None:
    model = trained[0] / "model"
    seen = json.loads((model / "seen.json").read_bytes())
    assert seen["features"] == [] and len(seen["head"]) == PHANTOMS
    again = train(TrainConfig("alexnet_svm", QUICK, seed=1, init=model), [phantoms], tmp_path)
    assert again.data.initial_weights.id == read_card(model).id
    assert again.metrics == read_card(model).metrics, (
        "the convolutions read back from the export are those it was made of"
    )


def test_seen_json_holds_no_names(trained: tuple[Path, list[Progress]], phantoms: Dataset) -> None:
    text = (trained[0] / "model" / "seen.json").read_text()
    assert "png" not in text and "phantom" not in text and str(phantoms.root) not in text


def a_pool(phantoms: Dataset, seen: int) -> Pool:
    return pooled([phantoms], tuple((e.sha256[:16], "") for e in phantoms.examples[:seen]), folds=2)


def test_what_the_initial_weights_have_seen_only_trains(phantoms: Dataset) -> None:
    pool = a_pool(phantoms, seen=10)
    assert pool.unseen.tolist() == [False] * 10 + [True] * 22
    assert pool.notes == (
        (
            "10 of the 32 images belong to patients that the initial weights have seen; they are"
            " used for training only, and no metric includes them."
        ),
    )


def test_another_slice_of_a_seen_patient_is_seen_too(phantoms: Dataset) -> None:
    examples = (
        phantoms.examples[0],
        replace(phantoms.examples[1], group=phantoms.examples[0].group),
        *phantoms.examples[2:],
    )
    assert (
        a_pool(replace(phantoms, examples=examples), seen=1).unseen.tolist()
        == [False] * 2 + [True] * 30
    )


def test_the_same_picture_in_two_data_sets_is_one_group(phantoms: Dataset) -> None:
    other = replace(
        phantoms,
        name="other",
        examples=tuple(
            replace(e, dataset="other", group=f"other/{e.name}") for e in phantoms.examples
        ),
    )
    pool = pooled([phantoms, other], (), folds=2)
    assert pool.groups[:32].tolist() == pool.groups[32:].tolist()


def test_empty_slices_join_no_patients_and_are_nobodys(phantoms: Dataset) -> None:
    empty = f"8{1:063x}"
    random = np.random.default_rng(0)
    first, *others = (
        replace(e, dataset="other", group=f"other/{e.name}", sha256=f"{n:064x}")
        for n, e in enumerate(phantoms.examples)
    )
    examples = (
        replace(first, dhash=empty),
        *(replace(e, dhash=random.bytes(32).hex()) for e in others),
    )
    one = replace(
        phantoms, examples=(replace(phantoms.examples[0], dhash=empty), *phantoms.examples[1:])
    )
    pool = pooled(
        [one, replace(phantoms, name="other", examples=examples)], (("", empty),), folds=2
    )
    assert pool.groups[0] != pool.groups[32] and pool.unseen.all()


def test_a_picture_that_another_data_set_saved_anew_is_of_one_group_and_seen(
    phantoms: Dataset,
) -> None:
    nearly = [f"{int(e.dhash, 16) & ~(0xFF << 128):064x}" for e in phantoms.examples]
    copies = tuple(
        replace(e, dataset="other", group=f"other/{e.name}", sha256=f"{n:064x}", dhash=nearly[n])
        for n, e in enumerate(phantoms.examples)
    )
    pool = pooled(
        [phantoms, replace(phantoms, name="other", examples=copies)], (("", nearly[0]),), folds=2
    )
    assert pool.groups[:32].tolist() == pool.groups[32:].tolist()
    assert np.flatnonzero(~pool.unseen).tolist() == [0, 32]


def test_pictures_listed_by_an_earlier_version_are_known_by_their_files_alone(
    phantoms: Dataset,
) -> None:
    first, second, *_ = phantoms.examples
    pool = pooled(
        [phantoms], ((first.sha256[:16], "0123456789abcdef"), ("", second.dhash[:16])), folds=2
    )
    assert np.flatnonzero(~pool.unseen).tolist() == [0]
    sentence = (
        "2 of the training images were listed by an earlier version; of these, only unchanged"
        " files are recognized."
    )
    assert sentence in pool.notes
    renewed = json.loads(
        seen_json([first], ((first.sha256[:16], "0123456789abcdef"),), learned_features=True)
    )
    assert renewed["features"] == [[first.sha256[:16], first.dhash]]


def test_two_data_sets_of_one_name_are_refused(phantoms: Dataset) -> None:
    with pytest.raises(DatasetError, match="Two data sets are named phantoms"):
        pooled([phantoms, phantoms], (), folds=2)


def test_unknown_labels_never_train(phantoms: Dataset) -> None:
    examples = (replace(phantoms.examples[0], label=None), *phantoms.examples[1:])
    pool = pooled([replace(phantoms, examples=examples)], (), folds=2)
    assert len(pool.labels) == 31 and pool.notes == ("1 images with unknown labels were left out.",)


def test_an_unknown_slice_stays_in_its_scan_between_its_neighbors(phantoms: Dataset) -> None:
    first, second, third, *others = phantoms.examples
    one = [
        replace(e, patient="one", group=first.group, slice=number, label=label)
        for e, number, label in ((first, 7, 0), (second, 2, None), (third, 5, 1))
    ]
    pool = pooled([replace(phantoms, examples=(one[0], *others, *one[1:]))], (), folds=2)
    assert [e.slice for e in pool.examples[:3]] == [2, 5, 7]
    assert pool.labels[:4].tolist() == [UNKNOWN, 1, 0, others[0].label]
    assert pool.scans[:5].tolist() == [0, 0, 0, 1, 2] and (np.diff(pool.scans) >= 0).all()
    assert pool.known.sum() == 31
    assert pool.notes == (
        "1 unlabeled slices are part of their scans, but are not used for training or testing.",
    )


def test_what_shaped_the_features_stays_apart_from_what_shaped_the_head(phantoms: Dataset) -> None:
    before = (("aaaa", "bbbb"),)
    frozen = json.loads(seen_json(phantoms.examples[:1], before, learned_features=False))
    tuned = json.loads(seen_json(phantoms.examples[:1], before, learned_features=True))
    mark = [phantoms.examples[0].sha256[:16], phantoms.examples[0].dhash]
    assert frozen == {"features": [["aaaa", "bbbb"]], "head": [mark]}
    assert sorted(tuned["features"]) == sorted([["aaaa", "bbbb"], mark])


def test_a_model_that_hides_what_it_saw_cannot_start_a_training(
    trained: tuple[Path, list[Progress]], tmp_path: Path
) -> None:
    model = trained[0] / "model"
    files: Mapping[str, Path] = {name: model / name for name in ("features.onnx", "head.onnx")}
    write_model(tmp_path / "silent", read_card(model), files)
    with pytest.raises(ArtifactError, match="does not state which images it was trained on"):
        marks_of(tmp_path / "silent")


def test_head_ct_is_trained_honestly_whatever_the_starter_has_seen(
    shared_data: Path, tmp_path: Path
) -> None:
    dataset = read_dataset(shared_data / "head_ct")
    card = train(
        TrainConfig("alexnet_svm", {"controls": "none", "input_size": "160"}, init="starter"),
        [dataset],
        tmp_path,
    )
    start = card.data.initial_weights
    starters = {
        read_card(folder).id: folder
        for folder in (STARTER_DIR, STARTER_SERIES_DIR)
        if folder.is_dir()
    }
    seen = () if start.kind == "random" else marks_of(starters[start.id])
    assert not set(seen) & {(e.sha256[:16], e.dhash) for e in dataset.examples}
    assert card.data.groups == 108 and card.data.judged == card.metrics.auroc.n == 200
    assert card.metrics.auroc.value > 0.75
    assert any("started from random weights" in note for note in card.notes) == (
        start.kind == "random"
    )


def test_the_starter_gives_way_to_random_weights_for_images_that_it_has_seen(
    trained: tuple[Path, list[Progress]],
    phantoms: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = read_card(trained[0] / "model")
    files = {
        name: (trained[0] / "model" / name).read_bytes() for name in ("features.onnx", "head.onnx")
    }
    files["seen.json"] = seen_json(phantoms.examples, (), learned_features=True)
    write_model(tmp_path / "seen", card, files)
    monkeypatch.setattr(pool, "STARTER_DIR", tmp_path / "seen")
    monkeypatch.setattr(pool, "STARTER_SERIES_DIR", tmp_path / "none")
    result = train(TrainConfig("alexnet_svm", QUICK, init="starter"), [phantoms], tmp_path / "out")
    assert result.data.initial_weights == InitialWeights(kind="random")
    assert any("started from random weights" in note for note in result.notes)


def test_unusable_initial_weights_leave_the_folder_for_the_next_try(
    phantoms: Dataset, tmp_path: Path
) -> None:
    np.save(tmp_path / "one_array.npy", np.zeros(3))
    for init, sentence in (
        (tmp_path / "one_array.npy", "is not a readable .npz"),
        (tmp_path / "nothing.npz", "no initial weights"),
    ):
        with pytest.raises(ArtifactError, match=sentence):
            train(TrainConfig("alexnet_svm", QUICK, init=init), [phantoms], tmp_path / "out")
    np.savez(tmp_path / "joined.npz", **random_weights(0))
    with pytest.raises(ArtifactError, match="are not grouped; choose groups = 1"):
        train(
            TrainConfig("alexnet_svm", {**QUICK, "groups": "2"}, init=tmp_path / "joined.npz"),
            [phantoms],
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_starts_from_random_weights_whatever_is_given(
    phantoms: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Experiment] = []

    def stopped(experiment: Experiment, *_: object, **__: object) -> None:
        started.append(experiment)
        raise TrainingStopped

    monkeypatch.setattr(run, "cross_validate", stopped)
    with pytest.raises(TrainingStopped):
        train(
            TrainConfig("autoencoder", {"folds": "2"}, init="starter"), [phantoms], tmp_path / "out"
        )
    assert started[0].init == "random" and started[0].unseen.all()


def labeled_as_wholes(phantoms: Dataset) -> Dataset:
    """Sixteen patients of two slices each: of the last six only the whole is labeled."""

    def in_a_scan(number: int) -> Example:
        example, scan = phantoms.examples[number], number // 4 * 2 + number % 2
        values = {"label": None, "scan_label": scan % 2} if scan >= 10 else {}
        return replace(
            example,
            patient=f"s{scan:02d}",
            slice=number // 2 % 2,
            group=f"phantoms/s{scan:02d}",
            **values,
        )

    return replace(phantoms, examples=tuple(in_a_scan(number) for number in range(PHANTOMS)))


@pytest.mark.parametrize(
    ("architecture", "quick"),
    [
        ("cnn_gru", {"layer": "conv3", "epochs": "1", "units": "4", "projection": "8"}),
        ("alexnet_svm", {"layer": "conv3"}),
        ("alexnet_cells_series", {"epochs": "1"}),
    ],
)
def test_scans_that_are_labeled_as_wholes_are_judged_as_patients_by_every_architecture(
    phantoms: Dataset, tmp_path: Path, architecture: str, quick: dict[str, str]
) -> None:
    settings = {"folds": "2", "controls": "none", "input_size": "160", **quick}
    dataset = labeled_as_wholes(phantoms)
    card = train(TrainConfig(architecture, settings, init="random"), [dataset], tmp_path)
    assert card.metrics.auroc.n == 20 and card.patient_metrics.auroc.n == 16 == card.data.scans
    seen = {
        picture
        for picture, _ in json.loads((tmp_path / "model" / "seen.json").read_bytes())["head"]
    }
    weak = {example.sha256[:16] for example in dataset.examples if example.scan_label is not None}
    what = {
        "cnn_gru": "train the scan output",
        "alexnet_cells_series": "calibrate the scan output and train no slice output",
        "alexnet_svm": "are not used for training because this architecture learns from slices",
    }[architecture]
    assert (
        f"6 scans have only scan-level labels: they {what}, are tested by patient, and are excluded"
        " from all figures by slice." in card.notes
    )
    assert len(weak) == 12 and (not weak & seen if architecture == "alexnet_svm" else weak <= seen)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        patients = {
            row["patient"]: row["label"]
            for row in csv.DictReader(file)
            if row["level"] == "patient"
        }
    assert patients["s10"] == "0" and patients["s15"] == "1"


def test_a_card_says_where_folds_were_fine_tuned_by_another_library_than_the_final_model() -> None:
    def notes(*by: str) -> list[str]:
        folds, final = ({"tuned_by": name} for name in by[:-1]), {"tuned_by": by[-1]}
        return _notes_on_tuning(SimpleNamespace(chosen=[*folds, {}]), SimpleNamespace(chosen=final))  # type: ignore[arg-type]

    assert notes("torch 2", "torch 2", "torch 2") == []
    assert notes("torch 2", "tensorflow 2", "torch 2") == [
        "Folds and final model were fine-tuned by tensorflow 2 and torch 2, which round and draw"
        " random numbers differently."
    ]
