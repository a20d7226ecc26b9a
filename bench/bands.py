"""Compare two inconclusive bands in a hospital that was not used for fitting: the empirical band
that models ship with, and class-conditional conformal prediction.

    python -m bench.bands RUN

RUN is the output folder of a training with `folds_by=data set`. For each data set, both bands are
fitted to the slices of all other data sets and applied to its own slices. The table shows the share
of slices in the band, and how often answers below it (NPV) and above it (PPV) are right at a
prevalence of 50%. Conformal: a class is ruled out if its probability is below the `1 - PROMISE`
quantile of that class (V. Vovk 2013, "Conditional validity of inductive conformal predictors"); a
slice is inconclusive if both classes or neither are ruled out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ml.errors import UserError
from ml.evaluation.answers import read_answers
from ml.evaluation.calibration import (
    PROMISE,
    Sample,
    balanced_weights,
    inconclusive_band,
    threshold_at,
)


def conformal_band(sample: Sample) -> tuple[float, float]:
    """Return (low, high): below `low`, hemorrhage is ruled out; from `high` on, its absence is
    ruled out; between them lie the slices for which both or neither is ruled out.
    """
    ends = []
    for label, share in ((1, 1 - PROMISE), (0, PROMISE)):
        values = np.sort(sample.probabilities[sample.labels == label])
        rank = int(np.floor(share * (len(values) + 1)))
        ends.append(float(values[min(max(rank, 1), len(values)) - 1]))
    return min(ends), max(ends)


def measured(sample: Sample, low: float, high: float) -> tuple[float, float, float]:
    """Return the share in the band, the NPV and the PPV, with both classes weighted equally; NaN
    where no slice lies below or above the band.
    """
    below, above = sample.probabilities < low, sample.probabilities >= high
    weights, positive = sample.weights, sample.labels == 1

    def share(among: np.ndarray, right: np.ndarray) -> float:
        total = weights[among].sum()
        return float(weights[among & right].sum() / total) if total else float("nan")

    return 1 - float(weights[below | above].sum()), share(below, ~positive), share(above, positive)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.bands")
    parser.add_argument("run", type=Path, metavar="RUN")
    try:
        answers = read_answers(parser.parse_args().run)["slice"]
    except UserError as err:
        sys.stderr.write(f"{err}\n")
        return 1
    labels = np.array([answer.label for answer in answers.values()])
    probabilities = np.array([answer.probabilities[0] for answer in answers.values()])
    sources = np.array([dataset for dataset, _, _ in answers])
    sys.stdout.write("data set      band        inconclusive  NPV    PPV\n")
    for source in np.unique(sources):
        here = sources == source
        fitted = Sample(
            labels[~here], probabilities[~here], balanced_weights(labels[~here], sources[~here])
        )
        sample = Sample(
            labels[here], probabilities[here], balanced_weights(labels[here], sources[here])
        )
        bands = {
            "empirical": inconclusive_band(fitted, threshold_at(fitted, "balanced")),
            "conformal": conformal_band(fitted),
        }
        for name, band in bands.items():
            share, npv, ppv = measured(sample, *band)
            sys.stdout.write(f"{source:12}  {name:10}  {share:12.3f}  {npv:.3f}  {ppv:.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
