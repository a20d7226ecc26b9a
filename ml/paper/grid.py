"""The paper's experiment under two protocols: every architecture, plain and restructured, with and
without augmentation.

    honest   grouped k-fold cross-validation: patients and near-duplicates are never on both sides
             of a split, and everything that is fitted (augmentation, autoencoder, scaler, C,
             calibration, threshold) is fitted in the training part
    leaked   a protocol with data leakage: the data set is first enlarged by augmentation, and then
             the copies are split as if each were a patient of its own; without augmentation the
             images are split that way. Only the split differs; thresholds still come from the
             training part. A scan that a series architecture reads stays whole. Confidence
             intervals treat every copy as independent, as that protocol would.

The architecture `autoencoder` is itself the restructuring, so there is no plain version of it.
Features of frozen convolutions and autoencoders fitted to the same images are computed once and
shared between cells; their time counts for the first cell that needs them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from ml.catalogue import architecture_named
from ml.checkpoints import digest, load_json, save_json
from ml.datasets.pool import start_of
from ml.datasets.read import Dataset
from ml.datasets.seen_images import describe_weights
from ml.errors import SettingError
from ml.evaluation.answers import Answers
from ml.evaluation.metrics import metrics_with_intervals
from ml.evaluation.result_tables import network_epochs
from ml.models.contract import RECIPE
from ml.models.features import usual_epochs
from ml.paper.cells import EFFORTS, Cell, expected_left_s, plan
from ml.preprocessing.model_input import InputSpec
from ml.training.controls import leak
from ml.training.cross_validation import OutOfFold, Tell, cross_validate
from ml.training.experiment import Experiment
from ml.training.inputs import read_inputs
from ml.training.progress import Meter, Progress

__all__ = ["plan", "run_paper"]

READING_S = 10.0


def run_paper(
    dataset: Dataset,
    cells: Sequence[Cell],
    out_dir: Path,
    *,
    init: Path | Literal["random", "starter"],
    seed: int = 0,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_plan: Callable[[int, int, float], None] = lambda cells, done, seconds: None,
    on_cell: Callable[[dict[str, Any]], object] = lambda found: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the cells that are not done yet and return the contents of `out_dir/cells.json`.

    Called again on the same folder, it resumes at the cell, fold and epoch where it stopped.

    Args:
        dataset: slices or scans.
        cells: of `plan`.
        out_dir: `cells.json` is written here after each cell; `checkpoint` and `cache` are removed
            at the end.
        init: initial weights: "random", "starter", a file, or a model folder.
        seed: random seed; all honest cells use the same folds.
        command: the command line, for the report.
        on_progress: called after every step.
        on_plan: called with (cells, cells done, expected seconds of the rest) before the first cell
            and after each.
        on_cell: called with the results so far after each cell, to show progress in an experiment
            of hours.
        should_stop: called at least once per batch.

    Raises:
        DatasetError: the data cannot be used for training or testing, or the initial weights have
            seen them.
        SettingError: the folder holds results for other data, weights or seed.
        ArtifactError: the initial weights are unusable.
        TrainingStopped: `should_stop` returned True.
    """
    start, pool = start_of(init, "alexnet", [dataset], max(cell.folds for cell in cells))
    facts: dict[str, Any] = {
        "identity": digest(
            dataset.fingerprint, seed, json.dumps([RECIPE, describe_weights(start)], sort_keys=True)
        ),
        "dataset": dataset.name,
        "images": int(pool.known.sum()),
        "groups": len(np.unique(pool.groups[pool.known])),
        "initial_weights": describe_weights(start),
        "seed": seed,
        "command": command,
        "notes": list(pool.notes),
    }
    saved: dict[str, Any] = load_json(out_dir / "cells.json") or facts | {"cells": []}
    if saved["identity"] != facts["identity"]:
        raise SettingError(
            f"The folder {out_dir.name} holds results for other data, weights or seed; give"
            " another folder."
        )
    results: dict[str, dict[str, Any]] = {result["name"]: result for result in saved["cells"]}
    meter = Meter(on_progress, should_stop)
    whole_s = READING_S + sum(cell.expected_s for cell in cells)
    on_plan(len(cells), sum(cell.is_in(results) for cell in cells), expected_left_s(cells, results))
    behind_s, bench = 0.0, None
    for number, cell in enumerate(cells):
        if cell.is_in(results):
            behind_s += cell.expected_s
            continue
        if bench is None:
            reading = meter.within(
                "reading images", behind_s / whole_s, (behind_s + READING_S) / whole_s
            )
            spec = InputSpec.from_settings(cell.settings)
            inputs = read_inputs(pool.examples, spec, out_dir / "cache", reading)
            how = {
                "architecture": cell.architecture,
                "settings": cell.settings,
                "seed": seed,
                "init": start,
                "shared": out_dir / "cache",
            }
            bench = _Bench(Experiment.of(pool, inputs, **how), spec, {})
        began = (READING_S + behind_s) / whole_s
        tell_cell = meter.between(began, began + cell.expected_s / whole_s)

        def tell(
            stage: str,
            share: float,
            figures: Mapping[str, float],
            cell: Cell = cell,
            number: int = number,
            at: Tell = tell_cell,
        ) -> None:
            at(f"cell {number + 1} of {len(cells)}, {cell.name}: {stage}", share, figures)

        checkpoint = out_dir / "checkpoint" / cell.identity
        experiment = bench.material_of(cell, tell)
        out_of_fold = cross_validate(
            experiment, cell.folds, cell.repeats, checkpoint, _later(tell, cell)
        )
        results[cell.name] = _result(
            cell, out_of_fold, _epochs(cell, len(experiment.labeled)), seed
        )
        save_json(out_dir / "cells.json", facts | {"cells": _in_order(results)})
        on_cell(facts | {"cells": _in_order(results)})
        shutil.rmtree(checkpoint, ignore_errors=True)
        keras.utils.clear_session()  # hundreds of networks are built in one process
        behind_s += cell.expected_s
        on_plan(
            len(cells), sum(one.is_in(results) for one in cells), expected_left_s(cells, results)
        )
    for name in ("checkpoint", "cache"):
        shutil.rmtree(out_dir / name, ignore_errors=True)
    meter.tell("done", 1.0, {})
    return facts | {"cells": _in_order(results)}


@dataclass(frozen=True)
class _Bench:
    """The data set as the cells read it: original and enlarged; several leaked cells share the
    latter.
    """

    pictures: Experiment
    spec: InputSpec
    enlarged: dict[str, Experiment]

    def material_of(self, cell: Cell, tell: Tell) -> Experiment:
        """Return the training and test data of a cell."""
        if InputSpec.from_settings(cell.settings) != self.spec:
            raise SettingError(
                f"{cell.architecture} preprocesses its images differently from the other cells; an"
                " experiment has one preprocessing."
            )
        cache = self.pictures.shared
        experiment = replace(
            self.pictures,
            architecture=cell.architecture,
            settings=cell.settings,
            shared=cache / cell.features_from,
        )
        if cell.protocol == "honest":
            return experiment
        if cell.augmentation == 1:
            return split_by_picture(experiment)
        name = f"leaked-{architecture_named(cell.architecture).reads}-{cell.augmentation}"
        if name not in self.enlarged:
            self.enlarged[name] = leak(experiment, cell.augmentation, cache / name, tell)
        return replace(
            self.enlarged[name],
            architecture=cell.architecture,
            settings=cell.settings,
            shared=experiment.shared,
        )


def split_by_picture(experiment: Experiment) -> Experiment:
    """Return the data with groups that ignore patients: each image, or each scan of a series
    architecture, is its own group.
    """
    n = len(experiment.labels)
    scans = (
        np.arange(n)
        if architecture_named(experiment.architecture).reads == "slice"
        else experiment.scans
    )
    return replace(experiment, groups=scans.astype(str), scans=scans)


def _later(tell: Tell, cell: Cell) -> Tell:
    """Return a progress callback for the part after enlarging, which takes the first fifth."""
    if cell.protocol == "honest" or cell.augmentation == 1:
        return tell
    return lambda stage, share, figures: tell(stage, 0.2 + 0.8 * share, figures)


def _epochs(cell: Cell, images: int) -> int:
    """Return the number of epochs of the cell's network; an autoencoder's depends on the number of
    training images in a fold.
    """
    if cell.architecture == "autoencoder":
        return network_epochs(cell.settings) or usual_epochs(
            images * (cell.folds - 1) // cell.folds
        )
    return network_epochs(cell.settings)


def _result(cell: Cell, out_of_fold: OutOfFold, epochs: int, seed: int) -> dict[str, Any]:
    """Return a cell's results as JSON, with patient-level metrics where scans have several
    slices.
    """
    levels = {"slice": out_of_fold.slices}
    if len(out_of_fold.scans.at) < len(out_of_fold.slices.at):
        levels["patient"] = out_of_fold.scans
    return {
        "name": cell.name,
        "identity": cell.identity,
        "architecture": cell.architecture,
        "restructured": cell.restructured,
        "augmentation": cell.augmentation,
        "protocol": cell.protocol,
        "settings": dict(cell.settings),
        "folds": cell.folds,
        "repeats": cell.repeats,
        "epochs": epochs,
        "seconds": round(out_of_fold.seconds, 1),
        "metrics": {level: _metrics(answers, seed) for level, answers in levels.items()},
    }


def _metrics(answers: Answers, seed: int) -> dict[str, dict[str, Any]]:
    return metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )


def _in_order(results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results in display order: honest and leaked side by side."""
    order = list(EFFORTS)
    return sorted(
        results.values(),
        key=lambda r: (
            order.index(r["architecture"]),
            r["restructured"],
            r["augmentation"] > 1,
            r["protocol"],
        ),
    )
