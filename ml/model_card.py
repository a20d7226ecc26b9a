"""The human-readable model card, made from card.json so that it cannot disagree with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ml.artifacts import Card


def model_card(card: Card) -> str:
    """Return a model's card as Markdown: what it is for, its data, protocol, results, limits, and the commands that made it."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Card) -> Iterator[str]:
    data = card.data
    yield f"# Model {card.id}: {card.architecture}, reads one {card.reads}"
    yield ""
    yield "Made by `python -m ml card` from `card.json`; do not edit."
    yield ""
    yield from (f"- {note}" for note in data.get("licence_notes", []))
    band = f"{card.uncertain_low:.3f} to {card.uncertain_high:.3f}"
    yield f"- A probability from {card.threshold:.3f} on is called positive; {band} is uncertain."
    yield ""
    yield "## Data"
    yield ""
    yield f"{', '.join(data['datasets'])}: {data['images']} labelled slices, {data['positive']} with hemorrhage,"
    yield f"{data['negative']} without, of {data['groups']} groups (patients and near-duplicates)."
    yield f"Fingerprint `{data['fingerprint'][:16]}`."
    yield ""
    yield "## Results"
    yield ""
    yield card.protocol
    yield ""
    yield from _table({"all": card.metrics, **card.metrics_by_dataset} if len(card.metrics_by_dataset) > 1 else card.metrics_by_dataset)
    counts = card.confusion
    yield ""
    yield f"At the thresholds of the folds {counts['tp']} hemorrhages were found and {counts['fn']} missed;"
    yield f"of those without, {counts['tn']} were called negative and {counts['fp']} positive."
    yield ""
    check = card.export_check
    yield f"Exported graphs and what was trained differ by at most {check['largest_difference']:.1e} (limit {check['limit']:.0e})."
    yield ""
    yield "## Notes and known failures"
    yield ""
    yield from (f"- {note}" for note in card.notes)
    yield ""
    yield "## How it was made"
    yield ""
    yield "Settings: " + ", ".join(f"{name} {value}" for name, value in card.settings.items()) + f", seed {card.seed}."
    yield "Preprocessing: " + ", ".join(f"{name} {value}" for name, value in card.preprocessing.items()) + "."
    yield "Versions: " + ", ".join(f"{name} {value}" for name, value in card.versions.items()) + "."
    yield ""
    yield "```"
    yield from _commands(data.get("initial_weights", {}))
    yield card.command
    yield "```"
    yield ""
    yield from _origin(data.get("initial_weights", {}))


def _table(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| figure | " + " | ".join(f"{name} (95 % interval)" for name in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for figure in next(iter(columns.values())):
        yield f"| {figure} | " + " | ".join(_cell(metrics[figure]) for metrics in columns.values()) + " |"


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return f"undefined: {entry['reason']}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def _commands(initial: Mapping[str, Any]) -> Iterator[str]:
    """Yield the commands that made the initial weights, the first one first."""
    if initial.get("kind") == "model":
        yield from _commands(initial.get("initial_weights") or {})
        yield initial["command"]


def _origin(initial: Mapping[str, Any]) -> Iterator[str]:
    if initial.get("kind") == "model":
        yield f"Its features are those of model {initial['id']}, trained on {', '.join(initial['datasets'])}."
        yield from _origin(initial.get("initial_weights") or {})
    elif initial.get("kind") == "file":
        yield f"The first weights are those of `{initial['name']}` (SHA-256 `{initial['sha256'][:16]}…`)."
    elif initial.get("kind") == "random":
        yield "The first weights were drawn at random."
