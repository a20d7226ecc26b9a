"""The files of the paper's experiment (`ml.paper.grid`): the rows of <data set>.csv, table.md, and
the paper's graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ml.checkpoints import save_text
from ml.evaluation.plots import grouped_bars_plot
from ml.evaluation.result_tables import rows_of, update_results
from ml.figures import Estimate, Metrics
from ml.paper.cells import CellResult, PaperResults

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


def write_report(found: PaperResults, out_dir: Path) -> list[Path]:
    """Write what `ml.paper.grid.run_paper` returned as CSV, Markdown and pictures; return the
    files.

    Raises:
        ArtifactError: another kind of table stands in the place of the CSV.
    """
    name, cells = found.dataset, found.cells
    written = [out_dir / f"{name}.csv", out_dir / "table.md"]
    rows = []
    for cell in cells:
        facts = {**vars(cell), "restructured": "yes" if cell.restructured else "no"}
        for level, metrics in cell.metrics.items():
            rows += rows_of(facts, level, metrics.items())
    update_results(written[0], rows)
    save_text(written[1], "\n".join(_lines(found)) + "\n")
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


def _levels(cells: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(level for cell in cells for level in cell.metrics))


def _figure_of(metrics: Metrics, name: str) -> Estimate:
    return dict(metrics.items())[name]


def _panels(
    cells: Sequence[CellResult], level: str, metric: str
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return panel -> series -> architecture -> figure."""
    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    for restructured in (False, True):  # series in this order, whichever cells are there
        for augmented in (False, True):
            series = (
                f"{'restructured' if restructured else 'plain'},"
                f" {'augmented' if augmented else '×1'}"
            )
            for cell in cells:
                kind = cell.restructured, cell.augmentation > 1
                if kind == (restructured, augmented) and level in cell.metrics:
                    panel = panels.setdefault(PANELS[cell.protocol], {}).setdefault(series, {})
                    panel[cell.architecture] = _figure_of(cell.metrics[level], metric)
    return {name: panels[name] for name in PANELS.values() if name in panels}


def _lines(found: PaperResults) -> Iterator[str]:
    weights = found.initial_weights
    yield f"# The paper's experiment on {found.dataset}, honest and leaked"
    yield ""
    yield "Made by `python -m ml paper`; do not edit."
    yield ""
    yield (
        f"{found.images} labeled images of {found.groups} groups (patients and near-duplicates)."
    )
    yield f"Initial weights: {weights.name or weights.id or weights.kind}, seed {found.seed}."
    yield ""
    for level in _levels(found.cells):
        yield f"## By {level}"
        yield ""
        yield (
            "| architecture | restructured | augmentation | protocol | "
            + " | ".join(SHOWN.values())
            + " | folds × repeats | epochs | seconds |"
        )
        yield "|---|---|---|---|" + "---|" * len(SHOWN) + "--:|--:|--:|"
        yield from (_row(cell, level) for cell in found.cells if level in cell.metrics)
        yield ""
    yield from (f"- {note}" for note in (*NOTES, *found.notes))
    if found.command:
        yield ""
        yield f"```\n{found.command}\n```"


def _row(cell: CellResult, level: str) -> str:
    figures = " | ".join(_figure(_figure_of(cell.metrics[level], name)) for name in SHOWN)
    restructured = "yes" if cell.restructured else "no"
    label = f"{cell.architecture} | {restructured} | ×{cell.augmentation} | {cell.protocol}"
    return (
        f"| {label} | {figures} | {cell.folds} × {cell.repeats} | {cell.epochs} |"
        f" {cell.seconds:.0f} |"
    )


def _figure(figure: Estimate) -> str:
    if figure.value is None:
        return "–"
    return f"{figure.value:.3f}" + (
        "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
    )
