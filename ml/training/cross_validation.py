"""Evaluate an architecture by grouped cross-validation: every slice and scan is predicted by a
model trained without its group.

Calibration, threshold and inconclusive band of a fold come from inner held-out data of its training
part, for slices and for scans.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ml.catalogue import BLEEDING_TYPES
from ml.checkpoints import RESUMED, load_json, save_json
from ml.datasets.examples import UNKNOWN
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.answers import Answers
from ml.evaluation.calibration import OperatingPoint, zones
from ml.evaluation.metrics import auroc
from ml.models.contract import Fitted, HeldOut
from ml.networks.bleeding_types import fit_types, of_scan
from ml.training.experiment import Experiment
from ml.training.folds import Split, splits
from ml.training.mistakes import draw_mistakes, worst_of
from ml.training.operating_points import has_both_classes, without
from ml.training.outline_figures import Overlap, overlaps
from ml.typed_json import from_json, to_json
from ml.validation.heat_map_tests import HeatMapTest, judge_heat_maps

MOST_HEAT_MAPS = 50  # per fold: they take about ten seconds
Tell = Callable[[str, float, Mapping[str, float]], None]
"""Called with a stage, the fraction done, and metrics to show; raises to stop."""
Report = Callable[[float, Mapping[str, float]], None]
"""The same without a stage."""


@dataclass(frozen=True)
class OutOfFold:
    """The results of a cross-validation.

    Attributes:
        slices, scans: the predictions.
        held_out: raw decisions of the first repeat.
        held_out_folds: the folds of these slices and scans.
        learned_features: whether the convolutions were trained.
        seconds: duration of all fits.
        heat_maps: results of `ml.validation.heat_map_tests` in the first repeat; empty if not
            requested.
        outlines: overlaps of the first repeat; empty where the architecture gives no outlines.
        chosen: hyperparameters selected by each fit.
    """

    slices: Answers
    scans: Answers
    held_out: HeldOut
    held_out_folds: tuple[np.ndarray, np.ndarray]
    learned_features: bool
    seconds: float
    heat_maps: Sequence[HeatMapTest] = ()
    outlines: Sequence[Overlap] = ()
    chosen: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class FoldAnswers:
    """A fold's predictions at one level.

    Attributes:
        at: positions of slices or numbers of scans, ascending (n,).
        decisions, probabilities, predicted, zones: (n,), see `ml.evaluation.answers.Answers`.
        types: (n, 5) probabilities of the types of hemorrhage; None if they are not used.
    """

    at: list[int]
    decisions: list[float]
    probabilities: list[float]
    predicted: list[bool]
    zones: list[int]
    types: list[list[float]] | None = None


@dataclass(frozen=True)
class FoldResult:
    """The stored result of a finished fold.

    Attributes:
        slices, scans: its predictions.
        threshold, scan_threshold: fitted in its training part.
        seconds: its duration.
        learnt_features: whether the convolutions were trained; the spelling is that of stored
            checkpoints.
        chosen: hyperparameters selected by the fit.
        heat_maps: results of `ml.validation.heat_map_tests`; None if not requested.
        outlines: of its slices; None where the architecture gives no outlines.
    """

    slices: FoldAnswers
    scans: FoldAnswers
    threshold: float
    scan_threshold: float
    seconds: float
    learnt_features: bool
    chosen: dict[str, Any] = field(default_factory=dict)
    heat_maps: list[HeatMapTest] | None = None
    outlines: list[Overlap] | None = None


@dataclass
class _Level:
    """Predictions of one level while they are collected."""

    at: np.ndarray
    repeats: int
    columns: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.repeats, len(self.at)
        self.columns = {
            "decisions": np.full(shape, np.nan),
            "probabilities": np.full(shape, np.nan),
            "predicted": np.zeros(shape, bool),
            "zones": np.zeros(shape, np.int64),
            "folds": np.full(shape, -1),
            "types": np.full((*shape, len(BLEEDING_TYPES)), np.nan),
        }

    def write(self, repeat: int, fold: int, answers: FoldAnswers) -> None:
        places = np.searchsorted(self.at, answers.at)
        self.columns["decisions"][repeat, places] = answers.decisions
        self.columns["probabilities"][repeat, places] = answers.probabilities
        self.columns["predicted"][repeat, places] = answers.predicted
        self.columns["zones"][repeat, places] = answers.zones
        self.columns["folds"][repeat, places] = fold
        if answers.types is not None:
            self.columns["types"][repeat, places] = answers.types

    def answers(self, labels: np.ndarray, groups: np.ndarray, sources: np.ndarray) -> Answers:
        there = np.asarray((self.columns["folds"] >= 0).all(axis=0))
        columns = {name: values for name, values in self.columns.items() if name != "decisions"}
        return Answers(self.at, labels, groups, sources, **columns).among(there)

    def first_folds(self) -> np.ndarray:
        """Return the folds of the answers of the first repeat."""
        folds = self.columns["folds"][0]
        return np.asarray(folds[folds >= 0])

    def first_decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions predicted in the first repeat, and their raw decisions."""
        there = self.columns["folds"][0] >= 0
        return self.at[there], self.columns["decisions"][0, there]


def cross_validate(
    experiment: Experiment,
    folds: int,
    repeats: int,
    checkpoint: Path,
    tell: Tell,
    only: Sequence[int] | None = None,
    *,
    test_heat_maps: bool = False,
) -> OutOfFold:
    """Return the predictions for all test slices and their scans, with one model per fold and
    repeat.

    Args:
        experiment: training and test data.
        folds, repeats: each repeat has different folds.
        checkpoint: folder with finished folds, which are not repeated.
        tell: progress callback.
        only: the folds to run; default: all. Slices and scans of the others are not in the results.
        test_heat_maps: test the heat maps of true positives in the first repeat, and keep those of
            the worst mistakes (`ml.training.mistakes`) in `checkpoint`.
    """
    known_scans = np.flatnonzero(experiment.scan_labels != UNKNOWN)
    slices, scans = _Level(experiment.testable, repeats), _Level(known_scans, repeats)
    wanted = range(folds) if only is None else only
    results: list[FoldResult] = []
    for repeat, fold, split in _splits_of_repeats(experiment, folds, repeats):
        if fold not in wanted:
            continue
        number = repeat * len(wanted) + list(wanted).index(fold)
        begin, end = (n / (repeats * len(wanted)) for n in (number, number + 1))
        stage = f"fold {fold + 1} of {folds}"
        if repeats > 1:
            stage = f"repeat {repeat + 1} of {repeats}, {stage}"
        name = f"fold-{fold}" if repeat == 0 else f"repeat-{repeat}-fold-{fold}"
        result = _finished(
            experiment,
            split,
            checkpoint / name,
            _within(tell, stage, begin, end),
            test_heat_maps,
            test_heat_maps and repeat == 0,
        )
        slices.write(repeat, fold, result.slices)
        scans.write(repeat, fold, result.scans)
        results.append(result)
        area = auroc(experiment.labels[result.slices.at], np.asarray(result.slices.probabilities))
        tell(stage, end, {"fold_auroc": area})
    if experiment.settings.get("folds_by") == "data set":
        _judge_by_the_others(experiment, slices, scans)
    return _out_of_fold(experiment, slices, scans, results)


def _out_of_fold(
    experiment: Experiment,
    slices: _Level,
    scans: _Level,
    results: Sequence[FoldResult],
) -> OutOfFold:
    """Return the predictions of all folds with what they are judged by."""
    first = experiment.first_of_scan[scans.at]
    return OutOfFold(
        slices=slices.answers(
            experiment.labels[slices.at],
            experiment.groups[slices.at],
            experiment.sources[slices.at],
        ),
        scans=scans.answers(
            experiment.scan_labels[scans.at], experiment.groups[first], experiment.sources[first]
        ),
        held_out=HeldOut(*slices.first_decisions(), *scans.first_decisions()),
        held_out_folds=(slices.first_folds(), scans.first_folds()),
        learned_features=any(result.learnt_features for result in results),
        seconds=sum(result.seconds for result in results),
        heat_maps=[test for result in results for test in result.heat_maps or ()],
        outlines=[
            overlap
            for result in results[: len(results) // slices.repeats]
            for overlap in result.outlines or ()
        ],
        chosen=[result.chosen for result in results],
    )


def _judge_by_the_others(experiment: Experiment, slices: _Level, scans: _Level) -> None:
    """If each fold is a data set: calibrate and evaluate its answers with the answers for the other
    data sets, which also come from models that had not seen them.

    The data that a model held back from its training data sets say little about a data set that it
    has never seen.
    """
    held_out = HeldOut(*slices.first_decisions(), *scans.first_decisions())
    folds = slices.first_folds(), scans.first_folds()
    for fold in np.unique(folds[0]):
        here = held_out.slices[folds[0] == fold], held_out.scans[folds[1] == fold]
        others = without(held_out, *here)
        if not has_both_classes(experiment, others):
            continue
        of_slices, of_scans = experiment.operating_points(others)
        at = held_out.decisions[folds[0] == fold], held_out.scan_decisions[folds[1] == fold]
        answers = _judged_scans(experiment, here[1], at[1], of_slices, of_scans)
        slices.write(0, fold, _fold_answers(here[0], _judge(of_slices, at[0])))
        scans.write(0, fold, _fold_answers(here[1], answers))


def _splits_of_repeats(
    experiment: Experiment, folds: int, repeats: int
) -> Iterator[tuple[int, int, Split]]:
    """Yield repeat, fold and its split."""
    for repeat in range(repeats):
        for fold, split in enumerate(splits(experiment, folds, repeat)):
            yield repeat, fold, split


def _first_half(report: Report) -> Report:
    """Return a progress callback for a fit that is the first half of the whole."""
    return lambda share, metrics: report(share / 2, metrics)


def _within(tell: Tell, stage: str, begin: float, end: float) -> Report:
    """Return the progress callback of a fit that covers the fractions `begin` to `end` of the
    whole.
    """
    return lambda share, metrics: tell(stage, begin + share * (end - begin), metrics)


def _finished(
    experiment: Experiment,
    split: Split,
    folder: Path,
    report: Report,
    tests_follow: bool,
    test_heat_maps: bool,
) -> FoldResult:
    """Return a fold's result: the one that an earlier call saved beside `folder`, or that of a new
    fit, which is then saved there.

    Args:
        experiment: training and test data.
        split: of the fold.
        folder: the folder of its checkpoint.
        report: called with the fraction done.
        tests_follow: the fit is the first half of that fraction, and tests of heat maps the second
            half.
        test_heat_maps: whether to test them.
    """
    path = folder.with_name(f"{folder.name}.json")
    saved = load_json(path)
    if saved is not None:
        report(1.0, {RESUMED: 1.0})
        return from_json(FoldResult, saved)
    began = time.monotonic()
    train, weak_scans = _learned_from(experiment, split)
    fitting = _first_half(report) if tests_follow else report
    fitted = experiment.fit(train, folder, fitting, weak_scans)
    slices, scans = _answers_of(experiment, fitted, split)
    if experiment.types is not None:
        slices, scans = _with_types(slices, scans, experiment, experiment.types, fitted, train)
    of_slices, of_scans = experiment.operating_points(fitted.held_out)
    tested = None
    if test_heat_maps:
        files = fitted.export(of_slices.platt, of_scans.platt)
        tested = _tested_heat_maps(experiment, fitted, files, slices, folder, report)
    result = FoldResult(
        slices=slices,
        scans=scans,
        threshold=of_slices.threshold,
        scan_threshold=of_scans.threshold,
        heat_maps=tested,
        outlines=overlaps(experiment, fitted, np.sort(split.held_out)),
        seconds=time.monotonic() - began,
        learnt_features=fitted.learned_features,
        chosen=dict(fitted.chosen),
    )
    save_json(path, to_json(result))
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _tested_heat_maps(
    experiment: Experiment,
    fitted: Fitted,
    files: dict[str, bytes],
    slices: FoldAnswers,
    folder: Path,
    report: Report,
) -> list[HeatMapTest]:
    """Return the results of the tests of a fold's heat maps, and write those of its worst mistakes
    beside `folder`. The progress is that of the second half of the fold.
    """
    at, wrong = _true_positives_in(experiment, slices), _mistakes_in(experiment, slices)
    drawn = itertools.count(1)

    def on_map() -> None:
        report(0.5 + 0.5 * next(drawn) / (len(at) + len(wrong)), {})

    tested = judge_heat_maps(
        files, experiment.images, experiment.masks, at, experiment.seed, on_map
    )
    pictures = folder.with_name(f"{folder.name}-mistakes.npz")
    draw_mistakes(pictures, experiment, fitted, files, wrong, on_map)
    return tested


def _learned_from(experiment: Experiment, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of slices and numbers of weakly labeled scans that a fold is trained on: its
    own, and, in every fold, the data that the initial weights have seen.
    """
    always = np.setdiff1d(experiment.labeled, experiment.testable)
    weak_scans = experiment.weak_scans
    always_weak = weak_scans[~experiment.unseen[experiment.first_of_scan[weak_scans]]]
    return np.concatenate([always, split.learn]), np.concatenate([always_weak, split.learn_weak])


def _judged_scans(
    experiment: Experiment,
    scans: np.ndarray,
    decisions: np.ndarray,
    of_slices: OperatingPoint,
    of_scans: OperatingPoint,
) -> dict[str, np.ndarray]:
    """Return the answers for scans; a scan of one slice is treated as that slice."""
    single = experiment.scan_sizes[scans] == 1
    as_slices, as_scans = _judge(of_slices, decisions), _judge(of_scans, decisions)
    return {name: np.where(single, as_slices[name], as_scans[name]) for name in as_slices}


def _answers_of(
    experiment: Experiment, fitted: Fitted, split: Split
) -> tuple[FoldAnswers, FoldAnswers]:
    """Return a fold's predictions for its held-out slices, and for their scans and the weakly
    labeled ones. A scan of one slice is treated as a slice.
    """
    of_slices, of_scans = experiment.operating_points(fitted.held_out)
    at = np.sort(split.held_out)
    scans = np.union1d(experiment.scans[at], split.held_out_weak)
    whole = fitted.scan_decisions[scans]
    return (
        _fold_answers(at, _judge(of_slices, fitted.decisions[at])),
        _fold_answers(scans, _judged_scans(experiment, scans, whole, of_slices, of_scans)),
    )


def _fold_answers(at: np.ndarray, columns: Mapping[str, np.ndarray]) -> FoldAnswers:
    return FoldAnswers(at.tolist(), **{name: values.tolist() for name, values in columns.items()})


def _with_types(
    slices: FoldAnswers,
    scans: FoldAnswers,
    experiment: Experiment,
    types: KnownTypes,
    fitted: Fitted,
    part: np.ndarray,
) -> tuple[FoldAnswers, FoldAnswers]:
    """Return a fold's predictions with the types of hemorrhage, predicted by a head fitted to the
    training part.
    """
    of_slices, _ = experiment.operating_points(fitted.held_out)
    probabilities = fit_types(fitted.descriptions, types.slices, experiment.groups, part).of_slices(
        fitted.descriptions, of_slices.platt(fitted.decisions)
    )
    ends = np.append(experiment.first_of_scan, len(probabilities))
    of_scans = [
        of_scan(probabilities[ends[scan] : ends[scan + 1]], probability).tolist()
        for scan, probability in zip(scans.at, scans.probabilities, strict=True)
    ]
    return replace(slices, types=probabilities[slices.at].tolist()), replace(scans, types=of_scans)


def _mistakes_in(experiment: Experiment, answers: FoldAnswers) -> list[int]:
    """Return the positions of the slices with a fold's worst mistakes."""
    at = np.asarray(answers.at, int)
    labels = experiment.labels[at]
    worst = worst_of(labels, np.asarray(answers.probabilities), np.asarray(answers.predicted))
    return [int(position) for position in at[worst]]


def _true_positives_in(experiment: Experiment, answers: FoldAnswers) -> list[int]:
    """Return the positions of at most `MOST_HEAT_MAPS` true positives of a fold, those with masks
    first.
    """
    at = np.asarray(answers.at, int)
    positives = at[(experiment.labels[at] == 1) & np.asarray(answers.predicted, bool)]
    random = np.random.default_rng([experiment.seed, len(positives)])
    outlined = (
        (np.asarray(experiment.masks[positives]) == 1).any(axis=(1, 2))
        if len(positives)
        else np.zeros(0, bool)
    )
    order = np.lexsort((random.random(len(positives)), ~outlined))
    return [int(position) for position in positives[order][:MOST_HEAT_MAPS]]


def _judge(point: OperatingPoint, decisions: np.ndarray) -> dict[str, np.ndarray]:
    probabilities = point.platt(decisions)
    return {
        "decisions": np.asarray(decisions),
        "probabilities": probabilities,
        "predicted": probabilities >= point.threshold,
        "zones": zones(probabilities, point.low, point.high),
    }
