"""Benchmark of Hemoscan against simpler implementations of the same task, in one run: ratios of CPU
time, which are more meaningful than seconds on a shared machine.

    python -m bench.peers [--rounds 5] [--model ml/starter_series]

All read the same files and compute the same network:

- hemoscan: like a predict worker, with decoding in a child process, up to the finding with
  outlines;
- bare: reading, preprocessing, the check "not a head CT" and the exported graphs in plain ONNX
  Runtime sessions, in this process, without anything else;
- keras: reading, preprocessing and the same network in Keras by `Model.predict`, as in most such
  services, on the slices and their mirror images; no check, no outlines in millimeters, no finding;
- keras function: the same, compiled once by `tf.function` for batches of one size.

Every round runs each once, in turn, on one thread. The last line is the verdict; the exit status is
1 if Hemoscan reaches less than 0.8 of the speed of the bare graphs. Images are phantoms of
512 x 512. Linux only.

Imported inside the functions are the numerical libraries, after `main` has set the number of
threads.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ml.scans.slices import FloatArray, Series
from webapp.config import PROJECT_ROOT

SLICES, BATCH = 40, 4
LEAST_OF_BARE = 0.8
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Answer = Callable[[Sequence[Path]], object]


def main() -> int:
    """Measure all, print times and ratios, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, default=PROJECT_ROOT / "ml" / "starter_series")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as scratch:
        paths = write_slices(Path(scratch))
        peers: dict[str, Answer] = {
            "hemoscan": hemoscan(options.model, Path(scratch)),
            "bare": bare(options.model),
            **keras_peers(options.model),
        }
        print_line(f"{platform.machine()}, {os.cpu_count()} cores, {options.rounds} rounds")
        is_held = True
        for what, files in ((f"series of {SLICES}", paths), ("one slice", paths[:1])):
            seconds = measure(peers, files, options.rounds)
            for name, value in seconds.items():
                ratio = value / seconds["hemoscan"]
                print_line(f"{what}, {name}: {value * 1000:.0f} ms, {ratio:.2f} of hemoscan's")
            is_held &= seconds["bare"] / seconds["hemoscan"] >= LEAST_OF_BARE
    print_line(f"peers: {'all limits hold' if is_held else 'BROKEN: slower than 0.8 of bare'}")
    return 0 if is_held else 1


def measure(peers: Mapping[str, Answer], paths: Sequence[Path], rounds: int) -> dict[str, float]:
    """Return the median CPU time of each in seconds, in this process and its children."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for answer in peers.values():
        answer(paths)  # sessions, traces and the child process are created on first use
    for _ in range(rounds):
        for name, answer in peers.items():
            before = processor_s()
            answer(paths)
            seconds[name].append(processor_s() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processor_s() -> float:
    """Return the CPU time of this process and its living children, in seconds; that of children has
    a resolution of 10 ms.
    """
    pid = os.getpid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    stats = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2] for child in children]
    ticks = sum(int(value) for stat in stats for value in stat.split()[11:13])
    return time.process_time() + ticks / TICKS_PER_S


def write_slices(folder: Path) -> list[Path]:
    """Write a series of phantoms as DICOM files, 5 mm apart."""
    from ml.scans.phantoms import phantom, write_dicom

    paths = [folder / f"{number:03}" for number in range(SLICES)]
    for number, path in enumerate(paths):
        hu = phantom(number % 10, hemorrhage=number % 2 == 0)
        write_dicom(hu, path, number=number, position_mm=5.0 * number)
    return paths


def hemoscan(model: Path, scratch: Path) -> Answer:
    """Return what a predict worker does with files, up to the finding."""
    from ml.inference.predictor import Predictor
    from worker.decoder import Decoder

    predictor = Predictor(model)
    decoder = Decoder(memory_mb=2048, limit_s=60, folder=scratch)
    return lambda paths: predictor.predict(decoder.decode(paths, scratch))


def bare(model: Path) -> Answer:
    """Return the same computation in plain ONNX Runtime."""
    import onnxruntime

    from ml.inference.gate import checked_slices, gate

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    features, head = (
        onnxruntime.InferenceSession(str(model / name), options)
        for name in ("features.onnx", "head.onnx")
    )
    check = gate()

    def answer(paths: Sequence[Path]) -> object:
        series, inputs = inputs_of(model, paths)
        maps = [
            features.run(None, {"images": inputs[start : start + BATCH]})[0]
            for start in range(0, len(inputs), BATCH)
        ]
        scores = [check.score(series.slices[index]) for index in checked_slices(len(inputs))]
        return head.run(None, {"maps": np.concatenate(maps)}), np.median(scores)

    return answer


def keras_peers(model: Path) -> dict[str, Callable[[Sequence[Path]], float]]:
    """Return the same network in Keras, by `Model.predict` and as a compiled function; each returns
    the highest logit of the outlines.
    """
    import tensorflow as tf

    from ml.networks.googlenet import GoogLeNet

    encoder = GoogLeNet(outlines=True)
    network = encoder.build(encoder.initial(model, seed=0), size=224)
    compiled = tf.function(lambda pictures: network(pictures, training=False))

    def by_predict(paths: Sequence[Path]) -> float:
        _, inputs = inputs_of(model, paths)
        _, outlines = network.predict(both_ways(inputs), batch_size=2 * BATCH, verbose=0)
        return float(outlines.max())

    def by_function(paths: Sequence[Path]) -> float:
        pictures = both_ways(inputs_of(model, paths)[1])
        starts = range(0, len(pictures), 2 * BATCH)
        answers = [compiled(pictures[start : start + 2 * BATCH]) for start in starts]
        return max(float(outlines.numpy().max()) for _, outlines in answers)

    return {"keras": by_predict, "keras function": by_function}


def inputs_of(model: Path, paths: Sequence[Path]) -> tuple[Series, FloatArray]:
    """Return the series in these files and its inputs (n, 224, 224, 1)."""
    from ml.artifacts.folder import read_card
    from ml.preprocessing.model_input import InputSpec, to_input
    from ml.scans.read import read_series

    spec = InputSpec.from_dict(read_card(model).preprocessing)
    series = read_series(paths)
    return series, np.stack([to_input(slice_, spec)[0] for slice_ in series.slices])


def both_ways(pictures: FloatArray) -> FloatArray:
    """Return pictures (n, h, w, 1) and their mirror images (2n, h, w, 1)."""
    return np.concatenate([pictures, pictures[:, :, ::-1]])


def print_line(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
