"""The plan of a training run: everything that determines its outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ml.artifacts.card import InitialWeights
from ml.catalogue import Architecture, architecture_named
from ml.checkpoints import digest
from ml.datasets.pool import Pool, choose_start, join_datasets, pool_datasets
from ml.datasets.read import Dataset
from ml.datasets.seen_images import describe_weights
from ml.datasets.type_labels import known_types
from ml.errors import SettingError
from ml.expected_time import Part, expected_parts
from ml.models.contract import RECIPE
from ml.models.fine_tuned import require_usable
from ml.preprocessing.model_input import InputSpec
from ml.training.experiment import Experiment
from ml.training.inputs import Inputs
from ml.typed_json import to_json

LICENSE_NOTES = ("Research, non-commercial use only; not for diagnosis.",)


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run.

    Attributes:
        architecture: a name of `ml.catalogue`.
        settings: any of its settings; the others keep their defaults.
        seed: of everything random.
        init: initial weights: "random", "starter" (the convolutions of a shipped model that has not
            seen the images, else random ones), a file or a model folder.
        command: the command line that repeats the run, for the card.
        reuse: folder in which fine-tuned convolutions are looked up and stored, so that training
            runs with the same fine-tuning perform it once. It does not change the results, except
            for rounding and random numbers if other hardware computed it (`tuned_by` in the card).
        license_notes, notes: sentences for the card.
    """

    architecture: str
    settings: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    init: Path | Literal["random", "starter"] = "starter"
    command: str = ""
    reuse: Path | None = None
    license_notes: tuple[str, ...] = LICENSE_NOTES
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training run before anything is computed.

    Attributes:
        config: the configuration.
        architecture, settings: the entry of the catalogue, and all of its settings.
        folds, repeats: of the cross-validation.
        datasets: names of the data sets.
        fingerprint: digest of theirs.
        pool: their images.
        init, start_from: the initial weights, and their description in the card.
        identity: digest of everything that determines the outcome.
    """

    config: TrainConfig
    architecture: Architecture
    settings: dict[str, int | float | str]
    folds: int
    repeats: int
    datasets: list[str]
    fingerprint: str
    pool: Pool
    init: Path | str
    start_from: InitialWeights
    identity: str

    @property
    def spec(self) -> InputSpec:
        """How the model reads a slice."""
        return InputSpec.from_settings(self.settings)

    def experiment(self, inputs: Inputs, shared: Path) -> Experiment:
        """Return the data of the training; `shared` is a folder for results that all fits share."""
        experiment = Experiment.of(
            self.pool,
            inputs,
            architecture=self.architecture.name,
            settings=self.settings,
            seed=self.config.seed,
            init=self.init,
            shared=shared,
        )
        types = known_types(self.pool.examples, self.pool.scans)
        return replace(experiment, reuse=self.config.reuse, types=types)

    def parts(self) -> list[Part]:
        """Return the parts of the training run, in the order of its progress."""
        scans = len(set(self.pool.scans.tolist()))
        return expected_parts(
            self.architecture.name,
            self.settings,
            len(self.pool.labels),
            len(self.datasets),
            starts_random=self.init == "random",
            positives=int((self.pool.labels == 1).sum()),
            scans=scans if scans < len(self.pool.labels) else None,
        )


def plan_of(config: TrainConfig, datasets: Sequence[Dataset]) -> Plan:
    """Return the plan of a training run.

    Raises:
        DatasetError: the data cannot be trained or tested on.
        SettingError: a setting is wrong.
        ArtifactError: the initial weights are unusable.
    """
    architecture = architecture_named(config.architecture)
    settings = architecture.parse_settings(config.settings)
    folds, repeats = _folds_and_repeats(settings, len(datasets))
    joined = join_datasets(datasets)
    # Random initial weights have seen nothing.
    init = config.init if architecture.encoder else "random"
    start = choose_start(init, architecture.encoder, joined, folds)
    pool = pool_datasets(joined, start)
    start_from = describe_weights(start.weights)
    if start.weights != "random":
        require_usable(architecture, settings, start.weights)  # fails before a folder is claimed
    fingerprint = digest(*(dataset.fingerprint for dataset in datasets))
    # their files determine the order
    placed = [example.name for example in pool.examples if example.place_mm is not None]
    decided_by = [RECIPE, settings, config.seed, to_json(start_from)]
    return Plan(
        config=config,
        architecture=architecture,
        settings=settings,
        folds=folds,
        repeats=repeats,
        datasets=[dataset.name for dataset in datasets],
        fingerprint=fingerprint,
        pool=pool,
        init=start.weights,
        start_from=start_from,
        identity=digest(
            config.architecture, json.dumps(decided_by, sort_keys=True), fingerprint, *placed
        ),
    )


def _folds_and_repeats(settings: Mapping[str, int | float | str], datasets: int) -> tuple[int, int]:
    if settings.get("folds_by") != "data set":
        return int(settings.get("folds", 5)), int(settings.get("repeats", 1))
    if datasets < 2:
        raise SettingError("Folds by data set need at least two data sets.")
    return datasets, 1
