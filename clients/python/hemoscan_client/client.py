"""The synchronous client and the `asyncio` client, with the same methods."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import httpx

from hemoscan_client import operations
from hemoscan_client.errors import HemoscanError
from hemoscan_client.operations import NOTHING_CHOSEN, Call, Choices, OnSent, Operation, Pause
from hemoscan_client.results import Job, Scan

API = "api/v1/"
TIMEOUT = httpx.Timeout(30.0, read=120.0, write=120.0)
PATIENCE_S = 120.0
"""How long, in seconds, a request is retried while the service is unavailable."""
REPORT_S = 120.0

Value = TypeVar("Value")
Paths = Sequence[str | os.PathLike[str]]


class _Counted:
    """A file that reports how many of its bytes have been read."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._file, self._on_read = file, on_read

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        content = self._file.read(size)
        self._on_read(len(content))
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _base(url: str | None) -> str:
    configured = url or os.environ.get("HEMOSCAN_URL") or ""
    try:
        address = httpx.URL(configured)
        is_address = address.scheme in ("http", "https") and bool(address.host)
    except httpx.InvalidURL:
        is_address = False
    if not is_address:
        raise HemoscanError(
            "Set HEMOSCAN_URL or --url to the address of Hemoscan, such as"
            " https://scans.example.org."
        )
    return f"{configured.rstrip('/')}/{API}"


def _headers(token: str | None) -> dict[str, str]:
    secret = token or os.environ.get("HEMOSCAN_TOKEN") or ""
    if not secret:
        raise HemoscanError(
            "Set HEMOSCAN_TOKEN to an API token, which you create on your account page."
        )
    if not (secret.isascii() and secret.isprintable()):
        raise HemoscanError("This is not an API token: tokens consist of letters, digits, - and _.")
    return {"Authorization": f"Bearer {secret}", "User-Agent": "hemoscan-client"}


def _prepared(call: Call, opened: ExitStack) -> dict[str, Any]:
    """Return the arguments for httpx of a call, with its files opened."""
    request: dict[str, Any] = {"headers": dict(call.headers)}
    if call.params:
        request["params"] = dict(call.params)
    if not call.files:
        return request
    total, sent = sum(path.stat().st_size for _, path in call.files), 0

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        if call.on_sent is not None:
            call.on_sent(sent, total)

    count(0)
    request["data"] = dict(call.data)
    request["files"] = [
        ("file", (name, _Counted(opened.enter_context(path.open("rb")), count)))
        for name, path in call.files
    ]
    return request


class _Shared:
    """What both clients share: how long they keep retrying."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s

    def _submission(
        self,
        paths: Paths,
        root: Path | None,
        choices: Choices,
        key: str | None,
        on_sent: OnSent | None,
    ) -> Operation[list[Job]]:
        files = operations.files_below([Path(path) for path in paths], root)
        return operations.submit(files, choices, key, on_sent, self._patience_s)


def _params(status: str | None, *, shared: bool, finished_since: datetime | None) -> dict[str, str]:
    return {
        **({"status": status} if status else {}),
        **({"shared": "true"} if shared else {}),
        **({"finished_since": finished_since.isoformat()} if finished_since else {}),
    }


class Client(_Shared):
    """A program's access to Hemoscan.

    Every method raises `ApiError`, with the message from the service, if the service refuses the
    request, and `Unreachable` if it does not respond for `patience_s`. Until then the request is
    retried: after the delay given by `Retry-After`, otherwise with increasing delays.

    Args:
        url: the address of the service; HEMOSCAN_URL by default.
        token: an API token; HEMOSCAN_TOKEN by default.
        transport: the httpx transport, for tests and proxies.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(patience_s)
        self._http = httpx.Client(
            base_url=_base(url), headers=_headers(token), timeout=TIMEOUT, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def submit(
        self,
        paths: Paths,
        choices: Choices = NOTHING_CHOSEN,
        *,
        key: str | None = None,
        root: Path | None = None,
        on_sent: OnSent | None = None,
    ) -> list[Job]:
        """Submit files and folders in one request; all DICOM files of a series become one scan.

        Args:
            key: the idempotency key: a submission repeated under the same key is accepted only
                once.
            root: the folder that file names are relative to; without it, single files are sent
                under their base names.
            on_sent: called with the number of bytes sent so far and the total number of bytes.

        Raises:
            NothingToSend: there are no such files.
        """
        return self._run(self._submission(paths, root, choices, key, on_sent))

    def scan(self, scan_id: str) -> Scan:
        """Return a scan and, if it is done, its result.

        If a scan was replaced because more of its series arrived, the scan that replaced it is
        returned, which has a different `id`.
        """
        return self._run(operations.scan(scan_id, self._patience_s))

    def scans(
        self,
        *,
        status: str | None = None,
        shared: bool = False,
        finished_since: datetime | None = None,
    ) -> Iterator[Scan]:
        """Yield your scans and those shared with you, newest first.

        Args:
            finished_since: only scans whose analysis ended at this time or later; UTC if it has no
                time zone.
        """
        url: str | None = "scans"
        params: Mapping[str, str] = _params(status, shared=shared, finished_since=finished_since)
        while url is not None:
            page, url = self._run(operations.page(url, params, self._patience_s))
            params = {}
            yield from page

    def results(self, since: datetime | None = None) -> Iterator[Scan]:
        """Yield your scans whose analysis ended with a result, optionally only since a given time
        (UTC if it has no time zone).
        """
        for scan in self.scans(status="done", finished_since=since):
            if scan.result is not None:
                yield scan

    def wait(
        self,
        scan_ids: Sequence[str],
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Scan], None] | None = None,
    ) -> list[Scan]:
        """Return the scans, in the order given, once the analysis of all of them has ended;
        `on_change` is called with each scan whose status changed.

        Raises:
            TimedOut: it had not ended after `timeout_s`.
        """
        return self._run(operations.wait(scan_ids, timeout_s, on_change, self._patience_s))

    def report(self, scan_id: str, kind: str = "pdf", *, timeout_s: float = REPORT_S) -> bytes:
        """Return a report of a scan as a file: pdf, sr, sc or seg.

        Raises:
            TimedOut: it was not ready after `timeout_s`.
        """
        return self._run(operations.report(scan_id, kind, timeout_s, self._patience_s))

    def cancel(self, scan_id: str) -> None:
        """Cancel a queued or running scan."""
        self._run(operations.act(scan_id, "cancel", self._patience_s))

    def retry(self, scan_id: str) -> None:
        """Queue a failed or canceled scan again."""
        self._run(operations.act(scan_id, "retry", self._patience_s))

    def delete(self, scan_id: str) -> None:
        """Delete a scan with its files and its result."""
        self._run(operations.act(scan_id, "delete", self._patience_s))

    def _run(self, operation: Operation[Value]) -> Value:
        try:
            step = next(operation)
            while True:
                step = operation.send(self._done(step))
        except StopIteration as end:
            value: Value = end.value
            return value

    def _done(self, step: Call | Pause) -> httpx.Response | httpx.TransportError | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        with ExitStack() as opened:
            try:
                return self._http.request(step.method, step.url, **_prepared(step, opened))
            except httpx.TransportError as err:
                return err


class AsyncClient(_Shared):
    """The same as `Client`, for `asyncio`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(patience_s)
        self._http = httpx.AsyncClient(
            base_url=_base(url), headers=_headers(token), timeout=TIMEOUT, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def submit(
        self,
        paths: Paths,
        choices: Choices = NOTHING_CHOSEN,
        *,
        key: str | None = None,
        root: Path | None = None,
        on_sent: OnSent | None = None,
    ) -> list[Job]:
        """As `Client.submit`."""
        return await self._run(self._submission(paths, root, choices, key, on_sent))

    async def scan(self, scan_id: str) -> Scan:
        """As `Client.scan`."""
        return await self._run(operations.scan(scan_id, self._patience_s))

    async def scans(
        self,
        *,
        status: str | None = None,
        shared: bool = False,
        finished_since: datetime | None = None,
    ) -> AsyncIterator[Scan]:
        """As `Client.scans`."""
        url: str | None = "scans"
        params: Mapping[str, str] = _params(status, shared=shared, finished_since=finished_since)
        while url is not None:
            page, url = await self._run(operations.page(url, params, self._patience_s))
            params = {}
            for scan in page:
                yield scan

    async def results(self, since: datetime | None = None) -> AsyncIterator[Scan]:
        """As `Client.results`."""
        async for scan in self.scans(status="done", finished_since=since):
            if scan.result is not None:
                yield scan

    async def wait(
        self,
        scan_ids: Sequence[str],
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Scan], None] | None = None,
    ) -> list[Scan]:
        """As `Client.wait`."""
        return await self._run(operations.wait(scan_ids, timeout_s, on_change, self._patience_s))

    async def report(
        self, scan_id: str, kind: str = "pdf", *, timeout_s: float = REPORT_S
    ) -> bytes:
        """As `Client.report`."""
        return await self._run(operations.report(scan_id, kind, timeout_s, self._patience_s))

    async def cancel(self, scan_id: str) -> None:
        """As `Client.cancel`."""
        await self._run(operations.act(scan_id, "cancel", self._patience_s))

    async def retry(self, scan_id: str) -> None:
        """As `Client.retry`."""
        await self._run(operations.act(scan_id, "retry", self._patience_s))

    async def delete(self, scan_id: str) -> None:
        """As `Client.delete`."""
        await self._run(operations.act(scan_id, "delete", self._patience_s))

    async def _run(self, operation: Operation[Value]) -> Value:
        try:
            step = next(operation)
            while True:
                step = operation.send(await self._done(step))
        except StopIteration as end:
            value: Value = end.value
            return value

    async def _done(self, step: Call | Pause) -> httpx.Response | httpx.TransportError | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        with ExitStack() as opened:
            try:
                return await self._http.request(step.method, step.url, **_prepared(step, opened))
            except httpx.TransportError as err:
                return err
