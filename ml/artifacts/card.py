"""The model card as dataclasses, stored as `card.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ml.catalogue import BLEEDING_TYPES
from ml.errors import ArtifactError
from ml.figures import (
    BandFigures,
    Confusion,
    CurvePoint,
    Estimate,
    LocalFigures,
    Metrics,
    PointFigures,
)
from ml.named_points import require_sound
from ml.typed_json import JsonError, from_json, to_json
from ml.verdict import widened

FORMAT = 1


CARD, FEATURES, HEAD, TYPES, SEEN = (
    "card.json",
    "features.onnx",
    "head.onnx",
    "types.onnx",
    "seen.json",
)


OUTLINE = "outline"
"""The name of the output of features.onnx, in addition to the maps, of a model that outlines
hemorrhages: the probability at each position of its input, float32 (N, m, m).
"""


READS = ("slice", "series")


ABSENT = -1.0


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The initial weights of a training.

    Attributes:
        kind: "random", "file" or "model".
        name, sha256: of a file.
        id, architecture, command, datasets, fingerprint, initial_weights: of one of Hemoscan's own
            models, from its card.
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
class LocalLevel:
    """The calibration of slices or of scans to one site.

    Attributes:
        scans: the number of scans that it was fitted to.
        platt: "slope" and "offset" for the log-odds of shipped probabilities.
        before, after: what the threshold means at the site with shipped and with local
            probabilities.
    """

    scans: int
    platt: dict[str, float]
    before: LocalFigures
    after: LocalFigures


@dataclass(frozen=True, kw_only=True)
class LocalCalibration:
    """A calibration to one site (`ml.validation.site_calibration`).

    Attributes:
        model: id of the model before calibration.
        dataset: name of the site's data set.
        slice, scan: what was calibrated; None if not.
    """

    model: str
    dataset: str
    slice: LocalLevel | None = None
    scan: LocalLevel | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The training and test data of a model.

    Attributes:
        datasets: their names.
        fingerprint: digest of their fingerprints.
        initial_weights: of the training.
        training: digest of everything that determines the training's outcome.
        images, positive, negative: numbers of labeled slices, and of those with and without
            hemorrhage.
        groups: number of groups (patients and near-duplicates) of the labeled slices.
        judged, scans: numbers of test slices and test scans; the latter is None in early cards.
        licence_notes: sentences.
        local_calibration: of a model that was calibrated to one site.
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
    local_calibration: LocalCalibration | None = None


@dataclass(frozen=True)
class ExportCheck:
    """The comparison of the ONNX graphs with the trained model."""

    largest_difference: float
    limit: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Control:
    """The result of a control of `ml.training.controls`.

    Attributes:
        name: of the control.
        skipped: why it was not run; then all metrics are None.
        auroc, accuracy: of slices.
        how: how the metrics were obtained, in a sentence.
        seconds: its duration.
        lower_99: the one-sided lower 99% bound of the permuted control's AUROC.
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
    """Metrics of a type of hemorrhage, with the AUROC among slices or scans with hemorrhage."""

    auroc: Estimate
    ece: Estimate
    auroc_among_bleeding: Estimate


@dataclass(frozen=True)
class TypeScore:
    """Predicted probability of a type for one patient, and its rank among `of` patients; None if
    that fold's model does not predict the type.
    """

    probability: float | None
    rank: int | None
    of: int


@dataclass(frozen=True)
class TypeFigures:
    """The card's entry for a type of hemorrhage.

    Attributes:
        given: whether the model predicts it.
        slices, patients: how many show it.
        of_slices, of_patients: how many have known types.
        slice, patient: metrics on held-out data; None if few patients show the type.
        scores: in that case, the score of each of those patients, the highest first.
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
class OutlineFigures:
    """Agreement of outlines with annotations on held-out data; means with confidence intervals over
    patients.

    Attributes:
        slice_dice, slice_iou: Dice coefficient and intersection over union of slices with
            hemorrhage.
        patient_dice, patient_iou: the same over all annotated slices of a patient with hemorrhage.
        without_outline: the share of slices without hemorrhage in which nothing is outlined.
    """

    slice_dice: Estimate
    slice_iou: Estimate
    patient_dice: Estimate
    patient_iou: Estimate
    without_outline: Estimate


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a model. The JSON keys are the names of the fields.

    Attributes:
        architecture: a name of `ml.catalogue`.
        reads: what one prediction takes, "slice" or "series".
        created_at: ISO 8601, UTC.
        preprocessing: `InputSpec.to_dict()`.
        threshold: a slice, or a scan of one slice, with at least this probability is positive.
        uncertain_low, uncertain_high: low <= probability < high is inconclusive.
        scan_threshold, scan_uncertain_low, scan_uncertain_high: the same for a scan of several
            slices; negative in cards that predate them, and then the values above apply.
        data: training and test data.
        metrics: pooled over the held-out folds.
        metrics_by_dataset: the same for each data set.
        patient_metrics, patient_metrics_by_dataset: the same by scan; None and empty in early
            cards.
        band: by level, "slice" and "patient": predictive values outside the inconclusive band
            (`ml.evaluation.calibration.predictive_values_outside_band`).
        points: by level, "slice" and "patient": each named operating point
            (`ml.training.operating_points.named_points`); empty in cards that predate them.
        curves: by level, "slice" and "patient": sensitivity and specificity by threshold, for
            choosing one (`ml.training.operating_points.threshold_curves`); empty in cards that
            predate them.
        controls: results of `ml.training.controls`.
        heat_maps: how often the heat maps of true positives in the held-out folds passed
            `ml.validation.heat_map_tests`.
        outlines: by data set, how well the outlines of the hemorrhage agree with annotations; empty
            if the model gives no outlines.
        types: figures for each of `ml.catalogue.BLEEDING_TYPES`, if the labels name types of
            hemorrhage.
        blocked_because: why the controls rule out promotion, as a sentence; empty if they do not.
        roc: [false positive rate, true positive rate] pairs of slices, at most 200 (of the first
            repeat).
        confusion: tp, fp, tn, fn of slices at the folds' thresholds (of the first repeat).
        protocol: how the metrics were obtained, in a sentence.
        export_check: comparison of the ONNX graphs with the trained model.
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
    points: dict[str, dict[str, PointFigures]] = field(default_factory=dict)
    curves: dict[str, list[CurvePoint]] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    heat_maps: dict[str, Estimate] = field(default_factory=dict)
    outlines: dict[str, OutlineFigures] = field(default_factory=dict)
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
        """Return the card as JSON text.

        Raises:
            ValueError: a value is NaN or infinite, which JSON cannot represent.
        """
        return json.dumps(to_json(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

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
        if isinstance(points := read.get("points"), dict):
            require_sound(points)  # before the types, since its messages are more specific
        try:
            card = from_json(cls, read)
        except JsonError as err:
            raise ArtifactError(f"The model's {CARD} {err}.") from err
        if card.reads not in READS:
            raise ArtifactError(
                f"The model reads {card.reads!r}; it must be one of {', '.join(READS)}."
            )
        for threshold, low, high in (card.operating_point(1), card.operating_point(2)):
            if not 0 <= threshold <= 1 or not 0 <= low <= high <= 1:
                raise ArtifactError(
                    f"The model's threshold {threshold} and inconclusive band {low} to {high} must"
                    " lie in order within 0 and 1."
                )
        for name, figures in card.types.items():
            if not figures.is_complete:
                raise ArtifactError(f"The model's {CARD} lacks fields of {name[:40]!r} in 'types'.")
        if card.checksum and card.checksum != checksum_of(read):
            raise ArtifactError(
                f"The model's {CARD} is not what was written: its sha256 differs from the one"
                " in it."
            )
        return card

    @property
    def reported_types(self) -> tuple[str, ...]:
        """The types of hemorrhage that types.onnx predicts, in its order."""
        return tuple(
            name for name in BLEEDING_TYPES if name in self.types and self.types[name].given
        )

    def operating_point(self, slices: int) -> tuple[float, float, float]:
        """Return the threshold and the inconclusive band (low, high) for a scan of that many
        slices.
        """
        if slices == 1 or self.scan_threshold == ABSENT:
            return self.threshold, self.uncertain_low, self.uncertain_high
        return self.scan_threshold, self.scan_uncertain_low, self.scan_uncertain_high

    def with_thresholds(self, of_slices: float | None, of_scans: float | None) -> Card:
        """Return the card with other thresholds for scans of one slice and of several; None keeps
        the card's own.

        The inconclusive band is widened to include a threshold outside it.

        Raises:
            ArtifactError: a threshold lies outside 0..1.
        """
        points = []
        for requested, (trained, low, high) in zip(
            (of_slices, of_scans), (self.operating_point(1), self.operating_point(2)), strict=True
        ):
            threshold = trained if requested is None else requested
            if not 0 <= threshold <= 1:
                raise ArtifactError(f"The threshold {threshold} does not lie within 0 and 1.")
            points.append((threshold, *widened((low, high), threshold)))
        slices, scans = points
        return replace(
            self,
            threshold=slices[0],
            uncertain_low=slices[1],
            uncertain_high=slices[2],
            scan_threshold=scans[0],
            scan_uncertain_low=scans[1],
            scan_uncertain_high=scans[2],
        )


def checksum_of(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a card's fields without the checksum itself, independent of their order
    and of white space.
    """
    others = {name: value for name, value in card.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
