"""The DICOM server: who may connect, what is refused immediately, and what goes to the spool.

A caller is known by its address and AE title together. Data from an unknown address is never read.
No association may use more memory, disk or time than its limits allow.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, cast

from flask import Flask
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_RELEASE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    Verification,
)
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from listener.spool import Spool
from webapp.dicom_peers import Peer
from webapp.extensions import db
from webapp.intake import UploadRejected, require_room
from webapp.intake.clean_copy import NoSlice, take
from webapp.intake.dicom import READ_SYNTAXES, DicomFile, DicomHeader
from webapp.intake.streams import DamagedFile, TooMuchWork
from webapp.models import User, new_id
from webapp.routing import instance_key, study_key
from webapp.space import has_free_space, require_cap, require_space
from webapp.storage import StorageFull

log = logging.getLogger(__name__)

SUCCESS, NO_ROOM, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
NOT_KNOWN = (0x01, 0x01, 0x03)
"""Rejected permanently by the user of the service: the calling AE title is not recognized."""
NO_REASON = (0x01, 0x01, 0x01)
LATER = (0x02, 0x03, 0x01)
"""Rejected temporarily, because of congestion."""
MAX_PDU = 131_072
LONGEST_PDU = 2**20
"""Maximum length of any PDU. An association request may be longer than `MAX_PDU`, which limits
data.
"""
MORE_CONNECTIONS = 5
"""Connections beyond the maximum number of associations, so that known peers get a proper
rejection.
"""
LOOK_BYTES = 16 * 2**20
"""The free space is checked whenever this many bytes have arrived."""
SELDOM_S = 60
COMMENT_CHARACTERS = 64
PLAIN = str.maketrans("“”’", '""\'')
NO_IDENTITY = "The DICOM file is damaged, or does not say which study it belongs to."
NO_ROOM_SAYS = "There is too little free space on the server."
TOO_MUCH = "The study is larger than this service accepts."


@dataclass
class Session:
    """An open association of a known peer.

    Attributes:
        user_id: the account that owns what it sends.
        studies: the keys of the studies of which it has sent instances.
        received: bytes received of the current message.
        is_releasing: the peer has asked for the release of the association.
    """

    peer: Peer
    user_id: str
    studies: set[str] = field(default_factory=set)
    received: int = 0
    is_releasing: bool = False


class Listener:
    """A Storage SCP on the settings of `app`; a `Spool` takes what it accepts.

    Args:
        tls: the server's side of TLS; None for connections without.
    """

    def __init__(self, app: Flask, spool: Spool, tls: ssl.SSLContext | None = None) -> None:
        self._app, self._spool, self._tls = app, spool, tls
        self._sessions: dict[Association, Session] = {}
        self._arriving: dict[Association, set[Path]] = {}
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()
        self._server: Server | None = None
        # pynetdicom's log may contain patients' names; what matters is logged here.
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        _config.LOG_HANDLER_LEVEL = "none"
        # Large instances are written to disk, not memory, as they arrive: to `tempfile.tempdir`,
        # which is a folder of the spool.
        _config.STORE_RECV_CHUNKED_DATASET = True

    def start(self) -> int:
        """Listen, in threads; return the port.

        Raises:
            OSError: the port is taken, or not allowed.
        """
        config = self._app.config
        ae = AE(config["DICOM_AE_TITLE"])
        ae.require_called_aet = True
        ae.maximum_associations = max(1, config["DICOM_MAX_ASSOCIATIONS"])
        ae.maximum_pdu_size = MAX_PDU
        silence_s = max(1, config["DICOM_TIMEOUT_S"])
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = silence_s
        ae.add_supported_context(Verification)
        for storage in (
            CTImageStorage,
            EnhancedCTImageStorage,
            LegacyConvertedEnhancedCTImageStorage,
        ):
            ae.add_supported_context(storage, list(READ_SYNTAXES))
        server = Server(
            ae,
            (config["DICOM_HOST"], config["DICOM_PORT"]),
            config["DICOM_AE_TITLE"],
            ae.supported_contexts,
            self._tls,
            [
                (evt.EVT_REQUESTED, self._admit),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_DATA_RECV, self._count),
                (evt.EVT_DIMSE_RECV, self._begin_to_count),
                (evt.EVT_PDU_RECV, self._note_release),
                (evt.EVT_RELEASED, self._released),
                (evt.EVT_ABORTED, self._broke_off),
                (evt.EVT_CONN_CLOSE, self._broke_off),
            ],
            request_handler=Handler,
        )
        server.is_known = self._is_known
        server.on_end = self._end
        server.most_connections = ae.maximum_associations + MORE_CONNECTIONS
        ae._servers.append(server)  # `AE.start_server` does the same, so that `shutdown` works.
        self._server = server
        threading.Thread(target=server.serve_forever, name="listens", daemon=True).start()
        return int(server.server_address[1])

    def stop(self) -> None:
        """End all associations and stop listening."""
        server, self._server = self._server, None
        if server is not None:
            for association in server.active_associations:
                association.abort()
            server.shutdown()

    def busy(self) -> set[str]:
        """Return the keys of the studies of which open associations have sent instances."""
        with self._lock:
            return {key for session in self._sessions.values() for key in session.studies}

    def _is_known(self, address: str) -> bool:
        if any(peer.is_at(address) for peer in self._app.config["DICOM_PEERS"]):
            return True
        if not ipaddress.ip_address(
            address
        ).is_loopback:  # A connection check, without an association.
            self._tell_seldom(f"refused a connection from {address}, which is no peer's address")
        return False

    def _admit(self, event: evt.Event) -> None:
        """Reject an association unless address and AE title are those of a peer whose account can
        take scans.
        """
        association = event.assoc
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        title, address = str(request.calling_ae_title).strip(), str(association.requestor.address)
        peer = self._peer_of(title, address)
        if peer is None:
            self._tell_seldom(f"refused an association from {address}: its AE title is not known")
            _reject(association, NOT_KNOWN)
            return
        try:
            with self._app.app_context():
                user_id = account_of(peer.account)
        except SQLAlchemyError as err:
            log.warning("the database cannot be reached: %s", type(err).__name__)
            _reject(association, LATER)
            return
        if user_id is None:
            log.warning(
                "refused an association of %s: its account does not exist or is disabled",
                peer.ae_title,
            )
            _reject(association, NO_REASON)
            return
        with self._lock:
            self._sessions[association] = Session(peer, user_id)

    def _peer_of(self, title: str, address: str) -> Peer | None:
        peers: tuple[Peer, ...] = self._app.config["DICOM_PEERS"]
        known = (peer for peer in peers if peer.ae_title == title and peer.is_at(address))
        return next(known, None)

    def _store(self, event: evt.Event) -> int | Dataset:
        """Check one instance like an upload, and spool it; return the status for the sender."""
        session = self._sessions[event.assoc]
        with self._app.app_context():
            try:
                return self._stored(session, event.dataset_path)
            except (StorageFull, UploadRejected) as err:
                return status(NO_ROOM, str(err))
            except OSError as err:
                log.warning("an instance could not be written: %s", type(err).__name__)
                return status(NO_ROOM, NO_ROOM_SAYS)

    def _stored(self, session: Session, path: Path) -> int | Dataset:
        """Return the status of a complete instance.

        Raises:
            StorageFull, UploadRejected: there is no room for it, or it is refused.
            OSError: writing to the disk failed.
        """
        size = path.stat().st_size
        with suppress(SQLAlchemyError):  # If the database is away, closing the study checks it.
            try:
                require_room(session.user_id)
                require_cap()
            finally:
                db.session.rollback()
        header = header_of(path)
        if header is None or not header.study or not header.instance:
            log.info("refused an instance of %s: %s", session.peer.ae_title, NO_IDENTITY)
            return status(NOT_UNDERSTOOD, NO_IDENTITY)
        key = study_key(session.user_id, header.study)
        require_space(size)
        try:
            pixels = self._checked(path)
        except UploadRejected as err:
            log.info("refused an instance of %s: %s", session.peer.ae_title, err)
            self._spool.refuse(key, session.peer, session.peer.account, str(err))
            return status(NOT_UNDERSTOOD, str(err))
        name = instance_key(header.series, header.instance, pixels)
        # An instance that is sent again replaces itself.
        files, stored_bytes = self._spool.holds(key, besides=name)
        config = self._app.config
        if (
            files >= config["MAX_FILES_PER_UPLOAD"]
            or stored_bytes + size > config["MAX_UPLOAD_MB"] * 2**20
        ):
            self._spool.refuse(key, session.peer, session.peer.account, TOO_MUCH)
            return status(NO_ROOM, TOO_MUCH)
        with self._lock:
            session.studies.add(key)
        self._spool.add(key, session.peer, session.peer.account, path, name)
        return SUCCESS

    def _checked(self, path: Path) -> bytes:
        """Return the digest of a file's pixels; empty for an object without a slice, which is
        accepted as part of a study and left out when the study is closed.

        Raises:
            UploadRejected: it would be refused as an upload.
        """
        copy = self._spool.arriving / f"{new_id()}.copy"
        try:
            with path.open("rb") as stream:
                return take(stream, copy, lambda uid: uid, number=1, name="").digest
        except NoSlice:
            return b""
        except TooMuchWork as err:
            raise UploadRejected("The DICOM file takes too long to read.") from err
        finally:
            copy.unlink(missing_ok=True)

    def _count(self, event: evt.Event) -> None:
        """Abort an association whose instance is too large or would fill the disk."""
        session = self._sessions.get(event.assoc)
        if session is None:
            return
        with self._lock:
            self._arriving.setdefault(event.assoc, set()).update(
                _files_of(event.assoc.dimse.message)
            )
        before, session.received = session.received, session.received + len(event.data)
        if session.received > self._app.config["MAX_UPLOAD_MB"] * 2**20:
            log.warning("aborted %s: an instance is too large", session.peer.ae_title)
            event.assoc.abort()
        elif before // LOOK_BYTES != session.received // LOOK_BYTES:
            with self._app.app_context():
                if not has_free_space():
                    log.warning("aborted %s: too little free space", session.peer.ae_title)
                    event.assoc.abort()

    def _begin_to_count(self, event: evt.Event) -> None:
        session = self._sessions.get(event.assoc)
        if session is not None:
            session.received = 0

    def _note_release(self, event: evt.Event) -> None:
        """Record a release request: its sender may close the connection before `EVT_RELEASED`."""
        session = self._sessions.get(event.assoc)
        if session is not None and isinstance(event.pdu, A_RELEASE_RQ):
            session.is_releasing = True

    def _released(self, event: evt.Event) -> None:
        for key in self._studies_of(event, is_cut_off=False):
            if self._app.config["DICOM_CLOSE_ON_RELEASE"]:
                self._spool.end(key)

    def _broke_off(self, event: evt.Event) -> None:
        session = self._sessions.get(event.assoc)
        if session is not None and session.is_releasing:
            self._released(event)
        else:
            self._studies_of(event, is_cut_off=True)
        # Otherwise a client that hung up without a request, such as a connection check, would count
        # as a connection until `DICOM_TIMEOUT_S`.
        waiting = event.assoc.dul.to_user_queue
        if event.assoc.requestor.primitive is None and waiting.empty():
            waiting.put(None)

    def _studies_of(self, event: evt.Event, *, is_cut_off: bool) -> set[str]:
        """Return the keys of the studies of an association when its end is first noticed, and
        record how it ended; empty on later calls.
        """
        session = self._left(event)
        studies = set[str]() if session is None else session.studies
        for key in studies:
            self._spool.note_association_over(key, is_cut_off=is_cut_off)
        return studies

    def _left(self, event: evt.Event) -> Session | None:
        """Forget an association that is over, and discard an incomplete instance."""
        _discard_partial(event.assoc, is_closed=event.event is evt.EVT_CONN_CLOSE)
        with self._lock:
            return self._sessions.pop(event.assoc, None)

    def _end(self, association: Association) -> None:
        """Forget an association whose thread ends, and discard what it received and nobody took: if
        its messages broke pynetdicom, no other end of it is announced.
        """
        _discard_partial(association, is_closed=True)
        with self._lock:
            session = self._sessions.pop(association, None)
            left = self._arriving.pop(association, set())
        while not association.dimse.msg_queue.empty():
            _, message = association.dimse.msg_queue.get(block=False)
            left |= _files_of(message)
        for path in left:  # Those that were taken are no longer there.
            path.unlink(missing_ok=True)
        for key in session.studies if session else ():
            self._spool.note_association_over(key, is_cut_off=True)

    def _tell_seldom(self, what: str) -> None:
        """Log a refusal, the same one at most once a minute."""
        now = time.monotonic()
        with self._lock:
            self._logged = {
                refusal: at for refusal, at in self._logged.items() if now - at < SELDOM_S
            }
            if what in self._logged or len(self._logged) > 100:
                return
            self._logged[what] = now
        log.warning(what)


class Server(ThreadedAssociationServer):
    """A server that identifies the caller before it reads anything. Name look-ups and TLS
    handshakes run in separate threads, so a slow caller delays nobody.

    Attributes:
        is_known: whether an address is that of a peer.
        on_end: called at the end of the thread of an association.
        most_connections: the maximum number of simultaneous connections, in any state.
    """

    is_known: Callable[[str], bool]
    on_end: Callable[[Association], None]
    most_connections: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counting = threading.Lock()
        self._greeted = 0

    def get_request(self) -> tuple[socket, Any]:
        """Return the next connection, before any handshake."""
        connection, address = cast(socket, self.socket).accept()
        connection.settimeout(self.ae.network_timeout)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether another connection may be opened."""
        with self._counting:
            has_room = self._greeted + len(self.active_associations) < self.most_connections
            self._greeted += has_room
        return has_room

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Identify the caller, and begin the association."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._counting:
                self._greeted -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a connection that failed, without what it sent."""
        log.warning("a connection failed: %s", type(sys.exc_info()[1]).__name__)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Begin an association with a known address, over TLS if that is configured."""
        if not self.is_known(str(client_address[0])):
            self.shutdown_request(request)
            return
        if self.ssl_context is not None:
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except OSError as err:
                log.warning("a TLS handshake failed: %s", type(err).__name__)
                self.shutdown_request(request)
                return
        super().finish_request(request, client_address)


class Handler(RequestHandler):
    """Begins an association that rejects PDUs longer than the maximum and closes its socket."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        connection = cast(AssociationSocket, association.dul.socket)
        read, shut_down = connection.recv, connection._shutdown_socket

        def recv(nr_bytes: int) -> bytearray:
            # The association then ends as if the connection had been lost.
            if nr_bytes > LONGEST_PDU:
                raise OSError("The announced message is too long.")
            return read(nr_bytes)

        def shut_down_and_close() -> None:
            # pynetdicom leaves the socket open until it is garbage-collected if the caller has
            # already hung up, because it then fails to shut it down.
            open_socket = connection.socket
            shut_down()
            if open_socket is not None:
                open_socket.close()

        association.run = partial(  # type: ignore[method-assign]
            self._run_to_the_end, association, association.run
        )
        association.dul.run = partial(  # type: ignore[method-assign]
            _read_or_end, association, association.dul.run
        )
        connection.recv = recv  # type: ignore[method-assign]
        connection._shutdown_socket = shut_down_and_close  # type: ignore[method-assign]
        return association

    def _run_to_the_end(self, association: Association, run: Callable[[], None]) -> None:
        """Run the thread of an association; a message of the caller may raise anything."""
        connection = cast(AssociationSocket, association.dul.socket)
        try:
            run()
        except Exception as err:  # noqa: BLE001 - see above.
            log.warning("an association broke off: %s", type(err).__name__)
        finally:
            association.dul.kill_dul()
            connection.close()
            cast(Server, self.server).on_end(association)


def _read_or_end(association: Association, read: Callable[[], None]) -> None:
    """Run the thread that reads from the connection of an association, and end the association if
    it meets a message that pynetdicom does not expect: it would wait for more until its timeout.
    """
    connection = cast(AssociationSocket, association.dul.socket)
    try:
        read()
    except Exception as err:  # noqa: BLE001 - a message of the caller may raise anything.
        log.warning("an association broke off: %s", type(err).__name__)
        association.is_aborted, association.is_established = True, False
        association._kill = association.dul._kill_thread = True
        connection.close()
        association.dul.to_user_queue.put(None)


def _files_of(message: Any) -> set[Path]:
    """Return the file to which pynetdicom writes the instance of a message."""
    path = getattr(message, "_data_set_path", None) or getattr(message, "_dataset_path", None)
    return {path} if isinstance(path, Path) else set()


def _discard_partial(association: Association, *, is_closed: bool) -> None:
    """Delete an incomplete instance; if the connection is closed, nothing writes to it any more."""
    incomplete = getattr(association.dimse.message, "_data_set_file", None)
    if incomplete is not None:
        Path(incomplete.name).unlink(missing_ok=True)
        if is_closed:
            incomplete.close()


def _reject(association: Association, reason: tuple[int, int, int]) -> None:
    """Reject an association. When a handler rejects an association, pynetdicom may close the
    connection before the rejection is sent; `kill` waits until it is sent and the caller has hung
    up.
    """
    association.acse.send_reject(*reason)
    association.kill()


def account_of(username: str) -> str | None:
    """Return the id of the account that may take scans; None if there is none."""
    return db.session.scalar(
        select(User.id).where(User.username_key == username.lower(), User.disabled_at.is_(None))
    )


def header_of(path: Path) -> DicomHeader | None:
    """Return the header of a file; None if it cannot be parsed."""
    try:
        with path.open("rb") as stream:
            return DicomFile(stream).header
    except (DamagedFile, TooMuchWork):
        return None


def status(code: int, sentence: str) -> Dataset:
    """Return the status of a refused instance, with as much of the message as fits in the error
    comment.
    """
    answer = Dataset()
    answer.Status = code
    plain = sentence.translate(PLAIN).encode("ascii", "ignore").decode()
    answer.ErrorComment = plain[:COMMENT_CHARACTERS]
    return answer
