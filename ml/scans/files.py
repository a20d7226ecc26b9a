"""The files of one scan: opened within limits, left out if unreadable, and ordered by the numbers
in their names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ml.errors import ImageError, NoSliceError, TooLargeError

IMAGES_OF_A_FOLDER = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".gz", ""}
UID_NAME = re.compile(r"[0-9]+(\.[0-9]+){3,}(_.*)?")  # file names used by hospital archives
DAMAGED_SHARE = 0.2  # maximum share of a scan's files that may be damaged
MAX_LISTED = 5  # files listed with their own message


class LeftOut:
    """The files of a scan that are left out, each with a message: damaged files, up to a fifth, and
    files that are not slices.
    """

    def __init__(self, files: int) -> None:
        self._files = files
        self._damaged: list[str] = []
        self._others: list[str] = []

    @contextmanager
    def if_unreadable(self, name: str) -> Iterator[None]:
        """Catch an `ImageError` raised inside, unless the file is the only one.

        Raises:
            ImageError: it is the only file, or too many are damaged; then the message begins with
                the name of the first of them.
        """
        try:
            yield
        except TooLargeError:
            raise
        except ImageError as err:
            if self._files == 1:
                raise
            (self._others if isinstance(err, NoSliceError) else self._damaged).append(
                f"{name}: {err}"
            )
            if len(self._damaged) > DAMAGED_SHARE * self._files:
                more = (
                    f" {len(self._damaged)} or more of the {self._files} files cannot be read."
                    if len(self._damaged) > 1
                    else ""
                )
                raise ImageError(self._damaged[0] + more) from err

    def require_others(self, read: Sequence[object]) -> None:
        """Refuse a scan if none of its files could be read.

        Raises:
            ImageError: `read` is empty.
        """
        if not read:
            raise ImageError((self._damaged + self._others)[0])

    def notes(self) -> list[str]:
        """Return a message for each of the first files, and one for the rest."""
        sentences = self._damaged + self._others
        listed = [f"A file was left out: {sentence}" for sentence in sentences[:MAX_LISTED]]
        return (
            [*listed, f"{len(sentences) - MAX_LISTED} further files were left out."]
            if len(sentences) > MAX_LISTED
            else listed
        )


@contextmanager
def opened(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    """Open a file that is neither empty nor larger than `max_bytes`.

    Raises:
        ImageError: the file is empty, too large or cannot be opened.
    """
    try:
        file = path.open("rb")
        size = os.fstat(file.fileno()).st_size
    except OSError as err:
        raise ImageError("The file cannot be opened.") from err
    with file:
        if not size:
            raise ImageError("The file is empty.")
        if size > max_bytes:
            raise ImageError(f"The file is too large: more than {max_bytes / 2**20:g} MiB.")
        yield file


def is_named_as_image(path: Path, suffixes: Collection[str]) -> bool:
    """Return whether a file has one of these suffixes, or a UID as its name, without a suffix."""
    return path.suffix.lower() in suffixes or bool(UID_NAME.fullmatch(path.name))


def files_of_series(path: Path) -> list[Path]:
    """Return the images in the folder of a series, in the order of the numbers in their names; for
    a single file, return that file.
    """
    if not path.is_dir():
        return [path]
    images = (
        p
        for p in path.rglob("*")
        if p.is_file() and not p.name.startswith(".") and is_named_as_image(p, IMAGES_OF_A_FOLDER)
    )
    # A DICOMDIR is the table of contents of a disc.
    return sorted((p for p in images if p.name.upper() != "DICOMDIR"), key=place_in_series)


def place_in_series(path: Path) -> tuple[int, list[tuple[int, str]], str]:
    """Return the sort key of a picture: the last number in its name, then the name in natural
    order.

    Thus slice_2 comes before slice_10, and 2_of_30 before 10_of_30. DICOM files are ordered by
    position later, whatever their names.
    """
    stem = path.name if UID_NAME.fullmatch(path.name) else path.stem
    numbers = re.findall(r"\d+", stem)
    words = [
        (int(word), "") if word.isdigit() else (-1, word)
        for word in re.split(r"(\d+)", stem)
        if word
    ]
    return int(numbers[-1]) if numbers else -1, words, path.as_posix()
