"""Small tasks for tests of the architectures: pictures on which a bright square is blood, and
outlines that say so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from ml.catalogue import architecture_named
from ml.evaluation.calibration import Platt
from ml.models.contract import FitTask, Fitted

SIZE = 63


def learning_pictures(n: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return pictures, labels, sources and outlines: those with label 1 have a bright square in the
    middle.
    """
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], n // 2)
    pictures = random.random((n, SIZE, SIZE, 1), np.float32) * 0.2
    pictures[labels == 1, 20:40, 20:40] += 0.7
    outlines = np.zeros((n, 14, 14), np.uint8)
    outlines[labels == 1, 4:9, 4:9] = 1
    return pictures, labels, np.full(n, "a"), outlines


def task_of(
    architecture: str, folder: Path, settings: dict[str, object] | None = None, **changed: object
) -> FitTask:
    """Return a task on 32 pictures, each a group and a scan, of which 24 may be learned from;
    settings are the architecture's defaults.
    """
    pictures, labels, sources, outlines = learning_pictures()
    given: dict[str, object] = {
        "images": pictures,
        "labels": labels,
        "groups": np.array([f"g{n:02d}" for n in range(32)]),
        "sources": sources,
        "scans": np.arange(32),
        "masks": outlines,
        "unseen": np.ones(32, bool),
        "train": np.arange(24),
        "settings": architecture_named(architecture).parse_settings(settings or {}),
        "seed": 0,
        "init": "random",
        "shared": folder / "shared",
        "folder": folder / "own",
        "report": lambda share, figures: None,
        **changed,
    }
    return FitTask(**given)  # type: ignore[arg-type]


def largest_difference(fitted: Fitted, scans: list[np.ndarray]) -> float:
    """Return how far the exported graphs are from what Keras and scikit-learn compute: maps
    relative to their largest, probabilities.
    """
    platt, scan_platt = Platt(1.1, 0.1), Platt(0.5, 0.2)
    files = fitted.export(platt, scan_platt)
    features, head = (
        onnxruntime.InferenceSession(files[name]) for name in ("features.onnx", "head.onnx")
    )
    largest = 0.0
    for images in scans:
        maps, slices, whole = fitted.reference(images, platt, scan_platt)
        found_maps = features.run(["maps"], {"images": images})[0]
        result, found_whole = head.run(
            ["slice_probability", "scan_probability"], {"maps": found_maps}
        )
        assert (
            found_maps.shape == maps.shape
            and result.shape == (len(images),)
            and found_whole.shape == (1,)
        )
        of_maps = np.abs(found_maps - maps).max() / max(1.0, float(np.abs(maps).max()))
        largest = max(
            largest,
            float(of_maps),
            float(np.abs(result - slices).max()),
            abs(float(found_whole[0]) - whole),
        )
    return largest
