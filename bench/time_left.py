"""Measure how often the time left of a training run is right within a third, after the first tenth
of the run.

    python -m bench.time_left [--dataset FOLDER] [--elapsed] [CASE ...]

Each case is a run in its own process, on phantoms or on a labeled data set. `right` is the share of
the time for which the time left that was last reported is right within a third, or within 2% of the
whole run; the limit is on the rest, `wrong`. Time is processor time, so that other programs affect
it little, or elapsed time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from bench.alone import Figures, judge

if TYPE_CHECKING:
    from ml.training.progress import Progress

IMAGES, SIZE = 200, 256
QUICK = {"folds": 3, "controls": "none"}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "alexnet_svm, quick look": ("alexnet_svm", QUICK),
    "alexnet_svm, cheap controls": ("alexnet_svm", {"controls": "cheap"}),
    "cnn_lstm, quick look": ("cnn_lstm", {**QUICK, "epochs": 8}),
    "cnn_gru, quick look": ("cnn_gru", {**QUICK, "epochs": 8}),
}
MOST_WRONG = 0.25
Reports = list[tuple[float, float | None]]


def measure(
    architecture: str, settings: dict[str, object], dataset: str | None, elapsed: bool
) -> Figures:
    """Train in this process, and return how often the time left was right."""
    # Imported here, in the measuring process, because the process that starts it needs none of
    # this.
    from ml.datasets.read import read_dataset
    from ml.training.progress import Meter
    from ml.training.run import TrainConfig, train

    clock = time.monotonic if elapsed else time.process_time
    reports: Reports = []

    def note(progress: Progress) -> None:
        reports.append((clock(), progress.eta_s))

    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as folder:
        root = Path(dataset) if dataset else write_phantoms(Path(folder) / "phantoms")
        config = TrainConfig(architecture, settings, init="random")
        data = read_dataset(root)
        begun = clock()
        with patch("ml.training.run.Meter", partial(Meter, clock=clock)):
            train(config, [data], Path(folder) / "run", note)
    right = share_right([(at - begun, eta_s) for at, eta_s in reports])
    return {"seconds": reports[-1][0] - begun, "right": right, "wrong": 1 - right}


def write_phantoms(folder: Path) -> Path:
    """Write phantoms of which every second shows a hemorrhage, in one folder for each class."""
    # Imported here for the same reason.
    from ml.scans.phantoms import phantom, write_png

    for seed in range(IMAGES):
        of_class = folder / ("hemorrhage" if seed % 2 else "normal")
        of_class.mkdir(parents=True, exist_ok=True)
        hu = phantom(seed, hemorrhage=seed % 2 == 1, size=SIZE)
        write_png(hu, of_class / f"{seed}.png")
    return folder


def share_right(reports: Reports, after: float = 0.1) -> float:
    """Return the share of the time after the first tenth for which the last report was right within
    a third.
    """
    end = reports[-1][0]
    right = whole = 0.0
    for (at, eta_s), (then, _) in pairwise(reports):
        if at < after * end:
            continue
        left = end - at
        whole += then - at
        if eta_s is not None and abs(eta_s - left) <= max(left / 3, end / 50):
            right += then - at
    return right / whole if whole else 1.0


def main() -> int:
    """Measure each case and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    parser.add_argument("--dataset", help="folder of a labeled data set; default: phantoms")
    parser.add_argument("--elapsed", action="store_true", help="measure elapsed time")
    asked = parser.parse_args()
    unknown = sorted(set(asked.cases) - set(CASES))
    if unknown:
        parser.error(f"{unknown[0]!r} is none of {', '.join(CASES)}")
    cases = {name: (*CASES[name], asked.dataset, asked.elapsed) for name in asked.cases}
    return judge("time left", measure, cases, lambda _case: {"wrong": MOST_WRONG})


if __name__ == "__main__":
    sys.exit(main())
