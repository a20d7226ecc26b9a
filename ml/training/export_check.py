"""Compare the exported graphs in ONNX Runtime with the trained model in Keras, scikit-learn and
numpy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from ml.artifacts.card import FEATURES, HEAD, OUTLINE, TYPES, ExportCheck
from ml.catalogue import BLEEDING_TYPES
from ml.evaluation.calibration import Platt
from ml.models.contract import Fitted
from ml.networks.bleeding_types import TypesHead, of_scan
from ml.networks.convolutions import pooled

EXPORT_LIMIT = 1e-4


def check_export(
    files: Mapping[str, bytes],
    final: Fitted,
    of_slices: Platt,
    of_scans: Platt,
    types: TypesHead | None,
    images: np.ndarray,
) -> ExportCheck:
    """Return the differences between the graphs in `files` and the trained model; the graph of
    types is checked if it is among them.

    The images are predicted as one scan, and the first one also by itself. Differences of
    probabilities, including those of outlines, are absolute; those of maps are relative to the
    largest value, since floating-point precision is relative.
    """
    features, head = (onnxruntime.InferenceSession(files[name]) for name in (FEATURES, HEAD))
    largest = 0.0
    for scan in (images, images[:1]):
        maps, slices, whole = final.reference(scan, of_slices, of_scans)
        exported_maps = features.run(["maps"], {"images": scan})[0]
        exported_slices, exported_whole = head.run(
            ["slice_probability", "scan_probability"], {"maps": exported_maps}
        )
        of_maps = float(np.abs(maps - exported_maps).max() / max(float(np.abs(maps).max()), 1.0))
        of_whole = abs(float(exported_whole[0]) - float(whole))
        largest = max(largest, of_maps, float(np.abs(slices - exported_slices).max()), of_whole)
        if final.reference_outlines is not None:
            outlined = features.run([OUTLINE], {"images": scan})[0]
            off = np.abs(final.reference_outlines(scan) - outlined)
            largest = max(largest, float(off.max()))
        if types is not None and TYPES in files:
            inputs_of_types = {
                "maps": exported_maps,
                "slice_probability": exported_slices,
                "scan_probability": exported_whole,
            }
            expected = types.of_slices(pooled(maps, "both"), slices)
            largest = max(
                largest, _difference_of_types(files[TYPES], inputs_of_types, expected, whole, types)
            )
    return ExportCheck(largest, EXPORT_LIMIT, largest <= EXPORT_LIMIT)


def _difference_of_types(
    graph: bytes,
    inputs: Mapping[str, np.ndarray],
    expected: np.ndarray,
    whole: float,
    types: TypesHead,
) -> float:
    """Return the maximum difference between the graph of types and the head.

    Args:
        graph: types.onnx.
        inputs: its inputs.
        expected: the head's probabilities of slices (n, 5).
        whole: the probability of the scan.
        types: the head.
    """
    outputs = onnxruntime.InferenceSession(graph).run(["slice_types", "scan_types"], inputs)
    columns = [BLEEDING_TYPES.index(name) for name in types.names]
    right = expected[:, columns], of_scan(expected, whole)[columns]
    return max(float(np.abs(a - b).max()) for a, b in zip(outputs, right, strict=True))
