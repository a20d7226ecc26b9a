"""The architectures that Hemoscan can train: what each reads and which settings it takes.

Standard library only, because the web application renders its training form from this
module and must not load numpy, let alone TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ml.errors import SettingError

STARTER_DIR = Path(__file__).parent / "starter"
"""The model folder that ships with the repository and is live after setup."""

STARTER_SERIES_DIR = Path(__file__).parent / "starter_series"
"""The model folder for whole series, where one ships."""

IMAGENET_WEIGHTS = {
    "alexnet_owt_imagenet_conv.npz": "ImageNet weights in torchvision's layout",
    "alexnet_bvlc_imagenet_conv.npz": (
        "ImageNet weights in the original layout, with local response normalization"
    ),
    "alexnet-owt-7be5be79.pth": "ImageNet weights as torchvision publishes them",
    "googlenet_bvlc_imagenet.npz": "ImageNet weights of GoogLeNet",
}
"""The files of ImageNet weights that an operator may offer to trainings, and what people read about
each.
"""


BLEEDING_TYPES = ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
"""The types of bleeding that slices may be labeled with and models may tell, by the compartment of
the head, from outside inwards.
"""


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
                raise SettingError(
                    f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}."
                )
            return str(value)
        try:
            number = int(str(value)) if self.kind == "int" else float(str(value))
        except ValueError as err:
            noun = "a whole number" if self.kind == "int" else "a number"
            raise SettingError(f"{self.name} must be {noun}, not {value!r:.40}.") from err
        if (self.low is not None and not self.low <= number) or (
            self.high is not None and not number <= self.high
        ):
            raise SettingError(
                f"{self.name} must lie between {self.low:g} and {self.high:g}, not {number!s:.40}."
            )
        return number


@dataclass(frozen=True)
class Architecture:
    """An entry of the catalogue.

    `reads` is what one prediction takes: a slice or a whole series. `learns_scans` says that labels
    of whole scans teach it too; every architecture learns from labels of slices. `encoder` is whose
    convolutions it starts from; None where it always starts from random weights.
    """

    name: str
    title: str
    summary: str
    reads: Literal["slice", "series"]
    settings: tuple[Setting, ...]
    learns_scans: bool = False
    encoder: Literal["alexnet", "googlenet"] | None = "alexnet"

    def parse_settings(self, given: Mapping[str, object]) -> dict[str, int | float | str]:
        """Return every setting of this architecture, defaults filled in.

        Raises:
            SettingError: a setting is unknown or out of range.
        """
        known = {setting.name: setting for setting in self.settings}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise SettingError(
                f"{self.name} has no setting {unknown[0]!r}; it has {', '.join(known)}."
            )
        return {
            name: setting.parse(given.get(name, setting.default)) for name, setting in known.items()
        }


PREPROCESSING: tuple[Setting, ...] = (
    Setting(
        "input_size",
        "int",
        224,
        "Side of the square picture that the model sees, in pixels.",
        160,
        320,
    ),
    Setting(
        "window_level",
        "float",
        40.0,
        "The middle of the window in HU; 40 shows brain. Pictures are windowed already.",
        -500,
        1000,
    ),
    Setting(
        "window_width",
        "float",
        80.0,
        "The width of the window in HU; 80 shows brain, 200 subdural blood, 2800 bone.",
        1,
        4000,
    ),
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
        "Bring grays on one scale: by percentiles of the soft tissue (which takes away tints), by"
        " ranks, or by ranks of neighborhoods.",
        choices=("none", "percentile", "equalise", "clahe"),
    ),
    Setting(
        "skull_stripping",
        "choice",
        "no",
        "Leave only what the skull encloses, where a closed skull is found; blood as white as bone"
        " along the skull is lost with it.",
        choices=("yes", "no"),
    ),
    Setting(
        "upright",
        "choice",
        "no",
        "Turn the head, by up to 20 degrees, until its midline is vertical.",
        choices=("yes", "no"),
    ),
    Setting(
        "segmentation",
        "choice",
        "none",
        "Keep what this step selects and dim the rest to half: Otsu's threshold, GrabCut,"
        " watershed; or draw Canny's edges.",
        choices=("none", "otsu", "grabcut", "watershed", "edges"),
    ),
)
"""What every architecture lets a person choose about its input;
`ml.preprocessing.model_input.InputSpec.from_settings` reads them.
"""

JUDGING = (
    Setting(
        "folds_by",
        "choice",
        "group",
        "group: no patient stands on both sides of a fold. data set: each data set is answered for"
        " by models that learned from the others.",
        choices=("group", "data set"),
    ),
    Setting("folds", "int", 5, "Folds of the grouped cross-validation.", low=2, high=10),
    Setting(
        "repeats",
        "int",
        1,
        "How often the cross-validation is repeated with other folds; figures are means over the"
        " repeats.",
        1,
        10,
    ),
    Setting(
        "threshold",
        "choice",
        "balanced",
        "balanced: where sensitivity + specificity is largest out of fold (Youden). sensitivity:"
        " where the target sensitivity is reached. specific: where 95 % of those without hemorrhage"
        " are called negative. one half: what is likelier than not.",
        choices=("balanced", "sensitivity", "specific", "one half"),
    ),
    Setting(
        "target_sensitivity",
        "float",
        0.95,
        "The sensitivity that the sensitive operating point reaches out of fold.",
        low=0.5,
        high=0.999,
    ),
    Setting(
        "controls",
        "choice",
        "all",
        "What the run is checked against: shuffled labels, the files' facts, a leaked split and"
        " random initial weights (all), or only what takes no fine-tuning (cheap). Where"
        " convolutions learn, all takes longer than the run itself.",
        choices=("all", "cheap", "none"),
    ),
)
"""How every architecture is judged."""

AUGMENTATION = Setting(
    "augmentation",
    "int",
    1,
    "Copies of each picture that is learned from, itself included: turned, moved, scaled, warped,"
    " other grays. 1 is none, 10 the paper's.",
    low=1,
    high=10,
)
ENRICHMENT = (
    Setting(
        "restructure",
        "choice",
        "none",
        "autoencoder: features of each picture as an autoencoder draws it again, learned in every"
        " training part, join those of the picture.",
        choices=("none", "autoencoder"),
    ),
    AUGMENTATION,
)
"""What the paper adds to the pictures; every architecture of the paper lets a person choose it."""

PRECISION = Setting(
    "precision",
    "choice",
    "float32",
    "bfloat16 learns up to twice as fast where a processor multiplies in it at full rate (AMD"
    " since 2022, Intel with AMX), and slower elsewhere.",
    choices=("float32", "bfloat16"),
)
CONVOLUTIONS = (
    Setting(
        "layout",
        "choice",
        "owt",
        "AlexNet of 2014 (owt) or of 2012 (original), which normalizes locally; for random initial"
        " weights: others bring theirs.",
        choices=("owt", "original"),
    ),
    Setting(
        "groups",
        "int",
        1,
        "2 keeps the channels in two groups, as in 2012, and learns three times slower; 1 joins"
        " them.",
        1,
        2,
    ),
    Setting(
        "local_response_normalisation",
        "choice",
        "auto",
        "Divide maps by what neighboring channels show, after the first two convolutions; auto as"
        " the initial weights were trained.",
        choices=("auto", "yes", "no"),
    ),
    Setting(
        "contrasts",
        "choice",
        "auto",
        "both: two of three channels show the picture with its soft tissue at one gray, whatever"
        " window it came in, one of them without bone; auto as the initial weights were trained.",
        choices=("auto", "both"),
    ),
    PRECISION,
)
"""How AlexNet's convolutions are made and compute; every architecture that has them lets a person
choose it.
"""

FINE_TUNE_EPOCHS = Setting(
    "fine_tune_epochs",
    "int",
    0,
    "0 leaves the convolutions as they are; more lets them learn inside every training fold, which"
    " takes minutes to hours.",
    low=0,
    high=60,
)
INITIAL_SHARE = Setting(
    "initial_share",
    "float",
    0.2,
    "So much of the initial weights is mixed into those that learned, unless they were random:"
    " scans"
    " of unknown hospitals are read better.",
    low=0,
    high=0.9,
)
LAYERS = ("conv3", "conv4", "conv5", "pool5")
LAYER_HELP = "The convolution whose maps are the features; pool5 is conv5 after its max-pooling."

MACHINE = (
    Setting(
        "pooling",
        "choice",
        "both",
        "How a map becomes numbers.",
        choices=("average", "max", "both", "auto"),
    ),
    Setting(
        "kernel",
        "choice",
        "linear",
        "The kernel of the SVM; its C is chosen inside the training folds, and so is all that says"
        " auto.",
        choices=("linear", "rbf", "auto"),
    ),
    Setting(
        "pca",
        "choice",
        "none",
        "auto: the principal components that hold 95 % of the variance take the features' place"
        " where the training folds like it better.",
        choices=("none", "auto"),
    ),
)
"""How features are classified by a support vector machine."""

RECURRENT = (
    Setting(
        "reads",
        "choice",
        "cells",
        "cells: what the cells of each slice say, where fine-tuning has taught them; the network"
        " corrects it. maps: pooled maps, as the paper's networks do, which lose more in an unknown"
        " hospital.",
        choices=("cells", "maps"),
    ),
    Setting("layer", "choice", "conv5", LAYER_HELP, choices=LAYERS),
    Setting(
        "units", "int", 64, "Units of the recurrent layer, in each direction.", low=4, high=512
    ),
    Setting(
        "projection",
        "int",
        64,
        "To how many numbers the features of a slice are brought before they are read.",
        low=4,
        high=1024,
    ),
    Setting(
        "bidirectional",
        "choice",
        "yes",
        "Read from foot to head and from head to foot.",
        choices=("yes", "no"),
    ),
    Setting(
        "dropout",
        "float",
        0.4,
        "Share of the numbers that are left out while the network learns.",
        low=0,
        high=0.9,
    ),
    Setting(
        "epochs",
        "int",
        40,
        "Of the recurrent network; each draws at most 48 batches and takes a few seconds.",
        low=1,
        high=400,
    ),
    Setting(
        "learning_rate",
        "float",
        0.001,
        "Of the recurrent network at its beginning; it falls to nothing.",
        low=1e-6,
        high=0.1,
    ),
    FINE_TUNE_EPOCHS,
    INITIAL_SHARE,
    *ENRICHMENT,
    *CONVOLUTIONS,
    *JUDGING,
    *PREPROCESSING,
)

CELLS = (
    Setting(
        "epochs",
        "int",
        30,
        "Each draws 1,024 pictures and takes 12 to 30 seconds on two cores.",
        low=1,
        high=200,
    ),
    INITIAL_SHARE,
    *CONVOLUTIONS,
    *JUDGING,
    *PREPROCESSING,
)

GOOGLENET_CELLS = (
    Setting(
        "epochs",
        "int",
        20,
        "Each draws 1,024 pictures and takes about a minute on two cores.",
        low=1,
        high=200,
    ),
    INITIAL_SHARE,
    PRECISION,
    *JUDGING,
    *PREPROCESSING,
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="alexnet_svm",
            title="AlexNet features + SVM",
            summary=(
                "Features of AlexNet's convolutions, standardized, classified by a support vector"
                " machine."
            ),
            reads="slice",
            settings=(
                Setting("layer", "choice", "conv5", LAYER_HELP, choices=(*LAYERS, "auto")),
                *MACHINE,
                FINE_TUNE_EPOCHS,
                INITIAL_SHARE,
                *ENRICHMENT,
                *CONVOLUTIONS,
                *JUDGING,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="alexnet",
            title="AlexNet",
            summary="The paper's network: five convolutions, two fully connected layers, softmax.",
            reads="slice",
            settings=(
                Setting(
                    "fully_connected",
                    "int",
                    512,
                    "Width of the two fully connected layers; the paper's is 4096.",
                    low=16,
                    high=4096,
                ),
                Setting(
                    "frozen",
                    "int",
                    3,
                    "So many convolutions stay as they are; 0 lets all learn, which takes longer.",
                    low=0,
                    high=5,
                ),
                Setting(
                    "dropout",
                    "float",
                    0.5,
                    "Share of the numbers that are left out while the network learns.",
                    low=0,
                    high=0.9,
                ),
                Setting(
                    "epochs",
                    "int",
                    20,
                    "Each draws at most 1,024 pictures and takes 2 to 30 seconds on two cores.",
                    low=1,
                    high=200,
                ),
                Setting(
                    "learning_rate",
                    "float",
                    0.0003,
                    "At the beginning; it falls to nothing.",
                    low=1e-6,
                    high=0.1,
                ),
                *ENRICHMENT,
                *CONVOLUTIONS,
                *JUDGING,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="cnn_lstm",
            title="AlexNet features + LSTM",
            summary=(
                "Features of each slice, read in anatomical order by an LSTM: an answer for each"
                " slice and for the scan."
            ),
            reads="series",
            settings=RECURRENT,
            learns_scans=True,
        ),
        Architecture(
            name="cnn_gru",
            title="AlexNet features + GRU",
            summary=(
                "Features of each slice, read in anatomical order by a GRU: an answer for each"
                " slice and for the scan."
            ),
            reads="series",
            settings=RECURRENT,
            learns_scans=True,
        ),
        Architecture(
            name="autoencoder",
            title="Autoencoder + SVM",
            summary=(
                "The bottleneck of an autoencoder, which learns from random weights and without"
                " labels, classified by a support vector machine."
            ),
            reads="slice",
            encoder=None,
            settings=(
                *MACHINE,
                Setting(
                    "epochs",
                    "int",
                    0,
                    "Of the autoencoder; 0 takes as many as show it 8,000 pictures.",
                    low=0,
                    high=500,
                ),
                AUGMENTATION,
                *JUDGING,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="alexnet_cells",
            title="AlexNet, cell by cell",
            summary=(
                "Fine-tuned convolutions of AlexNet; each of 13 x 13 cells says whether blood is"
                " there, and outlines teach it where. Ours, not the paper's: it always augments and"
                " never restructures."
            ),
            reads="slice",
            settings=CELLS,
        ),
        Architecture(
            name="alexnet_cells_series",
            title="AlexNet, cell by cell, over the slices",
            summary=(
                "The same over the slices of a scan in anatomical order: half of what a slice says"
                " is what its two neighbors say. Ours, not the paper's: it always augments and"
                " never restructures."
            ),
            reads="series",
            settings=CELLS,
        ),
        Architecture(
            name="googlenet_cells",
            title="GoogLeNet, cell by cell",
            summary=(
                "GoogLeNet's inception modules with a pyramid; a decision for each of 28 x 28"
                " cells. Finds thin bleeds that AlexNet misses. Ours, not the paper's."
            ),
            reads="slice",
            settings=GOOGLENET_CELLS,
            encoder="googlenet",
        ),
        Architecture(
            name="googlenet_cells_series",
            title="GoogLeNet, cell by cell, over the slices",
            summary=(
                "The same over the slices of a scan in anatomical order, each averaged with its two"
                " neighbors. Ours, not the paper's."
            ),
            reads="series",
            settings=GOOGLENET_CELLS,
            encoder="googlenet",
        ),
    )
}


def architecture_named(name: str) -> Architecture:
    """Return the entry of the catalogue with that name.

    Raises:
        SettingError: there is none.
    """
    if name not in ARCHITECTURES:
        raise SettingError(
            f"There is no architecture {name!r}; there is {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]
