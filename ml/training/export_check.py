"""Compare the exported graphs in ONNX Runtime with the trained model in Keras, scikit-learn and
numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from ml.artifacts.card import FEATURES, HEAD, TYPES
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
) -> dict[str, Any]:
    """Return {"largest_difference", "limit", "passed"} of the graphs in `files`; including that of
    types if there is one.

    The images are predicted as one scan, and the first one alone. Differences of probabilities are
    absolute; those of maps are relative to the largest value, since single precision is relative.
    """
    features, head = (onnxruntime.InferenceSession(files[name]) for name in (FEATURES, HEAD))
    largest = 0.0
    for scan in (images, images[:1]):
        maps, slices, whole = final.reference(scan, of_slices, of_scans)
        found_maps = features.run(["maps"], {"images": scan})[0]
        found_slices, found_whole = head.run(
            ["slice_probability", "scan_probability"], {"maps": found_maps}
        )
        of_maps = float(np.abs(maps - found_maps).max() / max(float(np.abs(maps).max()), 1.0))
        of_whole = abs(float(found_whole[0]) - float(whole))
        largest = max(largest, of_maps, float(np.abs(slices - found_slices).max()), of_whole)
        if types is not None and TYPES in files:
            expected = types.of_slices(pooled(maps, "both"), slices)
            given = {
                "maps": found_maps,
                "slice_probability": found_slices,
                "scan_probability": found_whole,
            }
            probabilities = onnxruntime.InferenceSession(files[TYPES]).run(
                ["slice_types", "scan_types"], given
            )
            columns = [BLEEDING_TYPES.index(name) for name in types.names]
            for one, other in zip(
                probabilities,
                (expected[:, columns], of_scan(expected, whole)[columns]),
                strict=True,
            ):
                largest = max(largest, float(np.abs(one - other).max()))
    return {"largest_difference": largest, "limit": EXPORT_LIMIT, "passed": largest <= EXPORT_LIMIT}
