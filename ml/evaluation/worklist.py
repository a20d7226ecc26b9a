"""Simulation of the time scans wait to be read, first in, first out and prioritized by a model.

Scans arrive by a Poisson process; a free reader takes the first of the worklist and is never
interrupted. All orders have the same arrivals, scans and reading times. Scans are drawn with
replacement from a model's predictions on held-out data, separately for each class, so that the
prevalence is a setting and not that of the data set.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import NormalDist

import numpy as np

from ml.artifacts.card import CARD
from ml.artifacts.folder import read_card
from ml.errors import SettingError
from ml.evaluation.answers import read_answers
from ml.figures import Estimate, undefined

ASSUMPTIONS = (
    "This is a simulation, not a measurement in a hospital.",
    (
        "Scans arrive at random at a constant rate, starting with an empty worklist; those still"
        " waiting at the end are read, too."
    ),
    (
        "The model's prediction is available when a scan arrives; readers always take the first"
        " scan of the worklist and finish it."
    ),
    (
        "Reading time depends neither on the finding nor on the order; there are no other"
        " examinations on the worklist."
    ),
    "Hemorrhages elsewhere are as easy for the model as those in its test data.",
)
FIRST_COME = "first in, first out"


@dataclass(frozen=True)
class Department:
    """Parameters of the simulation; each field is an option of the command."""

    arrivals_per_hour: float = field(
        default=10.0, metadata={"help": "scans an hour", "least": 0.01, "most": 1000.0}
    )
    readers: int = field(default=1, metadata={"help": "people who read", "least": 1, "most": 1000})
    minutes_a_scan: float = field(
        default=5.0, metadata={"help": "mean reading time", "least": 0.01, "most": 1000.0}
    )
    spread: float = field(
        default=0.5,
        metadata={
            "help": "of the reading time: standard deviation of its logarithm; 0 means constant",
            "least": 0.0,
            "most": 3.0,
        },
    )
    prevalence: float = field(
        default=0.1, metadata={"help": "share of scans with hemorrhage", "least": 0.0, "most": 1.0}
    )
    hours: float = field(
        default=24.0,
        metadata={
            "help": "length of a day, which starts with an empty worklist",
            "least": 0.1,
            "most": 1000.0,
        },
    )
    repetitions: int = field(
        default=1000, metadata={"help": "number of simulated days", "least": 1, "most": 100_000}
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            least, most, value = (
                setting.metadata["least"],
                setting.metadata["most"],
                getattr(self, setting.name),
            )
            if not least <= value <= most:
                raise SettingError(
                    f"{setting.name} must lie between {least:g} and {most:g}, not {value:g}."
                )

    @property
    def load(self) -> float:
        """Utilization of the readers; from 1 on the worklist keeps growing."""
        return self.arrivals_per_hour * self.minutes_a_scan / 60 / self.readers


Minutes = dict[str, dict[str, dict[str, dict[str, Estimate]]]]
"""By order, by group: "wait" or the difference from first in, first out, and summaries over a day's
scans.
"""


@dataclass(frozen=True)
class DrawnFrom:
    """The numbers of scans with and without hemorrhage that a simulation draws from, and where
    their predictions come from.
    """

    positive: int
    negative: int
    source: str


@dataclass(frozen=True)
class Simulation:
    """Waiting times for each order.

    Attributes:
        assumptions: sentences.
        settings: those of the department, and the seed.
        load: the share of their time that readers are busy.
        scans: the population of scans.
        minutes: the median over days, and the interval that contains 95% of the days.
    """

    assumptions: list[str]
    settings: dict[str, float]
    load: float
    scans: DrawnFrom
    minutes: Minutes


@dataclass(frozen=True)
class Scans:
    """Scans with labels (1, 0), the model's probabilities, and whether they were predicted
    positive.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    called: np.ndarray
    source: str

    def __getitem__(self, drawn: np.ndarray) -> Scans:
        return Scans(self.labels[drawn], self.probabilities[drawn], self.called[drawn], self.source)


def scans_of(run: Path, dataset: str | None = None) -> Scans:
    """Return the scans of a run's held-out predictions (of the first repeat), or, for a model
    folder, scans that match its card's metrics.

    Args:
        run: a folder that `train` or `evaluate` wrote, or a model's.
        dataset: use only the scans of this data set.

    Raises:
        AnswersError: the predictions are unreadable.
        ArtifactError: the card is.
        SettingError: there are no scans of one of the classes.
    """
    if (run / CARD).is_file():
        return _scans_of_card(run, dataset)
    patients = read_answers(run)["patient"]
    answers = [answer for key, answer in patients.items() if dataset in (None, key[0])]
    labels = np.array([answer.label for answer in answers], int)
    if len(set(labels)) < 2:
        known = ", ".join(sorted({key[0] for key in patients}))
        raise SettingError(
            "Scans with and without hemorrhage are needed; give a data set that holds both, of"
            f" {known}."
        )
    probabilities, called = (
        np.array(of_all)
        for of_all in zip(*((a.probabilities[0], a.predicted[0]) for a in answers), strict=True)
    )
    return Scans(labels, probabilities, called, "predictions on held-out scans")


def _scans_of_card(folder: Path, dataset: str | None) -> Scans:
    """Return as many scans as in the card's metrics, evenly spaced on the equal-variance binormal
    ROC curve with the card's patient-level AUROC.

    The most probable scans of each class are called positive, in accordance with its sensitivity
    and specificity.
    """
    card = read_card(folder)
    by_dataset = card.patient_metrics_by_dataset
    if dataset is not None and dataset not in by_dataset:
        raise SettingError(
            f"The model's card has no metrics of {dataset}; it has those of"
            f" {', '.join(by_dataset) or 'no data set'}."
        )
    figures = card.patient_metrics if dataset is None else by_dataset[dataset]
    if figures is None or (auroc := figures.auroc.value) is None:
        raise SettingError(
            "Scans with and without hemorrhage are needed; the model's card has no patient-level"
            " AUROC for them."
        )
    # both classes are present, so both metrics are defined
    sensitivity, specificity = figures.sensitivity.value or 0.0, figures.specificity.value or 0.0
    normal = NormalDist()
    apart = 2**0.5 * normal.inv_cdf(min(max(auroc, 1e-6), 1 - 1e-6))
    of_class = []
    for label, n, share in (
        (1, figures.sensitivity.n, sensitivity),
        (0, figures.specificity.n, 1 - specificity),
    ):
        likelihoods = [
            apart * (normal.inv_cdf((rank + 0.5) / n) + label * apart) - apart**2 / 2
            for rank in range(n)
        ]
        of_class.append(
            (
                np.full(n, label),
                0.5 * (1 + np.tanh(np.array(likelihoods) / 2)),
                np.arange(n) >= n - round(share * n),
            )
        )
    labels, probabilities, called = (np.concatenate(parts) for parts in zip(*of_class, strict=True))
    source = (
        "the metrics of the model's card, since a model folder holds no individual predictions:"
        f" patient-level AUROC {auroc:.3f} (binormal, of equal variance), sensitivity"
        f" {sensitivity:.3f}, specificity {specificity:.3f}"
    )
    return Scans(labels, probabilities, called, source)


ORDERS: dict[str, Callable[[Scans], np.ndarray]] = {
    FIRST_COME: lambda scans: np.arange(len(scans.labels)),
    "by risk": lambda scans: np.argsort(-scans.probabilities, kind="stable"),
    # On either side of the threshold, the closest are the most uncertain.
    "by risk, then uncertainty": lambda scans: np.lexsort(
        (np.where(scans.called, scans.probabilities, -scans.probabilities), ~scans.called)
    ),
}
"""Each returns the scans' positions by descending priority; ties by arrival."""

GROUPS: dict[str, Callable[[Scans], np.ndarray]] = {
    "hemorrhage": lambda scans: scans.labels == 1,
    "hemorrhage, called positive": lambda scans: (scans.labels == 1) & scans.called,
    "hemorrhage, missed": lambda scans: (scans.labels == 1) & ~scans.called,
    "no hemorrhage": lambda scans: scans.labels == 0,
}
SUMMARIES: dict[str, Callable[[np.ndarray], float]] = {
    "median": lambda minutes: float(np.median(minutes)),
    "95th percentile": lambda minutes: float(np.percentile(minutes, 95)),
}


def waits(arrivals: np.ndarray, minutes: np.ndarray, order: np.ndarray, readers: int) -> np.ndarray:
    """Return the waiting time of each scan in minutes, (n,).

    Args:
        arrivals: arrival times in minutes, ascending, (n,).
        minutes: reading times (n,).
        order: positions of the scans by descending priority (n,).
        readers: number of readers.
    """
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    free_at, worklist, arrived, now = [0.0] * readers, list[int](), 0, 0.0
    started = np.zeros(len(arrivals))
    for _ in range(len(arrivals)):
        now = max(now, heapq.heappop(free_at))
        if not worklist:
            now = max(now, arrivals[arrived])
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            heapq.heappush(worklist, rank[arrived])
            arrived += 1
        current = order[heapq.heappop(worklist)]
        started[current] = now
        heapq.heappush(free_at, now + minutes[current])
    waited: np.ndarray = started - arrivals
    return waited


def simulate(
    scans: Scans,
    department: Department,
    seed: int = 0,
    on_day: Callable[[int, int], None] = lambda done, total: None,
) -> Simulation:
    """Return waiting times for each order, and differences from first in, first out.

    Each repetition simulates a day and first resamples the patients, so that the intervals cover
    both the variation between days and the sampling error of the test data.

    Args:
        scans: the population of scans.
        department: the parameters.
        seed: random seed.
        on_day: called with (days simulated, number of days).
    """
    rng = np.random.default_rng(seed)
    per_day_of: dict[tuple[str, str, str, str], list[float]] = {}
    for day in range(department.repetitions):
        arrivals, minutes, drawn = _day(scans, department, rng)
        of_order = {
            name: waits(arrivals, minutes, order(drawn), department.readers)
            for name, order in ORDERS.items()
        }
        for group, belongs in GROUPS.items():
            at = belongs(drawn)
            for name, waited in of_order.items():
                moved = _moved(group)
                shift = (
                    of_order[FIRST_COME] - waited
                    if moved == "sooner"
                    else waited - of_order[FIRST_COME]
                )
                for what, values in (("wait", waited), (moved, shift)):
                    for summary, of in SUMMARIES.items():
                        days = per_day_of.setdefault((name, group, what, summary), [])
                        days += [of(values[at])] if at.any() else []
        on_day(day + 1, department.repetitions)
    over_days: Minutes = {
        name: {group: {"wait": {}, _moved(group): {}} for group in GROUPS} for name in ORDERS
    }
    for (name, group, what, summary), per_day in per_day_of.items():
        over_days[name][group][what][summary] = _over_days(per_day)
    drawn_from = DrawnFrom(
        int((scans.labels == 1).sum()), int((scans.labels == 0).sum()), scans.source
    )
    return Simulation(
        list(ASSUMPTIONS),
        {**asdict(department), "seed": seed},
        department.load,
        drawn_from,
        over_days,
    )


def _moved(group: str) -> str:
    """Return the name of a difference from first in, first out: scans with hemorrhage gain time,
    the others wait longer.
    """
    return "later" if group == "no hemorrhage" else "sooner"


def _day(
    scans: Scans, department: Department, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Scans]:
    """Return arrival times (ascending) and reading times in minutes, and the scans, of one day."""
    n = int(rng.poisson(department.arrivals_per_hour * department.hours))
    arrivals = np.sort(rng.uniform(0, 60 * department.hours, n))
    logarithms = (
        np.log(department.minutes_a_scan)
        - department.spread**2 / 2
        + department.spread * rng.standard_normal(n)
    )
    bleeds = rng.random(n) < department.prevalence
    drawn = np.empty(n, int)
    for label, at in ((1, bleeds), (0, ~bleeds)):
        of_class = np.flatnonzero(scans.labels == label)
        patients = rng.choice(of_class, len(of_class))
        drawn[at] = rng.choice(patients, int(at.sum()))
    return arrivals, np.exp(logarithms), scans[drawn]


def _over_days(per_day: list[float]) -> Estimate:
    """Return the median over days and the 95% range."""
    if not per_day:
        return undefined("no such scan arrived")
    low, value, high = np.percentile(per_day, (2.5, 50, 97.5)).tolist()
    return Estimate(value, low, high, len(per_day))


def sentences(result: Simulation) -> list[str]:
    """Format the result of a simulation as lines for a terminal."""
    settings, scans = result.settings, result.scans
    readers = "1 reader" if settings["readers"] == 1 else f"{settings['readers']} readers"
    lines = [
        (
            f"{settings['arrivals_per_hour']:g} scans an hour, {settings['prevalence']:.1%} of them"
            f" with hemorrhage, {readers}, {settings['minutes_a_scan']:g} minutes a scan: busy"
            f" {result.load:.0%} of the time; {settings['repetitions']} days of"
            f" {settings['hours']:g} hours."
        ),
        (
            f"Drawn from {scans.positive} scans with and {scans.negative} without hemorrhage;"
            f" risk: {scans.source}."
        ),
        "Minutes: median over the days (95% of the days).",
    ]
    for name, groups in result.minutes.items():
        lines.append(f"{name}:")
        for group, minutes in groups.items():
            parts = [f"waits {_both(minutes['wait'])}"]
            if name != FIRST_COME:
                parts.append(f"{_moved(group)} by {_both(minutes[_moved(group)])}")
            lines.append(f"  {group}: " + "; ".join(parts))
    if result.load >= 1:
        lines.append(
            "More scans arrive than can be read: the worklist grows all day, and waiting times"
            " depend on the length of the day."
        )
    return lines + result.assumptions


def _both(summaries: Mapping[str, Estimate]) -> str:
    return ", ".join(
        (
            f"{name} –"
            if entry.value is None
            else f"{name} {entry.value:.1f} ({entry.low:.1f} to {entry.high:.1f})"
        )
        for name, entry in summaries.items()
    )
