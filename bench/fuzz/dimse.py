"""The DICOM listener under malformed associations, several at a time, and what is left of them."""

from __future__ import annotations

import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from struct import pack, unpack

import pydicom
from flask import Flask
from pydicom.filewriter import dcmwrite
from sqlalchemy import func, select

from bench.fuzz.dimse_messages import (
    EXPLICIT,
    IMPLICIT,
    RELEASE,
    SYNTAXES,
    echo,
    request,
    spoiled,
    store,
)
from bench.fuzz.service import USERNAME
from bench.fuzz.tally import Tally
from listener.closing import Closer
from listener.scp import Listener
from listener.spool import Spool
from webapp.dicom_peers import peers_of
from webapp.extensions import db
from webapp.models import ReceivedStudy

AT_ONCE = 6
ECHO_S = 1.0
"""Maximum time of a C-ECHO with its association."""
TIMEOUT_S = 2
"""Seconds of silence after which the listener ends an association."""
READ_S = 0.3
SETTLED_S = 10.0


def attack_listener(
    app: Flask, home: Path, slices: Sequence[bytes], associations: int, seed: int, tally: Tally
) -> None:
    """Run a listener, send that many malformed associations, and check that it goes on to answer
    and leaves no file behind.

    Args:
        slices: DICOM files.
    """
    app.config |= {
        "DICOM_PEERS": peers_of(f"CT1@127.0.0.1 account={USERNAME}", {}),
        "DICOM_HOST": "127.0.0.1",
        "DICOM_PORT": 0,
        "DICOM_TIMEOUT_S": TIMEOUT_S,
        "DICOM_MAX_ASSOCIATIONS": 4 * AT_ONCE,
        "DICOM_QUIET_S": 0,
        "INCOMING_DIR": home / "received" / "incoming",
    }
    spool, before = Spool(home / "received"), tempfile.tempdir
    tempfile.tempdir = str(spool.arriving)
    listener = Listener(app, spool)
    closer = Closer(app, spool, listener.busy)
    port = listener.start()
    try:
        for first in range(0, associations, AT_ONCE):
            callers = [
                threading.Thread(
                    target=_call, args=(port, slices, random.Random(f"{seed} dimse {number}"))
                )
                for number in range(first, min(first + AT_ONCE, associations))
            ]
            for caller in callers:
                caller.start()
            _check_echo(port, tally)
            for caller in callers:
                caller.join()
            tally.associations += len(callers)
        _check_echo(port, tally)
        _check_the_rest(app, spool, closer, listener, tally)
    finally:
        listener.stop()
        tempfile.tempdir = before


def _call(port: int, slices: Sequence[bytes], rng: random.Random) -> None:
    """Make one association that is wrong somewhere."""
    syntax = rng.choice(SYNTAXES) if rng.random() < 0.3 else EXPLICIT
    pdus = [request(syntax)]
    for _ in range(rng.randrange(3)):
        # A data set in another transfer syntax than that of its context, one time in four.
        of_data = IMPLICIT if rng.random() < 0.25 else EXPLICIT
        pdus += store(*_dataset_of(rng.choice(slices), of_data, rng))
    pdus = [*pdus, *echo(), RELEASE]
    for _ in range(rng.randrange(3)):
        pdus = spoiled(pdus, rng)
    ending = rng.choice((_ends, _waits, _hangs_up, _resets))
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as caller:
        caller.settimeout(READ_S)
        if rng.random() < 0.2:  # Half an association, or nothing.
            caller.sendall(pdus[0][: rng.randrange(len(pdus[0]) + 1)] if pdus else b"")
        else:
            _send(caller, pdus, rng)
        ending(caller)


def _send(caller: socket.socket, pdus: Sequence[bytes], rng: random.Random) -> None:
    """Send an association, byte by byte if it is short, waiting for the response to its request."""
    for number, content in enumerate(pdus):
        step = rng.choice((1, 7, 10**6)) if len(content) < 300 else 10**6
        for at in range(0, len(content), step):
            caller.sendall(content[at : at + step])
        if number == 0:
            with suppress(TimeoutError):
                _received(caller)


def _ends(caller: socket.socket) -> None:
    """Read the responses, then hang up."""
    while caller.recv(65_536):
        pass


def _waits(caller: socket.socket) -> None:
    """Stay silent for longer than the listener waits."""
    caller.settimeout(TIMEOUT_S + 3)
    _ends(caller)


def _hangs_up(caller: socket.socket) -> None:
    """Hang up without reading."""


def _resets(caller: socket.socket) -> None:
    """Reset the connection."""
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))


def _dataset_of(content: bytes, syntax: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Return a slice without its file meta, corrupted or cut one time in two, and its UID."""
    file = pydicom.dcmread(BytesIO(content))
    file.StudyInstanceUID = f"1.2.826.0.1.{rng.randrange(5)}"
    instance = file.SOPInstanceUID = f"1.2.826.0.2.{rng.randrange(10**9)}"
    plain = pydicom.Dataset()
    plain.update({tag: value for tag, value in file.items() if tag.group != 2})
    stream = BytesIO()
    dcmwrite(stream, plain, implicit_vr=syntax == IMPLICIT, little_endian=True)
    dataset = bytearray(stream.getvalue())
    how = rng.randrange(6)
    if how == 0:
        del dataset[rng.randrange(len(dataset)) :]
    elif how == 1:
        for _ in range(5):
            dataset[rng.randrange(min(len(dataset), 2000))] = rng.randrange(256)
    elif how == 2:  # A huge length.
        at = rng.randrange(min(len(dataset) - 4, 2000))
        dataset[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(dataset), instance.encode()


def _check_echo(port: int, tally: Tally) -> None:
    """Check that a C-ECHO is answered at once."""
    began, status = time.monotonic(), -1
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as caller:
        caller.settimeout(5)
        caller.sendall(request())
        if _received(caller)[:1] == b"\x02":
            caller.sendall(b"".join(echo()))
            answer = _received(caller)
            at = answer.find(b"\0\0\0\x09\x02\0\0\0")
            status = unpack("<H", answer[at + 8 : at + 10])[0] if at >= 0 else -1
            caller.sendall(RELEASE)
            _received(caller)
    took_s = time.monotonic() - began
    tally.check(status == 0, "the listener did not answer a C-ECHO")
    tally.check(took_s <= ECHO_S, f"a C-ECHO took {took_s:.1f} s")
    tally.slowest_echo_s = max(tally.slowest_echo_s, took_s)


def _received(caller: socket.socket) -> bytes:
    """Return the next PDU."""
    head = b""
    while len(head) < 6 and (more := caller.recv(6 - len(head))):
        head += more
    content, left = head, unpack(">I", head[2:6])[0] if len(head) == 6 else 0
    while left and (more := caller.recv(left)):
        content, left = content + more, left - len(more)
    return content


def _check_the_rest(
    app: Flask, spool: Spool, closer: Closer, listener: Listener, tally: Tally
) -> None:
    """Check that associations end, and that each study ends as scans or as a refusal."""
    over = _wait_for(lambda: not listener.busy() and not any(spool.arriving.iterdir()))
    tally.check(over, "an association or part of an instance is left")
    closer.close_due()
    left = [path for path in spool.arriving.parent.rglob("*") if path.is_file()]
    tally.check(
        not [path for path in left if path.name != "lock"], f"{len(left)} files of studies are left"
    )
    with app.app_context():
        unexplained = db.session.scalar(
            select(func.count())
            .select_from(ReceivedStudy)
            .where(ReceivedStudy.scans == 0, ReceivedStudy.sentence.is_(None))
        )
        studies = db.session.scalar(select(func.count(ReceivedStudy.id)))
        tally.received_studies += studies or 0
    tally.check(not unexplained, f"{unexplained} studies have neither scans nor a sentence")


def _wait_for(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + SETTLED_S
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.1)
    return False
