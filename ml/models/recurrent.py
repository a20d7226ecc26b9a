"""A recurrent network over the slices of a scan: what `cnn_lstm` and `cnn_gru` have in common.

Features of a slice are its pooled maps, or what its cells say where fine-tuning has taught them
(`ml.networks.cells`): then the network corrects the decision of the cells instead of making one of
its own. Features are standardized, projected, and read in anatomical order by an LSTM (S.
Hochreiter, J. Schmidhuber 1997) or a GRU (K. Cho et al. 2014), by default in both directions. Each
slice has a decision, and
the scan has one: the smooth maximum (log mean exp) of a second decision for each slice. Both learn
together, from labels of slices and from whether any slice shows blood. A scan that was labeled as
a whole, and no slice of it, teaches the second alone.

Where no scan that may be learned from has more than one slice, the sequence is the slice's maps
read row by row, the smooth maximum over the rows is the slice's decision, and scans are aggregated
as those of any slice architecture.
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
STEP = 16  # lengths are padded to multiples of it, so that few shapes are compiled
FEATURES_SHARE = 0.6  # of a fit's time
NOISE = 1.0  # standard deviations of the cells' evidence, while a network learns to correct it


@dataclass(frozen=True)
class Network:
    """A trained network, and how its inputs are standardized: (features - mean) / spread, both
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
                present[:, 0] = 1  # rows of the batch that nobody asked for are sequences too
                for row, number in enumerate(chunk):
                    there = len(sequences[number])
                    inputs[row, :there], present[row, :there] = (
                        (sequences[number] - self.mean) / self.spread,
                        1,
                    )
                found = self.model.predict_on_batch({"features": inputs, "present": present})
                for row, number in enumerate(chunk):
                    steps[number] = np.asarray(
                        found["steps"][row, : len(sequences[number]), 0], np.float64
                    )
                    wholes[number] = float(found["whole"][row, 0])
        return steps, wholes


def fit(task: FitTask, cell: Cell) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    layer, learns = str(task.settings["layer"]), int(task.settings["fine_tune_epochs"]) > 0
    learn, held = (
        (task.train, task.train[:0]) if task.held_out else inner_folds(task, one_split=True)[0]
    )
    learn_weak, held_weak = (
        (task.weak, task.weak[:0]) if task.held_out else split_weak(task, learn, held)
    )
    by_rows = (
        int(np.bincount(task.scans[task.train]).max()) == 1
        and not (np.bincount(task.scans)[task.weak] > 1).any()
    )
    extractor = extractor_of(
        task,
        layer,
        learn,
        lambda share, figures: task.report(0.5 * FEATURES_SHARE * share, figures),
    )
    # A reconstruction's maps have no cells, and rows none of their own.
    reads_cells = (
        task.settings["reads"] == "cells" and extractor.restructuring is None and not by_rows
    )
    cells = extractor.tuned if reads_cells else None

    def summarized(maps: np.ndarray) -> np.ndarray:
        if cells is not None:
            return np.concatenate([evidence_of(maps, cells), pooled(maps, "both")], axis=1)
        return rows_of(maps) if by_rows else pooled(maps, "both")

    kept = features_of(
        task,
        extractor.build,
        summarized,
        int(task.settings["augmentation"]),
        lambda share, figures: task.report((0.5 + 0.5 * share) * FEATURES_SHARE, figures),
        learnt=extractor.learnt,
        by_scan=True,
    )
    width = 2 * extractor.shape[1]

    def read(summary: np.ndarray) -> np.ndarray:
        """Return what the network reads of it: pooled maps stand behind the evidence only to
        describe slices.
        """
        return summary[..., :-width] if cells is not None else summary

    features = read(kept)

    def trained(
        name: str, at: np.ndarray, weak: np.ndarray, begin: float, end: float
    ) -> tuple[Network, np.ndarray, np.ndarray]:
        """Return a network that learned from the slices at `at` and the scans `weak`, and its
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
            weak,
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
    # Convolutions that learned have not seen what calibrates; with frozen ones a second network may
    # learn from all.
    if not learns or task.held_out is not None:
        network, decisions, scan_decisions = trained("final", task.train, task.weak, 0.5, 1.0)

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
        found, whole = answers_of(
            network, read(summarized(maps)), np.zeros(len(maps), int), by_rows
        )
        if by_rows:
            return maps, platt(found), scan_probability(found, platt, scan_platt)
        return maps, platt(found), float((platt if len(found) == 1 else scan_platt)(whole)[0])

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
        learnt_features=extractor.learnt,
        descriptions=pooled_rows(features[0]) if by_rows else kept[0, :, -width:],
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
    """Return the decisions of all slices (n,) and scans (s,); `scans` numbers them, never falling.
    One slice decides for its scan.
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
    weak: np.ndarray,
    name: str,
    report: Callable[[float, Mapping[str, float]], None],
    *,
    by_rows: bool,
    corrects: bool,
) -> Network:
    axes = tuple(range(features.ndim - 2))
    shown = np.concatenate([learn, np.flatnonzero(np.isin(task.scans, weak))])
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
            else scans_drawn(task, standard, learn, weak)
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

    Where `own` is given, the first feature is a slice's own decision, standardized by that mean and
    spread, and the network corrects it, from nothing at the beginning. It learns from slices that
    the cells learned from too, whose evidence is clearer than any other, so noise
    makes what it reads as uncertain as that of strangers: what neighbors say then counts. What it
    corrects has none: the smooth maximum of noise grows with the number of slices.
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
