"""The training images of weights, so that no model is tested on images that it was trained on.

`seen.json` of a model folder holds no names, only identifiers: the first 16 hex digits of the
file's SHA-256, and the perceptual hash of the image, which is the same or similar in re-encoded
copies. "features" lists the images that the convolutions were trained on (including those of their
initial weights); "head" lists further images that only the head was trained on, which a later
training discards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ml.artifacts.card import SEEN, InitialWeights
from ml.artifacts.folder import read_card
from ml.datasets.examples import Example
from ml.datasets.near_duplicates import HASH_DIGITS, is_telling, same_pictures
from ml.errors import ArtifactError

Marks = tuple[tuple[str, str], ...]
"""(first 16 hex digits of the SHA-256, perceptual hash of 64 hex digits) of each image; lists of
earlier versions have hashes of 16.
"""


def describe_weights(init: Path | str) -> InitialWeights:
    """Describe the initial weights for the card, including their own origin if they are one of
    Hemoscan's models.

    Raises:
        ArtifactError: there are none.
    """
    path = Path(init)
    if init == "random":
        return InitialWeights(kind="random")
    if path.is_dir():
        card = read_card(path)
        return InitialWeights(
            kind="model",
            id=card.id,
            architecture=card.architecture,
            command=card.command,
            datasets=card.data.datasets,
            fingerprint=card.data.fingerprint,
            initial_weights=card.data.initial_weights,
        )
    if not path.is_file():
        raise ArtifactError(f"There are no initial weights at {path}.")
    with path.open("rb") as file:
        return InitialWeights(
            kind="file",
            name=path.name,
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        )


def marks_of(init: Path | str) -> Marks:
    """Return the training images of initial weights, as listed in a model folder; none for random
    weights or other files.

    Raises:
        ArtifactError: the folder is not a model, or does not state what its features were trained
            on.
    """
    if init == "random" or not Path(init).is_dir():
        return ()
    card = read_card(Path(init))
    if SEEN not in card.files:
        raise ArtifactError(
            f"The model {card.id} does not state which images it was trained on, so no test would"
            " be unbiased."
        )
    return tuple(
        (str(file), str(picture))
        for file, picture in json.loads((Path(init) / SEEN).read_bytes())["features"]
    )


def all_marks_of(model_dir: Path) -> Marks:
    """Return all training images of a model.

    Raises:
        ArtifactError: the model does not state them.
    """
    card = read_card(model_dir)
    if SEEN not in card.files:
        raise ArtifactError(
            f"The model {card.id} does not state which images it was trained on, so an overlap is"
            " unknown."
        )
    listed = json.loads((model_dir / SEEN).read_bytes())
    return tuple(
        {
            (str(file), str(picture))
            for part in ("features", "head")
            for file, picture in listed[part]
        }
    )


def notes_on_marks(marks: Marks) -> list[str]:
    """Return a note if images are listed by the 64-bit hash of earlier versions, which cannot be
    compared.
    """
    earlier = sum(bool(picture) and len(picture) != HASH_DIGITS for _, picture in marks)
    listed = (
        f"{earlier} of the training images were listed by an earlier version; of these, only"
        " unchanged files are recognized."
    )
    return [listed] if earlier else []


def seen_among(examples: Sequence[Example], marks: Marks) -> np.ndarray:
    """Return which examples are among the marks, bool (n,): the same file or a near-duplicate;
    empty slices never match.
    """
    files = {file for file, _ in marks}
    pictures = [picture for _, picture in marks if len(picture) == HASH_DIGITS]
    telling = [at for at, example in enumerate(examples) if is_telling(example.dhash)]
    seen = np.zeros(len(examples), bool)
    seen[telling] = [examples[at].sha256[:16] in files for at in telling]
    seen[
        [
            telling[match]
            for match, _ in same_pictures([examples[at].dhash for at in telling], pictures)
        ]
    ] = True
    return seen


def seen_json(
    examples: Sequence[Example],
    before: Marks,
    learned_features: bool,
    weak_examples: Sequence[Example] = (),
) -> bytes:
    """Return seen.json of a model trained on `examples` from weights that had seen `before`;
    `weak_examples` trained only its head.
    """
    now, whole = (
        {(example.sha256[:16], example.dhash) for example in part}
        for part in (examples, weak_examples)
    )
    features = set(before) | (now if learned_features else set())
    renewed = {file for file, picture in features if len(picture) == HASH_DIGITS}
    features = {
        (file, picture)
        for file, picture in features
        if len(picture) == HASH_DIGITS or file not in renewed
    }
    return json.dumps(
        {"features": sorted(features), "head": sorted((now | whole) - features)},
        separators=(",", ":"),
    ).encode()
