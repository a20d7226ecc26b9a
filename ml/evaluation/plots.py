"""Plots for reports as PNG, with matplotlib: ROC with its band, calibration, bars with intervals,
training curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ml.evaluation.answers import read_answers
from ml.evaluation.metrics import auroc, roc_points, wilson
from ml.evaluation.results import read_evaluation
from ml.figures import Estimate

BOOTSTRAPS = 200
BINS = 10
INK, SOFT = "#1f4e79", "#9dc3e6"
DISTINCT = ("#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7")
"""A palette suited to all forms of color vision (M. Okabe, K. Ito 2008)."""


def write_plots(run: Path) -> list[Path]:
    """Plot ROC, calibration and metrics of an evaluation's folder into that folder; return the
    files.

    Plots that are impossible with a single class or without predictions are omitted.
    """
    written = []
    evaluation = read_evaluation(run)
    of_level = {"slice": evaluation.slice, "patient": evaluation.patient}
    for level, (labels, probabilities, groups) in answers_for_plots(run).items():
        title = f"{evaluation.dataset}, by {level}"
        paths = [run / f"{level}_{kind}.png" for kind in ("roc", "calibration", "figures")]
        if len(np.unique(labels)) == 2:
            roc_plot(paths[0], labels, probabilities, groups, title)
            written.append(paths[0])
        if len(labels):
            calibration_plot(paths[1], labels, probabilities, title)
            bars_plot(paths[2], dict(of_level[level].items()), title, "figure and 95% interval")
            written += paths[1:]
    return written


def answers_for_plots(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return labels (n,), probabilities (repeats, n) and groups (n,) of each level."""
    arrays = {}
    for level, answers in read_answers(run).items():
        of_level = list(answers.values())
        labels, groups = (
            np.array([answer.label for answer in of_level]),
            np.array([answer.group for answer in of_level]),
        )
        arrays[level] = labels, np.array([answer.probabilities for answer in of_level]).T, groups
    return arrays


def roc_plot(
    path: Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    title: str,
    seed: int = 0,
) -> None:
    """Draw a ROC curve with the 95% band of its sensitivity over bootstrap samples of groups.

    Args:
        path: the PNG.
        labels, groups: (n,).
        probabilities: (n,), or (repeats, n), whose sensitivities are averaged.
        title: above it.
        seed: of the bootstrap.
    """
    rows = np.atleast_2d(probabilities)
    grid = np.linspace(0, 1, 101)
    labels = np.asarray(labels)
    names, group_of = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(group_of == number) for number in range(len(names))]
    random = np.random.default_rng(seed)
    sampled = []
    for _ in range(BOOTSTRAPS):
        at = np.concatenate(
            [members[number] for number in random.integers(0, len(names), len(names))]
        )
        if len(np.unique(labels[at])) == 2:
            sampled.append(
                np.mean([_sensitivity_at(grid, labels[at], row[at]) for row in rows], axis=0)
            )
    low, high = np.quantile(sampled, [0.025, 0.975], axis=0)
    figure, axes = _square(title, "false positive rate", "sensitivity")
    axes.fill_between(grid, low, high, color=SOFT, alpha=0.5, linewidth=0, label="95% interval")
    area = np.mean([auroc(labels, row) for row in rows])
    axes.plot(
        grid,
        np.mean([_sensitivity_at(grid, labels, row) for row in rows], axis=0),
        color=INK,
        label=f"AUROC {area:.3f}",
    )
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def calibration_plot(path: Path, labels: np.ndarray, probabilities: np.ndarray, title: str) -> None:
    """Draw the observed frequency of hemorrhage by decile of probability, with 95% Wilson
    intervals, for labels (n,) and probabilities (n,) or (repeats, n).
    """
    predicted, observed = (
        np.atleast_2d(probabilities).ravel(),
        np.tile(labels, len(np.atleast_2d(probabilities))),
    )
    figure, axes = _square(title, "probability given", "share with hemorrhage")
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    for number in np.unique(bins):
        in_bin = bins == number
        low, high = wilson(int(observed[in_bin].sum()), int(in_bin.sum()))
        axes.plot([predicted[in_bin].mean()] * 2, [low, high], color=SOFT, linewidth=3)
        axes.plot(
            predicted[in_bin].mean(),
            observed[in_bin].mean(),
            "o",
            color=INK,
            markersize=3 + 2 * np.log10(in_bin.sum()),
        )
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    _save(figure, path)


def bars_plot(path: Path, figures: Mapping[str, Estimate], title: str, label: str) -> None:
    """Draw one bar with its interval for each name; undefined metrics are omitted."""
    shown = {name: entry for name, entry in figures.items() if entry.value is not None}
    figure = Figure(figsize=(7, 0.8 + 0.35 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))[::-1]
    values = np.array([entry.value for entry in shown.values()], float)
    axes.barh(places, values, color=SOFT)
    for place, entry in zip(places, shown.values(), strict=True):
        if entry.low is not None and entry.high is not None:
            axes.plot([entry.low, entry.high], [place, place], color=INK)
        axes.text(1.01, place, f"{entry.value:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, list(shown))
    axes.set_xlim(min(0.5, float(values.min(initial=0.5))), 1.0)
    axes.set_xlabel(label)
    axes.set_title(title)
    _save(figure, path)


Panel = Mapping[str, Mapping[str, Estimate]]
"""Series by name, each with a metric by group name."""


def grouped_bars_plot(path: Path, panels: Mapping[str, Panel], title: str, label: str) -> None:
    """Draw panels side by side on a common scale: groups of bars with intervals.

    An undefined or missing figure has no bar. Series have the same color in every panel.
    """
    series = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    groups = list(
        dict.fromkeys(
            group for panel in panels.values() for figures in panel.values() for group in figures
        )
    )
    figure = Figure(
        figsize=(1.5 + len(panels) * (0.8 + 0.9 * len(groups)), 4.4), layout="constrained"
    )
    shared: Axes | None = None
    lowest = 0.5
    for number, (name, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1, sharey=shared)
        shared = shared or axes
        lowest = min(lowest, _draw_groups(axes, panel, series, groups, lowest))
        axes.set_title(name, fontsize=10)
        if number == 0:
            axes.set_ylabel(label)
            handles = axes.get_legend_handles_labels()
    if shared is not None:
        shared.set_ylim(lowest, 1.0)
        figure.legend(*handles, loc="outside lower center", ncols=len(series), frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _draw_groups(
    axes: Axes, panel: Panel, series: Sequence[str], groups: Sequence[str], lowest: float
) -> float:
    """Draw the bars of one panel; return the lowest value or interval end, or `lowest` if none is
    below it.
    """
    width = 0.8 / max(len(series), 1)
    for place, name in enumerate(series):
        drawn = [
            (at, figure)
            for at, group in enumerate(groups)
            if (figure := panel.get(name, {}).get(group)) and figure.value is not None
        ]
        x = np.array([at for at, _ in drawn]) + (place - (len(series) - 1) / 2) * width
        values = np.array([figure.value for _, figure in drawn], float)
        axes.bar(x, values, width * 0.92, color=DISTINCT[place % len(DISTINCT)], label=name)
        for middle, (_, figure) in zip(x, drawn, strict=True):
            if figure.low is not None and figure.high is not None:
                axes.plot([middle, middle], [figure.low, figure.high], color="black", linewidth=1.2)
                lowest = min(lowest, figure.low)
        lowest = min(lowest, float(values.min(initial=lowest)))
    axes.set_xticks(np.arange(len(groups)), groups, rotation=25, ha="right")
    axes.grid(axis="y", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    return lowest


def _sensitivity_at(grid: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    points = np.array(roc_points(labels, probabilities, most=len(labels) + 1))
    return np.asarray(np.interp(grid, points[:, 0], points[:, 1]))


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG without dates or versions, so that the file is reproducible."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(path, dpi=110, metadata={"Software": None})
