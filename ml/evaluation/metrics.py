"""Metrics with confidence intervals.

Labels are 0 or 1, probabilities lie in 0..1, groups identify dependent images (a patient). All
arrays have one entry per held-out image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t as student_t

from ml.evaluation.calibration import Platt, fit_platt
from ml.figures import Confusion, Estimate, Metrics, ThresholdFigures, undefined
from ml.named_points import PREVALENCES, predictive_values, wilson
from ml.typed_json import from_json, to_json

__all__ = [
    "Platt",
    "auroc",
    "auroc_within",
    "confusion",
    "fit_platt",
    "lower_bound_of_mean",
    "metrics_with_intervals",
    "paired_differences",
    "roc_points",
    "share_with_interval",
    "undefined_metrics",
    "wilson",
    "with_width",
]

RESAMPLES = 1000
MOST_WEIGHTS = 4_000_000  # values per chunk of bootstrap weights, 32 MB
CALIBRATION_BINS = 10
UNDEFINED = {
    "accuracy": "there is no image",
    "sensitivity": "there is no image with hemorrhage",
    "specificity": "there is no image without hemorrhage",
    "ppv": "no image was called positive",
    "npv": "no image was called negative",
    "f1": "there is neither a hemorrhage nor a positive call",
    "auroc": "one class is missing",
    "auprc": "there is no image with hemorrhage",
    "brier": "there is no image",
    "ece": "there is no image",
}
BIASED = frozenset({"ece"})
"""Metrics that are biased upward in bootstrap samples."""


def metrics_with_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    seed: int,
    resamples: int = RESAMPLES,
    weights: np.ndarray | None = None,
) -> Metrics:
    """Return each metric with its 95% interval.

    The interval is the percentile interval of a cluster bootstrap over groups, since images of a
    patient are not independent; see `_interval` for the calibration error, and `with_width` for a
    proportion of 0 or 1. `n` is the denominator: the positives for the sensitivity, the positive
    predictions for the PPV (averaged over repeats).

    Args:
        labels, groups: see the module docstring.
        probabilities: (n,), or (repeats, n) for a repeated cross-validation: a metric is then the
            mean over the repeats, and a bootstrap sample draws the same groups in each of them,
            since repeats do not add patients.
        predicted: booleans of the same shape; separate from the probabilities, since each fold has
            its own threshold.
        seed: of the bootstrap.
        resamples: number of bootstrap samples.
        weights: (n,), the number of images that each one represents if they were sampled with
            unequal probabilities; None for one each.
    """
    truth = np.asarray(labels, np.float64)
    rows = np.atleast_2d(np.asarray(probabilities, np.float64))
    called = np.atleast_2d(np.asarray(predicted, bool))
    once, sampled = _sampled_figures(truth, rows, called, groups, seed, resamples, weights)
    own_n = _denominators(truth, called)
    estimates = {
        name: _estimate(
            once[name],
            sampled[name],
            own_n.get(name, len(truth)),
            reason,
            is_biased=name in BIASED,
        )
        for name, reason in UNDEFINED.items()
    }
    counted = {
        "accuracy": np.ones(len(truth), bool),
        "sensitivity": truth == 1,
        "specificity": truth == 0,
        "ppv": called.any(axis=0),
        "npv": ~called.all(axis=0),
    }
    each = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    for name, here in counted.items():
        estimates[name] = with_width(estimates[name], np.asarray(groups)[here], each[here])
    return Metrics(**estimates)


def _denominators(truth: np.ndarray, called: np.ndarray) -> dict[str, int]:
    """Return `n` of each metric that is a proportion of some of the images: the mean over the
    repeats in `called` (repeats, n).
    """
    counts = [confusion(truth, row) for row in called]
    return {
        "sensitivity": _mean([count.tp + count.fn for count in counts]),
        "specificity": _mean([count.tn + count.fp for count in counts]),
        "ppv": _mean([count.tp + count.fp for count in counts]),
        "npv": _mean([count.tn + count.fn for count in counts]),
    }


def with_width(estimate: Estimate, groups: np.ndarray, weights: np.ndarray) -> Estimate:
    """Return a proportion of images with a Wilson interval if the bootstrap interval has zero
    width, as for 25 of 25, using the effective number of groups (L. Kish 1965).

    Args:
        groups, weights: (n,), of the images in the denominator.
    """
    if estimate.value is None or estimate.low != estimate.high or not len(groups):
        return estimate
    _, group_of = np.unique(groups, return_inverse=True)
    of_group = np.bincount(group_of, weights=weights)
    effective = max(1.0, float(of_group.sum() ** 2 / (of_group**2).sum()))
    low, high = wilson(estimate.value * effective, effective)
    return replace(estimate, low=low, high=high)


def figures_at(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int
) -> ThresholdFigures:
    """Return the performance at a threshold, each metric with its 95% interval over bootstrap
    samples of groups.

    The predictive values are given for each of `PREVALENCES`, keyed by percentage as text: they
    follow from sensitivity and specificity at that prevalence.

    Args:
        labels, groups: (n,).
        predicted: (n,) booleans, each at a threshold that was chosen without its own label.
        seed: of the bootstrap.
    """
    truth, called = np.asarray(labels) == 1, np.asarray(predicted, bool)
    ones = np.ones((1, len(truth)))
    sampled = list(_drawn_weights(groups, seed, RESAMPLES)) if len(truth) else []

    def rates(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (
            _ratio(weights @ (truth & called), weights @ truth),
            _ratio(weights @ (~truth & ~called), weights @ ~truth),
        )

    once, drawn = rates(ones), [rates(weights) for weights in sampled]
    sensitivity, specificity = (
        np.concatenate([once[level], *(part[level] for part in drawn)]) for level in (0, 1)
    )

    def estimate(name: str, values: np.ndarray, n: int) -> Estimate:
        return _estimate(float(values[0]), values[1:], n, UNDEFINED[name])

    ppv, npv = {}, {}
    for prevalence in PREVALENCES:
        detected, clear = prevalence * sensitivity, (1 - prevalence) * specificity
        right_positive = _ratio(detected, detected + (1 - prevalence) * (1 - specificity))
        right_negative = _ratio(clear, clear + prevalence * (1 - sensitivity))
        percent = f"{prevalence * 100:g}"
        ppv[percent] = estimate("ppv", right_positive, len(truth))
        npv[percent] = estimate("npv", right_negative, len(truth))
    figures = ThresholdFigures(
        sensitivity=estimate("sensitivity", sensitivity, int(truth.sum())),
        specificity=estimate("specificity", specificity, int((~truth).sum())),
        ppv=ppv,
        npv=npv,
    )
    wide = replace(
        figures,
        sensitivity=with_width(figures.sensitivity, np.asarray(groups)[truth], ones[0][truth]),
        specificity=with_width(figures.specificity, np.asarray(groups)[~truth], ones[0][~truth]),
    )
    if wide == figures:
        return figures
    as_json = to_json(wide)
    return from_json(ThresholdFigures, as_json | predictive_values(as_json))


def undefined_metrics(reason: str) -> Metrics:
    """Return undefined metrics in the form of `metrics_with_intervals`, with this reason."""
    return Metrics(**{name: undefined(reason) for name in UNDEFINED})


def paired_differences(
    labels: np.ndarray,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray,
    seed: int,
    resamples: int = RESAMPLES,
) -> Metrics:
    """Return the paired difference of each metric, second model minus first, with its 95% interval.

    Both use the same bootstrap samples of groups, so that the difficulty of a patient cancels out.
    Each model is given as (probabilities, predicted), (n,) or (repeats, n); see
    `metrics_with_intervals`.
    """
    truth = np.asarray(labels, np.float64)
    figures = [
        _sampled_figures(
            truth,
            np.atleast_2d(np.asarray(p, np.float64)),
            np.atleast_2d(np.asarray(called, bool)),
            groups,
            seed,
            resamples,
        )
        for p, called in (first, second)
    ]
    return Metrics(
        **{
            name: _estimate(
                figures[1][0][name] - figures[0][0][name],
                figures[1][1][name] - figures[0][1][name],
                len(truth),
                reason,
                lowest=-1.0,
                is_biased=name in BIASED,
            )
            for name, reason in UNDEFINED.items()
        }
    )


def auroc_within(
    labels: np.ndarray, probabilities: np.ndarray, folds: np.ndarray, groups: np.ndarray, seed: int
) -> Estimate:
    """Return the area under the ROC curve over pairs within a fold, with its 95% interval by
    bootstrap over groups (n,).

    Each fold has its own model and calibration. This measures the ranking within folds, whereas the
    pooled AUROC also depends on the comparability of folds (A. Airola et al. 2011). `probabilities`
    and `folds` are (repeats, n).
    """
    truth = np.asarray(labels, np.float64)

    def areas(weights: np.ndarray) -> np.ndarray:
        """Return the mean over the repeats for each row of weights (samples, n)."""
        ratios = []
        for scores, fold_of in zip(probabilities, folds, strict=True):
            right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
            for fold in np.unique(fold_of):
                in_fold = fold_of == fold
                of_fold = (weights[:, in_fold] @ truth[in_fold]) * (
                    weights[:, in_fold] @ (1 - truth[in_fold])
                )
                right += (
                    np.where(
                        of_fold > 0,
                        _ranking_figures(truth[in_fold], scores[in_fold], weights[:, in_fold])[0],
                        0,
                    )
                    * of_fold
                )
                pairs += of_fold
            ratios.append(_ratio(right, pairs))
        return np.asarray(np.mean(ratios, axis=0))

    sampled = [areas(weights) for weights in _drawn_weights(groups, seed, RESAMPLES)]
    return _estimate(
        float(areas(np.ones((1, len(truth))))[0]),
        np.concatenate(sampled),
        len(truth),
        "no fold holds both classes",
    )


def share_with_interval(
    holds: np.ndarray,
    groups: np.ndarray,
    seed: int,
    resamples: int = RESAMPLES,
    weights: np.ndarray | None = None,
) -> Estimate:
    """Return the mean of outcomes (n,) in 0..1 with a bootstrap interval over groups (n,);
    `weights` (n,) as `metrics_with_intervals` takes them.
    """
    if not len(holds):
        return undefined("there is nothing to count")
    each = np.ones(len(holds)) if weights is None else np.asarray(weights, np.float64)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    drawn = (
        np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=resamples
        )[:, group_of]
        * each
    )
    return _estimate(
        float(np.average(holds, weights=each)),
        _ratio(drawn @ np.asarray(holds, np.float64), drawn.sum(axis=1)),
        len(holds),
        "",
    )


def lower_bound_of_mean(values: Sequence[float], level: float = 0.99) -> float:
    """Return the one-sided lower confidence bound of the mean of independent values (Student's t);
    -inf for fewer than two values.
    """
    if len(values) < 2:
        return float("-inf")
    spread = float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))
    return float(np.mean(values)) - float(student_t.ppf(level, len(values) - 1)) * spread


def _mean(counts: Sequence[int]) -> int:
    return round(sum(counts) / len(counts))


def _estimate(
    value: float,
    sampled: np.ndarray,
    n: int,
    reason: str,
    *,
    lowest: float = 0.0,
    is_biased: bool = False,
) -> Estimate:
    """Return a metric that lies between `lowest` and 1 with its interval (`_interval`)."""
    if not np.isfinite(value):
        return undefined(reason, n)
    defined = sampled[np.isfinite(sampled)]
    if not len(defined):
        return Estimate(float(value), None, None, n)
    return Estimate(float(value), *_interval(float(value), defined, lowest, is_biased), n)


def _interval(
    value: float, sampled: np.ndarray, lowest: float, is_biased: bool
) -> tuple[float, float]:
    """Return the 95% interval of a metric from its bootstrap samples.

    Its ends are percentiles (B. Efron 1981). The calibration error is a sum of absolute values,
    which is larger in nearly every bootstrap sample than in the data, so its percentiles lie above
    the estimate. Therefore its interval, and that of any other metric whose interval would exclude
    the estimate, is shifted by the bias of the samples' median (B. Efron 1987, "Better bootstrap
    confidence intervals") and clipped to the metric's range, so that it contains the estimate.
    """
    low, middle, high = (float(q) for q in np.quantile(sampled, [0.025, 0.5, 0.975]))
    if is_biased or not low <= value <= high:
        low, high = value - (middle - low), value + (high - middle)
    return min(max(low, lowest), value), max(min(high, 1.0), value)


def _sampled_figures(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    seed: int,
    resamples: int,
    weights: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return each metric and its bootstrap samples over groups; both are means over the rows
    (repeats).

    Samples are processed in chunks, so that a large data set needs no (samples, images) array.
    """
    each = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    once = {
        name: float(values[0])
        for name, values in _mean_figures(
            labels, probabilities, predicted, each[np.newaxis]
        ).items()
    }
    if not len(labels):
        return once, {name: np.zeros(0) for name in once}
    parts = [
        _mean_figures(labels, probabilities, predicted, drawn * each)
        for drawn in _drawn_weights(groups, seed, resamples)
    ]
    return once, {name: np.concatenate([part[name] for part in parts]) for name in once}


def _drawn_weights(groups: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield the weight of each image (n,) in bootstrap samples of groups, in chunks (samples,
    n).
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    random = np.random.default_rng(seed)
    share = np.full(len(names), 1 / len(names))
    rows = max(1, min(resamples, MOST_WEIGHTS // len(group_of)))
    for start in range(0, resamples, rows):
        drawn = random.multinomial(len(names), share, size=min(rows, resamples - start))
        yield drawn[:, group_of].astype(np.float64)


def _mean_figures(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    repeats = [
        _figures(labels, row, called, weights)
        for row, called in zip(probabilities, predicted, strict=True)
    ]
    return {name: np.mean([figures[name] for figures in repeats], axis=0) for name in repeats[0]}


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of labels and scores (n,), with ties counted half (J. A.
    Hanley, B. J. McNeil 1982); NaN if a class is missing.
    """
    labels = np.asarray(labels, np.float64)
    return float(
        _ranking_figures(labels, np.asarray(scores, np.float64), np.ones((1, len(labels))))[0][0]
    )


def roc_points(labels: np.ndarray, probabilities: np.ndarray, most: int = 200) -> list[list[float]]:
    """Return [false positive rate, sensitivity] along the ROC curve from [0, 0] to [1, 1], at most
    `most` points, for labels and probabilities (n,).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    thresholds = np.unique(probabilities)[::-1]
    positives, negatives = np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])
    sensitivity = 1 - np.searchsorted(positives, thresholds) / max(len(positives), 1)
    false_positive = 1 - np.searchsorted(negatives, thresholds) / max(len(negatives), 1)
    points = np.concatenate([[[0.0, 0.0]], np.stack([false_positive, sensitivity], axis=1)])
    if len(points) > most:
        points = points[np.unique(np.linspace(0, len(points) - 1, most).astype(int))]
    return [[float(x), float(y)] for x, y in points]


def confusion(labels: np.ndarray, predicted: np.ndarray) -> Confusion:
    """Return the counts of true and false positives and negatives, for labels and predictions
    (n,).
    """
    truth, called = np.asarray(labels) == 1, np.asarray(predicted, bool)
    return Confusion(
        tp=int((truth & called).sum()),
        fp=int((~truth & called).sum()),
        tn=int((~truth & ~called).sum()),
        fn=int((truth & ~called).sum()),
    )


def _figures(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, weights: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Return each metric for each row of image weights (samples, images); NaN where undefined."""
    truth, called = labels == 1, predicted
    tp, fp = weights @ (truth & called), weights @ (~truth & called)
    tn, fn = weights @ (~truth & ~called), weights @ (truth & ~called)
    total = tp + fp + tn + fn
    area, precision = _ranking_figures(labels, probabilities, weights)
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = sum(
        np.abs(weights[:, bins == number] @ (labels - probabilities)[bins == number])
        for number in range(CALIBRATION_BINS)
    )
    return {
        "accuracy": _ratio(tp + tn, total),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "auroc": area,
        "auprc": precision,
        "brier": _ratio(weights @ (labels - probabilities) ** 2, total),
        "ece": _ratio(np.asarray(gaps, np.float64) * np.ones(len(weights)), total),
    }


def _ranking_figures(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROC (Mann-Whitney, ties half) and AUPRC (average precision) for each row of
    `weights`.
    """
    if not len(labels):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    positive = np.add.reduceat((weights * (labels == 1))[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * (labels == 0))[:, order], starts, axis=1)
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    positive_so_far, negative_so_far = positive.cumsum(axis=1), negative.cumsum(axis=1)
    lower_negatives = negatives[:, None] - negative_so_far
    area = _ratio((positive * (lower_negatives + negative / 2)).sum(axis=1), positives * negatives)
    precision = positive_so_far / np.maximum(positive_so_far + negative_so_far, 1e-12)
    return area, _ratio((positive * precision).sum(axis=1), positives)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(
        above, below, out=np.full(np.shape(above), np.nan), where=below > 0
    )
    return ratio
