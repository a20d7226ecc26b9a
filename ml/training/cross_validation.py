"""Evaluate an architecture by grouped cross-validation: every slice and scan is predicted by a
model trained without its group.

Calibration, threshold and uncertain band of a fold come from inner held-out data of its training
part, for slices and for scans.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ml.catalogue import BLEEDING_TYPES
from ml.checkpoints import load_json, save_json
from ml.datasets.examples import UNKNOWN
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.answers import Answers
from ml.evaluation.calibration import OperatingPoint, zones
from ml.evaluation.metrics import auroc
from ml.models.contract import Fitted, HeldOut
from ml.networks.bleeding_types import fit_types, of_scan
from ml.training.experiment import Experiment
from ml.training.folds import splits
from ml.training.heat_map_tests import judge_heat_maps
from ml.training.operating_points import has_both_classes, without

MOST_HEAT_MAPS = 50  # per fold: they take about ten seconds
Tell = Callable[[str, float, Mapping[str, float]], None]
"""Called with a stage, the share that is done, and metrics to show; raises to stop."""


@dataclass(frozen=True)
class OutOfFold:
    """The results of a cross-validation.

    Attributes:
        slices, scans: the predictions.
        held_out: raw decisions of the first repeat.
        held_out_folds: the folds of these slices and scans.
        learned_features: whether the convolutions were trained.
        seconds: duration of all fits.
        heat_maps: results of `ml.training.heat_map_tests` in the first repeat; empty if not
            requested.
        chosen: hyperparameters selected by each fit.
    """

    slices: Answers
    scans: Answers
    held_out: HeldOut
    held_out_folds: tuple[np.ndarray, np.ndarray]
    learned_features: bool
    seconds: float
    heat_maps: Sequence[Mapping[str, Any]] = ()
    chosen: Sequence[Mapping[str, Any]] = ()


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

    def write(self, repeat: int, fold: int, answers: Mapping[str, Any]) -> None:
        places = np.searchsorted(self.at, answers["at"])
        for name in ("decisions", "probabilities", "predicted", "zones"):
            self.columns[name][repeat, places] = answers[name]
        self.columns["folds"][repeat, places] = fold
        if "types" in answers:
            self.columns["types"][repeat, places] = answers["types"]

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
        material: training and test data.
        folds, repeats: each repeat has different folds.
        checkpoint: folder with finished folds, which are not repeated.
        tell: progress callback.
        only: the folds to run; default: all. Slices and scans of the others are not in the results.
        test_heat_maps: test the heat maps of true positives in the first repeat.
    """
    testable, weak_scans = experiment.testable, experiment.weak_scans
    known_scans = np.flatnonzero(experiment.scan_labels != UNKNOWN)
    levels = _Level(testable, repeats), _Level(known_scans, repeats)
    always = np.setdiff1d(experiment.labeled, testable)
    always_weak_scans = weak_scans[~experiment.unseen[experiment.first_of_scan[weak_scans]]]
    wanted = range(folds) if only is None else only
    seconds, learned = 0.0, False
    heat_maps: list[Mapping[str, Any]] = []
    chosen: list[Mapping[str, Any]] = []
    for repeat in range(repeats):
        for fold, split in enumerate(splits(experiment, folds, repeat)):
            if fold not in wanted:
                continue
            number = repeat * len(wanted) + list(wanted).index(fold)
            start, end = (n / (repeats * len(wanted)) for n in (number, number + 1))
            stage = (
                f"fold {fold + 1} of {folds}"
                if repeats == 1
                else f"repeat {repeat + 1} of {repeats}, fold {fold + 1} of {folds}"
            )
            name = f"fold-{fold}" if repeat == 0 else f"repeat-{repeat}-fold-{fold}"
            done = load_json(checkpoint / f"{name}.json")
            if done is None:
                began = time.monotonic()

                def report(
                    share: float,
                    metrics: Mapping[str, float],
                    start: float = start,
                    end: float = end,
                    stage: str = stage,
                ) -> None:
                    tell(stage, start + share * (end - start), metrics)

                train, wholes = (
                    np.concatenate([always, split.learn]),
                    np.concatenate([always_weak_scans, split.learn_weak]),
                )
                fitted = experiment.fit(train, checkpoint / name, report, wholes)
                done = _answers_of(experiment, fitted, split.held, split.held_weak)
                if experiment.types is not None:
                    _add_types(done, experiment, experiment.types, fitted, train)
                if test_heat_maps and repeat == 0:
                    done["heat_maps"] = _heat_maps_of(experiment, fitted, done["slices"])
                done |= {
                    "seconds": time.monotonic() - began,
                    "learnt_features": fitted.learned_features,
                    "chosen": dict(fitted.chosen),
                }
                save_json(checkpoint / f"{name}.json", done)
                shutil.rmtree(checkpoint / name, ignore_errors=True)
            levels[0].write(repeat, fold, done["slices"])
            levels[1].write(repeat, fold, done["scans"])
            seconds, learned = seconds + done["seconds"], learned or done["learnt_features"]
            heat_maps.extend(done.get("heat_maps", []))
            chosen.append(done.get("chosen", {}))
            tell(
                stage,
                end,
                {
                    "fold_auroc": auroc(
                        experiment.labels[done["slices"]["at"]],
                        np.asarray(done["slices"]["probabilities"]),
                    )
                },
            )
    if experiment.settings.get("folds_by") == "data set":
        _judge_by_the_others(experiment, levels)
    first = experiment.first_of_scan[known_scans]
    return OutOfFold(
        slices=levels[0].answers(
            experiment.labels[testable], experiment.groups[testable], experiment.sources[testable]
        ),
        scans=levels[1].answers(
            experiment.scan_labels[known_scans], experiment.groups[first], experiment.sources[first]
        ),
        held_out=HeldOut(*levels[0].first_decisions(), *levels[1].first_decisions()),
        held_out_folds=(levels[0].first_folds(), levels[1].first_folds()),
        learned_features=learned,
        seconds=seconds,
        heat_maps=heat_maps,
        chosen=chosen,
    )


def _judge_by_the_others(experiment: Experiment, levels: tuple[_Level, _Level]) -> None:
    """Where each fold is a data set: calibrate and judge its answers by those for the others, which
    models that had not seen them gave as well.

    What a model held back of the data sets that it learned from says little about one that it has
    never seen.
    """
    held = HeldOut(*levels[0].first_decisions(), *levels[1].first_decisions())
    folds = levels[0].first_folds(), levels[1].first_folds()
    for fold in np.unique(folds[0]):
        here = held.slices[folds[0] == fold], held.scans[folds[1] == fold]
        others = without(held, *here)
        if not has_both_classes(experiment, others):
            continue
        of_slices, of_scans = experiment.operating_points(others)
        at = held.decisions[folds[0] == fold], held.scan_decisions[folds[1] == fold]
        levels[0].write(0, fold, {"at": here[0], **_judge(of_slices, at[0])})
        levels[1].write(
            0,
            fold,
            {"at": here[1], **_judged_scans(experiment, here[1], at[1], of_slices, of_scans)},
        )


def _judged_scans(
    experiment: Experiment,
    scans: np.ndarray,
    decisions: np.ndarray,
    of_slices: OperatingPoint,
    of_scans: OperatingPoint,
) -> dict[str, np.ndarray]:
    """Return the answers for scans; one of a single slice is judged as that slice."""
    single = experiment.scan_sizes[scans] == 1
    own, whole = _judge(of_slices, decisions), _judge(of_scans, decisions)
    return {name: np.where(single, own[name], whole[name]) for name in own}


def _answers_of(
    experiment: Experiment, fitted: Fitted, test: np.ndarray, weak_scans: np.ndarray
) -> dict[str, Any]:
    """Return a fold's predictions for the slices at `test`, their scans and the scans `weak_scans`,
    as JSON. A scan of one slice is treated as a slice.
    """
    of_slices, of_scans = experiment.operating_points(fitted.held_out)
    test = np.sort(test)
    scans = np.union1d(experiment.scans[test], weak_scans)
    whole = fitted.scan_decisions[scans]
    judged = {
        "slices": {"at": test, **_judge(of_slices, fitted.decisions[test])},
        "scans": {
            "at": scans,
            **_judged_scans(experiment, scans, whole, of_slices, of_scans),
        },
    }
    return {
        **{
            level: {name: values.tolist() for name, values in answers.items()}
            for level, answers in judged.items()
        },
        "threshold": of_slices.threshold,
        "scan_threshold": of_scans.threshold,
    }


def _add_types(
    answers: dict[str, Any],
    experiment: Experiment,
    types: KnownTypes,
    fitted: Fitted,
    part: np.ndarray,
) -> None:
    """Add the types of hemorrhage, predicted by a head fitted to the training part, to a fold's
    results.
    """
    of_slices, _ = experiment.operating_points(fitted.held_out)
    found = fit_types(fitted.descriptions, types.slices, experiment.groups, part).of_slices(
        fitted.descriptions, of_slices.platt(fitted.decisions)
    )
    slices, scans = answers["slices"], answers["scans"]
    slices["types"] = found[slices["at"]].tolist()
    ends = np.append(experiment.first_of_scan, len(found))
    scans["types"] = [
        of_scan(found[ends[scan] : ends[scan + 1]], probability).tolist()
        for scan, probability in zip(scans["at"], scans["probabilities"], strict=True)
    ]


def _heat_maps_of(
    experiment: Experiment, fitted: Fitted, answers: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Test the heat maps of at most `MOST_HEAT_MAPS` true positives of a fold, those with masks
    first.
    """
    at = np.asarray(answers["at"], int)
    found = at[(experiment.labels[at] == 1) & np.asarray(answers["predicted"], bool)]
    random = np.random.default_rng([experiment.seed, len(found)])
    outlined = (
        (np.asarray(experiment.masks[found]) == 1).any(axis=(1, 2))
        if len(found)
        else np.zeros(0, bool)
    )
    tested = found[np.lexsort((random.random(len(found)), ~outlined))][:MOST_HEAT_MAPS]
    of_slices, of_scans = experiment.operating_points(fitted.held_out)
    return judge_heat_maps(
        fitted.export(of_slices.platt, of_scans.platt),
        experiment.images,
        experiment.masks,
        tested.tolist(),
        experiment.seed,
    )


def _judge(point: OperatingPoint, decisions: np.ndarray) -> dict[str, np.ndarray]:
    probabilities = point.platt(decisions)
    return {
        "decisions": np.asarray(decisions),
        "probabilities": probabilities,
        "predicted": probabilities >= point.threshold,
        "zones": zones(probabilities, point.low, point.high),
    }
