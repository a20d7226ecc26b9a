"""The cells of the paper's experiment: the settings of each combination and its expected cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ml.artifacts.card import InitialWeights
from ml.catalogue import architecture_named
from ml.checkpoints import digest
from ml.errors import SettingError
from ml.figures import Metrics

Protocol = Literal["honest", "leaked"]
IMAGES_TIMED = 200
"""The number of images to which the expected seconds refer, on two cores."""
THRESHOLD = "one half"
"""The paper reports accuracy, so the threshold is a probability of 0.5, calibrated in the training
part.
"""
HEADS_ALONE = frozenset(
    (
        "epochs",
        "learning_rate",
        "dropout",
        "units",
        "projection",
        "bidirectional",
        "kernel",
        "pca",
        "fully_connected",
        "precision",
    )
)
"""Settings that do not affect frozen features: cells that differ only in these share their
features.
"""


@dataclass(frozen=True)
class Effort:
    """The computing budget of one architecture.

    Attributes:
        settings: settings that differ from its defaults.
        fold_s: expected seconds of a fold by (restructured, augmented).
        repeats: repeats of the honest cross-validation on plain images; all others run once, since
            training an autoencoder in each fold is expensive.
        copies, copies_leaked: number of augmented copies of an image, including the original.
        epochs_leaked: epochs on the enlarged set, chosen so that as many images are drawn as in an
            honest cell, whose epochs are shorter.
        restructured_only: the architecture is itself the restructuring.
    """

    settings: Mapping[str, object]
    fold_s: Mapping[tuple[bool, bool], float]
    repeats: int = 1
    copies: int = 10
    copies_leaked: int = 5
    epochs_leaked: int | None = None
    restructured_only: bool = False


RECURRENT = Effort(
    {"layer": "pool5", "epochs": 8, "learning_rate": 0.005},
    fold_s={(False, False): 7, (False, True): 7.5, (True, False): 9.5, (True, True): 17},
    repeats=2,
    epochs_leaked=3,
)
EFFORTS: Mapping[str, Effort] = {
    "alexnet": Effort(
        {"frozen": 3, "fully_connected": 512, "epochs": 6},
        fold_s={(False, False): 16, (False, True): 17, (True, False): 48, (True, True): 48},
        epochs_leaked=3,
    ),
    "alexnet_svm": Effort(
        {"layer": "conv3"},
        fold_s={(False, False): 0.5, (False, True): 3, (True, False): 24, (True, True): 22},
        repeats=5,
    ),
    "cnn_lstm": RECURRENT,
    "cnn_gru": RECURRENT,
    "autoencoder": Effort({}, fold_s={(True, False): 1, (True, True): 2}, restructured_only=True),
}
"""All of head_ct takes about 45 minutes on two cores. The expected seconds are CPU seconds of
single folds divided by 1.6, the speedup of two cores; shared work counts where it is first needed.
"""


@dataclass(frozen=True)
class Cell:
    """One combination. `augmentation` is the number of copies of each image, including the
    original; in a leaked cell the copies are made before the split.
    """

    architecture: str
    restructured: bool
    augmentation: int
    protocol: Protocol
    settings: Mapping[str, int | float | str]
    folds: int
    repeats: int
    expected_s: float = field(compare=False)

    @property
    def name(self) -> str:
        """The display name."""
        return (
            f"{self.architecture} {'restructured' if self.restructured else 'plain'}"
            f" ×{self.augmentation} {self.protocol}"
        )

    @property
    def identity(self) -> str:
        """Everything its results depend on, besides data, weights and seed."""
        return digest(
            self.name, json.dumps([self.settings, self.folds, self.repeats], sort_keys=True)
        )[:16]

    def is_in(self, results: Mapping[str, CellResult]) -> bool:
        """Return whether the results, keyed by name, contain this cell with the same settings."""
        return self.name in results and results[self.name].identity == self.identity

    @property
    def features_from(self) -> str:
        """Key of the cells that can share features and autoencoders: the images and the settings
        that frozen features depend on.
        """
        enlarged = self.protocol == "leaked" and self.augmentation > 1
        pictures = f"leaked-{self.augmentation}" if enlarged else "pictures"
        if self.restructured:
            # then features belong to one fit and only autoencoders are shared
            return f"{pictures}-restructured"
        kind = "rows" if self.architecture in ("cnn_lstm", "cnn_gru") else self.architecture
        settings = {name: value for name, value in self.settings.items() if name not in HEADS_ALONE}
        return f"{pictures}-{digest(kind, json.dumps(settings, sort_keys=True))[:12]}"


@dataclass(frozen=True)
class CellResult:
    """The result of a cell.

    Attributes:
        name, identity, architecture, restructured, augmentation, protocol, settings, folds,
            repeats: of the cell.
        epochs: of the network that was trained last.
        seconds: duration of the fits.
        metrics: by level; patients are a level if their scans have several slices.
    """

    name: str
    identity: str
    architecture: str
    restructured: bool
    augmentation: int
    protocol: str
    settings: dict[str, Any]
    folds: int
    repeats: int
    epochs: int
    seconds: float
    metrics: dict[str, Metrics]


@dataclass(frozen=True)
class PaperResults:
    """The results of the experiment so far: cells.json.

    Attributes:
        identity: digest of everything that all cells depend on.
        dataset, images, groups: name of the data set, and its numbers of labeled images and groups.
        initial_weights, seed, command, notes: of the experiment.
        cells: the results, with honest and leaked cells side by side.
    """

    identity: str
    dataset: str
    images: int
    groups: int
    initial_weights: InitialWeights
    seed: int
    command: str
    notes: list[str]
    cells: list[CellResult]


def plan(
    images: int,
    only: Sequence[str] = tuple(EFFORTS),
    folds: int = 5,
    efforts: Mapping[str, Effort] = EFFORTS,
) -> list[Cell]:
    """Return the cells in order, for that many images.

    Raises:
        SettingError: an architecture is not in the paper, or its settings are invalid.
    """
    cells = []
    for name in only:
        if name not in efforts:
            raise SettingError(
                f"{name} is not an architecture of the paper; choose from {', '.join(efforts)}."
            )
        effort = efforts[name]
        for protocol in ("honest", "leaked"):
            for restructured in (True,) if effort.restructured_only else (False, True):
                for augmented in (False, True):
                    cells.append(
                        _cell(name, effort, restructured, augmented, protocol, folds, images)
                    )
    return cells


def _cell(
    name: str,
    effort: Effort,
    restructured: bool,
    augmented: bool,
    protocol: Literal["honest", "leaked"],
    folds: int,
    images: int,
) -> Cell:
    leaked = protocol == "leaked"
    copies = (effort.copies_leaked if leaked else effort.copies) if augmented else 1
    settings = {"threshold": THRESHOLD, **effort.settings, "augmentation": 1 if leaked else copies}
    if leaked and augmented and effort.epochs_leaked:
        settings["epochs"] = effort.epochs_leaked
    if not effort.restructured_only:
        settings["restructure"] = "autoencoder" if restructured else "none"
    repeats = 1 if leaked or restructured else effort.repeats
    expected_s = effort.fold_s[restructured, augmented] * folds * repeats * images / IMAGES_TIMED
    return Cell(
        name,
        restructured,
        copies,
        protocol,
        architecture_named(name).parse_settings(settings),
        folds,
        repeats,
        expected_s,
    )


def expected_left_s(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> float:
    """Estimate the seconds that the remaining cells will take, from those that are done."""
    done = [cell for cell in cells if cell.is_in(results)]
    expected, took = (
        sum(cell.expected_s for cell in done),
        sum(results[cell.name].seconds for cell in done),
    )
    return sum(cell.expected_s for cell in cells if not cell.is_in(results)) * (
        took / expected if expected else 1.0
    )
