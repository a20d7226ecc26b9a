"""Benchmark of training against simpler implementations, in one run: ratios of CPU time.

    python -m bench.training_peers [--rounds 3] [--batches 6]

- hemoscan: a fit of `googlenet_unet`, with images drawn, augmented and given synthetic hemorrhages
  by a thread that works ahead;
- keras: the same network, losses and optimizer, repeatedly on the last batch of that fit;
- pytorch: the same network written in PyTorch (`bench.pytorch_training`), on the same batch. Its
  environment, `.venv-pytorch`, is created by the first run.

Every round runs all in turn, each in its own process on all cores, in single precision. The first
batch, which includes compilation, does not count. The last line is the verdict; the exit status is
1 if Hemoscan's speed relative to a peer is below `LEAST`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.training import Measured, fit_to_noise
from webapp.config import PROJECT_ROOT

LEAST = {"keras": 0.9, "pytorch": 0.8}
ENVIRONMENT = PROJECT_ROOT / ".venv-pytorch"
PACKAGES = "torch==2.13.0", "numpy==2.2.6"
BATCH, NETWORK = "batch.npz", "network.json"


def main() -> int:
    """Measure all, print times and ratios, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=6)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    python = with_pytorch()
    times: dict[str, list[float]] = {"hemoscan": [], "keras": [], "pytorch": []}
    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as scratch:
        for _ in range(options.rounds):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                of_fit = alone.submit(measure, options.batches, Path(scratch)).result()
            times["hemoscan"].append(of_fit[0])
            times["keras"].append(of_fit[1])
            command = [str(python), "-m", "bench.pytorch_training", scratch, str(options.batches)]
            of_pytorch = subprocess.run(
                command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True
            )
            times["pytorch"].append(float(of_pytorch.stdout))
    return judge(times)


def judge(times: Mapping[str, list[float]]) -> int:
    """Print the median milliseconds per image and the ratios; return the exit status."""
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    medians = {name: statistics.median(each) for name, each in times.items()}
    # The ratio within each round, since the machine's speed drifts between rounds.
    ratios = {
        name: statistics.median(
            peer / ours for peer, ours in zip(times[name], times["hemoscan"], strict=True)
        )
        for name in LEAST
    }
    for name, seconds in medians.items():
        beside = f"; Hemoscan's relative speed {ratios[name]:.2f}" if name in ratios else ""
        sys.stdout.write(f"{name}: {1000 * seconds:.0f} ms of CPU time per image{beside}\n")
    broken = [name for name, least in LEAST.items() if ratios[name] < least]
    sys.stdout.write(f"broken: {', '.join(broken)}\n" if broken else "all limits held\n")
    return 1 if broken else 0


def measure(batches: int, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds per image in a fit and on prepared arrays; write the network's
    convolutions and a batch to `folder`.
    """
    # Imported here, in the measuring process, because the process that starts it needs none of
    # this.
    import keras
    import numpy as np

    from ml.networks.googlenet import GoogLeNet

    learned: list[tuple[keras.Model, Any, Any]] = []
    learn = keras.Model.train_on_batch

    def watched(network: keras.Model, inputs: Any, truth: Any, **options: Any) -> Any:
        learned[:] = [(network, inputs, truth)]
        return learn(network, inputs, truth, **options)

    ends: list[float] = []

    def report(_share: float, figures: Mapping[str, float]) -> None:
        if "loss" in figures:
            ends.append(time.process_time())
        if len(ends) > batches + 1:
            raise Measured

    keras.Model.train_on_batch = watched
    with suppress(Measured):
        fit_to_noise("googlenet_unet", report, epochs=batches)
    [(network, inputs, truth)] = learned
    np.savez(folder / BATCH, inputs=inputs, **truth)
    (folder / NETWORK).write_text(json.dumps(GoogLeNet(outlines=True).shapes), encoding="utf-8")
    in_fit = statistics.median(after - before for before, after in pairwise(ends[1:]))
    ready = median_s(lambda: learn(network, inputs, truth, return_dict=True), batches)
    return in_fit / len(inputs), ready / len(inputs)


def median_s(step: Callable[[], object], batches: int) -> float:
    """Return the median CPU time of a step, not counting the first."""
    step()
    ends = [time.process_time()]
    for _ in range(batches):
        step()
        ends.append(time.process_time())
    return statistics.median(after - before for before, after in pairwise(ends))


def with_pytorch() -> Path:
    """Return the Python interpreter of an environment that has PyTorch and nothing of Hemoscan."""
    python = ENVIRONMENT / "bin" / "python"
    made = ENVIRONMENT / ".made"
    if not made.exists():
        sys.stdout.write("Installing PyTorch, which takes a few minutes …\n")
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        made.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
