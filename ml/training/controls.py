"""The controls that a run carries: what the same folds, the same code and the same budget find
where there is nothing to find.

    permuted         the labels belong to other groups: whatever ranks them has leaked
    metadata         no pixel, only file size, width, height, kind of pixels and color: what a
    shortcut is worth leaked           augmented first, then split, copies of one picture on both
    sides: what a careless protocol would report
    random_weights   the run itself from random initial weights: what the initial weights are worth

Each answers an `ml.artifacts.card.Control`, all figures by slice; one that was not run says why in
`skipped`. Random weights stand beside the run on the same folds, `run_auroc`. Each is kept in the
checkpoint piece by piece.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.ensemble import RandomForestClassifier

from ml.artifacts.card import Control
from ml.catalogue import architecture_named
from ml.checkpoints import load_json, save_json
from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.groups import stratified_group_folds
from ml.errors import DatasetError
from ml.evaluation.answers import Answers
from ml.evaluation.metrics import auroc, lower_bound_of_mean, metrics_with_intervals
from ml.figures import Estimate, Metrics
from ml.preprocessing.augmentation import children
from ml.training.cross_validation import Tell, cross_validate
from ml.training.experiment import Experiment
from ml.typed_json import from_json, to_json

CHEAP_PERMUTATIONS, DEAR_PERMUTATIONS = 20, 5
MOST_IMAGES_PERMUTED_WHOLE = 600
"""Up to so many images every permutation is a whole cross-validation; above, permutation p is
judged on fold p only.
"""
MOST_COPIES, MOST_LEAKED_IMAGES = 10, 4000
LEVEL = 0.99
TREES = 300
MODES = ("L", "LA", "P", "RGB", "RGBA", "I;16", "DICOM")


NAMES = ("permuted", "metadata", "leaked", "random_weights")


def control_names(settings: Mapping[str, Any], learnt_features: bool) -> tuple[str, ...]:
    """Return the controls that the setting `controls` asks for: "all", "cheap" (what takes no
    fine-tuning) or "none".

    Where the convolutions learn, the leaked split and the random weights are judged on the first
    fold: they take a fit each.
    """
    wanted = str(settings.get("controls", "cheap"))
    if wanted == "all":
        return NAMES
    if wanted == "none":
        return ()
    return ("metadata",) if learnt_features else ("permuted", "metadata")


def fits_of_controls(names: Sequence[str], learnt_features: bool, images: int) -> tuple[float, ...]:
    """Return about how many fits of a fold each control takes, which is what its progress goes by;
    heads alone are not told apart.
    """
    fits = {
        "permuted": DEAR_PERMUTATIONS,
        "metadata": 0.1,
        "leaked": _copies(images),
        "random_weights": 1,
    }
    return tuple(float(fits[name]) if learnt_features else 1.0 for name in names)


@dataclass(frozen=True)
class ControlledRun:
    """A run whose controls are asked for.

    Attributes:
        experiment: what the run learns from and is judged on.
        examples: its images, for their files' facts.
        learnt_features: whether the run's convolutions learn; then permutations are dear.
        folds: of the run.
    """

    experiment: Experiment
    examples: Sequence[Example]
    learnt_features: bool
    folds: int

    @property
    def first_fold(self) -> list[int] | None:
        """The folds that a control of fits is judged on: the first where convolutions learn, else
        all.
        """
        return [0] if self.learnt_features else None

    @property
    def scope(self) -> str:
        """The same in words."""
        return (
            f"the first of {self.folds} folds"
            if self.learnt_features
            else (f"{self.folds} folds, once")
        )


def run_controls(run: ControlledRun, checkpoint: Path, tell: Tell) -> list[Control]:
    """Run the controls of a run. Those that the settings do not ask for are listed as skipped.

    Args:
        run: the run.
        checkpoint: folder; controls and folds that are finished there are not run again.
        tell: told the progress.
    """
    names = control_names(run.experiment.settings, run.learnt_features)
    fits = fits_of_controls(names, run.learnt_features, len(run.experiment.labels))
    results = []
    for number, name in enumerate(names):
        begin, own = sum(fits[:number]) / sum(fits), fits[number] / sum(fits)
        within = _within(tell, f"control {name.replace('_', ' ')}: ", begin, own)
        kept = load_json(checkpoint / f"control-{name}.json")
        if kept is None:
            result = _run(name, run, checkpoint / f"control-{name}", within)
            save_json(checkpoint / f"control-{name}.json", to_json(result))
        else:
            result = from_json(Control, kept)
        results.append(result)
    reason = "the setting controls did not ask for it"
    return results + [Control(name=name, skipped=reason) for name in NAMES if name not in names]


def _within(tell: Tell, before: str, begin: float, own: float) -> Tell:
    """Return a `tell` for a part of the controls, which begins at the share `begin` and is `own` of
    the whole.
    """
    return lambda stage, share, metrics: tell(before + stage, begin + share * own, metrics)


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
    """Return the sentence that keeps a model from promotion: its permuted control found something;
    None if it did not.
    """
    for control in controls:
        bound = control.lower_99
        if control.auroc and bound is not None and bound > 0.5:
            return (
                "With labels permuted between groups the same run still reaches an AUROC of"
                f" {control.auroc.value:.3f} (lower 99 % bound {bound:.3f}, above 0.5):"
                " something leaks from training into test."
            )
    return None


def permute_between_groups(
    labels: np.ndarray, groups: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return labels that say nothing: every group gets the share of positives of another group, at
    random places.

    Groups keep their sizes, and most stay of one class, so the data are as hard to split and to
    learn as before. The places are drawn
    too: whole vectors of labels would keep blood in the middle of each head, which anatomy tells
    without any leak.
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
            # a group with both kinds of slices stays one
            count = min(max(count, 1), len(places) - 1)
        permuted[places] = 0
        permuted[random.choice(places, count, replace=False)] = 1
    return permuted


def _permuted(run: ControlledRun, folder: Path, tell: Tell) -> Control:
    experiment, folds = run.experiment, run.folds
    n = DEAR_PERMUTATIONS if run.learnt_features else CHEAP_PERMUTATIONS
    whole = not run.learnt_features and len(experiment.judged) <= MOST_IMAGES_PERMUTED_WHOLE
    found, seconds = [], 0.0
    for number in range(n):
        shuffled = _shuffled(experiment, number)
        if run.learnt_features:
            shuffled = replace(shuffled, shared=folder / "shared")
        within = _permutation(tell, number, n)
        only = None if whole else [number % folds]
        answers = cross_validate(shuffled, folds, 1, folder / f"{number}", within, only)
        seconds += answers.seconds
        value = auroc(answers.slices.labels, answers.slices.probabilities[0])
        if np.isfinite(value):
            found.append(value)
    if not found:
        raise DatasetError("No permutation left both classes in a test fold.")
    lower = lower_bound_of_mean(found, LEVEL)
    mean = float(np.mean(found))
    low, high = (lower, 2 * mean - lower) if np.isfinite(lower) else (None, None)
    scope = "a whole cross-validation each" if whole else f"permutation p on fold p of {folds}"
    return Control(
        name="permuted",
        auroc=Estimate(mean, low, high, len(found)),
        lower_99=low,
        permutations=found,
        seconds=seconds,
        how=(
            f"Mean over {len(found)} permutations of labels between groups, {scope}; low and high"
            " are its one-sided 99 % bounds."
        ),
    )


def _permutation(tell: Tell, number: int, n: int) -> Tell:
    """Return a `tell` for one of n permutations, whose own stages are not told."""
    return lambda stage, share, metrics: tell(
        f"permutation {number + 1} of {n}", (number + share) / n, metrics
    )


def _shuffled(experiment: Experiment, number: int) -> Experiment:
    """Return the experiment with labels that belong to other groups, the permutation of that
    number.
    """
    random = np.random.default_rng([experiment.seed, number])
    return replace(
        experiment,
        labels=permute_between_groups(experiment.labels, experiment.groups, random),
        told=_permuted_wholes(experiment, np.random.default_rng([experiment.seed, number, 1])),
        masks=np.full_like(experiment.masks, 255),  # outlines know the true labels
    )


def _permuted_wholes(experiment: Experiment, random: np.random.Generator) -> dict[int, int]:
    """Return what is told of weakly labeled scans, permuted between their groups; the others have
    slices, permuted already.
    """
    weak = experiment.weak
    labels = permute_between_groups(
        experiment.scan_labels[weak], experiment.groups[experiment.first_of_scan[weak]], random
    )
    return dict(zip(weak.tolist(), labels.tolist(), strict=True))


def _metadata(run: ControlledRun, tell: Tell) -> Control:
    experiment, judged = run.experiment, run.experiment.judged
    facts = []
    for done, position in enumerate(judged):
        facts.append(file_facts(run.examples[position]))
        tell("reading files", 0.9 * done / len(judged), {})
    return metadata_control(
        np.array(facts),
        experiment.labels[judged],
        experiment.groups[judged],
        run.folds,
        experiment.seed,
    )


def metadata_control(
    facts: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> Control:
    """Return what a random forest (L. Breiman 2001) on facts of the files (n, k) finds in grouped
    folds.
    """
    probabilities = np.zeros(len(labels))
    for learn, held in stratified_group_folds(labels, groups, folds, seed):
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed
        )
        forest.fit(facts[learn], labels[learn])
        probabilities[held] = forest.predict_proba(facts[held])[:, 1]
    figures = metrics_with_intervals(labels, probabilities, probabilities >= 0.5, groups, seed)
    how = (
        "A random forest on file size, width, height, kind of pixels and color, not one pixel of"
        f" anatomy; {folds} grouped folds."
    )
    return Control(name="metadata", auroc=figures.auroc, accuracy=figures.accuracy, how=how)


def file_facts(example: Example) -> list[float]:
    """Return what a file tells without its anatomy: bytes, width, height, kind of pixels, color
    cast (0..1).
    """
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
    copies = _copies(len(run.experiment.labels))
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
            f"Every picture and {copies - 1} augmented copies, split without regard to picture or"
            f" patient; {run.scope}."
        ),
    )


def _copies(images: int) -> int:
    """Return how often each picture stands among those of the leaked split."""
    return max(2, min(MOST_COPIES, MOST_LEAKED_IMAGES // images))


def leak(experiment: Experiment, copies: int, folder: Path, tell: Tell) -> Experiment:
    """Return the material enlarged before any split: each picture's copies are scans and groups of
    their own.

    Only pictures with known labels that the initial weights have not seen are taken. A slice
    architecture gets every copy as a scan of one; the scans of a series architecture are copied as
    scans.
    """
    keep = experiment.judged
    reads_slices = architecture_named(experiment.architecture).reads == "slice"
    scans = (
        np.arange(len(keep))
        if reads_slices
        else np.unique(experiment.scans[keep], return_inverse=True)[1]
    )
    # hidden: a worker keeps no such file with the checkpoint, it is made again
    path = folder / ".images.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = experiment.images.shape[1]
    images = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(copies * len(keep), size, size, 1)
    )
    for number, position in enumerate(keep):
        # Copy c of all pictures stands together, so that the slices of a copied scan stay
        # neighbors.
        images[number :: len(keep)] = children(
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
        told={},
    )


def _random_weights(run: ControlledRun, folder: Path, tell: Tell) -> Control:
    experiment = run.experiment
    if experiment.init == "random":
        raise DatasetError("The run itself started from random weights.")
    start = replace(experiment, init="random", shared=folder / "shared")
    answers = cross_validate(start, run.folds, 1, folder, tell, run.first_fold)
    # kept, not fitted again
    itself = cross_validate(experiment, run.folds, 1, folder.parent, tell, run.first_fold)
    own = _metrics(itself.slices, experiment.seed).auroc
    beside = (
        ""
        if own.low is None
        else (
            f", where the run itself has an AUROC of {own.value:.3f} ({own.low:.3f} to"
            f" {own.high:.3f})"
        )
    )
    figures = _metrics(answers.slices, experiment.seed)
    return Control(
        name="random_weights",
        auroc=figures.auroc,
        accuracy=figures.accuracy,
        run_auroc=own,
        seconds=answers.seconds,
        how=(
            "The same settings from random initial weights, none of which are mixed in at the end;"
            f" {run.scope}{beside}."
        ),
    )


def _metrics(answers: Answers, seed: int) -> Metrics:
    return metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )
