"""What a model achieves on a site's own confirmed scans, of which not all were equally likely to be
confirmed.

Uncertain scans are all reviewed, of the others a random share. A scan that was drawn with the
probability p stands for 1 / p scans (D. G. Horvitz, D. J. Thompson 1952). Of scans that were drawn
and have not been reviewed yet, those of the same month and probability stand in. Scans that
somebody chose to read stand for themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml.evaluation.metrics import metrics_with_intervals, share_with_interval, with_width
from ml.figures import Estimate, Metrics

SEED = 0
BINS = 5
SHARES = ("accuracy", "sensitivity", "specificity", "ppv", "npv")
Stratum = tuple[str, float]
"""A month ("2026-11") and the probability with which its scans were drawn."""


@dataclass(frozen=True)
class ConfirmedScan:
    """A scan whose label people agree on.

    Attributes:
        month: when it was submitted, such as "2026-11".
        label: 1 for hemorrhage, 0 for none.
        probability, positive: the model's answer.
        group: scans of one group are not independent.
        sampling: the probability with which it was drawn; None if somebody chose to read it.
    """

    month: str
    label: int
    probability: float
    positive: bool
    group: str
    sampling: float | None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Scans with similar probabilities: from `low` to `high`, how many, their mean probability, and
    the share of them with hemorrhage.
    """

    low: float
    high: float
    scans: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True, kw_only=True)
class FiguresOfSite:
    """What a model achieves on confirmed scans.

    Attributes:
        scans, with_hemorrhage: how many there are.
        represented: how many scans they stand for.
        metrics: with 95% intervals, weighted.
        bins: the calibration, weighted; bins without scans are left out.
    """

    scans: int
    with_hemorrhage: int
    represented: float
    metrics: Metrics
    bins: list[Bin]


def sampling_weights(scans: Sequence[ConfirmedScan], drawn: Mapping[Stratum, int]) -> np.ndarray:
    """Return how many scans each one represents, (n,).

    Args:
        scans: the confirmed scans.
        drawn: how many scans were drawn in each stratum, whether or not they have been reviewed.
    """
    reviewed = Counter(_stratum(scan) for scan in scans if scan.sampling is not None)
    weights = np.ones(len(scans))
    for at, scan in enumerate(scans):
        if scan.sampling is not None:
            stratum = _stratum(scan)
            waiting = max(drawn.get(stratum, 0), reviewed[stratum]) / reviewed[stratum]
            weights[at] = waiting / scan.sampling
    return weights


def site_figures(scans: Sequence[ConfirmedScan], weights: np.ndarray) -> FiguresOfSite:
    """Return what the model achieves on these scans.

    The intervals are those of a bootstrap over groups; where it never varies, as with ten of ten,
    Wilson's interval for the effective number of scans (L. Kish 1965).

    Args:
        scans: the confirmed scans.
        weights: (n,), how many scans each stands for.
    """
    labels = np.array([scan.label for scan in scans], int)
    probabilities = np.array([scan.probability for scan in scans], float)
    positive = np.array([scan.positive for scan in scans], bool)
    groups = np.array([scan.group for scan in scans], str)
    metrics = metrics_with_intervals(labels, probabilities, positive, groups, SEED, weights=weights)
    return FiguresOfSite(
        scans=len(scans),
        with_hemorrhage=int(labels.sum()),
        represented=float(weights.sum()),
        metrics=metrics,
        bins=_bins(labels, probabilities, groups, weights),
    )


def _stratum(scan: ConfirmedScan) -> Stratum:
    return scan.month, scan.sampling or 1.0


def _bins(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> list[Bin]:
    number = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    filled = []
    for index in range(BINS):
        in_bin = number == index
        if not in_bin.any():
            continue
        bin_weights = weights[in_bin]
        observed = share_with_interval(labels[in_bin], groups[in_bin], SEED, weights=bin_weights)
        filled.append(
            Bin(
                low=index / BINS,
                high=(index + 1) / BINS,
                scans=int(in_bin.sum()),
                predicted=float(np.average(probabilities[in_bin], weights=bin_weights)),
                observed=with_width(observed, groups[in_bin], bin_weights),
            )
        )
    return filled
