"""Control experiments of a run: the results of the same folds, code and budget where there is no
signal.

    permuted         labels permuted between groups: anything above chance is leakage
    metadata         no pixels, only file size, width, height, pixel format and color: the strength
                     of shortcuts
    leaked           augmented before splitting, with copies of an image on both sides: what a
                     protocol with data leakage would report
    random_weights   the run from random initial weights: the benefit of pretraining

Each has {"name", "auroc", "accuracy", "seconds", "how"}, with metrics by slice as in
`ml.evaluation.metrics`; a control that was not run gives the reason in "skipped". For random
weights, "run_auroc" is the run's result on the same folds. Checkpoints are saved for each step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.ensemble import RandomForestClassifier

from ml.catalogue import architecture_named
from ml.checkpoints import load_json, save_json
from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.groups import stratified_group_folds
from ml.errors import DatasetError
from ml.evaluation.answers import Answers
from ml.evaluation.metrics import auroc, lower_bound_of_mean, metrics_with_intervals
from ml.preprocessing.augmentation import augmented_copies
from ml.training.cross_validation import Tell, cross_validate
from ml.training.experiment import Experiment

CHEAP_PERMUTATIONS, DEAR_PERMUTATIONS = 20, 5
MOST_IMAGES_PERMUTED_WHOLE = 600
"""Up to this number of images every permutation is a full cross-validation; above, permutation p is
tested on fold p only.
"""
MOST_COPIES, MOST_LEAKED_IMAGES = 10, 4000
LEVEL = 0.99
TREES = 300
MODES = ("L", "LA", "P", "RGB", "RGBA", "I;16", "DICOM")


NAMES = ("permuted", "metadata", "leaked", "random_weights")


def control_names(settings: Mapping[str, Any], learned_features: bool) -> tuple[str, ...]:
    """Return the controls for the setting `controls`: "all", "cheap" (without fine-tuning) or
    "none".

    If the convolutions are trained, the leaked split and the random weights are tested on the first
    fold only, with one fit each.
    """
    wanted = str(settings.get("controls", "cheap"))
    if wanted == "all":
        return NAMES
    if wanted == "none":
        return ()
    return ("metadata",) if learned_features else ("permuted", "metadata")


def fits_of_controls(
    names: Sequence[str], learned_features: bool, images: int
) -> tuple[float, ...]:
    """Return the approximate number of fold fits of each control, for the progress; equal for all
    if only heads are trained.
    """
    fits = {
        "permuted": DEAR_PERMUTATIONS,
        "metadata": 0.1,
        "leaked": _copies(images),
        "random_weights": 1,
    }
    return tuple(float(fits[name]) if learned_features else 1.0 for name in names)


def run_controls(
    experiment: Experiment,
    examples: Sequence[Example],
    learned_features: bool,
    folds: int,
    checkpoint: Path,
    tell: Tell,
) -> list[dict[str, Any]]:
    """Run the controls of a run.

    Those not requested in the settings are reported as skipped.

    Args:
        material: the data of the run.
        examples: its images, for file metadata.
        learned_features: whether the run trains convolutions; then permutations are expensive.
        folds: of the run.
        checkpoint: folder with finished controls and folds, which are not repeated.
        tell: progress callback.
    """
    names = control_names(experiment.settings, learned_features)
    fits = fits_of_controls(names, learned_features, len(experiment.labels))
    results = []
    for number, name in enumerate(names):
        before, own, of_all = sum(fits[:number]), fits[number], sum(fits)

        def within(
            stage: str,
            share: float,
            metrics: Mapping[str, float],
            name: str = name,
            before: float = before,
            own: float = own,
            of_all: float = of_all,
        ) -> None:
            tell(
                f"control {name.replace('_', ' ')}: {stage}",
                (before + share * own) / of_all,
                metrics,
            )

        kept = checkpoint / f"control-{name}.json"
        result = load_json(kept)
        if result is None:
            began = time.monotonic()
            try:
                result = {
                    "name": name,
                    **_run(
                        name,
                        experiment,
                        examples,
                        learned_features,
                        folds,
                        checkpoint / f"control-{name}",
                        within,
                    ),
                }
            except DatasetError as err:
                result = {"name": name, "skipped": str(err)}
            result.setdefault("seconds", time.monotonic() - began)
            save_json(kept, result)
        results.append(result)
    skipped = {"skipped": "not requested by the setting controls", "seconds": 0.0}
    return results + [{"name": name, **skipped} for name in NAMES if name not in names]


def _run(
    name: str,
    experiment: Experiment,
    examples: Sequence[Example],
    learned_features: bool,
    folds: int,
    folder: Path,
    tell: Tell,
) -> dict[str, Any]:
    match name:
        case "permuted":
            return _permuted(experiment, learned_features, folds, folder, tell)
        case "metadata":
            return _metadata(experiment, examples, folds, tell)
        case "leaked":
            return _leaked(experiment, learned_features, folds, folder, tell)
    return _random_weights(experiment, learned_features, folds, folder, tell)


def blocked_because(controls: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence that blocks promotion if the permuted control is above chance, else
    None.
    """
    for control in controls:
        bound = control.get("lower_99")
        if control["name"] == "permuted" and bound is not None and bound > 0.5:
            return (
                "With labels permuted between groups, the run still reaches an AUROC of"
                f" {control['auroc']['value']:.3f} (lower 99 % bound {bound:.3f}, above 0.5):"
                " there is leakage from training to test data."
            )
    return None


def permute_between_groups(
    labels: np.ndarray, groups: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return permuted labels: every group gets the share of positives of another group, at random
    positions.

    Group sizes stay, and most groups remain of one class, so splitting and training are as hard as
    before. Positions are drawn, too: whole label vectors would keep hemorrhage in the middle of
    each head, which is predictable from anatomy without leakage.
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


def _permuted(
    experiment: Experiment, learned_features: bool, folds: int, folder: Path, tell: Tell
) -> dict[str, Any]:
    n = DEAR_PERMUTATIONS if learned_features else CHEAP_PERMUTATIONS
    whole = not learned_features and len(experiment.testable) <= MOST_IMAGES_PERMUTED_WHOLE
    found, seconds = [], 0.0
    for number in range(n):
        random = np.random.default_rng([experiment.seed, number])
        shuffled = replace(
            experiment,
            labels=permute_between_groups(experiment.labels, experiment.groups, random),
            given_scan_labels=_permuted_wholes(
                experiment, np.random.default_rng([experiment.seed, number, 1])
            ),
            masks=np.full_like(experiment.masks, 255),  # masks would reveal the true labels
            shared=experiment.shared if not learned_features else folder / "shared",
        )

        def within(
            stage: str, share: float, metrics: Mapping[str, float], number: int = number
        ) -> None:
            tell(f"permutation {number + 1} of {n}", (number + share) / n, metrics)

        only = None if whole else [number % folds]
        answers = cross_validate(shuffled, folds, 1, folder / f"{number}", within, only)
        seconds += answers.seconds
        value = auroc(answers.slices.labels, answers.slices.probabilities[0])
        if np.isfinite(value):
            found.append(value)
    if not found:
        raise DatasetError("No permutation had both classes in a test fold.")
    lower = lower_bound_of_mean(found, LEVEL)
    mean = float(np.mean(found))
    bounds = (lower, 2 * mean - lower) if np.isfinite(lower) else (None, None)
    scope = "a whole cross-validation each" if whole else f"permutation p on fold p of {folds}"
    return {
        "auroc": {"value": mean, "low": bounds[0], "high": bounds[1], "n": len(found)},
        "lower_99": bounds[0],
        "permutations": found,
        "seconds": seconds,
        "how": (
            f"Mean over {len(found)} permutations of labels between groups, {scope}; low and high"
            " are its one-sided 99 % bounds."
        ),
    }


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


def _metadata(
    experiment: Experiment, examples: Sequence[Example], folds: int, tell: Tell
) -> dict[str, Any]:
    testable = experiment.testable
    facts = []
    for done, position in enumerate(testable):
        facts.append(file_facts(examples[position]))
        tell("reading files", 0.9 * done / len(testable), {})
    return metadata_control(
        np.array(facts),
        experiment.labels[testable],
        experiment.groups[testable],
        folds,
        experiment.seed,
    )


def metadata_control(
    facts: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> dict[str, Any]:
    """Return the result of a random forest (L. Breiman 2001) on file metadata (n, k) in grouped
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
        "A random forest on file size, width, height, pixel format and color, without any anatomy;"
        f" {folds} grouped folds."
    )
    return {"auroc": figures["auroc"], "accuracy": figures["accuracy"], "how": how}


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


def _leaked(
    experiment: Experiment, learned_features: bool, folds: int, folder: Path, tell: Tell
) -> dict[str, Any]:
    copies = _copies(len(experiment.labels))
    leaked = replace(leak(experiment, copies, folder, tell), shared=folder / "shared")
    only = [0] if learned_features else None
    answers = cross_validate(
        leaked,
        folds,
        1,
        folder,
        lambda stage, share, metrics: tell(stage, 0.2 + 0.8 * share, metrics),
        only,
    )
    how = (
        f"Every image and {copies - 1} augmented copies, split regardless of image and patient;"
        f" {_once(learned_features, folds)}."
    )
    return {**_figures(answers.slices, experiment.seed), "seconds": answers.seconds, "how": how}


def _copies(images: int) -> int:
    """Return the number of copies of each image in the leaked split."""
    return max(2, min(MOST_COPIES, MOST_LEAKED_IMAGES // images))


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
    # a hidden file, so workers leave it out of the checkpoint; it is recomputed
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


def _random_weights(
    experiment: Experiment, learned_features: bool, folds: int, folder: Path, tell: Tell
) -> dict[str, Any]:
    if experiment.init == "random":
        raise DatasetError("The run itself started from random initial weights.")
    start = replace(experiment, init="random", shared=folder / "shared")
    only = [0] if learned_features else None
    answers = cross_validate(start, folds, 1, folder, tell, only)
    # reused, not fitted again
    run = _figures(
        cross_validate(experiment, folds, 1, folder.parent, tell, only).slices, experiment.seed
    )["auroc"]
    itself = (
        ""
        if run["low"] is None
        else (
            f", where the run itself has an AUROC of {run['value']:.3f} ({run['low']:.3f} to"
            f" {run['high']:.3f})"
        )
    )
    how = (
        "The same settings from random initial weights, without averaging them in at the end;"
        f" {_once(learned_features, folds)}{itself}."
    )
    return {
        **_figures(answers.slices, experiment.seed),
        "run_auroc": run,
        "seconds": answers.seconds,
        "how": how,
    }


def _once(learned_features: bool, folds: int) -> str:
    return f"the first of {folds} folds" if learned_features else f"{folds} folds, once"


def _figures(answers: Answers, seed: int) -> dict[str, Any]:
    figures = metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )
    return {"auroc": figures["auroc"], "accuracy": figures["accuracy"]}
