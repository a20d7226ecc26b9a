"""New UIDs for the stored copies of DICOM files."""

from __future__ import annotations

import hashlib
import secrets


class NewUids:
    """Replaces the UIDs of an upload, consistently; the originals cannot be recovered without the
    salt (DICOM PS3.5 B.2).

    A UID that it has issued is kept, so that a stored copy can be submitted again.

    Args:
        salt: the same salt gives the same UIDs; random by default.

    Attributes:
        originals: the original of each UID that it has issued.
    """

    def __init__(self, salt: bytes | None = None) -> None:
        self._salt = salt or secrets.token_bytes(16)
        self.originals: dict[str, str] = {}

    def __call__(self, uid: str) -> str:
        """Return the replacement of `uid`."""
        if self.has_given(uid):
            return uid
        start = int.from_bytes(hashlib.sha256(self._salt + uid.encode()).digest()[:12])
        new = f"2.25.{start << 32 | self._check(start)}"
        self.originals[new] = uid
        return new

    def has_given(self, uid: str) -> bool:
        """Return whether `uid` is a replacement made with this salt."""
        if not uid.startswith("2.25.") or not uid[5:].isdecimal():
            return False
        start, check = divmod(int(uid[5:]), 2**32)
        return start < 2**96 and check == self._check(start)

    def _check(self, start: int) -> int:
        return int.from_bytes(hashlib.sha256(self._salt + start.to_bytes(12)).digest()[:4])
