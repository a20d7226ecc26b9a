"""A gunicorn worker whose threads handle complete requests only, so that slow or idle clients
occupy none.

gunicorn's own threaded worker gives each connection a thread, which then waits for the rest of the
header or body without limit, so a few idle sockets stop the service. Here the main loop collects
the header and a small body without a thread and within `REQUEST_S`. Uploads are read in separate
threads, at a minimum rate, and health checks are answered in separate threads, so pages and health
checks get a response no matter what uploads do. Uploads that would have to wait for longer than
`MOST_WAIT_S` are refused with 429 immediately.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import sys
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import ceil
from typing import Any

from gunicorn import http
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from webapp.errors import overload_answer

REQUEST_S = 10.0
"""Maximum time for a header and a small body, from the connection or their first byte."""
SMALL_BODY = 2**14
"""Bytes; enough for the forms of all pages, but not for uploads."""
LONGEST_HEAD = 2**16
READ_AT_ONCE = 2**16
STOPPING_S = 1.0
"""Maximum time for connections that are open when the process stops."""
IDLE_S = 10.0
"""Maximum pause within a large body."""
SLOWEST = 8_000
"""Minimum average rate of a large body after its first seconds, in bytes per second; a slow mobile
connection has ten times as much.
"""
MOST_WAIT_S = 5.0
"""An upload that would wait longer than this for a thread is refused."""
FIRST_GUESS_S = 0.25
"""Assumed duration of an upload until one was measured."""
SMOOTHING = 0.1
"""The weight of the latest upload in the moving average of durations."""
LONGEST_S = 10.0
"""Longer uploads are averaged as this duration: most of their time was the client's network."""
UPLOAD_THREADS = 2
"""Upload threads per thread for everything else; clients of one address get half of them."""
SWITCH_S = 0.001
"""How long a thread runs while others wait; Python's default is five times as long."""
MOST_IDLE = 500
"""Maximum idle connections of one address; beyond it the oldest one is closed."""
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})", re.IGNORECASE)
SENT_IN_PARTS = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)
WITH_FILES = re.compile(rb"\r\ncontent-type:[ \t]*multipart/(?:form-data|related)", re.IGNORECASE)
HEALTH_CHECKS = (b"healthz", b"readyz")
HEALTH = re.compile(rb"(?:GET|HEAD) /(healthz|readyz)[ ?]")
FOR_PROGRAMS = re.compile(rb"[A-Z]+ /(?:api|dicom-web)/")


class PacedInput:
    """A client's socket while one request is read from it; a client that pauses for too long or
    sends too slowly counts as disconnected.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.received = 0
        self.waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes, as `socket.recv` does.

        Raises:
            ConnectionResetError: the client pauses for too long or sends too slowly.
            TimeoutError: the socket's own timeout has passed.
        """
        left_s = min(IDLE_S, IDLE_S + self.received / SLOWEST - self.waited_s)
        if left_s <= 0:
            raise ConnectionResetError(errno.ECONNRESET, "The client sends too slowly.")
        before, began = self.sock.gettimeout(), time.monotonic()
        self.sock.settimeout(left_s if before is None else min(left_s, before))
        try:
            data: bytes = self.sock.recv(size)
        except TimeoutError as err:
            if before is not None:
                raise  # The caller set this timeout.
            raise ConnectionResetError(errno.ECONNRESET, "The client sends nothing.") from err
        finally:
            self.waited_s += time.monotonic() - began
            self.sock.settimeout(before)
        self.received += len(data)
        return data


class SoundBody:
    """Reads the body of a request; one that is malformed, such as a chunk without a size, counts as
    cut off, which the application answers with 400.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of the body, none at its end.

        Raises:
            ConnectionResetError: the body is malformed.
        """
        try:
            data: bytes = self.reader.read(size)
        except ParseException as err:
            raise ConnectionResetError(errno.ECONNRESET, "The body is malformed.") from err
        return data


def unquoted(err: ParseException) -> ParseException:
    """Return an error of the same kind whose message is only its kind: gunicorn's quote what was
    sent, which may be a token or a reset link, in the log and the response.
    """
    kind = type(err)
    name = kind.__name__
    silent: Any = type(name, (kind,), {"__str__": lambda _: name})
    shown: ParseException = silent.__new__(silent)  # The constructors take what they would quote.
    return shown


def is_upload(begun: bytes | bytearray) -> bool | None:
    """Return whether the request that starts with these bytes has files, or a body too large to
    collect without a thread; None if more of the request must arrive first.
    """
    end = begun.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = LENGTH.search(begun, 0, end)
    size = int(length[1]) if length else 0
    if size > SMALL_BODY or SENT_IN_PARTS.search(begun, 0, end):
        return True
    if len(begun) - end - 4 < size:
        return None
    return WITH_FILES.search(begun, 0, end) is not None


class Line:
    """The uploads that wait for a thread, and an estimate of their wait; used by the main loop
    only.

    Args:
        threads: number of upload threads.
        of_one_address: how many of them the clients of one address may occupy; 0 for all, if all
            addresses are that of a proxy.
    """

    def __init__(self, threads: int, of_one_address: int) -> None:
        self.threads = threads
        self.of_one_address = of_one_address or threads
        self.each_s = FIRST_GUESS_S
        self.waiting: deque[tuple[float, TConn]] = deque()
        self.running: Counter[str] = Counter()

    @property
    def wait_s(self) -> float:
        """Expected wait of one more upload, in seconds."""
        return len(self.waiting) * self.each_s / self.threads

    def join(self, conn: TConn) -> None:
        """Add an upload to the end."""
        self.waiting.append((time.monotonic(), conn))

    def next(self) -> TConn | None:
        """Remove and return the first upload that may have a thread; None if there is none."""
        if self.running.total() >= self.threads:
            return None
        for place, (_, conn) in enumerate(self.waiting):
            if self.running[address_of(conn)] < self.of_one_address:
                del self.waiting[place]
                self.running[address_of(conn)] += 1
                return conn
        return None

    def leave(self, conn: TConn, took_s: float) -> None:
        """Record that an upload has finished after `took_s` seconds."""
        self.running[address_of(conn)] -= 1
        self.each_s += SMOOTHING * (min(took_s, LONGEST_S) - self.each_s)

    def late(self) -> TConn | None:
        """Remove and return an upload that has waited for too long; None if there is none."""
        if self.waiting and time.monotonic() - self.waiting[0][0] > MOST_WAIT_S:
            return self.waiting.popleft()[1]
        return None


def address_of(conn: TConn) -> str:
    """Return the IP address of a connection; that of the proxy if there is one."""
    return str(conn.client[0]) if isinstance(conn.client, tuple) else ""


def is_closed(conn: TConn) -> bool:
    """Return whether a connection was closed after the poller had reported it readable."""
    return bool(conn.sock.fileno() < 0)


def received_from(sock: Any) -> bytes | None:
    """Return what a client has sent; empty once the connection has ended or failed, None if nothing
    has arrived yet.
    """
    try:
        data: bytes = sock.recv(READ_AT_ONCE)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    return data


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, with threads that start once a request is complete."""

    def init_process(self) -> None:
        """Start, with separate threads for uploads, for health checks and for everything else."""
        threads = UPLOAD_THREADS * self.cfg.threads
        self.uploads = ThreadPoolExecutor(threads, "uploads")
        self.line = Line(threads, self.cfg.threads)
        # One each: `/readyz` may have to wait for the database, which `/healthz` must not.
        self.health = {name: ThreadPoolExecutor(1, name.decode()) for name in HEALTH_CHECKS}
        self.idle: Counter[str] = Counter()
        self.refusals: dict[tuple[bool, int], bytes] = {}
        # Threads that process uploads take turns with those that serve pages, and with the main
        # loop, which needs several turns for each connection.
        sys.setswitchinterval(SWITCH_S)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application; behind a proxy there are no limits by address."""
        super().load_wsgi()
        self.has_proxy = bool(self.wsgi.config["TRUSTED_PROXIES"])
        if self.has_proxy:
            self.line.of_one_address = self.line.threads

    def accept(self, listener: Any) -> None:
        """Accept a connection and start to collect its request."""
        try:
            sock, address = listener.accept()
            conn = TConn(self.cfg, sock, address, listener.getsockname())
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        self.nr_conns += 1
        self.gather(conn)

    def enqueue_req(self, conn: TConn) -> None:
        """Collect the next request of a connection that is kept alive."""
        self.gather(conn, conn.parser.unreader.take_buffered())

    def gather(self, conn: TConn, begun: bytes = b"") -> None:
        """Collect the rest of a request without a thread, within `REQUEST_S`."""
        conn.begun = bytearray(begun)
        self.wait_for(conn, self.on_pending_socket_readable)
        self.look(conn)
        if self.idle[address_of(conn)] > MOST_IDLE and not self.has_proxy:
            self.drop(
                next(
                    pending
                    for pending in self.pending_conns
                    if address_of(pending) == address_of(conn)
                )
            )
        # At the maximum number of connections, no new client would get a response.
        if self.nr_conns >= self.worker_connections and self.pending_conns:
            ((most, _),) = self.idle.most_common(1)
            self.drop(
                next(pending for pending in self.pending_conns if address_of(pending) == most)
            )

    def wait_for(self, conn: TConn, on_readable: Any) -> None:
        """Have `on_readable` called when a client sends something, within `REQUEST_S`."""
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + (REQUEST_S if self.alive else STOPPING_S)
        self.pending_conns.append(conn)
        self.idle[address_of(conn)] += 1
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))

    def on_pending_socket_readable(self, conn: TConn, client: Any) -> None:
        """Add what a client has sent to its request."""
        if is_closed(conn) or (received := received_from(client)) is None:
            return
        conn.begun += received
        if received:
            self.look(conn)
        else:
            self.drop(conn)

    def look(self, conn: TConn) -> None:
        """Give a request to a thread, or have it wait for one, once it is complete."""
        upload = is_upload(conn.begun)
        if upload is None:
            if len(conn.begun) > LONGEST_HEAD + SMALL_BODY:
                self.drop(conn)
            return
        self.leave(conn)
        if upload and self.line.wait_s > MOST_WAIT_S:
            self.shed(conn)
            return
        if upload:
            self.line.join(conn)
            self.take_uploads()
            return
        check = HEALTH.match(conn.begun)
        pool = self.health[check[1]] if check else self.tpool
        self.answer(conn, pool).add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def answer(self, conn: TConn, pool: ThreadPoolExecutor) -> Future[Any]:
        """Have a thread of `pool` answer a complete request."""
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.initialized = True
        conn.parser.unreader.sock = PacedInput(conn.sock)
        conn.parser.unreader.unread(bytes(conn.begun))
        conn.begun.clear()
        future: Future[Any] = pool.submit(self.handle, conn)
        return future

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Answer a request, whose body may turn out to be malformed while it is read."""
        req.body.reader = SoundBody(req.body.reader)
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Refuse a malformed request, without a quotation from it."""
        shown = unquoted(exc) if isinstance(exc, ParseException) else exc
        super().handle_error(req, client, addr, shown)

    def take_uploads(self) -> None:
        """Give waiting uploads to free threads."""
        while (conn := self.line.next()) is not None:
            done = partial(self.method_queue.defer, self.finish_upload, conn, time.monotonic())
            self.answer(conn, self.uploads).add_done_callback(done)

    def finish_upload(self, conn: TConn, began: float, done: Future[Any]) -> None:
        """Give the thread of a finished upload to the next one."""
        self.line.leave(conn, time.monotonic() - began)
        self.take_uploads()
        self.finish_request(conn, done)

    def finish_request(self, conn: TConn, done: Future[Any]) -> None:
        """Wait for the next request of a connection, or close it."""
        if not done.cancelled() and done.exception() is None and done.result():
            super().finish_request(conn, done)
        else:
            self.linger(conn)

    def linger(self, conn: TConn) -> None:
        """Close the sending side, then read and discard until the client closes the connection: if
        bytes were unread, the connection would be reset and the response lost. gunicorn itself
        waits for this in the main loop, up to two seconds per client.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
        else:
            self.wait_for(conn, self.on_ended_socket_readable)

    def shed(self, conn: TConn) -> None:
        """Refuse an upload that would wait for too long, and discard what is sent of it."""
        what = bool(FOR_PROGRAMS.match(conn.begun)), ceil(max(self.line.wait_s, 1))
        if what not in self.refusals:  # The same for hundreds of clients.
            self.refusals[what] = overload_answer(self.wsgi, *what)
        conn.begun.clear()
        with suppress(OSError):
            conn.sock.send(self.refusals[what])
        self.linger(conn)

    def on_ended_socket_readable(self, conn: TConn, client: Any) -> None:
        """Discard what a client sends; close the connection once it ends."""
        if not is_closed(conn) and received_from(client) == b"":
            self.drop(conn)

    def murder_pending(self) -> None:
        """Close connections that took too long, and refuse uploads that waited for too long."""
        while (conn := self.line.late()) is not None:
            self.shed(conn)
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            self.drop(self.pending_conns[0])

    def leave(self, conn: TConn) -> None:
        """Stop waiting for this connection."""
        self.poller.unregister(conn.sock)
        self.pending_conns.remove(conn)
        self.idle[address_of(conn)] -= 1
        if not self.idle[address_of(conn)]:
            del self.idle[address_of(conn)]

    def drop(self, conn: TConn) -> None:
        """Close a connection that is being waited for."""
        self.leave(conn)
        self.nr_conns -= 1
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """Also limit how long connections without a request delay the end of the process."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def run(self) -> None:
        """Serve until this worker stops."""
        super().run()
        self.end_threads()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop immediately."""
        self.end_threads()
        super().handle_quit(sig, frame)

    def end_threads(self) -> None:
        """Start no further requests."""
        for pool in (self.uploads, *self.health.values()):
            pool.shutdown(wait=False)
