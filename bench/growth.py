"""Benchmark of scaling: time and memory against size, as fitted exponents and curves.

    python -m bench.growth [--most 100000] [--only upload ...] [--plot bench/growth.svg]

An exponent of 0 means that size does not matter, 1 that twice the size takes twice as long. It is
the slope of a straight line fitted to the logarithms of the measured points. Each point is measured
in its own process. Time is CPU time, which other programs affect little: the minimum over several
requests, or that of one series or search; for claims, the minimum elapsed time. Memory is the peak
resident memory of that process. SQLite; images are phantoms or random. The last line is the
verdict; the exit status is 1 if an exponent exceeds its limit. Linux only.

Imported inside the functions, so that what one curve needs does not count as memory of another.
"""

from __future__ import annotations

import argparse
import io
import logging
import multiprocessing
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flask.testing import FlaskClient

from webapp.config import PROJECT_ROOT

TIMES = 15
COPIES = 100
"""In a search for near-duplicates, one of every so many images has a copy."""


@dataclass(frozen=True)
class Curve:
    """A quantity measured against a size.

    Attributes:
        title: what is timed.
        against: what the sizes count.
        sizes: the sizes to measure.
        measure: given a size, returns the CPU time in seconds and the memory in MB.
        most_time, most_memory: upper limits of the exponents.
    """

    title: str
    against: str
    sizes: tuple[int, ...]
    measure: Callable[[int], tuple[float, float]]
    most_time: float
    most_memory: float


@dataclass(frozen=True)
class Points:
    """The measured points of a curve."""

    sizes: Sequence[int]
    seconds: Sequence[float]
    memory_mb: Sequence[float]

    @property
    def exponents(self) -> tuple[float, float]:
        """The exponents of time and of memory."""
        logs = np.log(self.sizes)
        slopes = [np.polyfit(logs, np.log(some), 1)[0] for some in (self.seconds, self.memory_mb)]
        return float(slopes[0]), float(slopes[1])


def least(action: Callable[[], object]) -> float:
    """Return the minimum CPU time of several runs, in seconds."""
    took = []
    for _ in range(TIMES):
        began = time.process_time()
        action()
        took.append(time.process_time() - began)
    return min(took)


def memory_mb() -> float:
    """Return the peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def upload(scans: int) -> tuple[float, float]:
    """Return how long the response to an upload takes for a user with that many scans."""
    from bench.service import a_slice
    from webapp.storage import storage

    picture = a_slice()
    # There is no broker, and each upload would log that.
    logging.getLogger("webapp.jobs").setLevel(logging.ERROR)
    with a_person_with(scans) as client:
        with client.application.app_context():
            storage.start()
        created = client.application.test_cli_runner().invoke(args=["create-token", "reader"])
        headers = {"Authorization": f"Bearer {created.output.split()[-1]}"}

        def send() -> None:
            file = (io.BytesIO(picture), "slice.png")
            answer = client.post("/api/v1/scans", data={"file": file}, headers=headers)
            if answer.status_code != 202:
                raise RuntimeError(f"The upload was answered with {answer.status}: {answer.text}")

        return least(send), memory_mb()


def last_page(scans: int) -> tuple[float, float]:
    """Return how long the last full page of a user's worklist takes."""
    with a_person_with(scans) as client:
        last = re.search(r"Page \d+ of (\d+)", client.get("/scans?page=999999999").text)
        if last is None:
            raise RuntimeError("The worklist has a single page.")
        address = f"/scans?page={int(last[1]) - 1}"
        return least(lambda: client.get(address)), memory_mb()


@contextmanager
def a_person_with(scans: int) -> Iterator[FlaskClient]:
    """Yield the browser of a user with that many scans; a separate process stores them so that its
    memory does not count.
    """
    from bench.worklist import a_reader, fill

    with tempfile.TemporaryDirectory(prefix="hemoscan-growth-") as home:
        database = f"sqlite:///{home}/bench.db"
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            alone.submit(fill, database, Path(home), scans).result()
        yield a_reader(database, Path(home))


def series(slices: int) -> tuple[float, float]:
    """Return the time from the files of a series of images to its verdict, and the memory of the
    worker.
    """
    from bench.series import measure

    figures = measure(PROJECT_ROOT / "ml" / "starter_series", slices, None)
    return figures["files_to_verdict_cpu_s"], figures["memory_mb"]


def duplicates(images: int) -> tuple[float, float]:
    """Return how long it takes to find near-duplicates among that many images."""
    from ml.datasets.near_duplicates import near_duplicates

    dhashes, thumbnails = looks(images)
    began = time.process_time()
    near_duplicates(dhashes, thumbnails)
    return time.process_time() - began, memory_mb()


def looks(images: int) -> tuple[list[str], list[np.ndarray]]:
    """Return hashes and thumbnails of random images. Like images of different patients, they share
    half of their variance: what all heads have in common.
    """
    random = np.random.default_rng(0)
    head, bits_of_head = random.normal(size=1024, scale=25), random.random(256) < 0.4
    dhashes, thumbnails = [], []
    for number in range(images):
        if not number or number % COPIES:
            individual = random.normal(size=1024, scale=25)
            bits = np.where(random.random(256) < 0.5, bits_of_head, random.random(256) < 0.4)
        noise = random.normal(size=1024, scale=2)
        thumbnails.append(np.clip(128 + head + individual + noise, 0, 255).astype(np.uint8))
        dhashes.append(np.packbits(bits).tobytes().hex())
    return dhashes, thumbnails


def claim(queued: int) -> tuple[float, float]:
    """Return how long a predict worker takes to claim a batch among that many queued scans."""
    from bench.claims import claim_ms

    with tempfile.TemporaryDirectory(prefix="hemoscan-growth-") as home:
        took = claim_ms(f"sqlite:///{home}/bench.db", Path(home), people=20, queued=queued)
        return min(took) / 1000, memory_mb()


ROWS, SLICES = (1_000, 10_000, 100_000), (50, 150, 600)
CURVES = {
    "upload": Curve("reply to an upload", "scans of the person", ROWS, upload, 0.15, 0.2),
    "last page": Curve(
        "last page of the worklist", "scans of the person", ROWS, last_page, 0.15, 0.2
    ),
    "series": Curve("files to verdict", "slices of a series", SLICES, series, 1.1, 0.5),
    "near-duplicates": Curve("near-duplicates", "images of a data set", ROWS, duplicates, 1.3, 1.0),
    "claim": Curve("claim of a batch", "queued scans", ROWS, claim, 0.3, 0.2),
}


def measured(curve: Curve, most: int) -> Points:
    """Measure a curve up to that size, each point in its own process."""
    sizes = [size for size in curve.sizes if size <= most]
    points = []
    for size in sizes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            points.append(alone.submit(curve.measure, size).result())
        print_line(
            f"{curve.title}, {size:,} {curve.against}: {1000 * points[-1][0]:,.1f} ms,"
            f" {points[-1][1]:,.0f} MB"
        )
    seconds, memory = zip(*points, strict=True)
    return Points(sizes, seconds, memory)


def draw(curves: Mapping[str, Points], path: Path) -> None:
    """Draw time and memory of each curve on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "hemoscan", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(curves), figsize=(2.9 * len(curves), 5), squeeze=False)
    for column, (name, points) in zip(axes.T, curves.items(), strict=True):
        milliseconds = [1000 * value for value in points.seconds]
        parts: list[tuple[Any, Sequence[float], str]] = [
            (column[0], milliseconds, "ms"),
            (column[1], points.memory_mb, "MB"),
        ]
        for (axis, values, unit), exponent in zip(parts, points.exponents, strict=True):
            axis.loglog(points.sizes, values, "o-", color="#1f5fa8")
            axis.set_ylim(min(values) / 3, max(values) * 3)
            axis.set_ylabel(unit)
            axis.set_xticks(points.sizes, [f"{size:,}" for size in points.sizes])
            axis.minorticks_off()
            for size, value in zip(points.sizes, values, strict=True):
                axis.annotate(
                    f"{value:,.0f}", (size, value), (0, 6), textcoords="offset points", ha="center"
                )
            axis.margins(x=0.2)
            axis.grid(alpha=0.3)
            axis.set_title(f"exponent {exponent:.2f}", fontsize=9)
        column[0].set_title(f"{CURVES[name].title}\nexponent {points.exponents[0]:.2f}", fontsize=9)
        column[1].set_xlabel(CURVES[name].against)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def print_line(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Measure, print a table and the verdict, draw the curves; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=100_000, help="largest size (default 100000)")
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES), help="curves")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file, .svg or .png")
    options = parser.parse_args()
    if short := [name for name in options.only if options.most < CURVES[name].sizes[1]]:
        parser.error(f"--most leaves a single size of: {', '.join(short)}")
    print_line(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    curves = {name: measured(CURVES[name], options.most) for name in options.only}
    print_line("| curve | exponent of time | limit | exponent of memory | limit |")
    broken = []
    for name, points in curves.items():
        curve, (of_time, of_memory) = CURVES[name], points.exponents
        print_line(
            f"| {curve.title} by {curve.against} | {of_time:.2f} | {curve.most_time:g} |"
            f" {of_memory:.2f} | {curve.most_memory:g} |"
        )
        if of_time > curve.most_time or of_memory > curve.most_memory:
            broken.append(name)
    if options.plot:
        draw(curves, options.plot)
    print_line(f"growth: {'BROKEN: ' + '; '.join(broken) if broken else 'all limits hold'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
