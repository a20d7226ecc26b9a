"""The architectures that Hemoscan can train: what each takes as input, and its settings.

Standard library only, because the web application renders its training form from this module and
must not load numpy, let alone TensorFlow.
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
"""The model folder for whole series."""

EncoderName = Literal["alexnet", "googlenet"]
"""The pretrained networks that architectures may start from."""

IMAGENET_WEIGHTS: dict[str, tuple[EncoderName, str]] = {
    "alexnet_owt_imagenet_conv.npz": ("alexnet", "ImageNet weights in torchvision's layout"),
    "alexnet_bvlc_imagenet_conv.npz": (
        "alexnet",
        "ImageNet weights in the original layout, with local response normalization",
    ),
    "alexnet-owt-7be5be79.pth": ("alexnet", "ImageNet weights as torchvision publishes them"),
    "googlenet_bvlc_imagenet.npz": ("googlenet", "ImageNet weights"),
}
"""The files of ImageNet weights that an operator may offer for training: the network that they
belong to, and a description.
"""


BLEEDING_TYPES = ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
"""The types of hemorrhage that labels and models distinguish, named by compartment, from the
outermost inward.
"""


@dataclass(frozen=True)
class Setting:
    """One setting of a training run.

    `choices` lists the options of a selection; `low` and `high` (inclusive) bound a number.
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

    `reads` is the input of one prediction: "slice" or "series". Every architecture learns from
    slice labels; with `learns_scans` it also learns from scan-level labels. `encoder` names the
    pretrained network that it starts from; None where it always starts from random weights.
    """

    name: str
    title: str
    summary: str
    reads: Literal["slice", "series"]
    settings: tuple[Setting, ...]
    learns_scans: bool = False
    encoder: EncoderName | None = "alexnet"

    def parse_settings(self, values: Mapping[str, object]) -> dict[str, int | float | str]:
        """Return every setting of this architecture, defaults filled in.

        Raises:
            SettingError: a setting is unknown or out of range.
        """
        known = {setting.name: setting for setting in self.settings}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise SettingError(
                f"{self.name} has no setting {unknown[0]!r}; it has {', '.join(known)}."
            )
        return {
            name: setting.parse(values.get(name, setting.default))
            for name, setting in known.items()
        }


PREPROCESSING: tuple[Setting, ...] = (
    Setting(
        "input_size",
        "int",
        224,
        "Side length of the square input image, in pixels.",
        160,
        320,
    ),
    Setting(
        "window_level",
        "float",
        40.0,
        "Window level in HU; 40 for brain. PNG and JPEG images are already windowed.",
        -500,
        1000,
    ),
    Setting(
        "window_width",
        "float",
        80.0,
        "Window width in HU; 80 for brain, 200 for subdural, 2800 for bone.",
        1,
        4000,
    ),
    Setting(
        "crop_to_head",
        "choice",
        "yes",
        "Crop to the head and black out everything around it: table, annotations, margins.",
        choices=("yes", "no"),
    ),
    Setting(
        "normalisation",
        "choice",
        "none",
        "Normalize gray levels: by percentiles of the soft tissue (which also removes tints), by"
        " histogram equalization, or by local histogram equalization (CLAHE).",
        choices=("none", "percentile", "equalise", "clahe"),
    ),
    Setting(
        "skull_stripping",
        "choice",
        "no",
        "Keep only the intracranial space if a closed skull is found. Blood as bright as bone"
        " along the inner table is removed with the bone.",
        choices=("yes", "no"),
    ),
    Setting(
        "upright",
        "choice",
        "no",
        "Rotate the head by up to 20 degrees so that its midline is vertical.",
        choices=("yes", "no"),
    ),
    Setting(
        "segmentation",
        "choice",
        "none",
        "Keep the region selected by this method and dim the rest to half: Otsu's threshold,"
        " GrabCut or watershed; or overlay Canny edges.",
        choices=("none", "otsu", "grabcut", "watershed", "edges"),
    ),
)
"""Preprocessing settings of every architecture, read by
`ml.preprocessing.model_input.InputSpec.from_settings`.
"""

EVALUATION_SETTINGS = (
    Setting(
        "folds_by",
        "choice",
        "group",
        "group: no patient is in both the training and the test part of a fold. data set: each"
        " data set is tested with models trained on the others.",
        choices=("group", "data set"),
    ),
    Setting("folds", "int", 5, "Number of folds of the grouped cross-validation.", low=2, high=10),
    Setting(
        "repeats",
        "int",
        1,
        "How often the cross-validation is repeated with different folds; the metrics are averaged"
        " over the repeats.",
        1,
        10,
    ),
    Setting(
        "threshold",
        "choice",
        "balanced",
        "balanced: the threshold with the highest sensitivity + specificity on held-out data"
        " (Youden). sensitivity: the one that reaches the target sensitivity. specific: 95%"
        " specificity. one half: a calibrated probability of 0.5.",
        choices=("balanced", "sensitivity", "specific", "one half"),
    ),
    Setting(
        "target_sensitivity",
        "float",
        0.95,
        "The sensitivity of the sensitive operating point on held-out data.",
        low=0.5,
        high=0.999,
    ),
    Setting(
        "controls",
        "choice",
        "all",
        "Control experiments: shuffled labels, file metadata, a leaked split and random initial"
        " weights (all), or only those without fine-tuning (cheap). If convolutional layers are"
        " trained, all takes longer than the run itself.",
        choices=("all", "cheap", "none"),
    ),
)
"""Evaluation settings of every architecture."""

AUGMENTATION = Setting(
    "augmentation",
    "int",
    1,
    "Copies of each training image, including the original: rotated, shifted, scaled, warped and"
    " with other gray levels. 1 means no augmentation; the paper uses 10.",
    low=1,
    high=10,
)
ENRICHMENT = (
    Setting(
        "restructure",
        "choice",
        "none",
        "autoencoder: to each image's features, add those of its reconstruction by an autoencoder,"
        " which is trained on each training part.",
        choices=("none", "autoencoder"),
    ),
    AUGMENTATION,
)
"""The paper's data augmentation, a setting of each of its architectures."""

PRECISION = Setting(
    "precision",
    "choice",
    "float32",
    "bfloat16 trains up to twice as fast on processors with native support (AMD since 2022, Intel"
    " with AMX), and slower on others.",
    choices=("float32", "bfloat16"),
)
CONVOLUTIONS = (
    Setting(
        "layout",
        "choice",
        "owt",
        "AlexNet of 2014 (owt) or of 2012 (original, with local response normalization). Applies"
        " to random initial weights only; pretrained weights determine their layout.",
        choices=("owt", "original"),
    ),
    Setting(
        "groups",
        "int",
        1,
        "2: grouped convolutions as in 2012, three times slower to train. 1: a single group.",
        1,
        2,
    ),
    Setting(
        "local_response_normalisation",
        "choice",
        "auto",
        "Local response normalization after the first two convolutional layers; auto: as in the"
        " training of the initial weights.",
        choices=("auto", "yes", "no"),
    ),
    Setting(
        "contrasts",
        "choice",
        "auto",
        "both: two of the three input channels show the image with its soft tissue shifted to a"
        " fixed gray level, whatever its window, one of them without bone; auto: as in the"
        " training of the initial weights.",
        choices=("auto", "both"),
    ),
    PRECISION,
)
"""Settings of AlexNet's convolutional layers, shared by all architectures that have them."""

FINE_TUNE_EPOCHS = Setting(
    "fine_tune_epochs",
    "int",
    0,
    "0 freezes the convolutional layers; otherwise they are fine-tuned for this many epochs in"
    " every training fold, which takes minutes to hours.",
    low=0,
    high=60,
)
INITIAL_SHARE = Setting(
    "initial_share",
    "float",
    0.2,
    "Weight of the pretrained weights in an average with the fine-tuned ones; it improves"
    " results on scans from other hospitals. Not applied to random initial weights.",
    low=0,
    high=0.9,
)
LAYERS = ("conv3", "conv4", "conv5", "pool5")
LAYER_HELP = "The convolutional layer that gives the features; pool5 is conv5 after max pooling."

MACHINE = (
    Setting(
        "pooling",
        "choice",
        "both",
        "How each feature map is pooled.",
        choices=("average", "max", "both", "auto"),
    ),
    Setting(
        "kernel",
        "choice",
        "linear",
        "The kernel of the SVM. C, and every setting left at auto, is chosen by inner"
        " cross-validation.",
        choices=("linear", "rbf", "auto"),
    ),
    Setting(
        "pca",
        "choice",
        "none",
        "Replace the features by the principal components that explain 95% of the variance; auto:"
        " if inner cross-validation favors it.",
        choices=("none", "auto"),
    ),
)
"""Settings of classification by a support vector machine."""

RECURRENT = (
    Setting(
        "reads",
        "choice",
        "cells",
        "cells: the cell scores of each slice, after fine-tuning; the network corrects them. maps:"
        " pooled feature maps, as in the paper, which generalize less well to other hospitals.",
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
        "Dimension to which the features of a slice are projected before the recurrent layer.",
        low=4,
        high=1024,
    ),
    Setting(
        "bidirectional",
        "choice",
        "yes",
        "Read the slices in both directions.",
        choices=("yes", "no"),
    ),
    Setting(
        "dropout",
        "float",
        0.4,
        "Dropout: the fraction of units left out in each training step.",
        low=0,
        high=0.9,
    ),
    Setting(
        "epochs",
        "int",
        40,
        "Epochs of the recurrent network; each has at most 48 batches and takes a few seconds.",
        low=1,
        high=400,
    ),
    Setting(
        "learning_rate",
        "float",
        0.001,
        "Initial learning rate of the recurrent network; it decays to zero.",
        low=1e-6,
        high=0.1,
    ),
    FINE_TUNE_EPOCHS,
    INITIAL_SHARE,
    *ENRICHMENT,
    *CONVOLUTIONS,
    *EVALUATION_SETTINGS,
    *PREPROCESSING,
)

CELLS = (
    Setting(
        "epochs",
        "int",
        30,
        "Each epoch draws 1,024 images and takes 12 to 30 seconds on two cores.",
        low=1,
        high=200,
    ),
    INITIAL_SHARE,
    *CONVOLUTIONS,
    *EVALUATION_SETTINGS,
    *PREPROCESSING,
)

GOOGLENET_CELLS = (
    Setting(
        "epochs",
        "int",
        20,
        "Each draws 1,024 images and takes about a minute on two cores.",
        low=1,
        high=200,
    ),
    INITIAL_SHARE,
    PRECISION,
    *EVALUATION_SETTINGS,
    *PREPROCESSING,
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="alexnet_svm",
            title="AlexNet SVM",
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
                *EVALUATION_SETTINGS,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="alexnet",
            title="AlexNet",
            summary="The paper's network: five convolutional layers, two fully connected layers,"
            " softmax.",
            reads="slice",
            settings=(
                Setting(
                    "fully_connected",
                    "int",
                    512,
                    "Width of the two fully connected layers; 4096 in the paper.",
                    low=16,
                    high=4096,
                ),
                Setting(
                    "frozen",
                    "int",
                    3,
                    "Number of frozen convolutional layers; 0 trains all of them, which takes"
                    " longer.",
                    low=0,
                    high=5,
                ),
                Setting(
                    "dropout",
                    "float",
                    0.5,
                    "Dropout: the fraction of units left out in each training step.",
                    low=0,
                    high=0.9,
                ),
                Setting(
                    "epochs",
                    "int",
                    20,
                    "Each epoch draws at most 1,024 images and takes 2 to 30 seconds on two cores.",
                    low=1,
                    high=200,
                ),
                Setting(
                    "learning_rate",
                    "float",
                    0.0003,
                    "Initial learning rate; it decays to zero.",
                    low=1e-6,
                    high=0.1,
                ),
                *ENRICHMENT,
                *CONVOLUTIONS,
                *EVALUATION_SETTINGS,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="cnn_lstm",
            title="AlexNet LSTM",
            summary=(
                "Features of each slice, read in anatomical order by an LSTM; gives a probability"
                " for each slice and for the scan."
            ),
            reads="series",
            settings=RECURRENT,
            learns_scans=True,
        ),
        Architecture(
            name="cnn_gru",
            title="AlexNet GRU",
            summary=(
                "Features of each slice, read in anatomical order by a GRU; gives a probability"
                " for each slice and for the scan."
            ),
            reads="series",
            settings=RECURRENT,
            learns_scans=True,
        ),
        Architecture(
            name="autoencoder",
            title="Autoencoder SVM",
            summary=(
                "The bottleneck of an autoencoder, trained from random weights without labels,"
                " classified by a support vector machine."
            ),
            reads="slice",
            encoder=None,
            settings=(
                *MACHINE,
                Setting(
                    "epochs",
                    "int",
                    0,
                    "Epochs of the autoencoder; 0: as many as needed to process 8,000 images.",
                    low=0,
                    high=500,
                ),
                AUGMENTATION,
                *EVALUATION_SETTINGS,
                *PREPROCESSING,
            ),
        ),
        Architecture(
            name="alexnet_cells",
            title="AlexNet cells",
            summary=(
                "Fine-tuned AlexNet with a hemorrhage score for each of 13 x 13 cells, trained"
                " with lesion outlines if a data set has them. Not from the paper: always"
                " augmented, never restructured."
            ),
            reads="slice",
            settings=CELLS,
        ),
        Architecture(
            name="alexnet_cells_series",
            title="AlexNet cells for series",
            summary=(
                "The same for whole scans: half of each slice's score comes from its two"
                " neighboring slices. Not from the paper: always augmented, never restructured."
            ),
            reads="series",
            settings=CELLS,
        ),
        Architecture(
            name="googlenet_cells",
            title="GoogLeNet cells",
            summary=(
                "GoogLeNet's inception modules with a pyramid; a decision for each of 28 x 28"
                " cells. Not from the paper."
            ),
            reads="slice",
            settings=GOOGLENET_CELLS,
            encoder="googlenet",
        ),
        Architecture(
            name="googlenet_cells_series",
            title="GoogLeNet cells for series",
            summary=(
                "The same over the slices of a scan in anatomical order, each averaged with its two"
                " neighbors. Not from the paper."
            ),
            reads="series",
            settings=GOOGLENET_CELLS,
            encoder="googlenet",
        ),
        Architecture(
            name="googlenet_unet",
            title="GoogLeNet U-Net",
            summary=(
                "GoogLeNet, cell by cell, with a decoder that outlines the hemorrhage in each"
                " slice, from which its volume follows. Not from the paper."
            ),
            reads="slice",
            settings=GOOGLENET_CELLS,
            encoder="googlenet",
        ),
        Architecture(
            name="googlenet_unet_series",
            title="GoogLeNet U-Net for series",
            summary=(
                "The same over the slices of a scan in anatomical order, each decision averaged"
                " with its two neighbors'. Not from the paper."
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
        SettingError: no architecture has this name.
    """
    if name not in ARCHITECTURES:
        raise SettingError(
            f"There is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


@dataclass(frozen=True)
class Preset:
    """Settings for a purpose; settings that are not listed keep their defaults."""

    name: str
    title: str
    help: str
    settings: Mapping[str, int | float | str]


OF_THE_PAPER: dict[str, dict[str, int | float | str]] = {
    "alexnet_svm": {},
    "alexnet": {"fully_connected": 4096},
    "cnn_lstm": {"reads": "maps", "layer": "pool5"},
    "cnn_gru": {"reads": "maps", "layer": "pool5"},
    "autoencoder": {},
}
"""The architectures of the paper, with the settings that differ from the defaults there."""


def presets_of(architecture: Architecture) -> tuple[Preset, ...]:
    """Return the presets of an architecture, the quickest first."""
    settings_by_name = {setting.name: setting for setting in architecture.settings}

    def known(values: Mapping[str, int | float | str]) -> dict[str, int | float | str]:
        return {name: value for name, value in values.items() if name in settings_by_name}

    epochs = int(settings_by_name["epochs"].default) if "epochs" in settings_by_name else 0
    quick = known({"folds": 3, "controls": "none", "epochs": max(epochs // 5, 1)})
    if not epochs:
        quick.pop("epochs", None)
    presets = [
        Preset(
            "quick",
            "Quick look",
            "Three folds, few epochs, no controls: a quick check that training works. Do not"
            " promote models trained this way.",
            quick,
        )
    ]
    if architecture.name in OF_THE_PAPER:
        paper: dict[str, int | float | str] = {
            "restructure": "autoencoder",
            "augmentation": 10,
            "threshold": "one half",
        }
        presets.append(
            Preset(
                "paper",
                "The paper’s",
                "As the paper describes: restructured by an autoencoder, ten copies of each image,"
                " positive from a probability of one half, but with folds by patient.",
                {**known(paper), **OF_THE_PAPER[architecture.name], "controls": "cheap"},
            )
        )
    presets.append(
        Preset(
            "careful",
            "Careful",
            "Five folds, repeated where fits are cheap, with all controls. Use this for a model"
            " that you plan to promote.",
            known({"folds": 5, "repeats": 1 if epochs else 3, "controls": "all"}),
        )
    )
    return tuple(presets)
