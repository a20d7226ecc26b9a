"""The human-readable model card, made from card.json so that it cannot disagree with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ml.artifacts.card import ABSENT, Card, InitialWeights, TypeFigures
from ml.figures import BandFigures, Estimate, Metrics, Share

HEAT_MAPS = {
    "hottest_beats_random": (
        "covering the hottest tenth of the picture lowers the answer more than covering a random"
        " tenth of the head"
    ),
    "hottest_in_or_beside_mask": "the hottest cell lies in the outlined blood or beside it",
}


def model_card(card: Card) -> str:
    """Return a model's card as Markdown: what it is for, its data, protocol, results, limits, and
    the commands that made it.
    """
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Card) -> Iterator[str]:
    yield f"# Model {card.id}: {card.architecture}, reads one {card.reads}"
    yield ""
    yield "Made by `python -m ml card` from `card.json`; do not edit."
    yield ""
    yield from _use(card)
    yield from _data(card)
    yield from _results(card)
    yield from _controls(card)
    yield "## Notes and known failures"
    yield ""
    yield from _failures(card)
    yield from (f"- {note}" for note in card.notes)
    yield ""
    yield from _making(card)


def _use(card: Card) -> Iterator[str]:
    """Yield what the model may be used for, and from which probability on it calls a scan
    positive.
    """
    yield from (f"- {note}" for note in card.data.licence_notes)
    band = f"{card.uncertain_low:.3f} to {card.uncertain_high:.3f}"
    yield f"- A probability from {card.threshold:.3f} on is called positive; {band} is uncertain."
    if card.scan_threshold != ABSENT:
        band = f"{card.scan_uncertain_low:.3f} to {card.scan_uncertain_high:.3f}"
        yield (
            f"- For a scan of several slices it is {card.scan_threshold:.3f}; {band} is uncertain."
        )
    if card.blocked_because:
        yield f"- **Not to be promoted.** {card.blocked_because}"
    yield ""


def _data(card: Card) -> Iterator[str]:
    data = card.data
    yield "## Data"
    yield ""
    yield (
        f"{', '.join(data.datasets)}: {data.images} labeled slices, {data.positive} with"
        " hemorrhage,"
    )
    yield f"{data.negative} without, of {data.groups} groups (patients and near-duplicates)."
    yield f"Fingerprint `{data.fingerprint[:16]}`."
    yield ""


def _results(card: Card) -> Iterator[str]:
    yield "## Results"
    yield ""
    yield card.protocol
    yield ""
    if card.patient_metrics:
        yield "By slice:"
        yield ""
    yield from _table(_columns(card.metrics, card.metrics_by_dataset))
    if card.patient_metrics:
        yield ""
        yield "By patient (a picture without a patient counts as one):"
        yield ""
        yield from _table(_columns(card.patient_metrics, card.patient_metrics_by_dataset))
    counts = card.confusion
    yield ""
    yield (
        f"At the thresholds of the folds {counts.tp} hemorrhages were found and {counts.fn} missed;"
    )
    yield f"of those without, {counts.tn} were called negative and {counts.fp} positive."
    yield from _band(card.band)
    yield from _heat_maps(card.heat_maps)
    yield from _types(card.types)
    check = card.export_check
    yield ""
    yield (
        f"Exported graphs and what was trained differ by at most {check.largest_difference:.1e}"
        f" (limit {check.limit:.0e})."
    )
    yield ""


def _making(card: Card) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    yield f"Settings: {_named(card.settings)}, seed {card.seed}."
    yield f"Preprocessing: {_named(card.preprocessing)}."
    yield f"Versions: {_named(card.versions)}."
    yield ""
    yield "```"
    yield from _commands(card.data.initial_weights)
    yield card.command
    yield "```"
    yield ""
    yield from _origin(card.data.initial_weights)


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _columns(metrics: Metrics, by_dataset: Mapping[str, Metrics]) -> Mapping[str, Metrics]:
    return {"all": metrics, **by_dataset} if len(by_dataset) != 1 else by_dataset


def _band(band: Mapping[str, BandFigures]) -> Iterator[str]:
    for level, found in band.items():
        yield ""
        yield (
            f"By {level}, out of fold: right below the uncertain band (NPV) {_share(found.npv)},"
            f" right above it (PPV) {_share(found.ppv)},"
        )
        yield f"in the band {found.uncertain.value or 0:.1%}."


def _share(share: Share) -> str:
    return "undefined" if share.value is None else f"{share.value:.3f} of {share.n}"


def _heat_maps(heat_maps: Mapping[str, Estimate]) -> Iterator[str]:
    if heat_maps:
        yield ""
        yield "Heat maps of hemorrhages that were found, out of fold:"
        yield ""
        yield from (
            f"- {HEAT_MAPS[name]}: {_cell(found)} of {found.n}."
            for name, found in heat_maps.items()
        )


def _types(types: Mapping[str, TypeFigures]) -> Iterator[str]:
    """Yield how well each type of bleeding is told, out of fold; of a type that few patients show,
    what each of them got.
    """
    if not types:
        return
    yield ""
    yield (
        "Type of bleeding, on slices and patients whose types are known, those without blood among"
        " them:"
    )
    yield ""
    yield (
        "| type | told | slices | patients | AUROC of slices | of patients | of patients who bleed"
        " | calibration error of patients |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, found in types.items():
        counts = f"{found.slices} of {found.of_slices} | {found.patients} of {found.of_patients}"
        figures = ["few patients", "–", "–", "–"]
        if found.slice and found.patient:
            of_patients = found.patient
            shown = (
                found.slice.auroc,
                of_patients.auroc,
                of_patients.auroc_among_bleeding,
                of_patients.ece,
            )
            figures = [_cell(figure) for figure in shown]
        yield f"| {name} | {'yes' if found.given else 'no'} | {counts} | {' | '.join(figures)} |"
    for name, found in types.items():
        if found.scores:
            scores = ", ".join(
                "no answer"
                if score.rank is None
                else f"{score.probability:.3f} (rank {score.rank} of {score.of})"
                for score in found.scores
            )
            yield ""
            yield f"Patients with {name} bleeding: {scores}."


def _controls(card: Card) -> Iterator[str]:
    """Yield the run beside its controls: what the same protocol finds where there is nothing to
    find.
    """
    if not card.controls:
        return
    yield "## Controls"
    yield ""
    yield "| run | AUROC of slices (interval) | n | accuracy (interval) | seconds | how |"
    yield "|---|---|---|---|---|---|"
    auroc, accuracy = card.metrics.auroc, card.metrics.accuracy
    yield (
        f"| **this model** | {_cell(auroc)} | {auroc.n} | {_cell(accuracy)} | {card.seconds:.0f}"
        " in all | as above |"
    )
    for control in card.controls:
        name = control.name.replace("_", " ")
        if control.auroc is None:
            yield f"| {name} | – | – | – | – | not run: {control.skipped} |"
            continue
        shown = "–" if control.accuracy is None else _cell(control.accuracy)
        figures = f"{_cell(control.auroc)} | {control.auroc.n} | {shown} | {control.seconds:.0f}"
        yield f"| {name} | {figures} | {control.how} |"
    yield ""


def _failures(card: Card) -> Iterator[str]:
    """Yield what the figures themselves say about failing; nothing for cards of the first versions,
    whose notes say it.
    """
    if not card.patient_metrics:
        return
    counts = card.confusion
    yield f"- Of {counts.tp + counts.fn} slices with hemorrhage {counts.fn} were missed;"
    yield f"  of {counts.tn + counts.fp} without, {counts.fp} raised a false alarm."
    ranked = {
        name: metrics.auroc.value
        for name, metrics in card.metrics_by_dataset.items()
        if metrics.auroc.value is not None
    }
    if len(ranked) > 1:
        worst = min(ranked, key=lambda name: ranked[name])
        yield f"- It is weakest on {worst} (AUROC of slices {ranked[worst]:.3f})."


def _table(columns: Mapping[str, Metrics]) -> Iterator[str]:
    yield "| figure | " + " | ".join(f"{name} (95 % interval)" for name in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for rows in zip(*(metrics.items() for metrics in columns.values()), strict=True):
        figure = rows[0][0]
        yield f"| {figure} | " + " | ".join(_cell(entry) for _, entry in rows) + " |"


def _cell(figure: Estimate) -> str:
    if figure.value is None:
        return f"undefined: {figure.reason}"
    if figure.low is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _commands(initial: InitialWeights | None) -> Iterator[str]:
    """Yield the commands that made the initial weights, the first one first."""
    if initial and initial.kind == "model":
        yield from _commands(initial.initial_weights)
        yield initial.command or ""


def _origin(initial: InitialWeights | None) -> Iterator[str]:
    if initial is None:
        return
    if initial.kind == "model":
        yield (
            f"Its features are those of model {initial.id}, trained on"
            f" {', '.join(initial.datasets or [])}."
        )
        yield from _origin(initial.initial_weights)
    elif initial.kind == "file":
        yield (
            f"The first weights are those of `{initial.name}` (SHA-256"
            f" `{(initial.sha256 or '')[:16]}…`)."
        )
    elif initial.kind == "random":
        yield "The first weights were drawn at random."
