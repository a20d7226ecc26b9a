"""The worst out-of-fold mistakes of a training run, with the heat maps of the fold's model.

A fold's model is deleted once its answers are saved, and the final model has been trained on the
images of all folds. So heat maps, and outlines if the architecture gives them, are computed in the
fold that made the mistake (`draw_mistakes`), and at the end those of the worst mistakes become
images (`write_mistakes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image

from ml.artifacts.card import FEATURES, HEAD
from ml.checkpoints import load_arrays, save_arrays, save_json
from ml.datasets.examples import Example, slice_of
from ml.evaluation.answers import Answers
from ml.evaluation.curves import Mistake
from ml.inference.heat_maps import occlusion, overlay, place
from ml.models.contract import Fitted
from ml.preprocessing.model_input import Frame, InputSpec, to_input
from ml.scans.slices import FloatArray, render
from ml.training.experiment import Experiment
from ml.typed_json import to_json

MOST_MISTAKES = 8
"""Maximum number of each kind: missed hemorrhages and false alarms."""
PICTURE_PX = 512
OUTLINE_RGBA = (255, 255, 255, 255)


def draw_mistakes(
    path: Path,
    experiment: Experiment,
    fitted: Fitted,
    files: dict[str, bytes],
    wrong: Sequence[int],
    on_map: Callable[[], None] = lambda: None,
) -> None:
    """Save heat maps and outlines of the slices on which a fold's model was wrong.

    Args:
        path: the file, written by `save_arrays`: `at` (n,), `heat` float32 (n, h, w) and, if the
            architecture gives outlines, `outlines` float16 (n, m, m).
        experiment: of the training.
        fitted: the fold's model.
        files: its exported graphs.
        wrong: positions of the slices.
        on_map: called after each slice; raises to stop.
    """
    if not len(wrong):
        return
    features, head = (onnxruntime.InferenceSession(files[name]) for name in (FEATURES, HEAD))

    def score(maps: FloatArray) -> FloatArray:
        # One by one, since a head may treat a batch as one scan.
        return np.array(
            [
                head.run(["slice_probability"], {"maps": slice_maps[np.newaxis]})[0][0]
                for slice_maps in maps
            ],
            np.float32,
        )

    heat = []
    for position in wrong:
        image = np.asarray(experiment.images[position], np.float32)
        (maps,) = features.run(["maps"], {"images": image[np.newaxis]})
        heat.append(occlusion(np.asarray(maps[0], np.float32), score, image))
        on_map()
    arrays = {"at": np.asarray(wrong), "heat": np.stack(heat)}
    if fitted.outlines is not None:
        arrays["outlines"] = np.asarray(fitted.outlines[list(wrong)], np.float16)
    save_arrays(path, arrays)


def worst_of(labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> list[int]:
    """Return the indices of the worst mistakes among answers (n,): at most `MOST_MISTAKES` of each
    kind, those furthest from their labels first.
    """
    wrong = np.flatnonzero(predicted.astype(bool) != (labels == 1))
    order = wrong[np.argsort(-np.abs(labels - probabilities)[wrong], kind="stable")]
    return [int(at) for label in (1, 0) for at in order[labels[order] == label][:MOST_MISTAKES]]


def write_mistakes(
    folder: Path, answers: Answers, examples: Sequence[Example], spec: InputSpec, checkpoint: Path
) -> None:
    """Write images of the worst mistakes of a finished cross-validation.

    Args:
        folder: receives `mistakes.json`, a list of `Mistake` with `heat`, whether it has an
            overlay; and for each of them, by its number, `mistake-00.png` as displayed by a viewer,
            and `mistake-00-heat.png`, a transparent overlay of the same size with heat map and
            outline. A fold that an earlier version computed has no overlays.
        answers: of slices; those of the first repeat count.
        examples: of the training, by position.
        spec: the preprocessing of its models.
        checkpoint: the folder with the files of `draw_mistakes`.
    """
    drawn, mistakes = _drawn(checkpoint), []
    for number, column in enumerate(
        worst_of(answers.labels, answers.probabilities[0], answers.predicted[0])
    ):
        at = int(answers.at[column])
        example, shown = examples[at], slice_of(examples[at])
        path = folder / f"mistake-{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        render(shown, PICTURE_PX).save(path)
        if at in drawn:
            layer = _layer(*drawn[at], to_input(shown, spec)[1], shown.pixels.shape)
            layer.save(path.with_name(f"{path.stem}-heat.png"))
        mistake = Mistake(
            example.name,
            example.scan_name,
            int(answers.labels[column]),
            float(answers.probabilities[0, column]),
        )
        mistakes.append({**to_json(mistake), "heat": at in drawn})
    save_json(folder / "mistakes.json", mistakes)


def _drawn(checkpoint: Path) -> dict[int, tuple[FloatArray, FloatArray | None]]:
    """Return heat map and outline of the mistakes of all folds, by position."""
    drawn: dict[int, tuple[FloatArray, FloatArray | None]] = {}
    for path in sorted(checkpoint.glob("fold-*-mistakes.npz")):
        arrays = load_arrays(path) or {}
        outlines = arrays.get("outlines")
        for number, at in enumerate(arrays["at"]):
            outline = None if outlines is None else outlines[number].astype(np.float32)
            drawn[int(at)] = arrays["heat"][number], outline
    return drawn


def _layer(
    heat: FloatArray, outline: FloatArray | None, frame: Frame, shape: tuple[int, ...]
) -> Image.Image:
    """Return a heat map, and an outline if there is one, as an overlay for the image of a slice."""
    layer = overlay(place(heat, frame, shape), PICTURE_PX)
    if outline is None:
        return layer
    inside = np.asarray(
        Image.fromarray(place(outline, frame, shape)).resize(layer.size, Image.Resampling.BILINEAR)
    )
    contours, _ = cv2.findContours(
        (inside >= 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    drawn = np.array(layer)
    cv2.drawContours(drawn, contours, -1, OUTLINE_RGBA, 2)
    return Image.fromarray(drawn)
