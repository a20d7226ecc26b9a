"""The architectures that Hemoscan can train: what each reads and which settings it takes.

Standard library only, because the web application renders its training form from this
module and must not load numpy, let alone TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STARTER_DIR = Path(__file__).parent / "starter"
"""The model folder that ships with the repository and is live after setup."""

STARTER_SERIES_DIR = Path(__file__).parent / "starter_series"
"""The model folder for whole series, where one ships."""

IMAGENET_WEIGHTS = "alexnet_owt_imagenet_conv.npz"
"""The file of ImageNet weights that an operator may offer to trainings."""


class SettingError(ValueError):
    """A setting is unknown or out of range; its text is a sentence for the person who set it."""


@dataclass(frozen=True)
class Setting:
    """One thing a person may choose about a training run.

    `choices` is set for a choice; `low` and `high` (inclusive) for a number.
    """

    name: str
    kind: Literal["int", "float", "choice"]
    default: int | float | str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, value: object) -> int | float | str:
        """Return `value` as this setting's type.

        Raises:
            SettingError: it is not of that type, or out of range.
        """
        if self.kind == "choice":
            if value not in self.choices:
                raise SettingError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}.")
            return str(value)
        try:
            number = int(str(value)) if self.kind == "int" else float(str(value))
        except ValueError as err:
            noun = "a whole number" if self.kind == "int" else "a number"
            raise SettingError(f"{self.name} must be {noun}, not {value!r}.") from err
        if (self.low is not None and not self.low <= number) or (self.high is not None and not number <= self.high):
            raise SettingError(f"{self.name} must lie between {self.low:g} and {self.high:g}, not {number:g}.")
        return number


@dataclass(frozen=True)
class Architecture:
    """An entry of the catalogue. `reads` is what one prediction takes: a slice or a whole series."""

    name: str
    title: str
    summary: str
    reads: Literal["slice", "series"]
    settings: tuple[Setting, ...]

    def parse_settings(self, given: Mapping[str, object]) -> dict[str, int | float | str]:
        """Return every setting of this architecture, defaults filled in.

        Raises:
            SettingError: a setting is unknown or out of range.
        """
        known = {setting.name: setting for setting in self.settings}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise SettingError(f"{self.name} has no setting {unknown[0]!r}; it has {', '.join(known)}.")
        return {name: setting.parse(given.get(name, setting.default)) for name, setting in known.items()}


PREPROCESSING: tuple[Setting, ...] = (
    Setting("window_level", "float", 40.0, "The middle of the window in HU; 40 shows brain. Pictures are windowed already.", -500, 1000),
    Setting("window_width", "float", 80.0, "The width of the window in HU; 80 shows brain, 200 subdural blood, 2800 bone.", 1, 4000),
    Setting(
        "crop_to_head",
        "choice",
        "yes",
        "Cut out the head and make everything around it black: table, letters, margins.",
        choices=("yes", "no"),
    ),
    Setting(
        "normalisation",
        "choice",
        "none",
        "Bring greys on one scale: by percentiles of the soft tissue (which takes away tints), by ranks, or by ranks of neighbourhoods.",
        choices=("none", "percentile", "equalise", "clahe"),
    ),
    Setting(
        "skull_stripping",
        "choice",
        "no",
        "Leave only what the skull encloses, where a closed skull is found; blood as white as bone along the skull is lost with it.",
        choices=("yes", "no"),
    ),
    Setting("upright", "choice", "no", "Turn the head, by up to 20 degrees, until its midline is vertical.", choices=("yes", "no")),
    Setting(
        "segmentation",
        "choice",
        "none",
        "Keep what this step selects and dim the rest to half: Otsu's threshold, GrabCut, watershed; or draw Canny's edges.",
        choices=("none", "otsu", "grabcut", "watershed", "edges"),
    ),
)
"""What every architecture lets a person choose about its input; `ml.preprocessing.InputSpec.from_settings` reads them."""

JUDGING = (
    Setting(
        "folds_by",
        "choice",
        "group",
        "group: no patient stands on both sides of a fold. data set: each data set is answered for by models that learnt from the others.",
        choices=("group", "data set"),
    ),
    Setting("folds", "int", 5, "Folds of the grouped cross-validation.", low=2, high=10),
    Setting("repeats", "int", 1, "How often the cross-validation is repeated with other folds; figures are means over the repeats.", 1, 10),
    Setting("target_sensitivity", "float", 0.95, "The threshold is set to reach this sensitivity out of fold.", low=0.5, high=0.999),
    Setting(
        "controls",
        "choice",
        "cheap",
        "What the run is checked against: shuffled labels and the files' facts (cheap), or also a leaked split and random initial weights, "
        "each of which takes about as long as the run itself (all).",
        choices=("all", "cheap", "none"),
    ),
)
"""How every architecture is judged."""

PRECISION = Setting(
    "precision",
    "choice",
    "float32",
    "bfloat16 learns up to twice as fast on processors that compute in it (recent AMD and Intel servers), and slower on others.",
    choices=("float32", "bfloat16"),
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="alexnet_cells",
            title="AlexNet, cell by cell",
            summary="Fine-tuned convolutions of AlexNet; each of 13 x 13 cells says whether blood is there, and outlines teach it where.",
            reads="slice",
            settings=(
                Setting("epochs", "int", 30, "Each draws 1,024 pictures and takes 12 to 30 seconds on two cores.", low=1, high=200),
                PRECISION,
                *JUDGING,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="alexnet_svm",
            title="AlexNet features + SVM",
            summary="Features of AlexNet's convolutions, standardised, classified by a support vector machine.",
            reads="slice",
            settings=(
                Setting(
                    "layer",
                    "choice",
                    "conv5",
                    "The convolution whose maps are the features; pool5 is conv5 after its max-pooling.",
                    choices=("conv3", "conv4", "conv5", "pool5"),
                ),
                Setting("pooling", "choice", "both", "How a map becomes numbers.", choices=("average", "max", "both")),
                Setting(
                    "kernel",
                    "choice",
                    "linear",
                    "The kernel of the SVM; its C is chosen inside the training folds.",
                    choices=("linear", "rbf"),
                ),
                Setting(
                    "fine_tune_epochs",
                    "int",
                    0,
                    "0 leaves the convolutions as they are; more lets them learn inside every training fold, which takes minutes to hours.",
                    low=0,
                    high=30,
                ),
                *JUDGING,
                *PREPROCESSING,
            ),
        ),
    )
}


def architecture_named(name: str) -> Architecture:
    """Return the entry of the catalogue with that name.

    Raises:
        SettingError: there is none.
    """
    if name not in ARCHITECTURES:
        raise SettingError(f"There is no architecture {name!r}; there is {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]
