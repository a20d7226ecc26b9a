"""Check whether an image looks like a head CT. Loaded once per process; numpy, OpenCV and ONNX
Runtime only.

It combines three inputs: measures of shape, rim, inside and surroundings
(`ml.inference.gate_measures`); the reconstruction error, normalized by local contrast, of an
autoencoder trained on head CT only; and a small network on the image. The last two use a 128 x 128
crop around the largest body.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from ml.errors import ArtifactError
from ml.inference.gate_measures import measure, prepare_image
from ml.inference.gate_views import errors, view_of
from ml.inference.sessions import session
from ml.scans.slices import Slice

GATE_DIR = Path(__file__).parent.parent / "not_head_ct"
CARD, AUTOENCODER, JUDGE = "card.json", "autoencoder.onnx", "judge.onnx"
REFUSED_FROM = 0.5
TITLE = "The head-CT check's graph"
MOST_SLICES = 15


class Gate:
    """The check for images. Not to be shared across a fork.

    Raises:
        ArtifactError: its files are missing or altered.
    """

    def __init__(self, folder: Path = GATE_DIR) -> None:
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            contents = {name: (folder / name).read_bytes() for name in (AUTOENCODER, JUDGE)}
        except (OSError, ValueError) as err:
            raise ArtifactError("The check for images that are not head CT is incomplete.") from err
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != card["files"][name]:
                raise ArtifactError(
                    f"The {name} of the check for images that are not head CT was changed after it"
                    " was written."
                )
        self.card = card
        self._measures: list[str] = card["measures"]
        self._autoencoder = session(contents[AUTOENCODER], TITLE)
        self._judge = session(contents[JUDGE], TITLE)

    def score(self, slice_: Slice) -> float:
        """Return the score for "not a head CT", 0..1; from `REFUSED_FROM` on the image is refused.
        1 if it shows no body.
        """
        image = prepare_image(slice_)
        measures = measure(image)
        if not measures:
            return 1.0
        view, mask = view_of(image)
        drawn = self._autoencoder.run(["drawn"], {"views": view[np.newaxis]})[0]
        measures |= errors(view[:, :, 0], drawn[0, :, :, 0], mask)
        row = np.array([[measures[name] for name in self._measures]], np.float32)
        score = self._judge.run(["score"], {"views": view[np.newaxis], "measures": row})[0]
        return float(np.clip(score.ravel()[0], 0, 1))


def checked_slices(count: int) -> frozenset[int]:
    """Return which slices of a scan are scored: at most 15, evenly spaced. The score of the scan is
    their median, since single slices may be atypical.
    """
    chosen = np.linspace(0, count - 1, min(count, MOST_SLICES)).round().astype(int)
    return frozenset(chosen.tolist())


@functools.cache
def gate() -> Gate:
    """Return the shipped gate, loaded once per process."""
    return Gate()
