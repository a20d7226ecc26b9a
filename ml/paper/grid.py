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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from ml.catalogue import architecture_named
from ml.checkpoints import digest, load_json, save_json
from ml.datasets.pool import Pool, Start, choose_start, join_datasets, pool_datasets
from ml.datasets.read import Dataset
from ml.datasets.seen_images import describe_weights
from ml.errors import SettingError
from ml.evaluation.answers import Answers
from ml.evaluation.metrics import metrics_with_intervals
from ml.evaluation.result_tables import network_epochs
from ml.figures import Metrics
from ml.models.contract import RECIPE
from ml.models.features import usual_epochs
from ml.paper.cells import EFFORTS, Cell, CellResult, PaperResults, expected_left_s, plan
from ml.preprocessing.model_input import InputSpec
from ml.training.controls import leak
from ml.training.cross_validation import OutOfFold, Tell, cross_validate
from ml.training.experiment import Experiment
from ml.training.inputs import read_inputs
from ml.training.progress import Meter, Progress
from ml.typed_json import JsonError, from_json, to_json

__all__ = ["Watcher", "plan", "run_paper"]

READING_S = 10.0
Report = Callable[[float], None]


@dataclass(frozen=True)
class Watcher:
    """Callbacks of an experiment that takes hours.

    Attributes:
        on_progress: called after every step.
        on_plan: called with (cells, cells done, expected seconds of the rest) before the first cell
            and after each.
        on_cell: called with the results so far after each cell.
        should_stop: called at least once per batch.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    on_plan: Callable[[int, int, float], None] = lambda cells, done, seconds: None
    on_cell: Callable[[PaperResults], object] = lambda results: None
    should_stop: Callable[[], bool] = lambda: False


NOBODY = Watcher()


def run_paper(
    dataset: Dataset,
    cells: Sequence[Cell],
    out_dir: Path,
    *,
    init: Path | Literal["random", "starter"],
    seed: int = 0,
    command: str = "",
    watcher: Watcher = NOBODY,
) -> PaperResults:
    """Run the cells that are not done yet and return the contents of `out_dir/cells.json`.

    Called again on the same folder, it resumes at the cell, fold and epoch where it stopped.

    One function, because the loop over the cells needs everything that precedes it (pool, weights,
    images read once, expected time) and changes the results, the only state that outlives a cell.

    Args:
        dataset: slices or scans.
        cells: of `plan`.
        out_dir: `cells.json` is written here after each cell; `checkpoint` and `cache` are removed
            at the end.
        init: initial weights: "random", "starter", a file, or a model folder.
        seed: random seed; all honest cells use the same folds.
        command: the command line, for the report.
        watcher: callbacks, which may stop it.

    Raises:
        DatasetError: the data cannot be used for training or testing, or the initial weights have
            seen them.
        SettingError: the folder holds results for other data, weights or seed.
        ArtifactError: the initial weights are unusable.
        TrainingStopped: the watcher's `should_stop` returned True.
    """
    joined = join_datasets([dataset])
    start = choose_start(init, "alexnet", joined, max(cell.folds for cell in cells))
    pool = pool_datasets(joined, start)
    nothing = _without_cells(dataset, pool, start.weights, seed, command)
    results = {result.name: result for result in _saved(out_dir, nothing).cells}
    meter = Meter(watcher.on_progress, watcher.should_stop)

    def tell_plan() -> None:
        done = sum(cell.is_in(results) for cell in cells)
        watcher.on_plan(len(cells), done, expected_left_s(cells, results))

    tell_plan()
    bench: _Bench | None = None
    whole_s, behind_s = READING_S + sum(cell.expected_s for cell in cells), 0.0
    for number, cell in enumerate(cells, start=1):
        begin = behind_s / whole_s, (behind_s + READING_S) / whole_s
        behind_s += cell.expected_s
        if cell.is_in(results):
            continue
        if bench is None:
            reading = meter.within("reading images", *begin)
            bench = _Bench.read(pool, start, seed, cell, out_dir / "cache", reading)
        tell_cell = meter.between(begin[1], (behind_s + READING_S) / whole_s)
        tell = _named(tell_cell, f"cell {number} of {len(cells)}, {cell.name}: ")
        results[cell.name] = _cross_validated(
            cell, bench, out_dir / "checkpoint" / cell.identity, tell
        )
        so_far = replace(nothing, cells=_in_order(results))
        save_json(out_dir / "cells.json", to_json(so_far))
        watcher.on_cell(so_far)
        shutil.rmtree(out_dir / "checkpoint" / cell.identity, ignore_errors=True)
        keras.utils.clear_session()  # hundreds of networks are built in one process
        tell_plan()
    for name in ("checkpoint", "cache"):
        shutil.rmtree(out_dir / name, ignore_errors=True)
    meter.tell("done", 1.0, {})
    return replace(nothing, cells=_in_order(results))


def _without_cells(
    dataset: Dataset, pool: Pool, weights: Path | str, seed: int, command: str
) -> PaperResults:
    """Return the experiment before its first cell."""
    described = describe_weights(weights)
    decided_by = json.dumps([RECIPE, to_json(described)], sort_keys=True)
    return PaperResults(
        identity=digest(dataset.fingerprint, seed, decided_by),
        dataset=dataset.name,
        images=int(pool.known.sum()),
        groups=len(np.unique(pool.groups[pool.known])),
        initial_weights=described,
        seed=seed,
        command=command,
        notes=list(pool.notes),
        cells=[],
    )


def _saved(out_dir: Path, nothing: PaperResults) -> PaperResults:
    """Return the saved results of this experiment.

    Raises:
        SettingError: they belong to another experiment or another version.
    """
    saved = load_json(out_dir / "cells.json")
    if saved is None:
        return nothing
    if saved["identity"] != nothing.identity:
        raise SettingError(
            f"The folder {out_dir.name} holds results for other data, weights or seed; give"
            " another folder."
        )
    try:
        return from_json(PaperResults, saved)
    except JsonError as err:
        raise SettingError(
            f"{out_dir.name}/cells.json {err}; another version wrote it, so give another folder."
        ) from err


def _named(tell: Tell, name: str) -> Tell:
    """Return a progress callback that prefixes its stages with that name."""
    return lambda stage, share, figures: tell(name + stage, share, figures)


def _cross_validated(cell: Cell, bench: _Bench, checkpoint: Path, tell: Tell) -> CellResult:
    """Return the results of a cell, resuming from its checkpoint."""
    experiment = bench.experiment_of(cell, tell)
    out_of_fold = cross_validate(
        experiment, cell.folds, cell.repeats, checkpoint, _later(tell, cell)
    )
    epochs = _epochs(cell, len(experiment.labeled))
    return _result(cell, out_of_fold, epochs, bench.pictures.seed)


@dataclass(frozen=True)
class _Bench:
    """The data set as the cells read it: original and enlarged; the latter is shared by several
    leaked cells.
    """

    pictures: Experiment
    spec: InputSpec
    enlarged: dict[str, Experiment] = field(default_factory=dict)

    @classmethod
    def read(
        cls, pool: Pool, start: Start, seed: int, cell: Cell, cache: Path, report: Report
    ) -> _Bench:
        """Read all images with a cell's preprocessing."""
        spec = InputSpec.from_settings(cell.settings)
        pictures = Experiment.of(
            pool,
            read_inputs(pool.examples, spec, cache, report),
            architecture=cell.architecture,
            settings=cell.settings,
            seed=seed,
            init=start.weights,
            shared=cache,
        )
        return cls(pictures, spec)

    def experiment_of(self, cell: Cell, tell: Tell) -> Experiment:
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


def _result(cell: Cell, out_of_fold: OutOfFold, epochs: int, seed: int) -> CellResult:
    """Return a cell's results, with patient-level metrics where scans have several slices."""
    levels = {"slice": out_of_fold.slices}
    if len(out_of_fold.scans.at) < len(out_of_fold.slices.at):
        levels["patient"] = out_of_fold.scans
    return CellResult(
        name=cell.name,
        identity=cell.identity,
        architecture=cell.architecture,
        restructured=cell.restructured,
        augmentation=cell.augmentation,
        protocol=cell.protocol,
        settings=dict(cell.settings),
        folds=cell.folds,
        repeats=cell.repeats,
        epochs=epochs,
        seconds=round(out_of_fold.seconds, 1),
        metrics={level: _metrics(answers, seed) for level, answers in levels.items()},
    )


def _metrics(answers: Answers, seed: int) -> Metrics:
    return metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )


def _in_order(results: Mapping[str, CellResult]) -> list[CellResult]:
    """Return the results in display order: honest and leaked side by side."""
    order = list(EFFORTS)
    return sorted(
        results.values(),
        key=lambda result: (
            order.index(result.architecture),
            result.restructured,
            result.augmentation > 1,
            result.protocol,
        ),
    )
