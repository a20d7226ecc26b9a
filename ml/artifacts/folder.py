"""The model folder: a card and ONNX graphs, written atomically and read without executing code.

    card.json        everything about the model (`Card`)
    features.onnx    "images" float32 (N, size, size, 1) -> "maps" float32 (N, h, w, c)
    head.onnx        "maps" float32 (N, h, w, c), the slices of one scan in order
                     -> "slice_probability" float32 (N,), "scan_probability" float32 (1,), both
                     calibrated
    types.onnx       optional: "maps", "slice_probability", "scan_probability" of one scan
                     -> "slice_types" float32 (N, k), "scan_types" float32 (k,): the types of
                     hemorrhage that the card names
    seen.json        optional: {"features": [[sha256 first 16 hex, dhash 64 hex], ...],
                     "head": [...]}: the training images (`ml.datasets.seen_images`)

The card holds the SHA-256 of every other file and of itself, and the model's id is derived from
those of the files, so a truncated, mixed-up or damaged folder is refused. `ml.artifacts.onnx_check`
checks what a graph contains.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ml.artifacts.card import CARD, FEATURES, FORMAT, HEAD, Card, checksum_of
from ml.checkpoints import flush_to_disk
from ml.errors import ArtifactError
from ml.typed_json import to_json

MAX_CARD_BYTES = 8 * 2**20


def write_model(out_dir: Path, card: Card, files: Mapping[str, Path | bytes]) -> Card:
    """Write a model folder atomically: `out_dir` does not exist until all of it is on disk.

    Args:
        out_dir: the folder, which must not exist.
        card: `id` and `files` are filled in here.
        files: name -> the file or its bytes; features.onnx and head.onnx are required.

    Returns:
        The card as written.

    Raises:
        ArtifactError: the folder exists, a required file is missing, or a file name is not a plain
            name.
    """
    missing = {FEATURES, HEAD} - set(files)
    if missing:
        raise ArtifactError(f"The model folder lacks {' and '.join(sorted(missing))}.")
    for name in files:
        _require_plain_name(name)
    if out_dir.exists():
        raise ArtifactError(
            f"The folder {out_dir.name} already exists; models are never overwritten."
        )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        for name, source in files.items():
            if isinstance(source, bytes):
                (unfinished / name).write_bytes(source)
            else:
                shutil.copyfile(source, unfinished / name)
        digests = {name: _sha256(unfinished / name) for name in sorted(files)}
        written = replace(card, format=FORMAT, id=_model_id(digests), files=digests)
        written = replace(written, checksum=checksum_of(to_json(written)))
        text = written.to_json()
        Card.from_json(text)  # fail before writing if it could not be read back
        (unfinished / CARD).write_text(text, encoding="utf-8")
        for path in unfinished.iterdir():
            flush_to_disk(path)
        # mkdtemp creates a private folder, but the web process may run as another user
        unfinished.chmod(0o755)
        unfinished.rename(out_dir)
        flush_to_disk(out_dir.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return written


def read_card(model_dir: Path) -> Card:
    """Return the card of a model folder after verifying the checksum of every file.

    Raises:
        ArtifactError: a file is missing or altered, or the format is unknown.
    """
    try:
        with (model_dir / CARD).open("rb") as file:
            text = file.read(MAX_CARD_BYTES + 1)
    except OSError as err:
        raise ArtifactError(f"The model folder has no readable {CARD}.") from err
    if len(text) > MAX_CARD_BYTES:
        raise ArtifactError(f"The model's {CARD} is larger than {MAX_CARD_BYTES / 2**20:g} MiB.")
    card = Card.from_json(text)
    missing = {FEATURES, HEAD} - set(card.files)
    if missing:
        raise ArtifactError(f"The model's {CARD} does not name {' and '.join(sorted(missing))}.")
    for name, digest in card.files.items():
        _require_plain_name(name)
        try:
            actual = _sha256(model_dir / name)
        except OSError as err:
            raise ArtifactError(f"The model's {name} is missing.") from err
        if actual != digest:
            raise ArtifactError(
                f"The model's {name} was changed after it was written: its SHA-256 differs from"
                " the card's."
            )
    if card.id != _model_id(card.files):
        raise ArtifactError(f"The model's id {card.id[:12]!r} does not belong to its files.")
    return card


def _model_id(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_plain_name(name: str) -> None:
    """Raise ArtifactError for a name that points outside the model folder or is hidden."""
    if (
        name == CARD
        or name.startswith(".")
        or not name.replace(".", "").replace("_", "").replace("-", "").isalnum()
    ):
        raise ArtifactError(f"A model's file cannot be named {name[:40]!r}.")
