"""An encoder with one decision per cell: its convolutions, fine-tuned, and a linear decision for
each cell of the last maps.

A slice's decision is the log-sum-exp of its cells' decisions (see `ml.networks.fine_tuning`). The
maps of an image and of its mirror image are averaged, so that left and right are treated alike.
Some groups of the training part are held out from the network for its calibration; the final
network is trained on all groups and calibrated on the predictions of the cross-validation.
"""

from __future__ import annotations

import keras
import numpy as np
from onnx import TensorProto, compose, helper

from ml.evaluation.calibration import Platt
from ml.models.contract import FitTask, Fitted, held_out_of
from ml.models.fine_tuned import tuned_convolutions
from ml.models.inner_folds import inner_folds
from ml.networks.aggregation import (
    aggregate_scans,
    answer_graph,
    scan_probability,
    smoothed,
    smoothing_nodes,
)
from ml.networks.cells import decision_nodes, decisions_of
from ml.networks.convolutions import mirrored, pooled
from ml.networks.encoder import Encoder
from ml.networks.fine_tuning import Tuned
from ml.networks.onnx_graph import model_of, serialized

TUNING_SHARE = 0.95  # share of a fit's duration
CHUNK = 64


def fit_cells(task: FitTask, encoder: Encoder, *, smooths: bool) -> Fitted:
    """Fit on `task.train`; if `smooths`, the decision of a slice is averaged with those of its
    neighbors in the scan (`ml.networks.aggregation`).
    """
    learn, inner = (
        (task.train, task.train[:0]) if task.held_out else inner_folds(task, one_split=True)[0]
    )
    tuned = tuned_convolutions(
        task,
        encoder,
        learn,
        int(task.settings["epochs"]),
        lambda share, figures: task.report(TUNING_SHARE * share, figures),
    )
    size = task.images.shape[1]
    features = mirrored(encoder.build(tuned.convolutions, size))
    _, side, _, channels = features.outputs[0].shape
    # Of the training slices, only the positive ones are predicted: the types are fitted to them.
    predicted = np.setdiff1d(np.arange(len(task.images)), learn[task.labels[learn] != 1])
    decisions, descriptions, outlines = _predicted(task, features, tuned, predicted)
    if smooths:
        decisions = smoothed(decisions, task.scans)
    held_out = task.held_out or held_out_of(decisions, inner, task.scans)

    def export(platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        head = head_to_onnx(tuned, platt, scan_platt, side, channels, smooths=smooths)
        return {"features.onnx": encoder.to_onnx(tuned.convolutions, size), "head.onnx": head}

    def reference(
        images: np.ndarray, platt: Platt, scan_platt: Platt
    ) -> tuple[np.ndarray, np.ndarray, float]:
        maps, _ = _answers(features, images)
        decisions = decisions_of(maps, tuned)
        decisions = smoothed(decisions, np.zeros(len(decisions), int)) if smooths else decisions
        return maps, platt(decisions), scan_probability(decisions, platt, scan_platt)

    def outlines_of(images: np.ndarray) -> np.ndarray:
        return np.asarray(_answers(features, images)[1])

    return Fitted(
        decisions=decisions,
        scan_decisions=aggregate_scans(decisions, task.scans),
        held_out=held_out,
        chosen={
            "learnt_from": len(learn),
            "calibrated_on": len(held_out.slices),
            "tuned_by": tuned.by,
        },
        export=export,
        reference=reference,
        learned_features=True,
        descriptions=descriptions,
        outlines=outlines,
        reference_outlines=outlines_of if encoder.outlines else None,
    )


def _predicted(
    task: FitTask, features: keras.Model, tuned: Tuned, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return decisions, descriptions and outlines as in `Fitted`, with placeholders for slices
    other than those at `at`.
    """
    n, (maps, *outlined) = len(task.images), features.outputs
    decisions = np.full(n, np.nan)
    descriptions = np.zeros((n, 2 * maps.shape[-1]), np.float32)
    outlines = np.zeros((n, *outlined[0].shape[1:3]), np.float16) if outlined else None
    for start in range(0, len(at), CHUNK):
        task.report(TUNING_SHARE + (1 - TUNING_SHARE) * start / len(at), {})
        chunk = at[start : start + CHUNK]
        of_chunk, outline = _answers(features, task.images[chunk])
        decisions[chunk] = decisions_of(of_chunk, tuned)
        descriptions[chunk] = pooled(of_chunk, "both")
        if outlines is not None:
            outlines[chunk] = outline
    return decisions, descriptions, outlines


def _answers(features: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the maps (n, h, w, c) of images and, for an encoder with outlines, the probability of
    hemorrhage at each position (n, h, w).
    """
    outputs = features.predict_on_batch(np.asarray(images, np.float32))
    if not isinstance(outputs, list):
        return np.asarray(outputs), None
    maps, logits = (np.asarray(values) for values in outputs)
    return maps, 1 / (1 + np.exp(-logits[..., 0]))


def head_to_onnx(
    tuned: Tuned, platt: Platt, scan_platt: Platt, side: int, channels: int, *, smooths: bool
) -> bytes:
    """Return the head graph: "maps" (N, h, w, c) -> "slice_probability" (N,), "scan_probability"
    (1,).
    """
    nodes, constants = decision_nodes(tuned, side, channels)
    decided = "cells_decision"
    if smooths:
        more_nodes, more_constants = smoothing_nodes(decided)
        nodes, constants, decided = nodes + more_nodes, constants + more_constants, "smoothed"
    cells = model_of(
        nodes,
        "cells",
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])],
        [helper.make_tensor_value_info(decided, TensorProto.FLOAT, ["N", 1])],
        constants,
    )
    whole = compose.merge_models(
        cells, answer_graph(platt, scan_platt), io_map=[(decided, "decision")]
    )
    return serialized(whole)
