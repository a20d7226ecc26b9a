"""The files of the paper's experiment (`ml.paper.grid`): the rows of <data set>.csv, table.md, and
the paper's graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml.checkpoints import save_text
from ml.evaluation.plots import grouped_bars_plot
from ml.evaluation.result_tables import rows_of, update_results

SHOWN = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
}
DRAWN = {"accuracy": "accuracy", "auroc": "AUROC"}
PANELS = {
    "honest": "honest: patients apart",
    "leaked": "leaked: pictures and copies split at random",
}
NOTES = (
    (
        "honest: grouped folds, patients and near-duplicates never on both sides; everything that"
        " is fitted (augmentation, autoencoder, scaler, C, calibration) is fitted inside the"
        " training part. What is likelier than not, by that calibration, is called positive."
    ),
    (
        "leaked: the pictures, enlarged by their augmented copies where augmentation is above ×1,"
        " are split as if each were a patient. It is what a careless protocol reports, and no"
        " figure to believe; its intervals take every copy for an independent one."
    ),
    (
        "augmentation ×n: what is learned from is each picture and n - 1 changed copies of it."
        " restructured: an autoencoder draws each picture again, and features of both are joined;"
        " the architecture autoencoder classifies by its bottleneck."
    ),
    (
        "Brackets hold 95 % intervals, by bootstrap over groups. Seconds are those of the fits;"
        " what several cells share (features of frozen convolutions, autoencoders) counts for the"
        " first that needs it. Epochs are those of the network that learns last; an autoencoder"
        " before it sees 8,000 pictures."
    ),
)


def write_report(results: Mapping[str, Any], out_dir: Path) -> list[Path]:
    """Write what `ml.paper.grid.run_paper` returned as CSV, Markdown and pictures; return the
    files.

    Raises:
        ArtifactError: another kind of table stands in the place of the CSV.
    """
    name, cells = results["dataset"], results["cells"]
    written = [out_dir / f"{name}.csv", out_dir / "table.md"]
    rows = []
    for cell in cells:
        facts = {**cell, "restructured": "yes" if cell["restructured"] else "no"}
        for level, metrics in cell["metrics"].items():
            rows += rows_of(facts, level, metrics)
    update_results(written[0], rows)
    save_text(written[1], "\n".join(_lines(results)) + "\n")
    for level in _levels(cells):
        for metric, title in DRAWN.items():
            path = out_dir / f"{name}_paper_{level}_{metric}.png"
            grouped_bars_plot(
                path,
                _panels(cells, level, metric),
                f"{name}, by {level}",
                f"{title} and 95 % interval",
            )
            written.append(path)
    return written


def _levels(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(level for cell in cells for level in cell["metrics"]))


def _panels(
    cells: Sequence[Mapping[str, Any]], level: str, metric: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return panel -> series -> architecture -> entry."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for restructured in (False, True):  # series in this order, whichever cells are there
        for augmented in (False, True):
            for cell in cells:
                if (cell["restructured"], cell["augmentation"] > 1) == (
                    restructured,
                    augmented,
                ) and level in cell["metrics"]:
                    series = (
                        f"{'restructured' if restructured else 'plain'},"
                        f" {'augmented' if augmented else '×1'}"
                    )
                    panel = panels.setdefault(PANELS[cell["protocol"]], {}).setdefault(series, {})
                    panel[cell["architecture"]] = cell["metrics"][level][metric]
    return {name: panels[name] for name in PANELS.values() if name in panels}


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    weights = results["initial_weights"]
    yield f"# The paper's experiment on {results['dataset']}, honest and leaked"
    yield ""
    yield "Made by `python -m ml paper`; do not edit."
    yield ""
    yield (
        f"{results['images']} labeled images of {results['groups']} groups (patients and"
        " near-duplicates)."
    )
    yield (
        f"Initial weights: {weights.get('name') or weights.get('id') or weights['kind']}, seed"
        f" {results['seed']}."
    )
    yield ""
    for level in _levels(results["cells"]):
        yield f"## By {level}"
        yield ""
        yield (
            "| architecture | restructured | augmentation | protocol | "
            + " | ".join(SHOWN.values())
            + " | folds × repeats | epochs | seconds |"
        )
        yield "|---|---|---|---|" + "---|" * len(SHOWN) + "--:|--:|--:|"
        for cell in results["cells"]:
            if level in cell["metrics"]:
                figures = " | ".join(_figure(cell["metrics"][level][name]) for name in SHOWN)
                restructured = "yes" if cell["restructured"] else "no"
                label = (
                    f"{cell['architecture']} | {restructured} | ×{cell['augmentation']} |"
                    f" {cell['protocol']}"
                )
                yield (
                    f"| {label} | {figures} | {cell['folds']} × {cell['repeats']} |"
                    f" {cell['epochs']} | {cell['seconds']:.0f} |"
                )
        yield ""
    yield from (f"- {note}" for note in (*NOTES, *results["notes"]))
    if results["command"]:
        yield ""
        yield f"```\n{results['command']}\n```"


def _figure(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "–"
    return f"{entry['value']:.3f}" + (
        "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    )
