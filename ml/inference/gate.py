"""Does a picture look like a head CT at all? Loaded once a process; numpy, OpenCV and ONNX Runtime
only.

Three witnesses are heard: measurements of shape, rim, inside and surroundings
(`ml.inference.gate_measures`); the error of an autoencoder that learned to draw head CT and nothing
else, normalized by local contrast; and a small network that sees the picture. The second and the
third see the square around the largest body, 128 x 128.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ml.errors import ArtifactError
from ml.inference.gate_measures import look_at, measure
from ml.inference.gate_views import errors, view_of
from ml.inference.sessions import session
from ml.scans.slices import Slice

GATE_DIR = Path(__file__).parent.parent / "not_head_ct"
CARD, AUTOENCODER, JUDGE = "card.json", "autoencoder.onnx", "judge.onnx"
REFUSED_FROM = 0.5
MOST_SLICES = 15


class Gate:
    """The judge of pictures. Not to be shared across a fork.

    Raises:
        ArtifactError: its files are missing or altered.
    """

    def __init__(self, folder: Path = GATE_DIR) -> None:
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            contents = {name: (folder / name).read_bytes() for name in (AUTOENCODER, JUDGE)}
        except (OSError, ValueError) as err:
            raise ArtifactError(
                "The check for pictures that are no head CT is incomplete."
            ) from err
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != card["files"][name]:
                raise ArtifactError(
                    f"The {name} of the check for pictures that are no head CT is not the file that"
                    " was written."
                )
        self.card = card
        self._measures: list[str] = card["measures"]
        self._autoencoder = session(contents[AUTOENCODER])
        self._judge = session(contents[JUDGE])

    def score(self, slice_: Slice) -> float:
        """Return how little a picture looks like a head CT, 0..1; `REFUSED_FROM` on it is refused.
        1 where it shows no body at all.
        """
        look = look_at(slice_)
        measures = measure(look)
        if not measures:
            return 1.0
        view, mask = view_of(look)
        drawn = self._autoencoder.run(["drawn"], {"views": view[np.newaxis]})[0]
        measures |= errors(view[:, :, 0], drawn[0, :, :, 0], mask)
        row = np.array([[measures[name] for name in self._measures]], np.float32)
        answer = self._judge.run(["score"], {"views": view[np.newaxis], "measures": row})[0]
        return float(np.clip(answer.ravel()[0], 0, 1))

    def score_series(self, slices: Sequence[Slice]) -> float:
        """Return the median over the slices of a scan, at most 15 of them, evenly spread: some
        slices of a series may be odd.
        """
        chosen = np.unique(
            np.linspace(0, len(slices) - 1, min(len(slices), MOST_SLICES)).round().astype(int)
        )
        return float(np.median([self.score(slices[index]) for index in chosen]))


@functools.cache
def gate() -> Gate:
    """Return the gate that ships with this version, loaded once a process."""
    return Gate()
