"""gunicorn's threads, kept for requests that are there: who sends slowly, or nothing, holds none.

gunicorn's own worker gives each connection a thread that then waits for the rest of a header or a
body for ever, so a few idle sockets stop the service. Here the main loop collects header and small
body without a thread, for so long and no longer; uploads are read in threads of their own, at a
rate that has a minimum, and health checks are answered in threads of their own. So pages and health
checks are answered whatever uploads do. Uploads that would wait for longer than `MOST_WAIT_S` are
refused with 429 at once.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import ceil
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import TConn, ThreadWorker

from webapp.errors import overload_answer

REQUEST_S = 10.0
"""How long a header and a small body may take, from the connection or the byte that begins them."""
SMALL_BODY = 2**14
"""Bytes: the forms of all pages; uploads are larger."""
LONGEST_HEAD = 2**16
READ_AT_ONCE = 2**16
STOPPING_S = 1.0
"""How long a connection may last that is left when the process stops."""
IDLE_S = 10.0
"""How long a large body may pause."""
SLOWEST = 8_000
"""Bytes a second, on average, that a large body must bring after its first seconds: a slow mobile
line brings ten times as many.
"""
MOST_WAIT_S = 5.0
"""An upload that would have to wait for a thread for longer is refused."""
FIRST_GUESS_S = 0.25
"""How long an upload takes, before one was measured."""
SMOOTHING = 0.1
"""The weight of the newest upload in the mean of how long one takes."""
LONGEST_S = 10.0
"""An upload that took longer counts as this in the mean: most of it was the client's line."""
UPLOAD_THREADS = 2
"""For each of the threads that answer all else; the clients of one address get half of them."""
MOST_IDLE = 500
"""Connections of one address without a request; one more, and the oldest of them is closed."""
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})", re.IGNORECASE)
SENT_IN_PARTS = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)
WITH_FILES = re.compile(rb"\r\ncontent-type:[ \t]*multipart/form-data", re.IGNORECASE)
HEALTH_CHECKS = (b"healthz", b"readyz")
HEALTH = re.compile(rb"(?:GET|HEAD) /(healthz|readyz)[ ?]")
FOR_PROGRAMS = re.compile(rb"[A-Z]+ /api/")


class PacedInput:
    """A client's socket as one request is read from it: who pauses for too long, or is too slow for
    too long, is taken for gone.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.received = 0
        self.waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def recv(self, size: int) -> bytes:
        """Return what has come.

        Raises:
            ConnectionResetError: it takes too long.
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
                raise  # Whoever set it wants to know.
            raise ConnectionResetError(errno.ECONNRESET, "The client sends nothing.") from err
        finally:
            self.waited_s += time.monotonic() - began
            self.sock.settimeout(before)
        self.received += len(data)
        return data


def is_upload(begun: bytes | bytearray) -> bool | None:
    """Return whether a request that begins so brings files, or a body to wait for in a thread; None
    where more must come to tell, or to have it whole.
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
    """The uploads that wait for a thread, and how long they will; of the main loop alone.

    Args:
        threads: how many there are.
        of_one_address: how many of them the clients of one address may have; 0 for all, where the
            addresses are those of a proxy.
    """

    def __init__(self, threads: int, of_one_address: int) -> None:
        self.threads = threads
        self.of_one_address = of_one_address or threads
        self.each_s = FIRST_GUESS_S
        self.waiting: deque[tuple[float, TConn]] = deque()
        self.running: Counter[str] = Counter()

    @property
    def wait_s(self) -> float:
        """How long one more would wait."""
        return len(self.waiting) * self.each_s / self.threads

    def join(self, conn: TConn) -> None:
        """Have an upload wait."""
        self.waiting.append((time.monotonic(), conn))

    def next(self) -> TConn | None:
        """Take the first out that may have a thread, None without one."""
        if self.running.total() >= self.threads:
            return None
        for place, (_, conn) in enumerate(self.waiting):
            if self.running[address_of(conn)] < self.of_one_address:
                del self.waiting[place]
                self.running[address_of(conn)] += 1
                return conn
        return None

    def leave(self, conn: TConn, took_s: float) -> None:
        """Note that an upload is done."""
        self.running[address_of(conn)] -= 1
        self.each_s += SMOOTHING * (min(took_s, LONGEST_S) - self.each_s)

    def late(self) -> TConn | None:
        """Take out one that has waited for too long, None without one."""
        if self.waiting and time.monotonic() - self.waiting[0][0] > MOST_WAIT_S:
            return self.waiting.popleft()[1]
        return None


def address_of(conn: TConn) -> str:
    """Return the address that a connection comes from; that of the proxy, where there is one."""
    return str(conn.client[0]) if isinstance(conn.client, tuple) else ""


def is_closed(conn: TConn) -> bool:
    """True of a connection that was dropped for another one after the poller had told of it."""
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
    """gunicorn's threaded worker, whose threads begin when a request is there."""

    def init_process(self) -> None:
        """Begin, with threads for uploads and for health besides those for all else."""
        threads = UPLOAD_THREADS * self.cfg.threads
        self.uploads = ThreadPoolExecutor(threads, "uploads")
        self.line = Line(threads, self.cfg.threads)
        # One each: readiness may wait for the database, and health must not wait for that.
        self.health = {name: ThreadPoolExecutor(1, name.decode()) for name in HEALTH_CHECKS}
        self.idle: Counter[str] = Counter()
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application; behind a proxy all clients have its address."""
        super().load_wsgi()
        self.has_proxy = bool(self.wsgi.config["TRUSTED_PROXIES"])
        if self.has_proxy:
            self.line.of_one_address = self.line.threads

    def accept(self, listener: Any) -> None:
        """Take a connection in; a thread is for its request, once that is there."""
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
        """Gather the next request of a connection that is kept alive."""
        self.gather(conn, conn.parser.unreader.take_buffered())

    def gather(self, conn: TConn, begun: bytes = b"") -> None:
        """Wait for the rest of a request, without a thread and not for long."""
        conn.begun = bytearray(begun)
        self.wait_for(conn, self.on_pending_socket_readable)
        self.look(conn)
        if self.idle[address_of(conn)] > MOST_IDLE and not self.has_proxy:
            self.drop(
                next(one for one in self.pending_conns if address_of(one) == address_of(conn))
            )
        # With no room for a connection more, nobody's would be answered.
        if self.nr_conns >= self.worker_connections and self.pending_conns:
            ((most, _),) = self.idle.most_common(1)
            self.drop(next(one for one in self.pending_conns if address_of(one) == most))

    def wait_for(self, conn: TConn, on_readable: Any) -> None:
        """Wait for what a client sends, without a thread and not for long."""
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + (REQUEST_S if self.alive else STOPPING_S)
        self.pending_conns.append(conn)
        self.idle[address_of(conn)] += 1
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))

    def on_pending_socket_readable(self, conn: TConn, client: Any) -> None:
        """Take in what came of a request."""
        if is_closed(conn) or (received := received_from(client)) is None:
            return
        conn.begun += received
        if received:
            self.look(conn)
        else:
            self.drop(conn)

    def look(self, conn: TConn) -> None:
        """Give a request that is there to a thread."""
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
        """Give a request that is there to a thread."""
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.initialized = True
        conn.parser.unreader.sock = PacedInput(conn.sock)
        conn.parser.unreader.unread(bytes(conn.begun))
        conn.begun.clear()
        future: Future[Any] = pool.submit(self.handle, conn)
        return future

    def take_uploads(self) -> None:
        """Give uploads to the threads that are free for them."""
        while (conn := self.line.next()) is not None:
            done = partial(self.method_queue.defer, self.finish_upload, conn, time.monotonic())
            self.answer(conn, self.uploads).add_done_callback(done)

    def finish_upload(self, conn: TConn, began: float, done: Future[Any]) -> None:
        """Let the next upload have the thread."""
        self.line.leave(conn, time.monotonic() - began)
        self.take_uploads()
        self.finish_request(conn, done)

    def finish_request(self, conn: TConn, done: Future[Any]) -> None:
        """Keep a connection for its next request, or let it end."""
        if not done.cancelled() and done.exception() is None and done.result():
            super().finish_request(conn, done)
        else:
            self.linger(conn)

    def linger(self, conn: TConn) -> None:
        """Say that no more will come, and read what does until the client is gone: with bytes
        unread the connection would be reset, and the answer lost with it. gunicorn's own way is to
        wait for that in the main loop, two seconds for each client that does not go.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
        else:
            self.wait_for(conn, self.on_ended_socket_readable)

    def shed(self, conn: TConn) -> None:
        """Refuse an upload that would wait for too long; what comes of it is forgotten."""
        answer = overload_answer(
            self.wsgi, bool(FOR_PROGRAMS.match(conn.begun)), ceil(max(self.line.wait_s, 1))
        )
        conn.begun.clear()
        with suppress(OSError):
            conn.sock.send(answer)
        self.linger(conn)

    def on_ended_socket_readable(self, conn: TConn, client: Any) -> None:
        """Forget what came; the end of it ends the connection."""
        if not is_closed(conn) and received_from(client) == b"":
            self.drop(conn)

    def murder_pending(self) -> None:
        """Close connections whose time is up, and refuse uploads that have waited for too long."""
        while (conn := self.line.late()) is not None:
            self.shed(conn)
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            self.drop(self.pending_conns[0])

    def leave(self, conn: TConn) -> None:
        """Wait for this connection no more."""
        self.poller.unregister(conn.sock)
        self.pending_conns.remove(conn)
        self.idle[address_of(conn)] -= 1
        if not self.idle[address_of(conn)]:
            del self.idle[address_of(conn)]

    def drop(self, conn: TConn) -> None:
        """Close a connection whose request will not come."""
        self.leave(conn)
        self.nr_conns -= 1
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """Let no connection without a request keep a worker that stops."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def run(self) -> None:
        """Answer until this worker stops."""
        super().run()
        self.end_threads()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once."""
        self.end_threads()
        super().handle_quit(sig, frame)

    def end_threads(self) -> None:
        """Begin no request more."""
        for pool in (self.uploads, *self.health.values()):
            pool.shutdown(wait=False)
