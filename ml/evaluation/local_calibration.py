"""Calibration to one site: what a small number of confirmed local scans shows about a model's
probabilities there.

The shipped calibration is the prior, so a few scans shift it slightly and many can shift it freely.
The threshold stays at the same probability: once probabilities are calibrated again, the threshold
has its intended meaning. The named operating points are fitted anew, for administrators who want
another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ml.errors import DatasetError
from ml.evaluation.calibration import (
    Platt,
    Sample,
    balanced_weights,
    fit_platt,
    threshold_at,
)
from ml.evaluation.metrics import auroc, figures_at
from ml.figures import LocalFigures, PointFigures
from ml.named_points import POINTS

FEWEST_SCANS, FEWEST_OF_A_CLASS = 20, 5
FOLDS = 5
AS_SHIPPED = Platt(1.0, 0.0)
"""The identity for the log-odds of shipped probabilities: leaves them unchanged."""
EDGE = 1e-6
DRAWS = 200


@dataclass(frozen=True)
class LocalScans:
    """Confirmed scans of one site: labels 0 or 1, shipped probabilities and patients, each (n,)."""

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray

    def among(self, chosen: np.ndarray) -> LocalScans:
        """Return the scans at these positions, or where the mask is true."""
        return LocalScans(self.labels[chosen], self.probabilities[chosen], self.groups[chosen])

    @property
    def of_class(self) -> tuple[int, int]:
        """The numbers of scans with and without hemorrhage."""
        return int((self.labels == 1).sum()), int((self.labels == 0).sum())

    @property
    def lacks(self) -> str | None:
        """Why the scans cannot be used for calibration, as a sentence; None if they can."""
        if sum(self.of_class) >= FEWEST_SCANS and min(self.of_class) >= FEWEST_OF_A_CLASS:
            return None
        return (
            f"A calibration needs at least {FEWEST_SCANS} scans that the model has not seen, at"
            f" least {FEWEST_OF_A_CLASS} with and {FEWEST_OF_A_CLASS} without hemorrhage; there"
            f" are {self.of_class[0]} with and {self.of_class[1]} without."
        )

    def require_enough(self) -> None:
        """Check that there are enough scans for calibration.

        Raises:
            DatasetError: there are too few, or too few of one class.
        """
        if self.lacks is not None:
            raise DatasetError(self.lacks)

    def can_spare(self, size: int) -> bool:
        """Return whether any draw of `size` scans for calibration leaves some of each class for
        testing.
        """
        most_of_a_class = size - FEWEST_OF_A_CLASS
        return self.lacks is None and min(self.of_class) > most_of_a_class


def fit_local(scans: LocalScans) -> Platt:
    """Return the mapping from the log-odds of shipped probabilities to local probabilities."""
    weights = balanced_weights(scans.labels, np.full(len(scans.labels), ""))
    return fit_platt(scans.labels, _log_odds(scans.probabilities), AS_SHIPPED, weights)


def before_and_after(
    scans: LocalScans, threshold: float, seed: int = 0
) -> tuple[LocalFigures, LocalFigures]:
    """Return the metrics at the threshold with shipped and with local probabilities; each scan is
    calibrated on the scans of other patients (`FOLDS`-fold cross-validation).
    """
    folds = _folds(scans, seed)
    local = np.empty(len(scans.labels))
    for fold in np.unique(folds):
        in_fold = folds == fold
        local[in_fold] = fit_local(scans.among(~in_fold))(_log_odds(scans.probabilities[in_fold]))

    def figures(values: np.ndarray) -> LocalFigures:
        at_threshold = figures_at(scans.labels, values >= threshold, scans.groups, seed)
        return LocalFigures(brier=_balanced_brier(scans.labels, values), **vars(at_threshold))

    return figures(scans.probabilities), figures(local)


def local_points(scans: LocalScans, seed: int = 0) -> dict[str, PointFigures]:
    """Return the named operating points on local probabilities with their metrics, which are those
    of thresholds fitted to the scans of other patients (`FOLDS`-fold cross-validation).
    """
    folds = _folds(scans, seed)
    points = {}
    for name in POINTS:
        called = np.zeros(len(scans.labels), bool)
        for fold in np.unique(folds):
            in_fold = folds == fold
            platt, threshold = _point_of(scans.among(~in_fold), name)
            called[in_fold] = platt(_log_odds(scans.probabilities[in_fold])) >= threshold
        _, threshold = _point_of(scans, name)
        figures = figures_at(scans.labels, called, scans.groups, seed)
        points[name] = PointFigures(threshold=threshold, **vars(figures))
    return points


def _point_of(scans: LocalScans, name: str) -> tuple[Platt, float]:
    """Return the calibration and threshold of a named operating point fitted to these scans."""
    platt = fit_local(scans)
    weights = balanced_weights(scans.labels, np.full(len(scans.labels), ""))
    sample = Sample(scans.labels, platt(_log_odds(scans.probabilities)), weights)
    return platt, min(threshold_at(sample, name), 1.0)


def simulate(scans: LocalScans, threshold: float, size: int, seed: int = 0) -> dict[str, float]:
    """Return the effect of calibration on `size` scans of a site, measured on its other scans and
    averaged over `DRAWS` random draws: {"sensitivity", "specificity", "brier"} with "_before",
    "_after" and, as if all scans of the site had been used for calibration, "_best"; and "auroc".

    Raises:
        DatasetError: the site has too few scans.
    """
    scans.require_enough()
    if not scans.can_spare(size):
        raise DatasetError(f"The site has too few scans to calibrate with {size} of them.")
    random = np.random.default_rng(seed)
    best = fit_local(scans)
    results: list[Mapping[str, float]] = []
    for _ in range(DRAWS):
        drawn = _draw(scans, size, random)
        rest = ~np.isin(np.arange(len(scans.labels)), drawn)
        log_odds = _log_odds(scans.probabilities[rest])
        labels = scans.labels[rest]
        row: dict[str, float] = {}
        for name, values in (
            ("before", scans.probabilities[rest]),
            ("after", fit_local(scans.among(drawn))(log_odds)),
            ("best", best(log_odds)),
        ):
            called = values >= threshold
            row[f"sensitivity_{name}"] = float(called[labels == 1].mean())
            row[f"specificity_{name}"] = float((~called)[labels == 0].mean())
            row[f"brier_{name}"] = _balanced_brier(labels, values)
        results.append(row)
    means = {name: float(np.mean([row[name] for row in results])) for name in results[0]}
    return means | {"auroc": auroc(scans.labels, scans.probabilities)}


def _draw(scans: LocalScans, size: int, random: np.random.Generator) -> np.ndarray:
    """Return positions of `size` scans, at least `FEWEST_OF_A_CLASS` of each class."""
    order = random.permutation(len(scans.labels))
    first = [order[scans.labels[order] == label][:FEWEST_OF_A_CLASS] for label in (0, 1)]
    chosen = np.concatenate(first)
    return np.concatenate([chosen, order[~np.isin(order, chosen)][: size - len(chosen)]])


def _folds(scans: LocalScans, seed: int) -> np.ndarray:
    """Return the fold of each scan (n,): patients are distributed over the folds, separately for
    those with and without hemorrhage.
    """
    random = np.random.default_rng(seed)
    folds = np.zeros(len(scans.labels), int)
    names, first = np.unique(scans.groups, return_index=True)
    for label in (0, 1):
        of_class = random.permutation(names[scans.labels[first] == label])
        for number, name in enumerate(of_class):
            folds[scans.groups == name] = number % FOLDS
    return folds


def _balanced_brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the Brier score with both classes weighted equally."""
    return float(
        np.mean([np.mean((probabilities[labels == label] - label) ** 2) for label in (0, 1)])
    )


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(probabilities, np.float64), EDGE, 1 - EDGE)
    return np.log(clipped / (1 - clipped))
