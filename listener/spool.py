"""Incoming studies on disk: one folder for each study of an account, one file for each instance.

A folder is valid while it holds the file `ABOUT`, which is written first and deleted first: a
folder without it is a study of which nothing was received, or one that was closed.

A file is complete and synced to disk before its sender gets a success status, and survives a
restart. Names are keyed hashes; files are stored as sent, readable only by the account that runs
the service, and deleted when the study is closed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

from webapp.dicom_peers import Peer
from webapp.models import new_id

ABOUT, ENDED, SUFFIX = "study.json", "ended", ".dcm"
MOST_REASONS = 5
"""Maximum number of reasons for refused instances kept for each study."""
MOST_SENDERS = 5
ABANDONED_S = 3600
"""A file not written to for this long belongs to a broken association."""


@dataclass
class About:
    """Facts about a study besides its instances.

    Attributes:
        account: the username of the account that owns the scans.
        senders: the AE titles of the senders.
        answers: the destinations of results, and which results each gets.
        refused: how many instances were refused, by the sentence that gives the reason.
        is_cut_off: the last association that sent instances of it broke off.
    """

    account: str
    senders: list[str] = field(default_factory=list)
    stat: bool = False
    answers: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    is_cut_off: bool = False

    def add_sender(self, peer: Peer) -> None:
        """Record that this peer sent instances of it."""
        if peer.ae_title not in self.senders and len(self.senders) < MOST_SENDERS:
            self.senders.append(peer.ae_title)
        self.stat |= peer.stat
        for name in peer.answers:
            self.answers.setdefault(name, peer.results.value)

    def add_refusal(self, sentence: str) -> None:
        """Record that an instance was refused."""
        if sentence in self.refused or len(self.refused) < MOST_REASONS:
            self.refused[sentence] = self.refused.get(sentence, 0) + 1


@dataclass(frozen=True)
class Study:
    """A closed study, to which nothing is added.

    Attributes:
        key: the keyed hash of account and study (`webapp.routing.study_key`).
        files: its instances; their names are the keyed hashes of series and instance.
    """

    key: str
    folder: Path
    about: About
    files: tuple[Path, ...]


class Spool:
    """The studies under one folder, managed by one process at a time."""

    def __init__(self, root: Path) -> None:
        self.arriving = root / "arriving"
        self._open, self._closed = root / "open", root / "closed"
        self._lock = Lock()
        self._sizes: dict[str, dict[str, int]] = {}
        for folder in (root, self.arriving, self._open, self._closed):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self.arriving.iterdir():
            left.unlink()
        for folder in [*self._open.iterdir(), *self._closed.iterdir()]:
            if not _counts(folder):
                shutil.rmtree(folder)
        # Left behind, complete, by a process that was killed while it closed a study.
        for folder in self._closed.iterdir():
            self._put_back(folder)
        # Time in which no process listened does not count as a quiet period.
        for folder in self._open.iterdir():
            os.utime(folder)

    def add(self, key: str, peer: Peer, account: str, path: Path, name: str) -> None:
        """Move a complete file to its study; it is synced to disk on return.

        Args:
            name: the same for every copy of an instance, of which the last one counts.

        Raises:
            OSError: the disk is full, or writing failed.
        """
        with path.open("rb") as file:
            os.fsync(file.fileno())
        with self._lock:
            self._note(key, peer, account)
            size = path.stat().st_size
            path.replace(self._open / key / f"{name}{SUFFIX}")
            self._sizes_of(key)[name] = size
            self._settle(key)

    def refuse(self, key: str, peer: Peer, account: str, sentence: str) -> None:
        """Record that an instance of a study was refused, and why."""
        with self._lock:
            self._note(key, peer, account, sentence)
            self._settle(key)

    def holds(self, key: str, besides: str) -> tuple[int, int]:
        """Return how many files other than `besides` a study has so far, and their bytes."""
        with self._lock:
            sizes = [size for name, size in self._sizes_of(key).items() if name != besides]
            return len(sizes), sum(sizes)

    def note_association_over(self, key: str, *, is_cut_off: bool) -> None:
        """Record how an association ended that sent part of a study."""
        folder = self._open / key
        with self._lock:
            if not _counts(folder):
                return
            about = _read(folder)
            if about.is_cut_off != is_cut_off:
                about.is_cut_off = is_cut_off
                _write(folder, about)

    def end(self, key: str) -> None:
        """Record that the sender announced a study as complete."""
        with suppress(FileNotFoundError):
            (self._open / key / ENDED).touch(mode=0o600)

    def due(self, quiet_s: float, busy: Collection[str] = ()) -> list[str]:
        """Return the studies that were announced as complete, or received nothing for `quiet_s`,
        oldest first. An announcement is ignored while another association still sends the study
        (`busy`).
        """
        quiet = []
        for folder in filter(_counts, self._open.iterdir()):
            changed = folder.stat().st_mtime
            is_ended = folder.name not in busy and (folder / ENDED).exists()
            if is_ended or time.time() - changed >= quiet_s:
                quiet.append((changed, folder.name))
        return [key for _, key in sorted(quiet)]

    def close(self, key: str) -> Study:
        """Take a study out of the spool; later instances begin another one."""
        folder = self._closed / f"{key}.{new_id()}"
        with self._lock:
            (self._open / key).rename(folder)
            self._sizes.pop(key, None)
        files = tuple(sorted(folder.glob(f"*{SUFFIX}")))
        return Study(key, folder, _read(folder), files)

    def reopen(self, study: Study) -> None:
        """Put back a study that could not be stored now, and add the instances that arrived
        meanwhile.
        """
        self._put_back(study.folder)

    def remove(self, study: Study) -> None:
        """Delete the files of a study."""
        (study.folder / ABOUT).unlink(missing_ok=True)
        shutil.rmtree(study.folder)

    def sweep(self) -> None:
        """Delete the leftovers of broken associations."""
        for left in self.arriving.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > ABANDONED_S:
                    left.unlink()

    def _note(self, key: str, peer: Peer, account: str, refused: str = "") -> None:
        folder = self._open / key
        folder.mkdir(exist_ok=True, mode=0o700)
        is_known = _counts(folder)
        about = _read(folder) if is_known else About(account)
        before = deepcopy(about)
        about.add_sender(peer)
        if refused:
            about.add_refusal(refused)
        if not is_known or about != before:
            _write(folder, about)

    def _sizes_of(self, key: str) -> dict[str, int]:
        if key not in self._sizes:
            self._sizes[key] = {
                file.name.removesuffix(SUFFIX): file.stat().st_size
                for file in (self._open / key).glob(f"*{SUFFIX}")
            }
        return self._sizes[key]

    def _settle(self, key: str) -> None:
        """Sync a folder's entries to disk, and record when it changed."""
        folder = self._open / key
        (folder / ENDED).unlink(missing_ok=True)
        os.utime(folder)
        for each in (folder, self._open):
            handle = os.open(each, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _put_back(self, folder: Path) -> None:
        key = folder.name.partition(".")[0]
        with self._lock:
            target = self._open / key
            self._sizes.pop(key, None)
            if not _counts(folder):  # An earlier deletion failed.
                return
            if not _counts(target):
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
                return
            merged = _merged(_read(folder), _read(target))
            for file in folder.glob(f"*{SUFFIX}"):
                file.replace(target / file.name)
            _write(target, merged)
            shutil.rmtree(folder)


def _counts(folder: Path) -> bool:
    return (folder / ABOUT).exists()


def _merged(first: About, second: About) -> About:
    refused = {
        sentence: first.refused.get(sentence, 0) + second.refused.get(sentence, 0)
        for sentence in [*first.refused, *second.refused]
    }
    return About(
        second.account,
        list(dict.fromkeys([*first.senders, *second.senders])),
        first.stat or second.stat,
        {**first.answers, **second.answers},
        refused,
        second.is_cut_off,
    )


def _read(folder: Path) -> About:
    return About(**json.loads((folder / ABOUT).read_text()))


def _write(folder: Path, about: About) -> None:
    fresh = folder / f"{ABOUT}.new"
    with fresh.open("w") as file:
        file.write(json.dumps(asdict(about)))
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(0o600)
    fresh.replace(folder / ABOUT)
