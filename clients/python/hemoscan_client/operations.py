"""What a client does, as steps that are independent of how they are executed: `client.py` has one
runner for threads and one for `asyncio`.

An operation is a generator: it yields a `Call` and is sent its outcome, or yields a `Pause`.
"""

from __future__ import annotations

import email.utils
import hashlib
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from hemoscan_client.errors import ApiError, NothingToSend, TimedOut, Unreachable
from hemoscan_client.results import Job, Scan

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FIRST_LOOK_S, LONGEST_LOOK_S = 0.5, 5.0
REPLAYED = "Idempotency-Replayed"
MAY_PASS = (429, 502, 503, 504)
"""Statuses after which the same request may succeed later. Any other is retried if it has a
`Retry-After`.
"""
REPORTS = ("pdf", "sr", "sc", "seg")

Value = TypeVar("Value")
OnSent = Callable[[int, int], None]
"""Called with the number of bytes sent and the total; a retry starts again at 0."""


@dataclass(frozen=True)
class Choices:
    """How files are submitted.

    Attributes:
        title: shown in the worklist; do not use patient names.
        stat: analyzed before all routine scans.
        together: the images are slices of one scan.
        uncut: a film sheet is read as a single slice, without being cut into its slices.
        keep_names: file names may be stored.
    """

    title: str = ""
    stat: bool = False
    together: bool = False
    uncut: bool = False
    keep_names: bool = False

    def as_form(self) -> dict[str, str]:
        """Return the form fields."""
        flags = ("stat", "together", "uncut", "keep_names")
        chosen = {name: "1" for name in flags if getattr(self, name)}
        return {**({"title": self.title} if self.title else {}), **chosen}


NOTHING_CHOSEN = Choices()


@dataclass(frozen=True)
class Call:
    """A request; `files` are the names under which files are sent, and their paths."""

    method: str
    url: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[tuple[str, Path]] = ()
    on_sent: OnSent | None = None


@dataclass(frozen=True)
class Pause:
    """A wait before the next step."""

    seconds: float


Outcome = httpx.Response | httpx.TransportError | None
Operation = Generator[Call | Pause, Outcome, Value]


def answered(call: Call, patience_s: float) -> Operation[httpx.Response]:
    """Make a call and return its response, retrying transient failures for up to `patience_s`.

    Raises:
        ApiError: the service refused it.
        Unreachable: the service did not respond.
    """
    give_up_at = time.monotonic() + patience_s
    pause_s = FIRST_PAUSE_S
    while True:
        outcome = yield call
        if isinstance(outcome, httpx.Response) and not may_pass(outcome):
            if outcome.is_error or outcome.has_redirect_location:
                raise ApiError(outcome.status_code, sentence_of(outcome))
            return outcome
        asked_s = retry_after_s(outcome) if isinstance(outcome, httpx.Response) else None
        wait_s = pause_s * random.uniform(0.5, 1.0) if asked_s is None else asked_s
        if time.monotonic() + wait_s > give_up_at:
            if isinstance(outcome, httpx.Response):
                raise ApiError(outcome.status_code, sentence_of(outcome))
            raise Unreachable(f"The service cannot be reached: {outcome}.") from outcome
        yield Pause(wait_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def may_pass(answer: httpx.Response) -> bool:
    """Return whether the same request may be accepted later."""
    says_when = answer.is_error and "Retry-After" in answer.headers
    return answer.status_code in MAY_PASS or says_when


def retry_after_s(answer: httpx.Response) -> float | None:
    """Return how many seconds the service asks to wait; None if it does not say."""
    header = answer.headers.get("Retry-After", "")
    if header.isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def sentence_of(answer: httpx.Response) -> str:
    """Return the error message of a response."""
    if answer.has_redirect_location:
        return f"The service is at another address: {answer.headers['Location']}."
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The service answered {answer.status_code} {answer.reason_phrase}."


def json_of(answer: httpx.Response) -> Any:
    """Return the JSON of a response.

    Raises:
        ApiError: it is not JSON, for example because a login page in front of the service
            responded.
    """
    try:
        return answer.json()
    except ValueError as err:
        sentence = f"What answers at {answer.url.host} is not Hemoscan's API."
        raise ApiError(answer.status_code, sentence) from err


def files_below(paths: Sequence[Path], root: Path | None = None) -> list[tuple[str, Path]]:
    """Return all files under these paths, with names that include their folders; hidden files are
    left out.

    Args:
        root: the folder that names are relative to, including those of single files.

    Raises:
        NothingToSend: a path does not exist, or there are no files.
    """
    files: list[tuple[str, Path]] = []
    for path in paths:
        if not path.exists():
            raise NothingToSend(f"There is no file or folder {path}.")
        if not path.is_dir():
            name = path.name if root is None else path.relative_to(root).as_posix()
            files.append((name, path))
            continue
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path)
            if file.is_file() and not any(part.startswith(".") for part in inside.parts):
                start = Path(path.resolve().name) if root is None else path.relative_to(root)
                files.append(((start / inside).as_posix(), file))
    if not files:
        raise NothingToSend("There are no files to send.")
    return files


def key_of(files: Sequence[tuple[str, Path]], choices: Choices) -> str:
    """Return the idempotency key of these files with these options: a digest of names, contents and
    options, so it is the same in every process.
    """
    digest = hashlib.sha256(repr(sorted(choices.as_form().items())).encode())
    for name, path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(repr((name, content)).encode())
    return digest.hexdigest()


def submit(
    files: Sequence[tuple[str, Path]],
    choices: Choices,
    key: str | None,
    on_sent: OnSent | None,
    patience_s: float,
) -> Operation[list[Job]]:
    """Submit files in one request.

    Args:
        key: the idempotency key: the service accepts a submission with the same key only once; a
            new key by default.
    """
    headers = {"Idempotency-Key": key or str(uuid4())}
    call = Call("POST", "scans", {}, headers, choices.as_form(), files, on_sent)
    answer = yield from answered(call, patience_s)
    is_known = answer.headers.get(REPLAYED) == "true"
    return [Job.of(job, is_known=is_known) for job in json_of(answer)["scans"]]


def scan(scan_id: str, patience_s: float) -> Operation[Scan]:
    """Read a scan, or the one that has replaced it, which has a different id."""
    answer = yield from answered(Call("GET", f"scans/{scan_id}"), patience_s)
    return Scan.of(json_of(answer))


def page(
    url: str, params: Mapping[str, str], patience_s: float
) -> Operation[tuple[list[Scan], str | None]]:
    """Read a page of a list; return its scans and the address of the next page."""
    answer = yield from answered(Call("GET", url, params), patience_s)
    content = json_of(answer)
    following = None
    if content["next"]:  # Its query only: behind a proxy, the service may know another address.
        following = f"scans?{httpx.URL(content['next']).query.decode()}"
    return [Scan.of(scan) for scan in content["items"]], following


def wait(
    scan_ids: Sequence[str],
    timeout_s: float | None,
    on_change: Callable[[Scan], None] | None,
    patience_s: float,
) -> Operation[list[Scan]]:
    """Poll scans until the analysis of each has ended; return them in the order given.

    Raises:
        TimedOut: it did not end in time.
    """
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    scans: dict[str, Scan] = {}
    etags: dict[str, str] = {}
    look_s = FIRST_LOOK_S
    while True:
        for scan_id in scan_ids:
            if scan_id in scans and scans[scan_id].is_final:
                continue
            headers = {"If-None-Match": etags[scan_id]} if scan_id in etags else {}
            answer = yield from answered(
                Call("GET", f"scans/{scan_id}", headers=headers), patience_s
            )
            if answer.status_code == httpx.codes.NOT_MODIFIED:
                continue
            scans[scan_id] = Scan.of(json_of(answer))
            etags[scan_id] = answer.headers.get("ETag", "")
            look_s = FIRST_LOOK_S
            if on_change is not None:
                on_change(scans[scan_id])
        if all(scan.is_final for scan in scans.values()):
            return [scans[scan_id] for scan_id in scan_ids]
        if give_up_at is not None and time.monotonic() + look_s > give_up_at:
            raise TimedOut("The analysis did not finish in time; it continues on the server.")
        yield Pause(look_s)
        look_s = min(1.5 * look_s, LONGEST_LOOK_S)


def report(scan_id: str, kind: str, timeout_s: float, patience_s: float) -> Operation[bytes]:
    """Request a report of a scan, or of the one that has replaced it, and download it.

    Raises:
        ApiError: there is no report of this kind.
        TimedOut: it was not ready in time.
    """
    newest = yield from scan(scan_id, patience_s)
    address = f"scans/{newest.id}/reports/{kind}"
    headers = {"Idempotency-Key": str(uuid4())}
    yield from answered(Call("POST", address, headers=headers), patience_s)
    give_up_at = time.monotonic() + timeout_s
    while True:
        answer = yield from answered(Call("GET", address), patience_s)
        if answer.status_code == httpx.codes.OK:
            return answer.content
        if time.monotonic() > give_up_at:
            raise TimedOut("The report was not ready in time; request it again later.")
        yield Pause(retry_after_s(answer) or FIRST_LOOK_S)


def act(scan_id: str, action: str, patience_s: float) -> Operation[None]:
    """Cancel, retry or delete a scan."""
    if action == "delete":
        yield from answered(Call("DELETE", f"scans/{scan_id}"), patience_s)
        return
    headers = {"Idempotency-Key": str(uuid4())}
    yield from answered(Call("POST", f"scans/{scan_id}/{action}", headers=headers), patience_s)
