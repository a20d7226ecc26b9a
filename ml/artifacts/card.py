"""What a model folder says of its model: `card.json`, as dataclasses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml.catalogue import BLEEDING_TYPES
from ml.errors import ArtifactError
from ml.figures import BandFigures, Confusion, Estimate, Metrics
from ml.typed_json import JsonError, from_json, to_json

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


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """What a training started from.

    Attributes:
        kind: "random", "file" or "model".
        name, sha256: of a file.
        id, architecture, command, datasets, fingerprint, initial_weights: of a model of ours, as
            its card gives them.
    """

    kind: str
    name: str | None = None
    sha256: str | None = None
    id: str | None = None
    architecture: str | None = None
    command: str | None = None
    datasets: list[str] | None = None
    fingerprint: str | None = None
    initial_weights: InitialWeights | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a model learned from and was judged on.

    Attributes:
        datasets: their names.
        fingerprint: digest of their fingerprints.
        initial_weights: what the training started from.
        training: digest of all that decides the training's outcome.
        images, positive, negative: labeled slices, and how many show hemorrhage or none.
        groups: patients and near-duplicates that the labeled slices come from.
        judged, scans: slices and scans that the figures are of; None for scans in a card of the
            first versions.
        licence_notes: sentences.
    """

    datasets: list[str]
    fingerprint: str
    initial_weights: InitialWeights
    training: str
    images: int
    positive: int
    negative: int
    groups: int
    judged: int
    scans: int | None = None
    licence_notes: list[str]


@dataclass(frozen=True)
class ExportCheck:
    """How far the ONNX graphs are from what was trained, and how far they may be."""

    largest_difference: float
    limit: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Control:
    """What a control of `ml.training.controls` found.

    Attributes:
        name: of the control.
        skipped: why it was not run; then all figures are None.
        auroc, accuracy: of slices.
        how: how the figures were made, in a sentence.
        seconds: what it took.
        lower_99: the one-sided lower 99 % bound of the permuted control's AUROC.
        permutations: the AUROC of each permutation.
        run_auroc: the run's own AUROC on the same folds.
    """

    name: str
    skipped: str | None = None
    auroc: Estimate | None = None
    accuracy: Estimate | None = None
    how: str | None = None
    seconds: float = 0.0
    lower_99: float | None = None
    permutations: list[float] | None = None
    run_auroc: Estimate | None = None


@dataclass(frozen=True)
class TypeMetrics:
    """How well a type of bleeding is recognized, and how well among slices or scans that bleed."""

    auroc: Estimate
    ece: Estimate
    auroc_among_bleeding: Estimate


@dataclass(frozen=True)
class TypeScore:
    """What a patient who shows a type got: probability and rank among `of` patients, None where the
    patient's fold had too few others to learn the type from.
    """

    probability: float | None
    rank: int | None
    of: int


@dataclass(frozen=True)
class TypeFigures:
    """What a card says of a type of bleeding.

    Attributes:
        given: whether the model gives its probability.
        slices, patients: how many show it.
        of_slices, of_patients: among how many whose types are known.
        slice, patient: metrics out of fold; None where few patients show the type.
        scores: in their place, what each of those patients got, the highest first.
    """

    given: bool
    slices: int
    of_slices: int
    patients: int
    of_patients: int
    slice: TypeMetrics | None = None
    patient: TypeMetrics | None = None
    scores: list[TypeScore] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether there are metrics of both levels, or scores."""
        return self.scores is not None or None not in (self.slice, self.patient)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a model. The JSON keys are the names of the fields.

    Attributes:
        architecture: a name of `ml.catalogue`.
        reads: what one prediction takes, "slice" or "series".
        created_at: ISO 8601, UTC.
        preprocessing: `InputSpec.to_dict()`.
        threshold: a slice, or a scan of one slice, is positive from this probability on.
        uncertain_low, uncertain_high: low <= probability < high is uncertain.
        scan_threshold, scan_uncertain_low, scan_uncertain_high: the same for a scan of several
            slices; negative in a card that was written before there were any, and then those above
            serve.
        data: what the model learned from and was judged on.
        metrics: pooled out-of-fold.
        metrics_by_dataset: the same for each data set.
        patient_metrics, patient_metrics_by_dataset: the same by scan; None and empty in a card of
            the first versions.
        band: by level, "slice" and "patient": how often answers outside the uncertain band were
            right (`ml.evaluation.calibration.predictive_values_outside_band`).
        controls: what `ml.training.controls` found.
        heat_maps: how often those of rightly found hemorrhages, out of fold, held
            `ml.training.heat_map_tests`'s tests.
        types: where the data tell types of bleeding, each of `ml.catalogue.BLEEDING_TYPES`.
        blocked_because: a sentence if the controls forbid promotion, else empty.
        roc: [false positive rate, true positive rate] pairs of slices, at most 200 (of the first
            repeat).
        confusion: tp, fp, tn, fn of slices at the folds' thresholds (of the first repeat).
        protocol: how the metrics were made, in a sentence.
        export_check: the ONNX graphs against what was trained.
        seconds: how long cross-validation, controls and final fit took.
        command: what was run.
        id, files: filled in by `write_model`: the first 12 hex of a sha256 over all files, and the
            sha256 of each.
        checksum: filled in by `write_model`: the sha256 of all other fields; empty in a card that
            was written before there was any.
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
    data: TrainingData
    metrics: Metrics
    metrics_by_dataset: dict[str, Metrics]
    roc: list[list[float]]
    confusion: Confusion
    protocol: str
    export_check: ExportCheck
    versions: dict[str, str]
    scan_threshold: float = ABSENT
    scan_uncertain_low: float = ABSENT
    scan_uncertain_high: float = ABSENT
    patient_metrics: Metrics | None = None
    patient_metrics_by_dataset: dict[str, Metrics] = field(default_factory=dict)
    band: dict[str, BandFigures] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    heat_maps: dict[str, Estimate] = field(default_factory=dict)
    types: dict[str, TypeFigures] = field(default_factory=dict)
    blocked_because: str = ""
    seconds: float = 0.0
    command: str = ""
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT
    id: str = ""
    files: dict[str, str] = field(default_factory=dict)
    checksum: str = ""

    def to_json(self) -> str:
        """Return the card as JSON text; NaN, which is no JSON, is a ValueError."""
        return json.dumps(to_json(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        """Return the card that `to_json` wrote. Keys that this version does not know are left out.

        Raises:
            ArtifactError: it is no card of this format.
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
        try:
            card = from_json(cls, read)
        except JsonError as err:
            raise ArtifactError(f"The model's {CARD} {err}.") from err
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
            if not found.is_complete:
                raise ArtifactError(
                    f"The model's {CARD} does not give all that belongs to {name[:40]!r} in"
                    " 'types'."
                )
        if card.checksum and card.checksum != checksum_of(read):
            raise ArtifactError(
                f"The model's {CARD} is not what was written: its sha256 differs from the one"
                " in it."
            )
        return card

    @property
    def told_types(self) -> tuple[str, ...]:
        """The types of bleeding that types.onnx tells, in its order."""
        return tuple(
            name for name in BLEEDING_TYPES if name in self.types and self.types[name].given
        )

    def point_of(self, slices: int) -> tuple[float, float, float]:
        """Return threshold and uncertain band (low, high) for a scan of that many slices."""
        if slices == 1 or self.scan_threshold == ABSENT:
            return self.threshold, self.uncertain_low, self.uncertain_high
        return self.scan_threshold, self.scan_uncertain_low, self.scan_uncertain_high


def checksum_of(card: Mapping[str, Any]) -> str:
    """Return the sha256 of a card's fields without the checksum itself, however they are spaced and
    ordered.
    """
    others = {name: value for name, value in card.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
