"""Control experiments of a training run: the results of the same folds, code and budget with one
condition changed.

    permuted         labels permuted between groups: anything above chance is leakage
    metadata         no pixels, only file size, width, height, pixel format and color: the strength
                     of shortcuts
    leaked           augmented before splitting, with copies of an image on both sides: what a
                     protocol with data leakage would report
    random_weights   the run from random initial weights: the benefit of pretraining

Each has an `ml.artifacts.card.Control`, with metrics by slice; a control that was not run gives the
reason in `skipped`. For random weights, `run_auroc` is the run's result on the same folds.
Checkpoints are saved for each step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.ensemble import RandomForestClassifier

from ml.artifacts.card import Control
from ml.catalogue import architecture_named
from ml.checkpoints import RESUMED, load_json, save_json
from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.groups import stratified_group_folds
from ml.errors import DatasetError
from ml.evaluation.answers import Answers
from ml.evaluation.metrics import auroc, lower_bound_of_mean, metrics_with_intervals
from ml.expected_fits import (
    CHEAP_PERMUTATIONS,
    CONTROLS,
    DEAR_PERMUTATIONS,
    MOST_IMAGES_PERMUTED_WHOLE,
    control_names,
    leaked_copies,
)
from ml.figures import Estimate, Metrics
from ml.preprocessing.augmentation import augmented_copies
from ml.training.cross_validation import Tell, cross_validate
from ml.training.experiment import Experiment
from ml.typed_json import from_json, to_json

LEVEL = 0.99
TREES = 300
MODES = ("L", "LA", "P", "RGB", "RGBA", "I;16", "DICOM")


@dataclass(frozen=True)
class ControlledRun:
    """A run that is to be controlled.

    Attributes:
        experiment: the data of the run.
        examples: its images, for file metadata.
        learned_features: whether the run trains convolutions; then permutations are expensive.
        folds: number of folds of the run.
    """

    experiment: Experiment
    examples: Sequence[Example]
    learned_features: bool
    folds: int

    @property
    def first_fold(self) -> list[int] | None:
        """The folds that a control is tested on: the first if convolutions are trained, else all
        (None).
        """
        return [0] if self.learned_features else None

    @property
    def scope(self) -> str:
        """The same in words."""
        return (
            f"the first of {self.folds} folds"
            if self.learned_features
            else (f"{self.folds} folds, once")
        )


def run_controls(run: ControlledRun, checkpoint: Path, tell: Tell) -> list[Control]:
    """Run the controls of a run. Those not requested in the settings are reported as skipped.

    Args:
        run: the run.
        checkpoint: folder with finished controls and folds, which are not repeated.
        tell: progress callback.
    """
    names = control_names(run.experiment.settings, run.learned_features)
    results = []
    for number, name in enumerate(names):
        # Equal steps, as in `ml.expected_fits.Fits.of_control`.
        begin, length = number / len(names), 1 / len(names)
        within = _within(tell, f"control {name.replace('_', ' ')}: ", begin, length)
        saved = load_json(checkpoint / f"control-{name}.json")
        if saved is None:
            result = _run(name, run, checkpoint / f"control-{name}", within)
            save_json(checkpoint / f"control-{name}.json", to_json(result))
        else:
            within("read from the checkpoint", 1.0, {RESUMED: 1.0})
            result = from_json(Control, saved)
        results.append(result)
    reason = "not requested in the settings"
    return results + [Control(name=name, skipped=reason) for name in CONTROLS if name not in names]


def _within(tell: Tell, before: str, begin: float, length: float) -> Tell:
    """Return a progress callback for a part of the controls, which starts at the fraction `begin`
    of the whole and takes up the fraction `length` of it.
    """
    return lambda stage, share, metrics: tell(before + stage, begin + share * length, metrics)


def _run(name: str, run: ControlledRun, folder: Path, tell: Tell) -> Control:
    began = time.monotonic()
    try:
        match name:
            case "permuted":
                return _permuted(run, folder, tell)
            case "metadata":
                return replace(_metadata(run, tell), seconds=time.monotonic() - began)
            case "leaked":
                return _leaked(run, folder, tell)
        return _random_weights(run, folder, tell)
    except DatasetError as err:
        return Control(name=name, skipped=str(err), seconds=time.monotonic() - began)


def blocked_because(controls: Sequence[Control]) -> str | None:
    """Return a sentence that blocks promotion if the permuted control is above chance, else
    None.
    """
    for control in controls:
        bound = control.lower_99
        if control.auroc and bound is not None and bound > 0.5:
            return (
                "With labels shuffled between groups, the run still reaches an AUROC of"
                f" {control.auroc.value:.3f} (lower 99% bound {bound:.3f}, above 0.5):"
                " there is leakage from training to test data."
            )
    return None


def permute_between_groups(
    labels: np.ndarray, groups: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return permuted labels (n,): every group gets the share of positives of another group, at
    random positions.

    Group sizes are kept, and most groups still have only one class, so splitting and training are
    as hard as before. Positions are randomized, too: with whole label vectors, hemorrhage would
    stay in the middle of each head, which is predictable from anatomy without leakage.
    """
    permuted = labels.copy()
    names, group_of = np.unique(groups, return_inverse=True)
    known = [
        np.flatnonzero((group_of == number) & (labels != UNKNOWN)) for number in range(len(names))
    ]
    known = [places for places in known if len(places)]
    shares = np.array([labels[places].mean() for places in known])[random.permutation(len(known))]
    for places, share in zip(known, shares, strict=True):
        wanted = share * len(places)
        count = int(wanted) + int(random.random() < wanted - int(wanted))
        if 0 < share < 1 and len(places) > 1:
            # a group with both classes keeps both
            count = min(max(count, 1), len(places) - 1)
        permuted[places] = 0
        permuted[random.choice(places, count, replace=False)] = 1
    return permuted


def _permuted(run: ControlledRun, folder: Path, tell: Tell) -> Control:
    experiment, folds = run.experiment, run.folds
    n = DEAR_PERMUTATIONS if run.learned_features else CHEAP_PERMUTATIONS
    whole = not run.learned_features and len(experiment.testable) <= MOST_IMAGES_PERMUTED_WHOLE
    areas, seconds = [], 0.0
    for number in range(n):
        shuffled = _shuffled(experiment, number)
        if run.learned_features:
            shuffled = replace(shuffled, shared=folder / "shared")
        within = _permutation(tell, number, n)
        only = None if whole else [number % folds]
        answers = cross_validate(shuffled, folds, 1, folder / f"{number}", within, only)
        seconds += answers.seconds
        value = auroc(answers.slices.labels, answers.slices.probabilities[0])
        if np.isfinite(value):
            areas.append(value)
    if not areas:
        raise DatasetError("No permutation had both classes in a test fold.")
    lower = lower_bound_of_mean(areas, LEVEL)
    mean = float(np.mean(areas))
    low, high = (lower, 2 * mean - lower) if np.isfinite(lower) else (None, None)
    scope = "a whole cross-validation each" if whole else f"permutation p on fold p of {folds}"
    return Control(
        name="permuted",
        auroc=Estimate(mean, low, high, len(areas)),
        lower_99=low,
        permutations=areas,
        seconds=seconds,
        how=(
            f"Mean over {len(areas)} permutations of labels between groups, {scope}; the limits"
            " are one-sided 99% bounds."
        ),
    )


def _permutation(tell: Tell, number: int, n: int) -> Tell:
    """Return a progress callback for one of n permutations, which hides its own stages."""
    return lambda stage, share, metrics: tell(
        f"permutation {number + 1} of {n}", (number + share) / n, metrics
    )


def _shuffled(experiment: Experiment, number: int) -> Experiment:
    """Return the experiment with its labels permuted between groups, by the permutation of that
    number.
    """
    random = np.random.default_rng([experiment.seed, number])
    return replace(
        experiment,
        labels=permute_between_groups(experiment.labels, experiment.groups, random),
        given_scan_labels=_permuted_wholes(
            experiment, np.random.default_rng([experiment.seed, number, 1])
        ),
        masks=np.full_like(experiment.masks, 255),  # masks would reveal the true labels
    )


def _permuted_wholes(experiment: Experiment, random: np.random.Generator) -> dict[int, int]:
    """Return the labels of weakly labeled scans, permuted between their groups; other scans have
    permuted slice labels.
    """
    weak_scans = experiment.weak_scans
    labels = permute_between_groups(
        experiment.scan_labels[weak_scans],
        experiment.groups[experiment.first_of_scan[weak_scans]],
        random,
    )
    return dict(zip(weak_scans.tolist(), labels.tolist(), strict=True))


def _metadata(run: ControlledRun, tell: Tell) -> Control:
    experiment, testable = run.experiment, run.experiment.testable
    facts = []
    for done, position in enumerate(testable):
        facts.append(file_facts(run.examples[position]))
        tell("reading files", 0.9 * done / len(testable), {})
    return metadata_control(
        np.array(facts),
        experiment.labels[testable],
        experiment.groups[testable],
        run.folds,
        experiment.seed,
    )


def metadata_control(
    facts: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> Control:
    """Return the result of a random forest (L. Breiman 2001) on file metadata (n, k) in grouped
    folds.
    """
    probabilities = np.zeros(len(labels))
    for learn, held_out in stratified_group_folds(labels, groups, folds, seed):
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed
        )
        forest.fit(facts[learn], labels[learn])
        probabilities[held_out] = forest.predict_proba(facts[held_out])[:, 1]
    figures = metrics_with_intervals(labels, probabilities, probabilities >= 0.5, groups, seed)
    how = (
        "A random forest on file size, width, height, pixel format and color, without any anatomy;"
        f" {folds} grouped folds."
    )
    return Control(name="metadata", auroc=figures.auroc, accuracy=figures.accuracy, how=how)


def file_facts(example: Example) -> list[float]:
    """Return file metadata: bytes, width, height, pixel format, color cast (0..1)."""
    try:
        with Image.open(example.path, formats=("PNG", "JPEG")) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((64, 64)), np.float32) / 255
    except (UnidentifiedImageError, OSError):
        pixels = np.zeros((1, 1, 3), np.float32)  # DICOM: gray
    cast = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    kinds = [float(example.mode == mode) for mode in MODES]
    return [
        float(example.path.stat().st_size),
        float(example.width),
        float(example.height),
        cast,
        *kinds,
    ]


def _leaked(run: ControlledRun, folder: Path, tell: Tell) -> Control:
    copies = leaked_copies(len(run.experiment.labels))
    leaked = replace(leak(run.experiment, copies, folder, tell), shared=folder / "shared")
    fitting = _within(tell, "", 0.2, 0.8)
    answers = cross_validate(leaked, run.folds, 1, folder, fitting, run.first_fold)
    figures = _metrics(answers.slices, run.experiment.seed)
    return Control(
        name="leaked",
        auroc=figures.auroc,
        accuracy=figures.accuracy,
        seconds=answers.seconds,
        how=(
            f"Every image and {copies - 1} augmented copies, split regardless of image and patient;"
            f" {run.scope}."
        ),
    )


def leak(experiment: Experiment, copies: int, folder: Path, tell: Tell) -> Experiment:
    """Return the data enlarged before splitting: each copy of an image is a scan and a group of its
    own.

    Only labeled images that the initial weights have not seen are used. For a slice architecture
    every copy is a scan of one slice; for a series architecture whole scans are copied.
    """
    keep = experiment.testable
    reads_slices = architecture_named(experiment.architecture).reads == "slice"
    scans = (
        np.arange(len(keep))
        if reads_slices
        else np.unique(experiment.scans[keep], return_inverse=True)[1]
    )
    # a hidden file, so that workers omit it from the checkpoint; it is recomputed
    path = folder / ".images.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = experiment.images.shape[1]
    images = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(copies * len(keep), size, size, 1)
    )
    for number, position in enumerate(keep):
        # Sorted by copy, so that the slices of a copied scan are consecutive.
        images[number :: len(keep)] = augmented_copies(
            np.asarray(experiment.images[position]), copies, experiment.seed + int(position)
        )
        tell("copies", 0.2 * (number + 1) / len(keep), {})
    all_scans = np.concatenate([scans + copy * (int(scans.max()) + 1) for copy in range(copies)])
    n = copies * len(keep)
    return replace(
        experiment,
        images=images,
        masks=np.full((n, *experiment.masks.shape[1:]), 255, np.uint8),
        labels=np.tile(experiment.labels[keep], copies),
        groups=all_scans.astype(str),
        sources=np.tile(experiment.sources[keep], copies),
        scans=all_scans,
        unseen=np.ones(n, bool),
        given_scan_labels={},
    )


def _random_weights(run: ControlledRun, folder: Path, tell: Tell) -> Control:
    experiment = run.experiment
    if experiment.init == "random":
        raise DatasetError("The run itself started from random initial weights.")
    start = replace(experiment, init="random", shared=folder / "shared")
    answers = cross_validate(start, run.folds, 1, folder, tell, run.first_fold)
    # reused, not fitted again
    itself = cross_validate(experiment, run.folds, 1, folder.parent, tell, run.first_fold)
    reference = _metrics(itself.slices, experiment.seed).auroc
    beside = (
        ""
        if reference.low is None
        else (
            f", where the run itself has an AUROC of {reference.value:.3f}"
            f" ({reference.low:.3f} to {reference.high:.3f})"
        )
    )
    figures = _metrics(answers.slices, experiment.seed)
    return Control(
        name="random_weights",
        auroc=figures.auroc,
        accuracy=figures.accuracy,
        run_auroc=reference,
        seconds=answers.seconds,
        how=(
            "The same settings from random initial weights, without averaging them in at the end;"
            f" {run.scope}{beside}."
        ),
    )


def _metrics(answers: Answers, seed: int) -> Metrics:
    return metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )
