"""Train the check "this does not look like a head CT" and evaluate it on held-out data sets and
families of other images.

    python -m ml.gate_training.fit DATASET... [--out DIR] [--results FILE]

With n data sets there are n rounds, each of which holds out one data set and a part of the families
of other images, and trains on the rest. Of each kind of image some families are in training, for
example brain MR of another weighting. The operating point is set on head CT alone, such that 4.5%
of the held-out head CT is refused; the share of other images refused at that point is a result. The
shipped gate is then trained on everything. A round takes several minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from ml.datasets.examples import slice_of
from ml.datasets.read import read_dataset
from ml.errors import DatasetError, ImageError
from ml.gate_training.network import fit_judge, judge_to_onnx
from ml.gate_training.other_images.counterexamples import of_head
from ml.gate_training.other_images.families import KINDS, other_images
from ml.gate_training.other_images.heads import phantom_heads, varied
from ml.gate_training.results import Measured, intervals, write_results
from ml.inference.gate import AUTOENCODER, CARD, JUDGE, REFUSED_FROM
from ml.inference.gate_measures import measure, prepare_image
from ml.inference.gate_views import VIEW_PX, errors, view_of
from ml.inference.sessions import session
from ml.networks.autoencoder import Weights, fit_autoencoder, onnx_nodes
from ml.networks.onnx_graph import model_of, serialized
from ml.scans.slices import FloatArray, Slice

MADE_EACH = 24  # images of each synthetic family
MOST_HEADS = 900  # maximum number of training images of a data set
COUNTEREXAMPLES = 1800
PHANTOMS = 150
AUTOENCODER_EPOCHS = 20
GAIN = 0.5
HEADS_REFUSED = 0.045  # share of the held-out head CT that is refused


@dataclass(frozen=True)
class Seen:
    """An image as the gate sees it; `measures` is empty if the image shows no body, and it is then
    always refused.
    """

    source: str
    family: str
    measures: dict[str, float]
    view: FloatArray
    mask: FloatArray


@dataclass(frozen=True)
class Fitted:
    """The two graphs of a gate, and the names of the measures in order."""

    autoencoder: bytes
    judge: bytes
    measures: tuple[str, ...]


def see(slice_: Slice, source: str, family: str) -> Seen:
    """Return an image as the gate sees it."""
    image = prepare_image(slice_)
    measures = measure(image)
    if not measures:
        nothing = np.zeros((VIEW_PX, VIEW_PX), np.float32)
        return Seen(source, family, {}, nothing[..., np.newaxis], nothing)
    view, mask = view_of(image)
    return Seen(source, family, measures, view, mask)


def see_heads(folders: Sequence[Path]) -> tuple[list[Seen], list[Seen]]:
    """Return the readable images of the data sets, and a variant of each with other window, size,
    margins and tilt.
    """
    plain, variants = [], []
    for folder in folders:
        dataset = read_dataset(folder)
        for number, example in enumerate(dataset.examples):
            try:
                slice_ = slice_of(example)
            except ImageError:
                continue  # blank slices above the vertex
            plain.append(see(slice_, dataset.name, "head CT"))
            variants.append(
                see(
                    varied(np.random.default_rng([1, number]), slice_),
                    dataset.name,
                    "head CT, varied",
                )
            )
    return plain, variants


def fit_gate(
    heads: Sequence[Seen],
    others: Sequence[Seen],
    folder: Path,
    seed: int,
    refused_above: float = 0.0,
) -> Fitted:
    """Fit a gate to heads and other images; counterexamples are made from the heads.

    Args:
        heads: original and varied, of all training sources.
        others: images other than head CT, of the training families.
        folder: for checkpoints of the networks.
        seed: random seed.
        refused_above: the logit of the score that becomes `REFUSED_FROM`.
    """
    random = np.random.default_rng(seed)
    sources = sorted({image.source for image in heads})
    chosen: list[Seen] = []
    for source in sources:
        of_source = [image for image in heads if image.source == source and image.measures]
        chosen += [
            of_source[at] for at in map(int, random.permutation(len(of_source))[: 2 * MOST_HEADS])
        ]
    drawn_from = [chosen[at] for at in map(int, random.permutation(len(chosen))[:MOST_HEADS])]
    encoder = fit_autoencoder(
        np.stack([image.view for image in drawn_from]),
        np.arange(len(drawn_from)),
        seed,
        AUTOENCODER_EPOCHS,
        folder / "autoencoder.npz",
        lambda share, figures: None,
    )
    autoencoder = _autoencoder_graph(encoder.weights)
    bases = [chosen[at] for at in random.integers(len(chosen), size=COUNTEREXAMPLES).tolist()]
    counter = [
        see(of_head(random, image.view[:, :, 0]), "made", "counterexample") for image in bases
    ]
    learned = [
        *chosen,
        *(image for image in counter if image.measures),
        *(image for image in others if image.measures),
    ]
    is_other = np.array([False] * len(chosen) + [True] * (len(learned) - len(chosen)))
    names, rows = rows_of(learned, autoencoder)
    judge = fit_judge(
        np.stack([image.view for image in learned]),
        rows,
        is_other,
        _weights(learned, is_other),
        seed,
        folder / "judge.npz",
    )
    return Fitted(autoencoder, judge_to_onnx(judge, GAIN, refused_above / GAIN), names)


def rows_of(seen: Sequence[Seen], autoencoder: bytes) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of all measures, including the autoencoder's errors, and their values,
    float32 (n, k).
    """
    draws = session(autoencoder)
    rows = []
    for image in seen:
        drawn = draws.run(["drawn"], {"views": image.view[np.newaxis]})[0]
        rows.append(image.measures | errors(image.view[:, :, 0], drawn[0, :, :, 0], image.mask))
    names = tuple(sorted(rows[0]))
    return names, np.array([[measures[name] for name in names] for measures in rows], np.float32)


def scores_of(fitted: Fitted, seen: Sequence[Seen]) -> np.ndarray:
    """Return the score of each image, (n,), 1 if there is no body."""
    scores = np.ones(len(seen))
    at = [number for number, image in enumerate(seen) if image.measures]
    _, rows = rows_of([seen[number] for number in at], fitted.autoencoder)
    views = np.stack([seen[number].view for number in at])
    judge = session(fitted.judge)
    for start in range(0, len(at), 64):
        chunk = slice(start, start + 64)
        scores[at[chunk]] = judge.run(["score"], {"views": views[chunk], "measures": rows[chunk]})[
            0
        ]
    return scores


def rounds(sources: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the data set and the families held out in each round: each once, some families of each
    kind at a time.
    """
    families = [family for kind in KINDS.values() for family in kind]
    return [
        (source, tuple(families[number :: len(sources)])) for number, source in enumerate(sources)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, fit and write; return the exit status."""
    options = _options(arguments)
    try:
        plain, variants = see_heads(options.datasets)
        extra, _ = see_heads(options.extra)
    except DatasetError as err:
        sys.stderr.write(f"{err}\n")
        return 2
    phantoms = [see(slice_, "phantoms", "head phantom") for slice_ in phantom_heads(PHANTOMS)]
    others = {
        family: [
            see(image.slice, "made", image.family) for image in other_images(family, MADE_EACH, 0)
        ]
        for kind in KINDS.values()
        for family in kind
    }
    _say(f"{len(plain)} head CT, {sum(map(len, others.values()))} other images")
    heads = [*plain, *variants]
    sources = list(dict.fromkeys(image.source for image in plain))
    with tempfile.TemporaryDirectory(prefix="hemoscan-gate-") as scratch:
        measured = _measured(
            heads, others, sources, [*extra, *phantoms], Path(scratch), options.seed
        )
        refused_above = operating_logit(measured)
        measured = [
            replace(image, score=_sigmoid(_logit(image.score) - refused_above))
            for image in measured
        ]
        for line in write_results(measured, REFUSED_FROM, options.results):
            _say(line)
        if options.out:
            fitted = fit_gate(
                [*heads, *phantoms[: PHANTOMS // 2]],
                [image for family in others for image in others[family]],
                Path(scratch) / "all",
                options.seed,
                refused_above,
            )
            figures = intervals(measured, REFUSED_FROM)
            command_line = sys.argv[1:] if arguments is None else arguments
            command = shlex.join(["python", "-m", "ml.gate_training.fit", *map(str, command_line)])
            write_gate(options.out, fitted, sources, figures, command, options.seed)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ml.gate_training.fit",
        description=__doc__.splitlines()[0] if __doc__ else "",
    )
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    parser.add_argument(
        "--out",
        type=Path,
        help="output folder for the gate trained on everything; by default none is written",
    )
    parser.add_argument("--results", type=Path, help="CSV file for the results")
    parser.add_argument(
        "--extra",
        type=Path,
        nargs="*",
        default=[],
        metavar="DATASET",
        help="head CT used for evaluation only",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _measured(
    heads: Sequence[Seen],
    others: Mapping[str, Sequence[Seen]],
    sources: Sequence[str],
    only_measured: Sequence[Seen],
    scratch: Path,
    seed: int,
) -> list[Measured]:
    """Return the score of each image by the gate of the round that held it out.

    Args:
        heads: plain and varied, of all data sets.
        others: images other than head CT, by family.
        sources: the data sets, one for each round.
        only_measured: images that no gate is fitted to; they are scored in the first round.
        scratch: a folder for unfinished networks.
        seed: random seed.
    """
    measured: list[Measured] = []
    for number, (source, families) in enumerate(rounds(sources)):
        fitted = fit_gate(
            [image for image in heads if image.source != source],
            [image for family in others if family not in families for image in others[family]],
            scratch / str(number),
            seed,
        )
        test = [image for image in heads if image.source == source]
        test += [image for family in families for image in others[family]]
        test += only_measured if number == 0 else []
        scores = scores_of(fitted, test)
        measured += [
            Measured(image.source, image.family, float(score))
            for image, score in zip(test, scores, strict=True)
        ]
        _say(f"round {number + 1}: {source} and {', '.join(families)} held out")
    return measured


def operating_logit(measured: Sequence[Measured]) -> float:
    """Return the logit of the score that `HEADS_REFUSED` of the held-out head CT exceed."""
    return _logit(
        float(
            np.quantile(
                [image.score for image in measured if image.family == "head CT"], 1 - HEADS_REFUSED
            )
        )
    )


def write_gate(
    folder: Path, fitted: Fitted, sources: Iterable[str], figures: object, command: str, seed: int
) -> None:
    """Write the gate's folder: two graphs and a card with their SHA-256, the data and the
    command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {AUTOENCODER: fitted.autoencoder, JUDGE: fitted.judge}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    card = {
        "what": "Check for images that are not head CT. Research use only, not for diagnosis.",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "measures": list(fitted.measures),
        "refused_from": REFUSED_FROM,
        "data_sets": list(sources),
        "odd_pictures": {kind: list(families) for kind, families in KINDS.items()},
        "seed": seed,
        "command": command,
        "figures": figures,
        "protocol": (
            "Each round is evaluated on a held-out data set and held-out families of other images;"
            f" 95% Wilson intervals. At the operating point {HEADS_REFUSED:.1%} of the held-out"
            " head CT is refused; it was set without other images."
        ),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _weights(seen: Sequence[Seen], is_other: np.ndarray) -> np.ndarray:
    """Return the sampling weight of each image in its class: sources and families by the square
    root of their size; half are counterexamples.
    """
    names = np.array(
        [
            image.family if is_not_head else image.source
            for image, is_not_head in zip(seen, is_other, strict=True)
        ]
    )
    weights = np.zeros(len(seen))
    for name in np.unique(names):
        weights[names == name] = (names == name).sum() ** -0.5
    counter, others = names == "counterexample", is_other & (names != "counterexample")
    weights[counter] /= weights[counter].sum()
    if others.any():
        weights[others] /= weights[others].sum()
    return weights


def _autoencoder_graph(weights: Weights) -> bytes:
    """Return "views" (N, 128, 128, 1) -> "drawn", of the same shape."""
    nodes, constants = onnx_nodes(weights, VIEW_PX, "planes", "drawn_planes")
    nodes.insert(0, helper.make_node("Transpose", ["views"], ["planes"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Transpose", ["drawn_planes"], ["drawn"], perm=[0, 2, 3, 1]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", VIEW_PX, VIEW_PX, 1])
        for name in ("views", "drawn")
    ]
    return serialized(model_of(nodes, "autoencoder", ends[:1], ends[1:], constants))


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-6), 1 - 1e-6)
    return float(np.log(clipped / (1 - clipped)))


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
