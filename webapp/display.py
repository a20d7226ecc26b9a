"""How values and names appear on pages: one mapping of names, and the formats of numbers.

Templates call these functions; `init_display` makes them available to all templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flask import Flask

from ml.catalogue import ARCHITECTURES
from ml.named_points import SHARES, with_widths
from ml.verdict import State
from webapp.extensions import utc_now
from webapp.models import Finding, ModelVersion

NOT_AVAILABLE = "–"

SHORT_NAMES = {"ppv": "PPV", "npv": "NPV", "ece": "Calibration error"}
"""Names of metrics in narrow tables."""
DISPLAY_NAMES = {
    # metrics
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value (PPV)",
    "npv": "Negative predictive value (NPV)",
    "f1": "F1 score",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    # curves of a training run
    "loss": "Loss",
    "fold_auroc": "AUROC of each fold",
    "validation_loss": "Loss on held-back images",
    "validation_auroc": "AUROC on held-back images",
    "reconstruction_error": "Reconstruction error",
    # controls of a training run
    "permuted": "Shuffled labels",
    "metadata": "File metadata only",
    "leaked": "Augmented before the split",
    "random_weights": "Random initial weights",
    # tests of heat maps
    "hottest_beats_random": (
        "covering the hottest 10% of the image lowered the probability more than covering a random"
        " 10% of the head"
    ),
    "hottest_in_or_beside_mask": ("the hottest cell was in or next to the outlined hemorrhage"),
    # settings of a training run, if the name alone is not clear
    "input_size": "Input size (px)",
    "size": "Input size (px)",
    "window_level": "Window level (HU)",
    "window_width": "Window width (HU)",
    "normalisation": "Intensity normalization",
    "local_response_normalisation": "Local response normalization",
    "folds_by": "Folds split by",
    "fine_tune_epochs": "Fine-tuning epochs",
    "initial_share": "Share of the initial weights",
    "pca": "PCA",
    "chosen_c": "Chosen C",
    "chosen_pca": "Chosen PCA",
    "chosen_inner_auroc": "AUROC of the inner cross-validation",
    **{architecture.name: architecture.title for architecture in ARCHITECTURES.values()},
    # states of a job
    "cancelled": "canceled",
    # actions in the audit log
    "login throttled": "logins throttled",
    "access refused": "access denied",
    "logins ended": "sessions logged out",
    "reset link made": "reset link created",
    "token made": "API token created",
    "token revoked": "API token revoked",
    "admin made": "administrator created",
    "scan cancelled": "scan canceled",
    "scan forced": "scan analyzed anyway",
    "scan scored again": "scan analyzed again",
    "import cancelled": "import canceled",
    "evaluation cancelled": "evaluation canceled",
    "replay requested": "result reproduced",
    "replay cancelled": "replays canceled",
    "run launched": "training launched",
    "run cancelled": "training canceled",
    "run retried": "training relaunched",
    # labels of images
    "positive": "Hemorrhage",
    "negative": "Normal",
    "unlabeled": "No label",
    # color modes of image files
    "L": "grayscale",
    "LA": "grayscale with transparency",
    "P": "palette",
    # kinds of files
    "png": "PNG",
    "jpeg": "JPEG",
    "dicom": "DICOM",
    "nifti": "NIfTI",
    # orders of the worklist
    "newest": "Newest first",
    "risk": "Highest risk first",
    "uncertainty": "Most uncertain first",
}
"""The display names of names in the database, a model card or a query."""

STATE_TITLES: dict[State, str] = {
    "suspected": "Hemorrhage suspected",
    "inconclusive": "Inconclusive",
    "not found": "Hemorrhage not found",
}
"""States of a result where the context does not say of what; elsewhere, their display names are
used.
"""
FINDING_LABELS = {
    Finding.PRESENT: "Hemorrhage present",
    Finding.ABSENT: "No hemorrhage",
    Finding.UNCLEAR: "Cannot tell",
}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}

Item = TypeVar("Item")


def display_name(name: str) -> str:
    """Return the display name of `name`; a name that is not in the mapping is capitalized."""
    return DISPLAY_NAMES.get(name) or name.replace("_", " ").capitalize()


def metric_heading(metric: str) -> str:
    """Return the heading of a metric in a table, with the unit of a proportion."""
    return SHORT_NAMES.get(metric, display_name(metric)) + (", %" if is_proportion(metric) else "")


def display_term(name: str) -> str:
    """Return the term for a state or an audited action, within a sentence or a label."""
    return DISPLAY_NAMES.get(name, name)


def finding_label(finding: str) -> str:
    """Return the label of a user's finding on a scan or a slice."""
    return FINDING_LABELS[Finding(finding)]


def name_of_version(version: ModelVersion) -> str:
    """Return the display name of a model version: "GoogLeNet cells · v3"."""
    return f"{display_name(version.architecture)} · v{version.number}"


def listed(words: Sequence[str], conjunction: str) -> str:
    """Return words as a list in a sentence: "a", "a or b", "a, b, or c"."""
    if len(words) < 3:
        return f" {conjunction} ".join(words)
    return f"{', '.join(words[:-1])}, {conjunction} {words[-1]}"


def number_word(count: int) -> str:
    """Return a small number as a word."""
    return NUMBER_WORDS.get(count, str(count))


def number(value: float | None, digits: int = 3) -> str:
    """Format a figure with this many decimals, or as a dash."""
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Format a difference with its sign, using a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "−")


def points(difference: float) -> str:
    """Format a difference of two proportions in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """Return 0.973 as "97.3%", or a dash; values close to 0 or 1 as "<0.1%" or ">99.9%"."""
    if share is None:
        return NOT_AVAILABLE
    step = 10.0**-digits
    if 0 < share < 1 and not step <= round(100 * share, digits) <= 100 - step:
        return f"<{step:g}%" if share < 0.5 else f">{100 - step:g}%"
    return f"{100 * share:.{digits}f}%"


def is_proportion(metric: str) -> bool:
    """Return whether a metric is a proportion, which tables give in percent."""
    return metric in SHARES


def percentage(share: float, digits: int = 1) -> str:
    """Return 0.973 as "97.3", for a column whose heading has the percent sign."""
    return f"{100 * share:.{digits}f}"


def duration(seconds: float) -> str:
    """Format a duration in the largest unit of which there are about two or more."""
    if seconds < 90:
        return f"{round(seconds)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600, 1)} h"


def value_range(values: Mapping[str, float], unit: str = "") -> str:
    """Return {"min", "median", "max"} as "1–4, median 2.5", or as one value if all are equal."""
    low, median, high = values["min"], values["median"], values["max"]
    if low == high:
        return f"{low:g}{unit}"
    return f"{low:g}–{high:g}{unit}, median {median:g}{unit}"


@dataclass(frozen=True)
class Excerpt(Generic[Item]):
    """The beginning of a list, and the number of items left out."""

    shown: Sequence[Item]
    left_out: int


def excerpt(items: Sequence[Item], most: int = 100) -> Excerpt[Item]:
    """Return up to `most` of these items."""
    return Excerpt(items[:most], max(0, len(items) - most))


def init_display(app: Flask) -> None:
    """Make these functions available to the templates of `app`."""
    functions = (
        display_name,
        metric_heading,
        display_term,
        finding_label,
        name_of_version,
        listed,
        number_word,
        number,
        signed,
        points,
        percent,
        percentage,
        is_proportion,
        duration,
        excerpt,
        value_range,
        with_widths,
        utc_now,
    )
    app.jinja_env.globals.update({function.__name__: function for function in functions})
