"""Plots for reports as PNG, with matplotlib: ROC with its band, calibration, bars with intervals,
training curves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ml.evaluation.answers import read_answers
from ml.evaluation.metrics import auroc, roc_points, wilson

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
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    for level, (labels, probabilities, groups) in answers_for_plots(run).items():
        figures, paths = (
            metrics[level],
            [run / f"{level}_{kind}.png" for kind in ("roc", "calibration", "figures")],
        )
        if len(np.unique(labels)) == 2:
            roc_plot(paths[0], labels, probabilities, groups, f"{metrics['dataset']}, by {level}")
            written.append(paths[0])
        if len(labels):
            calibration_plot(paths[1], labels, probabilities, f"{metrics['dataset']}, by {level}")
            bars_plot(
                paths[2], figures, f"{metrics['dataset']}, by {level}", "figure and 95 % interval"
            )
            written += paths[1:]
    return written


def answers_for_plots(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return labels (n,), probabilities (repeats, n) and groups (n,) of each level."""
    found = {}
    for level, answers in read_answers(run).items():
        of_level = list(answers.values())
        labels, groups = (
            np.array([answer.label for answer in of_level]),
            np.array([answer.group for answer in of_level]),
        )
        found[level] = labels, np.array([answer.probabilities for answer in of_level]).T, groups
    return found


def roc_plot(
    path: Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    title: str,
    seed: int = 0,
) -> None:
    """Draw a ROC curve with the 95 % band of its sensitivity over bootstrap samples of groups.

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
    axes.fill_between(grid, low, high, color=SOFT, alpha=0.5, linewidth=0, label="95 % interval")
    area = np.mean([auroc(labels, row) for row in rows])
    axes.plot(
        grid,
        np.mean([_sensitivity_at(grid, labels, row) for row in rows], axis=0),
        color=INK,
        label=f"AUROC {area:.3f}",
    )
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def calibration_plot(path: Path, labels: np.ndarray, probabilities: np.ndarray, title: str) -> None:
    """Draw the observed frequency of hemorrhage by decile of probability, with 95 % Wilson
    intervals.
    """
    given, truth = (
        np.atleast_2d(probabilities).ravel(),
        np.tile(labels, len(np.atleast_2d(probabilities))),
    )
    figure, axes = _square(title, "probability given", "share with hemorrhage")
    bins = np.minimum((given * BINS).astype(int), BINS - 1)
    for one in np.unique(bins):
        here = bins == one
        low, high = wilson(int(truth[here].sum()), int(here.sum()))
        axes.plot([given[here].mean()] * 2, [low, high], color=SOFT, linewidth=3)
        axes.plot(
            given[here].mean(),
            truth[here].mean(),
            "o",
            color=INK,
            markersize=3 + 2 * np.log10(here.sum()),
        )
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    _save(figure, path)


def bars_plot(path: Path, figures: Mapping[str, Mapping[str, Any]], title: str, label: str) -> None:
    """Draw a bar per name with its interval; `figures` holds entries of `ml.evaluation.metrics`;
    undefined ones are omitted.
    """
    shown = {name: entry for name, entry in figures.items() if entry["value"] is not None}
    figure = Figure(figsize=(7, 0.8 + 0.35 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))[::-1]
    values = np.array([entry["value"] for entry in shown.values()])
    axes.barh(places, values, color=SOFT)
    for place, entry in zip(places, shown.values(), strict=True):
        if entry["low"] is not None:
            axes.plot([entry["low"], entry["high"]], [place, place], color=INK)
        axes.text(1.01, place, f"{entry['value']:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, list(shown))
    axes.set_xlim(min(0.5, float(values.min(initial=0.5))), 1.0)
    axes.set_xlabel(label)
    axes.set_title(title)
    _save(figure, path)


def grouped_bars_plot(
    path: Path,
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]],
    title: str,
    label: str,
) -> None:
    """Draw panels side by side on a common scale, with grouped bars and intervals:
    panels[panel][series][group] is an entry.

    Entries are those of `ml.evaluation.metrics`; an undefined or missing one has no bar. A series
    has the same color in every panel.
    """
    series = list(dict.fromkeys(name for of_panel in panels.values() for name in of_panel))
    groups = list(
        dict.fromkeys(
            group
            for of_panel in panels.values()
            for of_series in of_panel.values()
            for group in of_series
        )
    )
    figure = Figure(
        figsize=(1.5 + len(panels) * (0.8 + 0.9 * len(groups)), 4.4), layout="constrained"
    )
    shared: Axes | None = None
    width = 0.8 / max(len(series), 1)
    lowest = 0.5
    for number, (panel, of_panel) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1, sharey=shared)
        shared = shared or axes
        for place, name in enumerate(series):
            drawn = [
                (at, entry)
                for at, group in enumerate(groups)
                if (entry := _defined(of_panel, name, group))
            ]
            x = np.array([at for at, _ in drawn]) + (place - (len(series) - 1) / 2) * width
            values = np.array([entry["value"] for _, entry in drawn], float)
            axes.bar(x, values, width * 0.92, color=DISTINCT[place % len(DISTINCT)], label=name)
            for middle, (_, entry) in zip(x, drawn, strict=True):
                if entry["low"] is not None:
                    axes.plot(
                        [middle, middle],
                        [entry["low"], entry["high"]],
                        color="black",
                        linewidth=1.2,
                    )
                    lowest = min(lowest, entry["low"])
            lowest = min(lowest, float(values.min(initial=lowest)))
        axes.set_xticks(np.arange(len(groups)), groups, rotation=25, ha="right")
        axes.set_title(panel, fontsize=10)
        axes.grid(axis="y", color="0.85", linewidth=0.6)
        axes.set_axisbelow(True)
        if number == 0:
            axes.set_ylabel(label)
            handles = axes.get_legend_handles_labels()
    if shared is not None:
        shared.set_ylim(lowest, 1.0)
        figure.legend(*handles, loc="outside lower center", ncols=len(series), frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _defined(
    of_panel: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str, group: str
) -> Mapping[str, Any] | None:
    entry = of_panel.get(name, {}).get(group)
    return entry if entry and entry["value"] is not None else None


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
