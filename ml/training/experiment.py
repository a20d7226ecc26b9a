"""What a training has: all slices and what is known of them, how a part of them is fitted, and how
its answers are calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.datasets.pool import Pool
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.calibration import OperatingPoint, operating_point
from ml.models.contract import FitTask, Fitted, HeldOut, RunData, fit_of
from ml.training.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Experiment(RunData):
    """The basis of a run, the architecture that is fitted, and what is known of types of bleeding:
    None where nobody asks about them.
    """

    architecture: str
    types: KnownTypes | None = None

    @classmethod
    def of(
        cls,
        pool: Pool,
        inputs: Inputs,
        *,
        architecture: str,
        settings: Mapping[str, Any],
        seed: int,
        init: Path | str,
        shared: Path,
    ) -> Experiment:
        """Return that of pooled data sets and their pictures as the model reads them, without types
        of bleeding; the fields are as in `ml.models.contract.RunData`.
        """
        return cls(
            images=inputs.images,
            labels=pool.labels,
            groups=pool.groups,
            sources=pool.sources,
            scans=pool.scans,
            masks=inputs.masks,
            unseen=pool.unseen,
            settings=settings,
            seed=seed,
            init=init,
            shared=shared,
            told=pool.told,
            architecture=architecture,
        )

    @property
    def judged(self) -> np.ndarray:
        """Positions of the slices that may test: known labels, unseen by the initial weights."""
        return np.flatnonzero(self.unseen & (self.labels != UNKNOWN))

    @property
    def learnable(self) -> np.ndarray:
        """Positions of all slices with known labels."""
        return np.flatnonzero(self.labels != UNKNOWN)

    @property
    def first_of_scan(self) -> np.ndarray:
        """Position of each scan's first slice (s,)."""
        return np.asarray(np.unique(self.scans, return_index=True)[1])

    @property
    def scan_labels(self) -> np.ndarray:
        """The label of each scan (s,): 1 if any slice shows blood or somebody said so, 0 if what is
        known does not, else unknown.
        """
        labels = np.full(int(self.scans.max()) + 1, UNKNOWN)
        np.maximum.at(labels, self.scans, self.labels)
        for scan, label in self.told.items():
            labels[scan] = max(labels[scan], label)
        return labels

    @property
    def weak(self) -> np.ndarray:
        """Numbers of the scans that were labeled as wholes, and no slice of theirs."""
        return np.setdiff1d(np.array(sorted(self.told), np.int64), self.scans[self.learnable])

    @property
    def scan_sizes(self) -> np.ndarray:
        """How many slices each scan has (s,)."""
        return np.bincount(self.scans)

    def fit(
        self,
        train: np.ndarray,
        own: Path,
        report: Callable[[float, Mapping[str, float]], None],
        weak: np.ndarray,
        held_out: HeldOut | None = None,
        chosen: Sequence[Mapping[str, Any]] = (),
    ) -> Fitted:
        """Fit the architecture on the slices at `train` and the scans `weak`; see
        `ml.models.contract` for the rest.
        """
        task = FitTask(
            images=self.images,
            labels=self.labels,
            groups=self.groups,
            sources=self.sources,
            scans=self.scans,
            masks=self.masks,
            unseen=self.unseen,
            settings=self.settings,
            seed=self.seed,
            init=self.init,
            shared=self.shared,
            reuse=self.reuse,
            told=self.told,
            train=train,
            own=own,
            report=report,
            held_out=held_out,
            chosen=chosen,
            weak=weak,
        )
        return fit_of(self.architecture)(task)

    def operating_points(self, fitted: Fitted) -> tuple[OperatingPoint, OperatingPoint]:
        """Return those of slices and of scans, fitted to what a fit held out.

        The scans are those of several slices, of data sets that have both classes of them: one that
        sent only bleeding patients says nothing about a threshold. They are few, so the slices'
        calibration is the prior of theirs; without both classes it serves as is.
        """
        one_half = self.settings.get("threshold") == "one half"
        target = None if one_half else float(self.settings.get("target_sensitivity", 0.95))
        held = fitted.held_out
        of_slices = operating_point(self.labels[held.slices], held.decisions, target)
        usable = (self.scan_sizes[held.scans] > 1) & (self.scan_labels[held.scans] != UNKNOWN)
        sources = self.sources[self.first_of_scan[held.scans]]
        truth = self.scan_labels[held.scans]
        mixed = [
            source
            for source in np.unique(sources)
            if len(np.unique(truth[usable & (sources == source)])) == 2
        ]
        chosen = usable & np.isin(sources, mixed) if mixed else usable
        if len(np.unique(truth[chosen])) < 2:
            return of_slices, of_slices
        return of_slices, operating_point(
            truth[chosen], held.scan_decisions[chosen], target, of_slices.platt
        )
