"""Renders the images of previews, which show the processing of one slice: claims a row, stores the
file, finishes the row. They are a cache, from which the least recently used are deleted.
"""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from flask import current_app
from PIL import Image
from sqlalchemy import delete, select

from ml.datasets.archive import DAMAGED, path_in
from ml.datasets.examples import Example, slice_of
from ml.errors import ArtifactError, ImageError
from ml.exploration.processing import processing_steps, with_outline
from ml.inference.restructuring import Restructuring
from ml.preprocessing.model_input import InputSpec
from ml.scans.slices import FloatArray, Series, Slice, gray_of, rendered_size
from webapp.extensions import db
from webapp.models import (
    Dataset,
    DatasetImage,
    JobStatus,
    ModelVersion,
    Preview,
    Scan,
    preview_file,
)
from webapp.storage import StorageError, StorageUnavailable, storage
from worker import leases
from worker.decoder import decode
from worker.heartbeat import heartbeat
from worker.leases import LeaseLost
from worker.predictors import model_folder
from worker.retries import in_transaction, retry_disk, retry_storage
from worker.scan_files import is_passing, png, read_original

log = logging.getLogger(__name__)

MOST_KEPT = 300
"""Number of previews whose images are kept, about 1 MB each at most."""
PICTURE_PX = 768
STEP_PX = 512
UNEXPECTED = "An unexpected error occurred; see the log for details."
NOT_COMPUTED = "This step could not be computed for this slice; see the log for details."
ARCHIVE_DAMAGED = "The archive of the data set is damaged, so this image cannot be read."
GONE = "This image is no longer stored."


class PreviewStopped(Exception):
    """This worker was asked to stop; the preview returns to the queue."""


class PreviewRefused(ValueError):
    """A preview cannot be made; the message is a sentence."""


@dataclass(frozen=True)
class Step:
    """The content of a preview: images in 0..1, float32 (height, width), or uint8 (height, width,
    3), and sentences.
    """

    name: str
    pictures: Sequence[np.ndarray]
    notes: Sequence[str] = ()


def make_next_preview() -> bool:
    """Claim one preview and make it; return False if none was queued. Only one at a time, because
    scans have priority.
    """
    mine = heartbeat()
    claimed = in_transaction(lambda: leases.claim(Preview, mine.owner))
    if not claimed:
        return False
    preview = claimed[0]
    ids = [preview.id]
    with mine.holding(Preview, ids):
        try:
            result, content = _packed(_steps(preview))
            retry_storage(lambda: storage.put(preview.file_key, content))
            if not in_transaction(lambda: leases.finish(Preview, mine.owner, ids, result=result)):
                raise LeaseLost
            _remove_least_used()
        except LeaseLost:
            _let_go(preview)
        except (PreviewStopped, StorageUnavailable):
            return not in_transaction(lambda: leases.hand_back(Preview, mine.owner, ids))
        except (PreviewRefused, ImageError, StorageError) as err:
            sentences = {preview.id: str(err)}
            end = leases.retry_after_storage_error if is_passing(err) else leases.fail
            in_transaction(lambda: end(Preview, mine.owner, sentences))
        except Exception:
            log.exception("preview=%s failed unexpectedly", preview.id)
            in_transaction(lambda: leases.fail(Preview, mine.owner, {preview.id: UNEXPECTED}))
    return True


def _let_go(preview: Preview) -> None:
    """Delete the file of a preview that was deleted meanwhile, with its data set or scan."""
    if not in_transaction(
        lambda: db.session.scalar(select(Preview.id).where(Preview.id == preview.id))
    ):
        storage.discard(preview.file_key)


def _remove_least_used() -> None:
    """Delete all finished previews except the most recently used."""
    ended = Preview.status.in_([status for status in JobStatus if status.is_final])
    old = select(Preview.id).where(ended).order_by(Preview.used_at.desc()).offset(MOST_KEPT)
    for preview_id in in_transaction(lambda: db.session.scalars(old).all()):
        in_transaction(
            lambda preview_id=preview_id: db.session.execute(  # type: ignore[misc]
                delete(Preview).where(Preview.id == preview_id)
            )
        )
        storage.discard(preview_file(preview_id))


def _steps(preview: Preview) -> list[Step]:
    """Return the content of a preview.

    Raises:
        PreviewRefused: the slice is gone.
        ImageError: it cannot be decoded.
        StorageError: it cannot be downloaded.
    """
    with heartbeat().work_folder() as folder:
        slice_, mask = _read(preview.what, folder)
        if preview.settings["kind"] == "picture":
            return _picture(slice_, mask, preview.settings)
        return _processing(slice_, preview.settings)


def _picture(slice_: Slice, mask: FloatArray | None, settings: dict[str, Any]) -> list[Step]:
    gray = gray_of(slice_, settings["level"], settings["width"])
    shown = _fitted(gray, PICTURE_PX)
    steps = [Step("picture", [shown], [slice_.unit])]
    if mask is not None:
        if mask.shape == gray.shape:
            size = shown.shape[::-1]
            small = cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
            steps.append(Step("outline", [with_outline(shown, small >= 0.5)]))
        else:
            steps.append(Step("outline", [], ["The outline and the image differ in size."]))
    return steps


def _processing(slice_: Slice, settings: dict[str, Any]) -> list[Step]:
    spec = InputSpec.from_dict(settings["spec"])
    steps = []
    for name, compute in processing_steps(slice_, spec, settings["seed"]).items():
        if heartbeat().stopping():
            raise PreviewStopped
        try:
            shown = compute()
        except Exception:
            log.exception("step=%s could not be computed", name)
            steps.append(Step(name, [], [NOT_COMPUTED]))
        else:
            pictures = [_fitted(picture, STEP_PX) for picture in shown.pictures]
            steps.append(Step(name, pictures, shown.notes))
    if version_id := settings["version"]:
        steps.append(_restructured(slice_, version_id))
    return steps


def _restructured(slice_: Slice, version_id: str) -> Step:
    name = "autoencoder"
    version = in_transaction(lambda: db.session.get(ModelVersion, version_id))
    if version is None:
        return Step(name, [], ["This version no longer exists."])
    try:
        before, drawn = Restructuring(model_folder(version)).of(slice_)
    except (ArtifactError, StorageError) as err:
        if isinstance(err, StorageUnavailable):
            raise
        return Step(name, [], [str(err)])
    return Step(name, [before, drawn])


def _read(what: dict[str, Any], folder: Path) -> tuple[Slice, FloatArray | None]:
    """Return the slice, and the mask of its hemorrhage if there is one."""
    if "dataset" in what:
        return _of_dataset(what["dataset"], what["image"], folder)
    if "scan" in what:
        scan = in_transaction(lambda: db.session.get(Scan, what["scan"]))
        if scan is None:
            raise PreviewRefused("This scan no longer exists.")
        slices = read_original(scan).slices
        if what["slice"] >= len(slices):
            raise PreviewRefused(f"This scan has {len(slices)} slices.")
        return slices[what["slice"]], None
    source = Path(current_app.static_folder or "") / "phantoms" / what["phantom"]
    # The decoder has access to the work folder only.
    path = Path(retry_disk(lambda: shutil.copy(source, folder / source.name)))
    return _decoded([path]).slices[0], None


def _of_dataset(dataset_id: str, number: int, folder: Path) -> tuple[Slice, FloatArray | None]:
    image, key = in_transaction(
        lambda: (
            db.session.get(DatasetImage, (dataset_id, number)),
            db.session.scalar(select(Dataset.archive_key).where(Dataset.id == dataset_id)),
        )
    )
    if image is None or key is None:
        raise PreviewRefused(GONE)
    names = [*image.files, *([image.mask] if image.mask else [])]
    paths = retry_storage(lambda: _extracted(key, names, folder))
    files = paths[: len(image.files)]
    example = Example(
        files[0], image.name, image.label, None, None, "", "", beside=tuple(files[1:])
    )
    slice_ = slice_of(example, may_be_bare=True, decode=_decoded)
    if not image.mask:
        return slice_, None
    shown = _decoded([paths[-1]], may_be_bare=True, crops=False)
    return slice_, shown.slices[0].pixels


def _decoded(paths: Sequence[Path], **how: bool) -> Series:
    return retry_disk(lambda: decode(paths, **how))


def _extracted(archive_key: str, names: Sequence[str], folder: Path) -> list[Path]:
    """Copy members of an archive in the storage to `folder`, without downloading the whole
    archive.
    """
    paths = []
    try:
        with storage.open(archive_key) as file, zipfile.ZipFile(file) as archive:
            members = {path_in(info): info for info in archive.infolist()}
            for number, name in enumerate(names):
                path = folder / f"{number}{Path(name).suffix.lower()}"
                with archive.open(members[name]) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                paths.append(path)
    except KeyError as err:
        raise PreviewRefused(GONE) from err
    except DAMAGED as err:
        raise PreviewRefused(ARCHIVE_DAMAGED) from err
    except OSError as err:
        raise StorageError("A stored file cannot be read.") from err
    return paths


def _packed(steps: Sequence[Step]) -> tuple[list[dict[str, Any]], bytes]:
    """Return the steps for the row, and the content of the file with their images as PNG."""
    content = bytearray()
    result = []
    for step in steps:
        places = []
        for picture in step.pictures:
            levels = (
                picture
                if picture.dtype == np.uint8
                else np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            )
            encoded = png(Image.fromarray(levels))
            places.append([len(content), len(encoded)])
            content += encoded
        result.append({"name": step.name, "pictures": places, "notes": list(step.notes)})
    return result, bytes(content)


def _fitted(picture: FloatArray, most_px: int) -> FloatArray:
    """Return an image with its longer side at most `most_px`."""
    size = rendered_size(picture.shape, most_px)
    if size == picture.shape[::-1]:
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.float32)
