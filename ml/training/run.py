"""Train and evaluate a model on labeled slices: grouped cross-validation, calibration, export and
model card.

Everything that is fitted (features, scaler, SVM, its C, calibration, threshold) is fitted on the
training part of a fold; the metrics are computed from the pooled out-of-fold predictions. The final
model is then fitted on all images in the same way.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ml.artifacts.card import Card
from ml.artifacts.folder import read_card, write_model
from ml.checkpoints import load_json, save_json
from ml.datasets.read import Dataset
from ml.errors import SettingError
from ml.training.controls import ControlledRun, run_controls
from ml.training.cross_validation import cross_validate
from ml.training.final_model import fit_final
from ml.training.inputs import read_inputs
from ml.training.mistakes import write_mistakes
from ml.training.out_of_fold import write_predictions
from ml.training.plan import LICENSE_NOTES, TrainConfig, plan_of
from ml.training.progress import Meter, Progress, TrainingStopped
from ml.training.run_card import card_of_run
from ml.training.type_figures import write_types

__all__ = [
    "LICENSE_NOTES",
    "OtherTraining",
    "Progress",
    "TrainConfig",
    "TrainingStopped",
    "train",
]


class OtherTraining(SettingError):
    """The folder contains an unfinished run with other settings, data or code version."""


def train(
    config: TrainConfig,
    datasets: Sequence[Dataset],
    out_dir: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Card:
    """Train and evaluate a model; afterwards `out_dir/model` is its folder.

    Called again on the same folder with the same configuration and data, it resumes and gives the
    same results.

    One function, because it is the run from beginning to end, with one call for each step; half of
    its lines are this description and the example.

    Args:
        config: what to train.
        datasets: their images are pooled; slices with unknown labels are kept in their scans but
            not trained on.
        out_dir: receives `model`, `predictions.csv` (every out-of-fold answer, see
            `ml.evaluation.answers`), `mistakes` (images of the worst ones, see
            `ml.training.mistakes`) and, if the data distinguish types of hemorrhage, `types.csv`
            (predicted types); `checkpoint` and `cache` in it hold what is needed to resume and are
            removed at the end.
        on_progress: called after every step.
        should_stop: called at least once per batch.

    Raises:
        DatasetError: the data cannot be used for training or testing.
        SettingError: a setting is wrong, or the folder holds another training; an `OtherTraining`
            if that is unfinished.
        ArtifactError: the initial weights are unusable.
        TrainingStopped: `should_stop` returned True.

    Example:
        Twelve phantoms, one folder per class; so few images and no controls are only for
        demonstration.

        >>> from pathlib import Path
        >>> from ml.datasets.read import read_dataset
        >>> from ml.scans.phantoms import phantom, write_png
        >>> from ml.training.run import TrainConfig, train
        >>> for seed in range(36, 48):
        ...     folder = Path("heads", "hemorrhage" if seed % 2 else "normal")
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     hu = phantom(seed, hemorrhage=seed % 2 == 1, size=128)
        ...     write_png(hu, folder / f"{seed}.png")
        >>> settings = {"folds": 2, "input_size": 160, "layer": "conv3", "controls": "none"}
        >>> config = TrainConfig("alexnet_svm", settings, init="random")
        >>> card = train(config, [read_dataset(Path("heads"), "phantoms")], Path("run"))
        >>> card.export_check.passed, card.metrics.auroc.n
        (True, 12)
        >>> sorted(path.name for path in Path("run").iterdir())
        ['mistakes', 'model', 'predictions.csv']
    """
    plan = plan_of(config, datasets)
    finished = _claim_folder(out_dir, plan.identity)
    if finished:
        return finished
    meter, checkpoint = Meter(on_progress, should_stop, plan.parts()), out_dir / "checkpoint"
    tell_reading, tell_final, tell_export, tell_figures = (
        meter.part(name) for name in ("reading", "final", "export", "figures")
    )
    inputs = read_inputs(
        plan.pool.examples,
        plan.spec,
        out_dir / "cache",
        lambda share: tell_reading("reading images", share, {}),
    )
    experiment = plan.experiment(inputs, checkpoint)
    out_of_fold = cross_validate(
        experiment,
        plan.folds,
        plan.repeats,
        checkpoint,
        meter.part("folds"),
        test_heat_maps=True,
    )
    of_labels = replace(experiment, types=None)  # controls are about hemorrhage only
    run = ControlledRun(of_labels, plan.pool.examples, out_of_fold.learned_features, plan.folds)
    controls = run_controls(run, checkpoint, meter.part("controls"))

    def report(share: float, metrics: Mapping[str, float]) -> None:
        tell_final("final model", share, metrics)

    final = fit_final(plan, experiment, out_of_fold, report, lambda: tell_export("export", 0.0, {}))
    tell_figures("figures", 0.0, {})
    card = card_of_run(plan, experiment, out_of_fold, controls, final)
    write_predictions(out_dir / "predictions.csv", plan.pool.examples, experiment, out_of_fold)
    write_types(out_dir / "types.csv", plan.pool.examples, experiment, out_of_fold)
    write_mistakes(
        out_dir / "mistakes", out_of_fold.slices, plan.pool.examples, plan.spec, checkpoint
    )
    written = write_model(out_dir / "model", card, final.files)
    _clear(out_dir)
    meter.end()
    return written


def _claim_folder(out_dir: Path, identity: str) -> Card | None:
    """Mark the folder as that of this run; return the card if the run has already finished there.

    Raises:
        SettingError: the folder contains another run.
    """
    if (out_dir / "model").exists():
        return _finished_card(out_dir, identity)
    owner = out_dir / "checkpoint" / "training.json"
    claim = load_json(owner)
    # Hidden files are partial writes of a killed process.
    if claim is None and not any(owner.parent.glob("[!.]*")):
        save_json(owner, {"identity": identity})
    elif claim is None or claim["identity"] != identity:
        raise OtherTraining(
            f"The folder {out_dir.name} holds an unfinished training with other settings or data,"
            " or of another version; give another folder."
        )
    return None


def _finished_card(out_dir: Path, identity: str) -> Card:
    """Return the card of a finished run and remove leftovers of its training."""
    card = read_card(out_dir / "model")
    if card.data.training != identity:
        raise SettingError(
            f"The folder {out_dir.name} holds the model of another training; give another folder."
        )
    _clear(out_dir)
    return card


def _clear(out_dir: Path) -> None:
    for name in ("checkpoint", "cache"):
        shutil.rmtree(out_dir / name, ignore_errors=True)
