"""A recurrent network over the slices of a scan, for `cnn_lstm` and `cnn_gru`.

The features of a slice are its pooled maps or, after fine-tuning, its cell scores
(`ml.networks.cells`); with the latter the network learns a correction to the decision of the cells.
Features are standardized, projected, and read in anatomical order by an LSTM (S. Hochreiter, J.
Schmidhuber 1997) or a GRU (K. Cho et al. 2014), by default in both directions. The network has two
outputs per slice: the slice decision, and one whose smooth maximum (log mean exp) over the slices
is the scan decision. Both are trained jointly, with slice labels and with whether any slice is
positive. A weakly labeled scan trains only the second.

If no training scan has more than one slice, the sequence consists of the rows of a slice's maps,
the smooth maximum over the rows is the slice decision, and scans are aggregated as in a slice
architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import keras
import numpy as np

from ml.checkpoints import load_or_make_arrays
from ml.evaluation.calibration import Platt
from ml.models.contract import FitTask, Fitted, HeldOut, held_out_of
from ml.models.features import Extractor, extractor_of, features_of
from ml.models.inner_folds import inner_folds, split_weak
from ml.models.recurrent_batches import Drawing, scans_drawn, slices_drawn
from ml.models.recurrent_network import Cell, Network, build_network
from ml.networks.aggregation import aggregate_scans, by_scan, scan_probability
from ml.networks.cells import evidence_of
from ml.networks.convolutions import pooled
from ml.networks.fine_tuning import Tuned
from ml.networks.recurrent_graph import RecurrentHead, head_to_onnx
from ml.networks.training_loop import Batch, run_epochs
from ml.networks.watching import RARER, Watch

AVERAGING = 0.98
FEATURES_SHARE = 0.6  # share of a fit's duration


class Sequences(Protocol):
    """Creates the network's inputs from feature maps, and slice and scan decisions from its
    outputs.
    """

    @property
    def name(self) -> str:
        """The name of a step of a sequence, "slices" or "rows"."""

    @property
    def cells(self) -> Tuned | None:
        """The cells whose scores the network corrects; None for pooled maps."""

    def summarized(self, maps: np.ndarray) -> np.ndarray:
        """Return the features of maps of slices (n, h, w, c): float32 (n, ...)."""

    def read(self, summary: np.ndarray) -> np.ndarray:
        """Return the part of the features that is the network's input, (..., f)."""

    def described(self, summary: np.ndarray) -> np.ndarray:
        """Return average and maximum of the maps of slices, float32 (n, 2c)."""

    def drawn(
        self, task: FitTask, features: np.ndarray, learn: np.ndarray, weak_scans: np.ndarray
    ) -> Drawing:
        """Return the training batches of an epoch."""

    def decided(
        self, network: Network, features: np.ndarray, scans: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the decisions of all slices (n,) and scans (s,); `scans` is nondecreasing."""

    def held_out(self, trained: Trained, part: Part, scans: np.ndarray) -> HeldOut:
        """Return the held-out decisions on data that the network was not trained on."""

    def scan_probability(
        self, decisions: np.ndarray, whole: float, platt: Platt, scan_platt: Platt
    ) -> float:
        """Return the probability of one scan, from the decisions of its slices (n,) and its own
        decision `whole`.
        """


@dataclass(frozen=True)
class Part:
    """Positions of the slices that a network is trained and calibrated on, and numbers of the
    weakly labeled scans.
    """

    learn: np.ndarray
    held_out: np.ndarray
    learn_weak: np.ndarray
    held_out_weak: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A network with its decisions for all slices (n,) and scans (s,) of a task."""

    network: Network
    decisions: np.ndarray
    scan_decisions: np.ndarray


@dataclass(frozen=True)
class OfSlices:
    """A sequence consists of the slices of a scan.

    The features of a slice are its pooled maps, `width` numbers, or the scores of the `cells`,
    followed by pooled maps that only serve as descriptions of slices.
    """

    cells: Tuned | None
    width: int
    name: str = "slices"

    def summarized(self, maps: np.ndarray) -> np.ndarray:
        if self.cells is None:
            return pooled(maps, "both")
        return np.concatenate([evidence_of(maps, self.cells), pooled(maps, "both")], axis=1)

    def read(self, summary: np.ndarray) -> np.ndarray:
        return summary if self.cells is None else summary[..., : -self.width]

    def described(self, summary: np.ndarray) -> np.ndarray:
        return summary[:, -self.width :]

    def drawn(
        self, task: FitTask, features: np.ndarray, learn: np.ndarray, weak_scans: np.ndarray
    ) -> Drawing:
        return scans_drawn(task, features, learn, weak_scans)

    def decided(
        self, network: Network, features: np.ndarray, scans: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        steps, wholes = network.decide(by_scan(features, scans))
        # the decision of a single slice is that of its scan
        of_scans = [
            steps_of_scan[0] if len(steps_of_scan) == 1 else whole
            for steps_of_scan, whole in zip(steps, wholes, strict=True)
        ]
        return np.concatenate(steps), np.array(of_scans)

    def held_out(self, trained: Trained, part: Part, scans: np.ndarray) -> HeldOut:
        slices, held_scans = (
            np.sort(part.held_out),
            np.union1d(scans[part.held_out], part.held_out_weak),
        )
        return HeldOut(
            slices, trained.decisions[slices], held_scans, trained.scan_decisions[held_scans]
        )

    def scan_probability(
        self, decisions: np.ndarray, whole: float, platt: Platt, scan_platt: Platt
    ) -> float:
        calibration = platt if len(decisions) == 1 else scan_platt
        return float(calibration(np.array([whole]))[0])


@dataclass(frozen=True)
class OfRows:
    """A sequence consists of the rows of a slice's maps; scans are aggregated as in a slice
    architecture.
    """

    cells: None = None
    name: str = "rows"

    def summarized(self, maps: np.ndarray) -> np.ndarray:
        return rows_of(maps)

    def read(self, summary: np.ndarray) -> np.ndarray:
        return summary

    def described(self, summary: np.ndarray) -> np.ndarray:
        return pooled_rows(summary)

    def drawn(
        self, task: FitTask, features: np.ndarray, learn: np.ndarray, weak_scans: np.ndarray
    ) -> Drawing:
        return slices_drawn(task, features, learn)

    def decided(
        self, network: Network, features: np.ndarray, scans: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        decisions = network.decide(list(features))[1]
        return decisions, aggregate_scans(decisions, scans)

    def held_out(self, trained: Trained, part: Part, scans: np.ndarray) -> HeldOut:
        return held_out_of(trained.decisions, part.held_out, scans)

    def scan_probability(
        self, decisions: np.ndarray, whole: float, platt: Platt, scan_platt: Platt
    ) -> float:
        return scan_probability(decisions, platt, scan_platt)


def fit(task: FitTask, cell: Cell) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    part = _part_of(task)
    extractor = extractor_of(
        task,
        str(task.settings["layer"]),
        part.learn,
        lambda share, figures: task.report(0.5 * FEATURES_SHARE * share, figures),
    )
    sequences = _sequences_of(task, extractor)
    feature_copies = features_of(
        task,
        extractor.build,
        sequences.summarized,
        int(task.settings["augmentation"]),
        lambda share, figures: task.report((0.5 + 0.5 * share) * FEATURES_SHARE, figures),
        learned=extractor.learned,
        by_scan=True,
    )
    learner = _Learner(task, cell, sequences, sequences.read(feature_copies))
    first = None
    if task.held_out is None:
        first = learner.trained("calibrating", part.learn, part.learn_weak, 0.0, 0.5)
    # Fine-tuned convolutions were trained without the calibration images; with frozen ones a second
    # network can be trained on all images.
    if first is not None and int(task.settings["fine_tune_epochs"]) > 0:
        trained, learned_from = first, part.learn
    else:
        trained = learner.trained("final", task.train, task.weak_scans, 0.5, 1.0)
        learned_from = task.train
    exported = _Exported(cell, sequences, extractor, trained.network)
    return Fitted(
        decisions=trained.decisions,
        scan_decisions=trained.scan_decisions,
        held_out=task.held_out or sequences.held_out(first or trained, part, task.scans),
        chosen={
            "sequence": sequences.name,
            "read": "maps" if sequences.cells is None else "cells",
            "learnt_from": len(learned_from),
            **extractor.tuned_by,
        },
        export=exported.export,
        reference=exported.reference,
        learned_features=extractor.learned,
        descriptions=sequences.described(feature_copies[0]),
    )


def _part_of(task: FitTask) -> Part:
    """Return the training data of the first network; everything if a cross-validation calibrates
    it.
    """
    if task.held_out:
        return Part(task.train, task.train[:0], task.weak_scans, task.weak_scans[:0])
    learn, held_out = inner_folds(task, one_split=True)[0]
    return Part(learn, held_out, *split_weak(task, learn, held_out))


def _sequences_of(task: FitTask, extractor: Extractor) -> Sequences:
    """Return rows if no training scan has more than one slice; else slices, with cell scores if the
    cells were trained and the settings ask for them.
    """
    labeled, sizes = np.bincount(task.scans[task.train]), np.bincount(task.scans)
    if labeled.max() == 1 and not (sizes[task.weak_scans] > 1).any():
        return OfRows()
    # There are no cell scores for reconstructions.
    reads_cells = task.settings["reads"] == "cells" and extractor.restructuring is None
    return OfSlices(extractor.tuned if reads_cells else None, 2 * extractor.shape[1])


@dataclass(frozen=True)
class _Learner:
    """Trains the networks of one fit on the features (copies, n, ..., f) of all slices."""

    task: FitTask
    cell: Cell
    sequences: Sequences
    features: np.ndarray

    def trained(
        self, name: str, learn: np.ndarray, weak_scans: np.ndarray, begin: float, end: float
    ) -> Trained:
        """Train a network on the slices at `learn` and the scans `weak_scans`.

        Args:
            name: of its files.
            learn, weak_scans: its training data.
            begin, end: the fraction of the time of all networks at its beginning and end.
        """
        network = self._network(name, learn, weak_scans, begin, end)
        decided = self.sequences.decided(network, self.features[0], self.task.scans)
        return Trained(network, *decided)

    def _network(
        self, name: str, learn: np.ndarray, weak_scans: np.ndarray, begin: float, end: float
    ) -> Network:
        task, features = self.task, self.features
        axes = tuple(range(features.ndim - 2))
        shown = np.concatenate([learn, np.flatnonzero(np.isin(task.scans, weak_scans))])
        mean = features[0, shown].mean(axis=axes)
        spread = features[0, shown].std(axis=axes) + np.float32(1e-3)
        path, state = task.folder / f"{name}.npz", task.folder / f"{name}-state.npz"
        keras.utils.set_random_seed(task.seed)
        own = None if self.sequences.cells is None else (float(mean[0]), float(spread[0]))
        model = build_network(self.cell, len(mean), task.settings, task.seed, own)

        def learn_anew() -> dict[str, np.ndarray]:
            share = (1 - FEATURES_SHARE) * (end - begin)
            first = FEATURES_SHARE + (1 - FEATURES_SHARE) * begin
            standardized = (features - mean) / spread
            batches, draw = self.sequences.drawn(task, standardized, learn, weak_scans)
            loss = keras.losses.BinaryCrossentropy
            run_epochs(
                model,
                loss={name: loss(from_logits=True) for name in ("steps", "whole")},
                epochs=int(task.settings["epochs"]),
                batches=batches,
                learning_rate=float(task.settings["learning_rate"]),
                averaging=AVERAGING,
                seed=task.seed,
                draw=draw,
                state=state,
                report=lambda done, figures: task.report(first + done * share, figures),
                watch=self._watch(standardized[:1], learn, weak_scans, batches),
            )
            return {f"w{number}": values for number, values in enumerate(model.get_weights())}

        arrays = load_or_make_arrays(path, learn_anew)
        state.unlink(missing_ok=True)
        model.set_weights([arrays[f"w{number}"] for number in range(len(arrays))])
        return Network(model, mean, spread)

    def _watch(
        self, features: np.ndarray, learn: np.ndarray, weak_scans: np.ndarray, batches: int
    ) -> Watch | None:
        """Return the data on which a training on the slices at `learn` and the scans `weak_scans`
        is monitored: sequences of the rest of the training part, drawn like the training sequences,
        but once and without augmentation. None if there is no rest.
        """
        held_back = np.setdiff1d(self.task.train, learn)
        if len(np.unique(self.task.labels[held_back])) < 2:
            return None
        weak_rest = np.setdiff1d(self.task.weak_scans, weak_scans)
        _, draw = self.sequences.drawn(self.task, features, held_back, weak_rest)
        return Watch(list(islice(draw(self.task.seed), max(batches // RARER, 1))), _judged)


def _judged(batch: Batch, outputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and decisions of the labeled steps of a batch or, if its steps are rows of
    slices, of its sequences.
    """
    _, targets, weights = batch
    level = "steps" if (weights["steps"] > 0).any() else "whole"
    known = weights[level] > 0
    return targets[level][..., 0][known], np.asarray(outputs[level])[..., 0][known]


class _Exported:
    """A trained network with its convolutions, as ONNX graphs and in Keras."""

    def __init__(
        self, cell: Cell, sequences: Sequences, extractor: Extractor, network: Network
    ) -> None:
        self._cell, self._sequences = cell, sequences
        self._extractor, self._network = extractor, network
        self._model = extractor.build()

    def export(self, platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        """Return the files of the model folder; see `ml.models.contract.Fitted`."""
        layers = self._network.model.get_layer
        head = RecurrentHead(
            cell=self._cell,
            reader=layers("reader").get_weights(),
            dense={name: layers(name).get_weights() for name in ("projection", "step", "evidence")},
            mean=self._network.mean,
            spread=self._network.spread,
            maps=self._model.output_shape[1:],
            by_rows=self._sequences.name == "rows",
            cells=self._sequences.cells,
        )
        return {
            "features.onnx": self._extractor.to_onnx(),
            "head.onnx": head_to_onnx(head, platt, scan_platt),
        }

    def reference(
        self, images: np.ndarray, platt: Platt, scan_platt: Platt
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return maps and probabilities of one scan; see `ml.models.contract.Fitted`."""
        maps = np.asarray(self._model.predict_on_batch(np.asarray(images, np.float32)))
        features = self._sequences.read(self._sequences.summarized(maps))
        one_scan = np.zeros(len(maps), int)
        decisions, whole = self._sequences.decided(self._network, features, one_scan)
        probability = self._sequences.scan_probability(
            decisions, float(whole[0]), platt, scan_platt
        )
        return maps, platt(decisions), probability


def rows_of(maps: np.ndarray) -> np.ndarray:
    """Return each row's average and maximum, float32 (n, h, 2c), from maps (n, h, w, c)."""
    return np.concatenate([maps.mean(axis=2), maps.max(axis=2)], axis=-1)


def pooled_rows(rows: np.ndarray) -> np.ndarray:
    """Return the average and maximum of whole maps, float32 (n, 2c), from those of their rows (n,
    h, 2c).
    """
    average, largest = np.split(rows, 2, axis=-1)
    return np.concatenate([average.mean(axis=1), largest.max(axis=1)], axis=-1)
