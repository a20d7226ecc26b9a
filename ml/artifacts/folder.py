"""The model folder: a card and ONNX graphs, written whole or not at all, read without executing
anything.

    card.json        everything about the model (`Card`)
    features.onnx    "images" float32 (N, size, size, 1) -> "maps" float32 (N, h, w, c)
    head.onnx        "maps" float32 (N, h, w, c), the slices of one scan in order
                     -> "slice_probability" float32 (N,), "scan_probability" float32 (1,), both
                     calibrated
    types.onnx       optional: "maps", "slice_probability", "scan_probability" of one scan
                     -> "slice_types" float32 (N, k), "scan_types" float32 (k,): the types of
                     bleeding that the card names
    seen.json        optional: {"features": [[sha256 first 16 hex, dhash 64 hex], ...], "head":
    [...]}: what training saw (`ml.datasets.seen_images`)

The card names the sha256 of every other file and of itself, and the model's id is made of the
files', so a folder that was cut short, mixed up or damaged is refused. What a graph may hold is for
`ml.artifacts.onnx_check` to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ml.catalogue import BLEEDING_TYPES

FORMAT = 1
CARD, FEATURES, HEAD, TYPES, SEEN = (
    "card.json",
    "features.onnx",
    "head.onnx",
    "types.onnx",
    "seen.json",
)
MAX_CARD_BYTES = 8 * 2**20
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
) | {"blocked_because", "seconds", "heat_maps", "checksum", "types"}
"""Fields that cards of the first versions do not have; they are read with their defaults."""


class ArtifactError(ValueError):
    """A model folder is incomplete, altered or of an unknown format; its text is one sentence."""


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
        data: datasets, fingerprint, images, positive, negative, groups, licence_notes.
        metrics: pooled out-of-fold, each {"value", "low", "high", "n"}; where undefined these are
            null and "reason" says why.
        metrics_by_dataset: the same for each data set.
        patient_metrics, patient_metrics_by_dataset: the same by scan.
        band: {"slice", "patient"}: how often answers outside the uncertain band were right,
            `ml.evaluation.calibration.trust_in_zones`.
        controls: what `ml.training.controls` found.
        heat_maps: how often those of rightly found hemorrhages, out of fold, held
            `ml.training.heat_map_tests`'s tests.
        types: where the data tell types of bleeding, for each of `ml.catalogue.BLEEDING_TYPES`:
            "given", whether the model tells it; "slices" and "patients" that show it, of
            "of_slices" and "of_patients" whose types are known; then either "slice" and "patient"
            with "auroc", "ece" and "auroc_among_bleeding" out of fold, or, where few patients show
            it, "scores": each one's "probability" and "rank" among "of" patients, null where its
            fold told no such type.
        blocked_because: a sentence if the controls forbid promotion, else empty.
        roc: [false positive rate, true positive rate] pairs of slices, at most 200 (of the first
            repeat).
        confusion: tp, fp, tn, fn of slices at the folds' thresholds (of the first repeat).
        protocol: how the metrics were made, in a sentence.
        export_check: largest_difference, limit, passed: the ONNX graphs against what was trained.
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
        """Return the card as JSON text; NaN, which is no JSON, is a ValueError."""
        return json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

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
        known = {}
        for item in fields(cls):
            if item.name not in read and item.name in LATER_FIELDS:
                continue
            if item.name not in read:
                raise ArtifactError(f"The model's {CARD} does not give {item.name!r}.")
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
        if card.checksum and card.checksum != _checksum(read):
            raise ArtifactError(
                f"The model's {CARD} is not what was written: its sha256 differs from the one"
                " in it."
            )
        return card

    @property
    def told_types(self) -> tuple[str, ...]:
        """The types of bleeding that types.onnx tells, in its order."""
        return tuple(name for name in BLEEDING_TYPES if self.types.get(name, {}).get("given"))

    def point_of(self, slices: int) -> tuple[float, float, float]:
        """Return threshold and uncertain band (low, high) for a scan of that many slices."""
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
"""Of those that `ml.training.type_figures` writes, the ones that cards and pages read of a type
that enough patients show.
"""


def _require_judged(name: str, found: Any) -> None:
    """Refuse what a card says of a type of bleeding, unless all is there that those read who show
    it.
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
        raise ArtifactError(
            f"The model's {CARD} does not give all that belongs to {name[:40]!r} in 'types'."
        )


def _has_all(value: Any, names: tuple[str, ...]) -> bool:
    """True if it is an object with a number, or null where nobody knows one, for each of the
    names.
    """
    return isinstance(value, dict) and all(
        name in value and type(value[name]) in (int, float, type(None)) for name in names
    )


def write_model(out_dir: Path, card: Card, files: Mapping[str, Path | bytes]) -> Card:
    """Write a model folder; until all of it is on disk, `out_dir` does not exist.

    Args:
        out_dir: the folder, which must not exist.
        card: `id` and `files` are filled in here.
        files: name -> the file or its bytes; features.onnx and head.onnx are needed.

    Returns:
        The card as written.

    Raises:
        ArtifactError: the folder exists, or a file is missing or has no plain name.
    """
    missing = {FEATURES, HEAD} - set(files)
    if missing:
        raise ArtifactError(f"A model needs {' and '.join(sorted(missing))}.")
    for name in files:
        _require_plain_name(name)
    if out_dir.exists():
        raise ArtifactError(
            f"The folder {out_dir.name} exists already; a model is never written over another."
        )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        for name, source in files.items():
            if isinstance(source, bytes):
                (unfinished / name).write_bytes(source)
            else:
                shutil.copyfile(source, unfinished / name)
        digests = {name: _sha256(unfinished / name) for name in sorted(files)}
        written = replace(card, format=FORMAT, id=_model_id(digests), files=digests)
        written = replace(written, checksum=_checksum(asdict(written)))
        text = written.to_json()
        Card.from_json(text)  # what could not be read again is not written
        (unfinished / CARD).write_text(text, encoding="utf-8")
        for path in unfinished.iterdir():
            _flush_to_disk(path)
        # mkdtemp makes a private folder, but the web process may run as another user
        unfinished.chmod(0o755)
        unfinished.rename(out_dir)
        _flush_to_disk(out_dir.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return written


def read_card(model_dir: Path) -> Card:
    """Return the card of a model folder after checking that every file is there and is the one that
    was written.

    Raises:
        ArtifactError: a file is missing or altered, or the format is unknown.
    """
    try:
        with (model_dir / CARD).open("rb") as file:
            text = file.read(MAX_CARD_BYTES + 1)
    except OSError as err:
        raise ArtifactError(f"The model folder has no readable {CARD}.") from err
    if len(text) > MAX_CARD_BYTES:
        raise ArtifactError(f"The model's {CARD} is larger than {MAX_CARD_BYTES / 2**20:g} MiB.")
    card = Card.from_json(text)
    missing = {FEATURES, HEAD} - set(card.files)
    if missing:
        raise ArtifactError(f"The model's {CARD} does not name {' and '.join(sorted(missing))}.")
    for name, digest in card.files.items():
        _require_plain_name(name)
        try:
            found = _sha256(model_dir / name)
        except OSError as err:
            raise ArtifactError(f"The model's {name} is missing.") from err
        if found != digest:
            raise ArtifactError(
                f"The model's {name} is not the file that was written: its sha256 differs from the"
                " card's."
            )
    if card.id != _model_id(card.files):
        raise ArtifactError(f"The model's id {card.id[:12]!r} does not belong to its files.")
    return card


def _checksum(card: Mapping[str, Any]) -> str:
    """Return the sha256 of a card's fields without the checksum itself, however they are spaced and
    ordered.
    """
    others = {name: value for name, value in card.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _model_id(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_plain_name(name: str) -> None:
    """Refuse a name that could lead out of the model folder, or hide in it."""
    if (
        name == CARD
        or name.startswith(".")
        or not name.replace(".", "").replace("_", "").replace("-", "").isalnum()
    ):
        raise ArtifactError(f"A model's file cannot be named {name[:40]!r}.")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
