"""The data of a training run with its architecture: fits on parts of it, and their calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.datasets.pool import Pool
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.calibration import OperatingPoint
from ml.models.contract import FitTask, Fitted, HeldOut, RunData, fit_of
from ml.training.inputs import Inputs
from ml.training.operating_points import operating_points


@dataclass(frozen=True, kw_only=True)
class Experiment(RunData):
    """The data of a run, its architecture, and the labels of types of hemorrhage, or None if these
    are not used.
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
        """Create an experiment from pooled data sets and their model inputs, without types of
        hemorrhage; the fields are as in `ml.models.contract.RunData`.

        More than seven parameters, because each is a field of the experiment, given by its name.
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
            given_scan_labels=pool.given_scan_labels,
            architecture=architecture,
        )

    @property
    def testable(self) -> np.ndarray:
        """Positions of the slices that can be tested, (k,): labeled, and unseen by the initial
        weights.
        """
        return np.flatnonzero(self.unseen & (self.labels != UNKNOWN))

    @property
    def labeled(self) -> np.ndarray:
        """Positions of all labeled slices, (k,)."""
        return np.flatnonzero(self.labels != UNKNOWN)

    @property
    def weak_scans(self) -> np.ndarray:
        """Numbers of the scans with a scan-level label and no labeled slice, (k,)."""
        return np.setdiff1d(
            np.array(sorted(self.given_scan_labels), np.int64), self.scans[self.labeled]
        )

    def fit(
        self,
        train: np.ndarray,
        folder: Path,
        report: Callable[[float, Mapping[str, float]], None],
        weak_scans: np.ndarray,
        held_out: HeldOut | None = None,
        chosen: Sequence[Mapping[str, Any]] = (),
    ) -> Fitted:
        """Fit the architecture to the slices at `train` and the scans `weak_scans`; see
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
            given_scan_labels=self.given_scan_labels,
            train=train,
            folder=folder,
            report=report,
            held_out=held_out,
            chosen=chosen,
            weak_scans=weak_scans,
        )
        return fit_of(self.architecture)(task)

    def operating_points(self, held_out: HeldOut) -> tuple[OperatingPoint, OperatingPoint]:
        """Return those of slices and of scans; see `ml.training.operating_points`."""
        return operating_points(self, self.architecture, held_out)
