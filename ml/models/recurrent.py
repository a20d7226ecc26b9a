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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np

from ml.checkpoints import load_or_make_arrays
from ml.evaluation.calibration import Platt
from ml.models.contract import FitTask, Fitted, HeldOut, held_out_of
from ml.models.features import extractor_of, features_of
from ml.models.inner_folds import inner_folds, split_weak
from ml.models.recurrent_batches import SLICES, scans_drawn, slices_drawn
from ml.networks.aggregation import aggregate_scans, by_scan, scan_probability
from ml.networks.cells import evidence_of
from ml.networks.convolutions import pooled
from ml.networks.recurrent_graph import head_to_onnx
from ml.networks.training_loop import run_epochs

Cell = Literal["lstm", "gru"]
AVERAGING = 0.98
STEP = 16  # lengths are padded to multiples of this, so that few shapes are compiled
FEATURES_SHARE = 0.6  # of a fit's time
NOISE = 1.0  # noise on the cell scores during training, in standard deviations


@dataclass(frozen=True)
class Network:
    """A trained network and the standardization of its inputs: (features - mean) / spread, both
    (f,).
    """

    model: keras.Model
    mean: np.ndarray
    spread: np.ndarray

    def decide(self, sequences: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the decision of each step of each sequence (t, f), and one for each whole sequence
        (n,).
        """
        steps: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        wholes = np.zeros(len(sequences))
        by_length: dict[int, list[int]] = {}
        for number, sequence in enumerate(sequences):
            by_length.setdefault(-(-len(sequence) // STEP) * STEP, []).append(number)
        for length, numbers in by_length.items():
            for start in range(0, len(numbers), SLICES):
                chunk = numbers[start : start + SLICES]
                inputs, present = (
                    np.zeros((SLICES, length, len(self.mean)), np.float32),
                    np.zeros((SLICES, length), np.float32),
                )
                present[:, 0] = 1  # padding rows of the batch must be valid sequences, too
                for row, number in enumerate(chunk):
                    there = len(sequences[number])
                    inputs[row, :there], present[row, :there] = (
                        (sequences[number] - self.mean) / self.spread,
                        1,
                    )
                outputs = self.model.predict_on_batch({"features": inputs, "present": present})
                for row, number in enumerate(chunk):
                    steps[number] = np.asarray(
                        outputs["steps"][row, : len(sequences[number]), 0], np.float64
                    )
                    wholes[number] = float(outputs["whole"][row, 0])
        return steps, wholes


def fit(task: FitTask, cell: Cell) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    layer, learns = str(task.settings["layer"]), int(task.settings["fine_tune_epochs"]) > 0
    learn, held = (
        (task.train, task.train[:0]) if task.held_out else inner_folds(task, one_split=True)[0]
    )
    learn_weak, held_weak = (
        (task.weak_scans, task.weak_scans[:0]) if task.held_out else split_weak(task, learn, held)
    )
    by_rows = (
        int(np.bincount(task.scans[task.train]).max()) == 1
        and not (np.bincount(task.scans)[task.weak_scans] > 1).any()
    )
    extractor = extractor_of(
        task,
        layer,
        learn,
        lambda share, figures: task.report(0.5 * FEATURES_SHARE * share, figures),
    )
    # There are no cell scores for reconstructions or for single rows.
    reads_cells = (
        task.settings["reads"] == "cells" and extractor.restructuring is None and not by_rows
    )
    cells = extractor.tuned if reads_cells else None

    def summarized(maps: np.ndarray) -> np.ndarray:
        if cells is not None:
            return np.concatenate([evidence_of(maps, cells), pooled(maps, "both")], axis=1)
        return rows_of(maps) if by_rows else pooled(maps, "both")

    feature_copies = features_of(
        task,
        extractor.build,
        summarized,
        int(task.settings["augmentation"]),
        lambda share, figures: task.report((0.5 + 0.5 * share) * FEATURES_SHARE, figures),
        learned=extractor.learned,
        by_scan=True,
    )
    width = 2 * extractor.shape[1]

    def read(summary: np.ndarray) -> np.ndarray:
        """Return the network's inputs; the pooled maps after the cell scores only serve as
        descriptions of slices.
        """
        return summary[..., :-width] if cells is not None else summary

    features = read(feature_copies)

    def trained(
        name: str, at: np.ndarray, weak_scans: np.ndarray, begin: float, end: float
    ) -> tuple[Network, np.ndarray, np.ndarray]:
        """Train a network on the slices at `at` and the scans `weak_scans`; return it with its
        decisions for all slices and scans.
        """

        def report(share: float, figures: Mapping[str, float]) -> None:
            task.report(
                FEATURES_SHARE + (1 - FEATURES_SHARE) * (begin + share * (end - begin)), figures
            )

        network = _trained(
            task,
            cell,
            features,
            at,
            weak_scans,
            name,
            report,
            by_rows=by_rows,
            corrects=cells is not None,
        )
        return network, *answers_of(network, features[0], task.scans, by_rows)

    held_out = task.held_out
    if held_out is None:
        network, decisions, scan_decisions = trained("calibrating", learn, learn_weak, 0.0, 0.5)
        held_scans = np.union1d(task.scans[held], held_weak)
        held = np.sort(held)
        held_out = HeldOut(held, decisions[held], held_scans, scan_decisions[held_scans])
        if by_rows:
            held_out = held_out_of(decisions, held, task.scans)
    # Fine-tuned convolutions were trained without the calibration images; with frozen ones a second
    # network can be trained on all images.
    if not learns or task.held_out is not None:
        network, decisions, scan_decisions = trained("final", task.train, task.weak_scans, 0.5, 1.0)

    model = extractor.build()

    def export(platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        arrays = network.model.get_layer("reader").get_weights()
        dense = {
            name: network.model.get_layer(name).get_weights()
            for name in ("projection", "step", "evidence")
        }
        how = (
            cell,
            arrays,
            dense,
            network.mean,
            network.spread,
            platt,
            scan_platt,
            model.output_shape[1:],
        )
        head = head_to_onnx(*how, by_rows=by_rows, cells=cells)
        return {"features.onnx": extractor.to_onnx(), "head.onnx": head}

    def reference(
        images: np.ndarray, platt: Platt, scan_platt: Platt
    ) -> tuple[np.ndarray, np.ndarray, float]:
        maps = np.asarray(model.predict_on_batch(np.asarray(images, np.float32)))
        slice_decisions, whole = answers_of(
            network, read(summarized(maps)), np.zeros(len(maps), int), by_rows
        )
        if by_rows:
            return (
                maps,
                platt(slice_decisions),
                scan_probability(slice_decisions, platt, scan_platt),
            )
        return (
            maps,
            platt(slice_decisions),
            float((platt if len(slice_decisions) == 1 else scan_platt)(whole)[0]),
        )

    return Fitted(
        decisions=decisions,
        scan_decisions=scan_decisions,
        held_out=held_out,
        chosen={
            "sequence": "rows" if by_rows else "slices",
            "read": "maps" if cells is None else "cells",
            "learnt_from": len(task.train if not learns or task.held_out else learn),
            **extractor.tuned_by,
        },
        export=export,
        reference=reference,
        learned_features=extractor.learned,
        descriptions=pooled_rows(features[0]) if by_rows else feature_copies[0, :, -width:],
    )


def rows_of(maps: np.ndarray) -> np.ndarray:
    """Return each row's average and maximum, float32 (n, h, 2c), from maps (n, h, w, c)."""
    return np.concatenate([maps.mean(axis=2), maps.max(axis=2)], axis=-1)


def pooled_rows(rows: np.ndarray) -> np.ndarray:
    """Return the average and maximum of whole maps, float32 (n, 2c), from those of their rows (n,
    h, 2c).
    """
    average, largest = np.split(rows, 2, axis=-1)
    return np.concatenate([average.mean(axis=1), largest.max(axis=1)], axis=-1)


def answers_of(
    network: Network, features: np.ndarray, scans: np.ndarray, by_rows: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the decisions of all slices (n,) and scans (s,); `scans` is nondecreasing. The
    decision of a single slice is that of its scan.
    """
    if by_rows:
        decisions = network.decide(list(features))[1]
        return decisions, aggregate_scans(decisions, scans)
    steps, wholes = network.decide(by_scan(features, scans))
    return np.concatenate(steps), np.array(
        [own[0] if len(own) == 1 else whole for own, whole in zip(steps, wholes, strict=True)]
    )


def _trained(
    task: FitTask,
    cell: Cell,
    features: np.ndarray,
    learn: np.ndarray,
    weak_scans: np.ndarray,
    name: str,
    report: Callable[[float, Mapping[str, float]], None],
    *,
    by_rows: bool,
    corrects: bool,
) -> Network:
    axes = tuple(range(features.ndim - 2))
    shown = np.concatenate([learn, np.flatnonzero(np.isin(task.scans, weak_scans))])
    mean = features[0, shown].mean(axis=axes)
    spread = features[0, shown].std(axis=axes) + np.float32(1e-3)
    path, state = task.own / f"{name}.npz", task.own / f"{name}-state.npz"
    keras.utils.set_random_seed(task.seed)
    own = (float(mean[0]), float(spread[0])) if corrects else None
    model = build_network(cell, len(mean), task.settings, task.seed, own)

    def learn_anew() -> dict[str, np.ndarray]:
        standard = (features - mean) / spread
        batches, draw = (
            slices_drawn(task, standard, learn)
            if by_rows
            else scans_drawn(task, standard, learn, weak_scans)
        )
        run_epochs(
            model,
            loss={
                name: keras.losses.BinaryCrossentropy(from_logits=True)
                for name in ("steps", "whole")
            },
            epochs=int(task.settings["epochs"]),
            batches=batches,
            learning_rate=float(task.settings["learning_rate"]),
            averaging=AVERAGING,
            seed=task.seed,
            draw=draw,
            state=state,
            report=report,
        )
        return {f"w{number}": values for number, values in enumerate(model.get_weights())}

    kept = load_or_make_arrays(path, learn_anew)
    state.unlink(missing_ok=True)
    model.set_weights([kept[f"w{number}"] for number in range(len(kept))])
    return Network(model, mean, spread)


def build_network(
    cell: Cell,
    width: int,
    settings: Mapping[str, object],
    seed: int,
    own: tuple[float, float] | None = None,
) -> keras.Model:
    """Return the model: "features" (b, t, width), "present" (b, t) of 0 and 1 -> "steps" (b, t, 1),
    "whole" (b, 1), both logits.

    If `own` is given, the first feature is the slice's cell decision, standardized by that mean and
    spread, and the network learns an additive correction, initially zero. The cells were trained on
    the same slices, so their scores are more confident than on unseen patients; noise on the
    network's inputs compensates for that, so that neighboring slices matter. The decision to be
    corrected has no noise, as the smooth maximum of noise grows with the number of slices.
    """
    layers, ops = keras.layers, keras.ops
    features = keras.Input((None, width), name="features")
    present = keras.Input((None,), name="present")
    dropout = float(str(settings["dropout"]))
    seen = features if own is None else layers.GaussianNoise(NOISE, seed=seed + 3)(features)
    x = layers.Dropout(dropout, seed=seed)(seen)
    x = layers.Dense(int(str(settings["projection"])), activation="relu", name="projection")(x)
    x = layers.Dropout(dropout, seed=seed + 1)(x)
    kind = {"lstm": layers.LSTM, "gru": layers.GRU}[cell]
    reader = kind(int(str(settings["units"])), return_sequences=True, name="reader")
    if settings["bidirectional"] == "yes":
        reader = layers.Bidirectional(reader, name="reader")
    states = reader(x, mask=ops.greater(present, 0.5))
    states = layers.Dropout(dropout, seed=seed + 2)(states)
    begin = "glorot_uniform" if own is None else "zeros"
    steps = layers.Dense(1, kernel_initializer=begin, name="step")(states)
    evidence = layers.Dense(1, kernel_initializer=begin, name="evidence")(states)
    if own is not None:
        decisions = features[..., :1] * own[1] + own[0]
        steps, evidence = steps + decisions, evidence + decisions
    there = ops.expand_dims(present, -1)
    whole = ops.logsumexp(evidence + (there - 1) * 1e9, axis=1) - ops.log(ops.sum(there, axis=1))
    return keras.Model({"features": features, "present": present}, {"steps": steps, "whole": whole})
