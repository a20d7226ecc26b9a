"""gunicorn's threads, kept for requests that are there: who sends slowly, or nothing, holds none.

gunicorn's own worker gives each connection a thread that then waits for the rest of a header or a
body for ever, so a few idle sockets stop the service. Here the main loop collects header and small
body without a thread, for so long and no longer; large bodies are read in threads of their own, at
a rate that has a minimum. So pages and health checks are answered whatever uploads do.
"""

from __future__ import annotations

import errno
import re
import selectors
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import TConn, ThreadWorker

REQUEST_S = 10.0
"""How long a header and a small body may take, from the connection or the byte that begins them."""
SMALL_BODY = 2**14
"""Bytes: the forms of all pages; uploads are larger."""
LONGEST_HEAD = 2**16
READ_AT_ONCE = 2**16
IDLE_S = 10.0
"""How long a large body may pause."""
SLOWEST = 8_000
"""Bytes a second, on average, that a large body must bring after its first seconds: a slow mobile
line brings ten times as many.
"""
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})", re.IGNORECASE)
SENT_IN_PARTS = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)


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
    """Return whether a request that begins so has a body to wait for in a thread; None where more
    must come to tell, or to have it whole.
    """
    end = begun.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = LENGTH.search(begun, 0, end)
    size = int(length[1]) if length else 0
    if size > SMALL_BODY or SENT_IN_PARTS.search(begun, 0, end):
        return True
    return False if len(begun) - end - 4 >= size else None


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, whose threads begin when a request is there."""

    def init_process(self) -> None:
        """Begin, with as many threads for uploads as for all else."""
        self.uploads = ThreadPoolExecutor(self.cfg.threads, "uploads")
        super().init_process()

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
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + REQUEST_S
        self.pending_conns.append(conn)
        self.poller.register(
            conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn)
        )
        self.look(conn)

    def on_pending_socket_readable(self, conn: TConn, client: Any) -> None:
        """Take in what came of a request."""
        try:
            came = client.recv(READ_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        conn.begun += came
        if came:
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
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.initialized = True
        conn.parser.unreader.sock = PacedInput(conn.sock)
        conn.parser.unreader.unread(bytes(conn.begun))
        conn.begun.clear()
        future: Future[Any] = (self.uploads if upload else self.tpool).submit(self.handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def leave(self, conn: TConn) -> None:
        """Wait for this connection no more."""
        self.poller.unregister(conn.sock)
        self.pending_conns.remove(conn)

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
        self.uploads.shutdown(wait=False)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once."""
        self.uploads.shutdown(wait=False)
        super().handle_quit(sig, frame)
