"""A model's performance on a site's own confirmed scans, which were not all equally likely to be
confirmed.

All inconclusive scans are reviewed, and a random sample of the others. A scan that was drawn with
probability p represents 1 / p scans (D. G. Horvitz, D. J. Thompson 1952). Scans that were drawn but
have not been reviewed yet are represented by those of the same month and probability. Scans that
somebody chose to read represent only themselves.
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
    """A scan with an agreed label.

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
    """Scans with similar probabilities, from `low` to `high`: their number, mean probability, and
    the share of them with hemorrhage.
    """

    low: float
    high: float
    scans: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True, kw_only=True)
class FiguresOfSite:
    """A model's performance on confirmed scans.

    Attributes:
        scans, with_hemorrhage: numbers of scans.
        represented: number of scans that they represent.
        metrics: with 95% intervals, weighted.
        bins: the calibration curve, weighted; bins without scans are omitted.
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
    """Return the model's performance on these scans.

    The intervals come from a bootstrap over groups; if that has zero width, as for ten of ten, from
    Wilson's formula with the effective number of scans (L. Kish 1965).

    Args:
        scans: the confirmed scans.
        weights: (n,), the number of scans that each one represents.
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
