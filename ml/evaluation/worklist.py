"""How long scans wait to be looked at, in the order of their arrival and in orders that a model's
answers give: a simulation.

Scans arrive by a Poisson process; a free reader takes the first of the worklist and is never
interrupted. Every order sees the same arrivals, scans and minutes. The scans are drawn with
replacement from those that a model answered for without having seen them, those with and those
without hemorrhage by themselves, so that the prevalence is a setting and not that of the data set.
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
        "Scans arrive at random at an even rate, to an empty worklist; those still waiting at the"
        " end are looked at too."
    ),
    (
        "The model's answer is there when a scan arrives; readers take the first of the worklist,"
        " finish it, and follow the order always."
    ),
    (
        "How long a scan takes to read hangs neither on what it shows nor on the order; no other"
        " examination is on the worklist."
    ),
    "Hemorrhages found elsewhere are as easy for the model as those that it was judged on.",
)
FIRST_COME = "first in, first out"


@dataclass(frozen=True)
class Department:
    """What is simulated; each field is a setting of the command."""

    arrivals_per_hour: float = field(
        default=10.0, metadata={"help": "scans an hour", "least": 0.01, "most": 1000.0}
    )
    readers: int = field(default=1, metadata={"help": "people who read", "least": 1, "most": 1000})
    minutes_a_scan: float = field(
        default=5.0, metadata={"help": "mean time of reading", "least": 0.01, "most": 1000.0}
    )
    spread: float = field(
        default=0.5,
        metadata={
            "help": "of the time of reading: standard deviation of its logarithm; 0 is fixed",
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
            "help": "how long scans arrive, from an empty worklist on",
            "least": 0.1,
            "most": 1000.0,
        },
    )
    repetitions: int = field(
        default=1000, metadata={"help": "how many such days", "least": 1, "most": 100_000}
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
        """The share of their time that readers are busy; from 1 on the worklist grows as long as
        scans arrive.
        """
        return self.arrivals_per_hour * self.minutes_a_scan / 60 / self.readers


Minutes = dict[str, dict[str, dict[str, dict[str, Estimate]]]]
"""By order, group, "wait" or how far from first in, first out, and summary over a day's scans."""


@dataclass(frozen=True)
class DrawnFrom:
    """How many scans with and without hemorrhage a simulation draws from, and where their answers
    come from.
    """

    positive: int
    negative: int
    source: str


@dataclass(frozen=True)
class Simulation:
    """How long scans wait in each order.

    Attributes:
        assumptions: sentences.
        settings: those of the department, and the seed.
        load: the share of their time that readers are busy.
        scans: what arriving scans are drawn from.
        minutes: the median over days, and where 95 % of the days lie.
    """

    assumptions: list[str]
    settings: dict[str, float]
    load: float
    scans: DrawnFrom
    minutes: Minutes


@dataclass(frozen=True)
class Scans:
    """Scans with hemorrhage or without (labels 1, 0), how probable the model held it to be, and
    whether it called them positive.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    called: np.ndarray
    source: str

    def __getitem__(self, drawn: np.ndarray) -> Scans:
        return Scans(self.labels[drawn], self.probabilities[drawn], self.called[drawn], self.source)


def scans_of(run: Path, dataset: str | None = None) -> Scans:
    """Return the scans of a run's answers out of fold (the first of several repeats), or, of a
    model folder, scans with its card's figures.

    Args:
        run: a folder that `train` or `evaluate` wrote, or a model's.
        dataset: take the scans of this one only.

    Raises:
        AnswersError: the answers are unreadable.
        ArtifactError: the card is.
        SettingError: there are no scans with hemorrhage or none without.
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
    return Scans(labels, probabilities, called, "the answers to scans that the model had not seen")


def _scans_of_card(folder: Path, dataset: str | None) -> Scans:
    """Return as many scans as the card's figures are of, spaced evenly on the equal-variance
    binormal ROC curve of its AUROC of patients.

    As many of each class are called positive as its sensitivity and its specificity say, the most
    probable ones.
    """
    card = read_card(folder)
    by_dataset = card.patient_metrics_by_dataset
    if dataset is not None and dataset not in by_dataset:
        raise SettingError(
            f"The model's card has no figures of {dataset}; it has those of"
            f" {', '.join(by_dataset) or 'no data set'}."
        )
    figures = card.patient_metrics if dataset is None else by_dataset[dataset]
    if figures is None or (auroc := figures.auroc.value) is None:
        raise SettingError(
            "Scans with and without hemorrhage are needed; the model's card has no AUROC of"
            " patients there."
        )
    # both classes are there, so both are known
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
        "not single answers, which a model folder does not keep, but the figures of its card out"
        f" of fold: AUROC of patients {auroc:.3f} (binormal, of equal variance),"
        f" sensitivity {sensitivity:.3f}, specificity {specificity:.3f}"
    )
    return Scans(labels, probabilities, called, source)


ORDERS: dict[str, Callable[[Scans], np.ndarray]] = {
    FIRST_COME: lambda scans: np.arange(len(scans.labels)),
    "by risk": lambda scans: np.argsort(-scans.probabilities, kind="stable"),
    # On either side of the threshold the nearest to it is the most uncertain.
    "by risk, then uncertainty": lambda scans: np.lexsort(
        (np.where(scans.called, scans.probabilities, -scans.probabilities), ~scans.called)
    ),
}
"""Each returns the scans' positions, first to be looked at first; of equals the first to arrive."""

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
    """Return how many minutes each scan waits until a reader takes it, (n,).

    Args:
        arrivals: when each arrives, ascending, in minutes (n,).
        minutes: how long a reader needs for each (n,).
        order: the positions of the scans, the one that goes before all others first (n,).
        readers: how many read at the same time.
    """
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    free_at, worklist, here, now = [0.0] * readers, list[int](), 0, 0.0
    started = np.zeros(len(arrivals))
    for _ in range(len(arrivals)):
        now = max(now, heapq.heappop(free_at))
        if not worklist:
            now = max(now, arrivals[here])
        while here < len(arrivals) and arrivals[here] <= now:
            heapq.heappush(worklist, rank[here])
            here += 1
        taken = order[heapq.heappop(worklist)]
        started[taken] = now
        heapq.heappush(free_at, now + minutes[taken])
    waited: np.ndarray = started - arrivals
    return waited


def simulate(
    scans: Scans,
    department: Department,
    seed: int = 0,
    on_day: Callable[[int, int], None] = lambda done, total: None,
) -> Simulation:
    """Return how long scans wait in each order, and how much sooner or later than first in, first
    out.

    Each repetition is a day of its own, and draws the patients anew before it draws the day's scans
    from them: the intervals hold the luck of a day and that of having judged the model on a few
    patients.

    Args:
        scans: what arriving scans are drawn from.
        department: the settings.
        seed: of every draw.
        on_day: told (days simulated, days in all).
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str, str, str], list[float]] = {}
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
                        kept = found.setdefault((name, group, what, summary), [])
                        kept += [of(values[at])] if at.any() else []
        on_day(day + 1, department.repetitions)
    over_days: Minutes = {
        name: {group: {"wait": {}, _moved(group): {}} for group in GROUPS} for name in ORDERS
    }
    for (name, group, what, summary), per_day in found.items():
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
    """Return how the minutes between an order and first in, first out are counted: those without
    hemorrhage pay for the others.
    """
    return "later" if group == "no hemorrhage" else "sooner"


def _day(
    scans: Scans, department: Department, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Scans]:
    """Return arrivals (ascending) and times of reading in minutes, and the scans, of one day."""
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
    """Return the median over days and where 95 % of the days lie."""
    if not per_day:
        return undefined("no such scan arrived")
    low, value, high = np.percentile(per_day, (2.5, 50, 97.5)).tolist()
    return Estimate(value, low, high, len(per_day))


def sentences(result: Simulation) -> list[str]:
    """Return a simulation's result as lines for a terminal."""
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
        "Minutes: median over the days (95 % of the days).",
    ]
    for name, groups in result.minutes.items():
        lines.append(f"{name}:")
        for group, found in groups.items():
            told = [f"waits {_both(found['wait'])}"]
            if name != FIRST_COME:
                told.append(f"{_moved(group)} by {_both(found[_moved(group)])}")
            lines.append(f"  {group}: " + "; ".join(told))
    if result.load >= 1:
        lines.append(
            "More scans arrive than can be read: the worklist grows all day, and the waits hang on"
            " how long the day is."
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
