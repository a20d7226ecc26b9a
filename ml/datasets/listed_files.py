"""The images of a data set whose table names them without their folder or extension, with the
folders of another computer, or in another spelling.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

Key = tuple[str, ...]


class ListedFiles:
    """Finds images by names that are not their paths.

    The folder is searched at the first such name only.

    Args:
        base: the folder of the data set.
        images_in: returns the images in a folder.
    """

    def __init__(self, base: Path, images_in: Callable[[Path], Iterable[Path]]) -> None:
        self._base, self._images_in = base, images_in
        self._sorted: list[tuple[Key, str]] | None = None
        self._found: list[tuple[str, str]] = []

    def named_like(self, name: str) -> str | None:
        """Return the name of the only image whose path ends like `name`, or with whose path `name`
        ends, regardless of case, Unicode normalization and a missing extension; None if there is
        none, or more than one.
        """
        if self._sorted is None:
            self._sorted = sorted(self._named())
        listed = _key(name)
        alike: set[str] = set()
        for length in range(1, len(listed) + 1):
            end = listed[:length]
            for at in range(bisect_left(self._sorted, (end, "")), len(self._sorted)):
                key, found = self._sorted[at]
                if key[: len(listed)] != end or len(alike) > 1:
                    break
                alike.add(found)
        if len(alike) != 1:
            return None
        (image,) = alike
        self._found.append((name, image))
        return image

    def _named(self) -> Iterator[tuple[Key, str]]:
        """Yield the names of the images, with and without extension, as they are compared."""
        for path in self._images_in(self._base):
            found = path.relative_to(self._base).as_posix()
            for key in {_key(found), _key(found.removesuffix(path.suffix))}:
                yield key, found

    def notes(self, table: str) -> list[str]:
        """Return a note about the images that were found this way."""
        if not self._found:
            return []
        name, image = self._found[0]
        return [
            f"{len(self._found):,} images have another name, folder or extension in {table}; the"
            f" first, {name}, is {image}."
        ]


def _key(name: str) -> Key:
    """Return the parts of a path as they are compared, the last first."""
    return PurePosixPath(unicodedata.normalize("NFC", name).casefold()).parts[::-1] or ("",)
