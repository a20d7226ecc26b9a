"""External validation of a finished model on a labeled data set: slice-level and patient-level
metrics, and a table of all predictions.

Images from the model's training are recognized by file and by perceptual hash, counted, and
excluded from the headline metrics with all slices of their groups. No image is refused: the score
of the check "not a head CT" is reported with each prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ml.artifacts.card import Card
from ml.checkpoints import digest, load_json, save_json
from ml.datasets.examples import UNKNOWN, Example, scan_key, slice_of
from ml.datasets.pool import in_scan_order, numbered
from ml.datasets.read import Dataset
from ml.datasets.seen_images import Marks, all_marks_of, notes_on_marks, seen_among
from ml.errors import ArtifactError, ImageError, SettingError
from ml.evaluation.answers import COLUMNS, write_answers
from ml.evaluation.calibration import ABOVE, BELOW, UNCERTAIN, predictive_values_outside_band, zones
from ml.evaluation.metrics import metrics_with_intervals, undefined_metrics
from ml.evaluation.results import (
    METRICS,
    Bands,
    BothLevels,
    EvaluatedModel,
    Evaluation,
    GateFigures,
    States,
    StatesByLabel,
)
from ml.figures import BandFigures, Metrics, StateCounts
from ml.inference.gate import REFUSED_FROM, Gate, gate
from ml.inference.predictor import Predictor
from ml.scans.slices import Series, Slice
from ml.typed_json import from_json, to_json
from ml.validation.answer_rows import whose_answer

PREDICTIONS = ("filename", "label", "patient", "slice", "probability")
ANSWERS = (*COLUMNS, "not_head_ct")
PARTIAL = "partial.json"
KEEP_EVERY_S = 5.0
MOST_NAMED = 20
SEED = 0


@dataclass(frozen=True)
class Level:
    """Predictions at one level, with known and unknown labels; `seen` marks images whose group was
    in the training data.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    groups: np.ndarray
    seen: np.ndarray

    def metrics(self, with_seen: bool) -> Metrics:
        """Return the metrics of labeled images, excluding those seen in training unless
        `with_seen`.
        """
        known = self.labels != UNKNOWN
        counted = known if with_seen else known & ~self.seen
        if known.any() and not counted.any():
            return undefined_metrics("all of it was in the model's training data")
        at = np.flatnonzero(counted)
        return metrics_with_intervals(
            self.labels[at], self.probabilities[at], self.predicted[at], self.groups[at], SEED
        )

    def outside_band(self, zones: np.ndarray) -> BandFigures:
        """Return how often answers outside the inconclusive band are correct, excluding data seen
        in training; `zones` (n,).
        """
        counted = (self.labels != UNKNOWN) & ~self.seen
        return predictive_values_outside_band(self.labels[counted], zones[counted])

    def states(self, zones: np.ndarray) -> StatesByLabel:
        """Return the number of verdicts in each state, excluding data seen in training; `zones`
        (n,).
        """

        def counted(label: int) -> StateCounts:
            of_label = zones[(self.labels == label) & ~self.seen]
            return StateCounts(
                suspected=int((of_label == ABOVE).sum()),
                inconclusive=int((of_label == UNCERTAIN).sum()),
                not_found=int((of_label == BELOW).sum()),
            )

        return StatesByLabel(
            with_hemorrhage=counted(1), without=counted(0), unlabeled=counted(UNKNOWN)
        )


@dataclass(frozen=True)
class ScanAnswer:
    """A model's answer for one scan, with the probability and the score of the check "not a head
    CT" of each of its slices (empty if that check is not available).
    """

    probability: float
    positive: bool
    uncertain: bool
    slices: list[float]
    not_head_ct: list[float]

    @property
    def zone(self) -> int:
        """Whether it lies below, in or above the inconclusive band."""
        return UNCERTAIN if self.uncertain else ABOVE if self.positive else BELOW


@dataclass(frozen=True)
class Partial:
    """The results of an interrupted evaluation: the answers for the first scans, of this model and
    data set, in this order of slices.
    """

    identity: str
    order: str
    answers: list[ScanAnswer]


@dataclass(frozen=True)
class Scored:
    """A data set with a model's predictions.

    Attributes:
        card: of the model.
        dataset: the data set.
        examples: its n readable images, scan by scan.
        scans: (n,) scan number of each.
        answers: one for each scan.
        seen_images: (n,) whether the model was trained on the image.
    """

    card: Card
    dataset: Dataset
    examples: Sequence[Example]
    scans: np.ndarray
    answers: Sequence[ScanAnswer]
    seen_images: np.ndarray

    @cached_property
    def groups(self) -> np.ndarray:
        """The group of each image (n,)."""
        return np.array([example.group for example in self.examples])

    @cached_property
    def seen(self) -> np.ndarray:
        """Which images belong to a group with an image seen in training, bool (n,)."""
        return np.isin(self.groups, self.groups[self.seen_images])

    @cached_property
    def first_of_scan(self) -> np.ndarray:
        """Position of each scan's first image (s,)."""
        return np.asarray(np.unique(self.scans, return_index=True)[1])

    @cached_property
    def oddness(self) -> np.ndarray:
        """The score of each image in the check "not a head CT" (n,); empty if not checked."""
        return np.array([score for answer in self.answers for score in answer.not_head_ct])

    @cached_property
    def slices(self) -> Level:
        """The answers for the images."""
        labels = [UNKNOWN if example.label is None else example.label for example in self.examples]
        probabilities = np.array([value for answer in self.answers for value in answer.slices])
        called = probabilities >= self.card.threshold
        return Level(np.array(labels), probabilities, called, self.groups, self.seen)

    @cached_property
    def patients(self) -> Level:
        """The answers for the scans."""
        seen = np.zeros(len(self.answers), bool)
        np.logical_or.at(seen, self.scans, self.seen)
        return Level(
            self._scan_labels(),
            np.array([answer.probability for answer in self.answers]),
            np.array([answer.positive for answer in self.answers], bool),
            self.groups[self.first_of_scan],
            seen,
        )

    def _scan_labels(self) -> np.ndarray:
        """Return 1 for each scan with a slice with hemorrhage, readable or not, or with a positive
        scan-level label; 0 if all known labels are negative, else unknown.
        """
        labels = np.full(len(self.answers), UNKNOWN)
        of_examples = [
            UNKNOWN if example.scan_label is None else example.scan_label
            for example in self.examples
        ]
        np.maximum.at(labels, self.scans, self.slices.labels)
        np.maximum.at(labels, self.scans, of_examples)
        number_of = {
            scan_key(self.examples[at]): number for number, at in enumerate(self.first_of_scan)
        }
        for example in self.dataset.unread:
            number = number_of.get(scan_key(example))
            if example.label is not None and number is not None:
                labels[number] = max(labels[number], example.label)
        return labels


def evaluate(
    model_dir: Path,
    dataset: Dataset,
    out_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 1,
) -> Evaluation:
    """Evaluate a model on a data set and write `metrics.json`, `predictions.csv` and `answers.csv`
    (see `ml.evaluation.answers`); return the first.

    Patient by patient, the slices are predicted as a series in anatomical order; an image without a
    patient is a series of one. Unreadable images have no prediction; their patient is predicted
    from the rest. Called again after an interruption, it resumes.

    Args:
        model_dir: the model.
        dataset: with any labels, possibly of a single class or none.
        out_dir: output folder, new or of the same evaluation.
        on_progress: called with (images done, number of images).
        threads: number of threads of the model.

    Raises:
        ArtifactError: the model is unusable.
        SettingError: the folder holds a different evaluation or a training.
    """
    if any((out_dir / name).exists() for name in ("model", "checkpoint")):
        raise SettingError(
            f"The folder {out_dir.name} holds a training, whose predictions would be overwritten;"
            " give another folder."
        )
    # each image is checked once, below
    predictor = Predictor(model_dir, threads, checks_head_ct=False)
    head_check, why_not = _load_head_check()
    examples = in_scan_order(dataset.examples)
    scans = numbered([scan_key(example) for example in examples])
    identity = digest(predictor.card.id, dataset.fingerprint)
    began = time.monotonic()
    answers = _score(predictor, head_check, examples, scans, out_dir, identity, on_progress)
    marks, without_marks = _marks(model_dir)
    scored = Scored(predictor.card, dataset, examples, scans, answers, seen_among(examples, marks))
    result = _figures(
        scored,
        identity,
        _gate_figures(scored.oddness, head_check),
        [*why_not, *without_marks, *_notes(scored)],
        began,
    )
    _write_predictions(
        out_dir / "predictions.csv", examples, scored.slices.probabilities, dataset.unread
    )
    write_answers(out_dir / "answers.csv", _rows(scored), ANSWERS)
    save_json(out_dir / METRICS, to_json(result))
    (out_dir / PARTIAL).unlink(missing_ok=True)
    return result


def _figures(
    scored: Scored, identity: str, not_head_ct: GateFigures, notes: list[str], began: float
) -> Evaluation:
    """Return the results of an evaluation; `began` is when it started, by `time.monotonic()`."""
    card, slices, patients = scored.card, scored.slices, scored.patients
    slice_zones = zones(slices.probabilities, card.uncertain_low, card.uncertain_high)
    patient_zones = np.array([answer.zone for answer in scored.answers])
    return Evaluation(
        identity=identity,
        model=EvaluatedModel(card.id, card.architecture, card.reads, card.settings),
        threshold=card.threshold,
        patient_threshold=card.operating_point(2)[0],
        dataset=scored.dataset.name,
        fingerprint=scored.dataset.fingerprint,
        images=len(scored.examples),
        scans=len(scored.answers),
        unknown=int((slices.labels == UNKNOWN).sum()),
        unread=len(scored.dataset.unread),
        not_head_ct=not_head_ct,
        slice=slices.metrics(with_seen=False),
        patient=patients.metrics(with_seen=False),
        overlap=int(scored.seen_images.sum()),
        left_out=int(scored.seen.sum()),
        all=BothLevels(slices.metrics(with_seen=True), patients.metrics(with_seen=True)),
        band=Bands(slices.outside_band(slice_zones), patients.outside_band(patient_zones)),
        states=States(slices.states(slice_zones), patients.states(patient_zones)),
        notes=notes,
        problems=list(scored.dataset.problems),
        seconds=round(time.monotonic() - began, 1),
    )


def _notes(scored: Scored) -> list[str]:
    """Return notes for readers of the metrics."""
    notes, examples = [], scored.examples
    if overlap := int(scored.seen_images.sum()):
        notes.append(
            f"The model's training has seen {overlap} of the {len(examples)} images; they and the"
            f" other slices of their groups, {int(scored.seen.sum())} in total, are excluded from"
            " the figures by slice and by patient."
        )
    if without := sum(example.patient is None for example in examples):
        which = (
            "No image names its patient"
            if without == len(examples)
            else f"{without} images name no patient"
        )
        notes.append(f"{which}; each counts as a separate patient.")
    if unknown := int((scored.slices.labels == UNKNOWN).sum()):
        notes.append(
            f"{unknown} images have no label: they are used for their patient's prediction, but"
            " excluded from the slice metrics."
        )
    notes += _notes_on_unread(examples, scored.dataset.unread)
    if odd := int((scored.oddness >= REFUSED_FROM).sum()):
        notes.append(
            f"{odd} of {len(scored.oddness)} images do not look like head CT (not_head_ct in"
            " answers.csv); they are analyzed anyway."
        )
    return notes


def _load_head_check() -> tuple[Gate | None, list[str]]:
    try:
        return gate(), []
    except ArtifactError as err:
        return None, [str(err)]


def _gate_figures(scores: np.ndarray, head_check: Gate | None) -> GateFigures:
    """Summarize the scores for "not a head CT" (n,), with the number of images that the service
    would refuse.
    """
    if head_check is None:
        return GateFigures(
            refused=None,
            n=0,
            share=None,
            median=None,
            highest=None,
            reason="the check is not available",
        )
    return GateFigures(
        refused=int((scores >= REFUSED_FROM).sum()),
        refused_from=REFUSED_FROM,
        n=len(scores),
        share=float((scores >= REFUSED_FROM).mean()),
        median=float(np.median(scores)),
        highest=float(scores.max()),
    )


def _notes_on_unread(examples: Sequence[Example], unread: Sequence[Example]) -> list[str]:
    if not unread:
        return []
    named = ", ".join(example.name for example in unread[:MOST_NAMED]) + (
        ", ..." if len(unread) > MOST_NAMED else ""
    )
    notes = [
        f"{len(unread)} of {len(examples) + len(unread)} images cannot be read and have no"
        f" prediction: {named}."
    ]
    lost = {example.patient for example in unread if example.patient} - {
        example.patient for example in examples
    }
    if lost:
        notes.append(
            "Patients without any readable image, excluded from all metrics:"
            f" {', '.join(sorted(lost))}."
        )
    return notes


def _score(
    predictor: Predictor,
    head_check: Gate | None,
    examples: Sequence[Example],
    scans: np.ndarray,
    out_dir: Path,
    identity: str,
    on_progress: Callable[[int, int], None],
) -> list[ScanAnswer]:
    """Return the prediction for each scan, resuming from saved ones."""
    partial = out_dir / PARTIAL
    order = digest(*((example.name, example.place_mm) for example in examples), *scans)
    saved = _saved(partial)
    if any(one and one.get("identity") != identity for one in (saved, _saved(out_dir / METRICS))):
        raise SettingError(
            f"The folder {out_dir.name} holds an evaluation of another model or data set; give"
            " another folder."
        )
    # Patients or slice numbers may have been corrected in the meantime.
    answers = from_json(Partial, saved).answers if saved.get("order") == order else []
    starts = [*np.unique(scans, return_index=True)[1].tolist(), len(examples)]
    saved_at = time.monotonic()
    try:
        for scan in range(len(answers), len(starts) - 1):
            on_progress(starts[scan], len(examples))
            answers.append(
                _answer(predictor, head_check, examples[starts[scan] : starts[scan + 1]])
            )
            if time.monotonic() - saved_at > KEEP_EVERY_S:
                save_json(partial, to_json(Partial(identity, order, answers)))
                saved_at = time.monotonic()
    finally:
        # Also on Ctrl-C in the middle of a scan: the list holds complete scans only.
        save_json(partial, to_json(Partial(identity, order, answers)))
    on_progress(len(examples), len(examples))
    return answers


def _saved(path: Path) -> dict[str, Any]:
    """Load the results of an evaluation; empty if there is no file."""
    try:
        results = load_json(path)
    except ValueError:
        return {"identity": None}
    if results is None:
        return {}
    return results if isinstance(results, dict) else {"identity": None}


def _answer(
    predictor: Predictor, head_check: Gate | None, examples: Sequence[Example]
) -> ScanAnswer:
    try:
        # Slices with too little contrast were already handled when the data set was read.
        slices = tuple(slice_of(example, may_be_bare=True) for example in examples)
    except ImageError as err:  # it was readable when the data set was read
        raise ImageError(f"{examples[0].name} and the slices after it: {err}") from err
    result = predictor.predict(Series(slices, steps_mm=_steps_mm(examples, slices)))
    return ScanAnswer(
        probability=result.probability,
        positive=result.positive,
        uncertain=result.uncertain,
        slices=list(result.slice_probabilities),
        not_head_ct=[head_check.score(slice_) for slice_ in slices] if head_check else [],
    )


def _steps_mm(examples: Sequence[Example], slices: Sequence[Slice]) -> tuple[float, ...]:
    """Return the slice spacing of a scan, for averaging thin slices into slabs as in serving; None
    if it is inconsistent.
    """
    places = [example.place_mm for example in examples if example.place_mm is not None]
    are_alike = len({(slice_.pixels.shape, slice_.unit) for slice_ in slices}) == 1
    return tuple(np.diff(places).tolist()) if are_alike and len(places) == len(examples) else ()


def _marks(model_dir: Path) -> tuple[Marks, list[str]]:
    try:
        marks = all_marks_of(model_dir)
    except ArtifactError as err:
        return (), [str(err)]
    return marks, notes_on_marks(marks)


def _write_predictions(
    path: Path, examples: Sequence[Example], probabilities: np.ndarray, unread: Sequence[Example]
) -> None:
    probability_of = {
        example.name: float(probability)
        for example, probability in zip(examples, probabilities, strict=True)
    }
    rows = (
        (
            example.name,
            example.label,
            example.scan_name,
            example.slice,
            probability_of.get(example.name),
        )
        for example in in_scan_order([*examples, *unread])
    )
    write_answers(path, (dict(zip(PREDICTIONS, row, strict=True)) for row in rows), PREDICTIONS)


def _rows(scored: Scored) -> Iterator[dict[str, Any]]:
    """Yield the rows of answers.csv: those of slices, then those of patients."""
    for name, level, positions in (
        ("slice", scored.slices, np.arange(len(scored.examples))),
        ("patient", scored.patients, scored.first_of_scan),
    ):
        for number, position in enumerate(positions):
            is_checked = name == "slice" and len(scored.oddness)
            yield whose_answer(scored.examples[position], name, level.groups[number]) | {
                "label": "" if level.labels[number] == UNKNOWN else int(level.labels[number]),
                "probability": repr(float(level.probabilities[number])),
                "predicted": int(level.predicted[number]),
                "overlap": int(level.seen[number]),
                "not_head_ct": repr(float(scored.oddness[number])) if is_checked else "",
            }
