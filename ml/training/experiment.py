"""The data of a training with its architecture: fits on parts of it, and their calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.datasets.pool import Pool
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.calibration import OperatingPoint
from ml.models.contract import FitTask, Fitted, HeldOut, RunData, fit_of
from ml.training.inputs import Inputs
from ml.training.operating_points import operating_points, scan_labels


@dataclass(frozen=True, kw_only=True)
class Experiment(RunData):
    """The data of a run, its architecture, and the labels of types of hemorrhage, None if they are
    not used.
    """

    architecture: str
    types: KnownTypes | None = None

    @classmethod
    def of(cls, pool: Pool, inputs: Inputs, **more: Any) -> Experiment:
        """Create an experiment from pooled data sets and their model inputs; `more` are the
        remaining fields.
        """
        known: dict[str, Any] = {
            "labels": pool.labels,
            "groups": pool.groups,
            "sources": pool.sources,
            "scans": pool.scans,
            "unseen": pool.unseen,
        }
        return cls(
            images=inputs.images,
            masks=inputs.masks,
            given_scan_labels=pool.given_scan_labels,
            **known,
            **more,
        )

    @property
    def testable(self) -> np.ndarray:
        """Positions of the slices that can be tested: labeled and unseen by the initial weights."""
        return np.flatnonzero(self.unseen & (self.labels != UNKNOWN))

    @property
    def labeled(self) -> np.ndarray:
        """Positions of all labeled slices."""
        return np.flatnonzero(self.labels != UNKNOWN)

    @property
    def first_of_scan(self) -> np.ndarray:
        """Position of each scan's first slice (s,)."""
        return np.asarray(np.unique(self.scans, return_index=True)[1])

    @property
    def scan_labels(self) -> np.ndarray:
        """The label of each scan (s,); see `ml.training.operating_points.scan_labels`."""
        return scan_labels(self)

    @property
    def weak_scans(self) -> np.ndarray:
        """Numbers of the scans with a scan-level label and no labeled slice."""
        return np.setdiff1d(
            np.array(sorted(self.given_scan_labels), np.int64), self.scans[self.labeled]
        )

    @property
    def scan_sizes(self) -> np.ndarray:
        """Number of slices of each scan (s,)."""
        return np.bincount(self.scans)

    def fit(
        self,
        train: np.ndarray,
        own: Path,
        report: Callable[[float, Mapping[str, float]], None],
        weak_scans: np.ndarray,
        held_out: HeldOut | None = None,
        chosen: Sequence[Mapping[str, Any]] = (),
    ) -> Fitted:
        """Fit the architecture to the slices at `train` and the scans `weak_scans`; see
        `ml.models.contract` for the rest.
        """
        basis = {part.name: getattr(self, part.name) for part in fields(RunData)}
        task = FitTask(
            **basis,
            train=train,
            own=own,
            report=report,
            held_out=held_out,
            chosen=chosen,
            weak_scans=weak_scans,
        )
        return fit_of(self.architecture)(task)

    def operating_points(self, held: HeldOut) -> tuple[OperatingPoint, OperatingPoint]:
        """Return those of slices and of scans; see `ml.training.operating_points`."""
        return operating_points(self, self.architecture, held)
