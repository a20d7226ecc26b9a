"""The model card as a dataclass, stored as `card.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ml.catalogue import BLEEDING_TYPES
from ml.errors import ArtifactError

FORMAT = 1


CARD, FEATURES, HEAD, TYPES, SEEN = (
    "card.json",
    "features.onnx",
    "head.onnx",
    "types.onnx",
    "seen.json",
)


READS = ("slice", "series")


ABSENT = -1.0


LATER_FIELDS = frozenset(
    (
        "scan_threshold",
        "scan_uncertain_low",
        "scan_uncertain_high",
        "patient_metrics",
        "patient_metrics_by_dataset",
        "band",
        "controls",
    )
) | {"points", "blocked_because", "seconds", "heat_maps", "checksum", "types"}
"""Fields that cards of early versions lack; their defaults apply."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a model. The JSON keys are the names of the fields.

    Attributes:
        architecture: a name of `ml.catalogue`.
        reads: what one prediction takes, "slice" or "series".
        created_at: ISO 8601, UTC.
        preprocessing: `InputSpec.to_dict()`.
        threshold: a slice, or a scan of one slice, with at least this probability is positive.
        uncertain_low, uncertain_high: low <= probability < high is uncertain.
        scan_threshold, scan_uncertain_low, scan_uncertain_high: the same for a scan of several
            slices; negative in cards that predate them, and then the values above apply.
        data: datasets, fingerprint, images, positive, negative, groups, licence_notes.
        metrics: pooled over the held-out folds, each {"value", "low", "high", "n"}; null with a
            "reason" where undefined.
        metrics_by_dataset: the same for each data set.
        patient_metrics, patient_metrics_by_dataset: the same by scan.
        band: {"slice", "patient"}: predictive values outside the uncertain band,
            `ml.evaluation.calibration.predictive_values_outside_band`.
        points: {"slice", "patient"}: each named operating point with its "threshold" and figures,
            `ml.training.operating_points.named_points`; empty in cards that predate them.
        controls: results of `ml.training.controls`.
        heat_maps: how often the heat maps of true positives in the held-out folds passed
            `ml.training.heat_map_tests`.
        types: where the labels name types of hemorrhage, for each of `ml.catalogue.BLEEDING_TYPES`:
            "given", whether the model predicts it; "slices" and "patients" that show it, of
            "of_slices" and "of_patients" whose types are known; then either "slice" and "patient"
            with "auroc", "ece" and "auroc_among_bleeding" on held-out data, or, where few patients
            show it, "scores": each patient's "probability" and "rank" among "of" patients, null
            where the model of that fold does not predict the type.
        blocked_because: why the controls rule out promotion, in a sentence; else empty.
        roc: [false positive rate, true positive rate] pairs of slices, at most 200 (of the first
            repeat).
        confusion: tp, fp, tn, fn of slices at the folds' thresholds (of the first repeat).
        protocol: how the metrics were obtained, in a sentence.
        export_check: largest_difference, limit, passed: comparison of the ONNX graphs with the
            trained model.
        seconds: duration of cross-validation, controls and final fit.
        command: the command line.
        id, files: filled in by `write_model`: the first 12 hex digits of a SHA-256 over all files,
            and the SHA-256 of each file.
        checksum: filled in by `write_model`: the SHA-256 of all other fields; empty in cards that
            predate it.
    """

    architecture: str
    reads: str
    created_at: str
    seed: int
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    threshold: float
    uncertain_low: float
    uncertain_high: float
    data: dict[str, Any]
    metrics: dict[str, Any]
    metrics_by_dataset: dict[str, Any]
    roc: list[list[float]]
    confusion: dict[str, Any]
    protocol: str
    export_check: dict[str, Any]
    versions: dict[str, str]
    scan_threshold: float = ABSENT
    scan_uncertain_low: float = ABSENT
    scan_uncertain_high: float = ABSENT
    patient_metrics: dict[str, Any] = field(default_factory=dict)
    patient_metrics_by_dataset: dict[str, Any] = field(default_factory=dict)
    band: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Any] = field(default_factory=dict)
    controls: list[dict[str, Any]] = field(default_factory=list)
    heat_maps: dict[str, Any] = field(default_factory=dict)
    types: dict[str, Any] = field(default_factory=dict)
    blocked_because: str = ""
    seconds: float = 0.0
    command: str = ""
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT
    id: str = ""
    files: dict[str, str] = field(default_factory=dict)
    checksum: str = ""

    def to_json(self) -> str:
        """Return the card as JSON text; raise ValueError for NaN, which JSON does not know."""
        return json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        """Parse a card that `to_json` wrote, ignoring unknown keys.

        Raises:
            ArtifactError: it is not a card of this format.
        """
        try:
            read = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise ArtifactError(f"The model's {CARD} is not JSON.") from err
        if not isinstance(read, dict):
            raise ArtifactError(f"The model's {CARD} is not a JSON object.")
        if read.get("format") != FORMAT:
            raise ArtifactError(
                f"The model's format is {read.get('format')!r}; this version reads format {FORMAT}."
            )
        known = {}
        for item in fields(cls):
            if item.name not in read and item.name in LATER_FIELDS:
                continue
            if item.name not in read:
                raise ArtifactError(f"The model's {CARD} lacks {item.name!r}.")
            if not isinstance(
                read[item.name], _JSON_TYPES[str(item.type).split("[")[0]]
            ) or isinstance(read[item.name], bool):
                raise ArtifactError(
                    f"The model's {CARD} gives {item.name!r} as {str(read[item.name])[:40]!r}, not"
                    f" as {item.type}."
                )
            known[item.name] = read[item.name]
        card = cls(**known)
        if card.reads not in READS:
            raise ArtifactError(
                f"The model reads {card.reads!r}; it must be one of {', '.join(READS)}."
            )
        for threshold, low, high in (card.point_of(1), card.point_of(2)):
            if not 0 <= threshold <= 1 or not 0 <= low <= high <= 1:
                raise ArtifactError(
                    f"The model's threshold {threshold} and uncertain band {low} to {high} must lie"
                    " in order within 0 and 1."
                )
        for name, found in card.types.items():
            _require_judged(name, found)
        if card.checksum and card.checksum != checksum_of(read):
            raise ArtifactError(
                f"The model's {CARD} is not what was written: its sha256 differs from the one"
                " in it."
            )
        return card

    @property
    def told_types(self) -> tuple[str, ...]:
        """The types of hemorrhage that types.onnx predicts, in its order."""
        return tuple(name for name in BLEEDING_TYPES if self.types.get(name, {}).get("given"))

    def point_of(self, slices: int) -> tuple[float, float, float]:
        """Return the threshold and the uncertain band (low, high) for a scan of that many
        slices.
        """
        if slices == 1 or self.scan_threshold == ABSENT:
            return self.threshold, self.uncertain_low, self.uncertain_high
        return self.scan_threshold, self.scan_uncertain_low, self.scan_uncertain_high


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "dict": (dict,),
    "list": (list,),
}


TYPE_FIGURES = {"slice": ("auroc",), "patient": ("auroc", "auroc_among_bleeding", "ece")}
"""Of the metrics that `ml.training.type_figures` writes for a type with enough patients, those that
cards and pages use.
"""


def _require_judged(name: str, found: Any) -> None:
    """Raise ArtifactError unless the card has all fields of a type of hemorrhage that the pages
    show.
    """
    complete = isinstance(found, dict) and isinstance(found.get("given"), bool)
    complete = complete and all(
        type(found.get(count)) is int
        for count in ("slices", "of_slices", "patients", "of_patients")
    )
    if complete and found.keys() & TYPE_FIGURES.keys():
        complete = all(
            isinstance(found.get(level), dict)
            and _has_all(found[level].get(figure), ("value", "low", "high"))
            for level, figures in TYPE_FIGURES.items()
            for figure in figures
        )
    elif complete:
        scores = found.get("scores")
        complete = isinstance(scores, list) and all(
            _has_all(score, ("probability", "rank", "of")) for score in scores
        )
    if not complete:
        raise ArtifactError(f"The model's {CARD} lacks fields of {name[:40]!r} in 'types'.")


def _has_all(value: Any, names: tuple[str, ...]) -> bool:
    """Return whether it is an object with a number or null for each of the names."""
    return isinstance(value, dict) and all(
        name in value and type(value[name]) in (int, float, type(None)) for name in names
    )


def checksum_of(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a card's fields without the checksum itself, independent of their order
    and of white space.
    """
    others = {name: value for name, value in card.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
