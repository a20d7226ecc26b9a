"""Multipart messages (multipart/related, RFC 2387), read and written incrementally."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import IO, cast

from flask import Response, current_app, request, stream_with_context
from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
)
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from webapp.dicomweb.access import DICOM, options_of
from webapp.intake.spool import Request
from webapp.intake.streams import BLOCK
from webapp.space import as_storage_full


class RelatedParser(PushMultipartParser):
    """A multipart parser for any kind of part, not only those of forms."""

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> MultipartSegment:
        return MultipartSegment(headerlist)


def received_parts() -> list[IO[bytes]]:
    """Return the parts of the request, spooled like the files of a form, so they disappear with the
    process.

    Raises:
        UnsupportedMediaType: the request is not a message of DICOM files.
        BadRequest: its parts cannot be separated, it is truncated, or it has none.
        RequestEntityTooLarge: it is larger than an upload may be, or has too many parts.
        StorageFull: there is no room for it.
    """
    kind, options = options_of(request.headers.get("Content-Type", ""))
    of_parts = options.get("type", DICOM).lower()
    if kind.lower() != "multipart/related" or of_parts != DICOM or not options.get("boundary"):
        raise UnsupportedMediaType(
            'Send DICOM files as multipart/related; type="application/dicom"; boundary=….'
        )
    most = current_app.config["MAX_FILES_PER_UPLOAD"]
    parser = RelatedParser(options["boundary"], max_segment_count=most)
    parts: list[IO[bytes]] = []
    try:
        with parser, as_storage_full():
            while not parser.closed:
                for event in parser.parse(request.stream.read(BLOCK)):
                    if isinstance(event, MultipartSegment):
                        parts.append(cast(Request, request).spooled_file())
                    elif event:
                        parts[-1].write(event)
    except ParserLimitReached as err:
        raise RequestEntityTooLarge(
            f"At most {most} instances are accepted in one request, with short headers."
        ) from err
    except MultipartError as err:
        raise BadRequest(
            "The parts of the request cannot be separated, or the request ends too early."
        ) from err
    while request.stream.read(BLOCK):
        pass  # Content after the last part is ignored.
    if not parts:
        raise BadRequest("The request contains no instances.")
    return parts


def response_of(parts: Iterable[tuple[str, bytes]], of_parts: str) -> Response:
    """Return a response of these parts, each with its content type; they are streamed.

    Args:
        of_parts: the media type of the parts.
    """
    boundary = secrets.token_hex(16)

    def written() -> Iterator[bytes]:
        for content_type, content in parts:
            yield f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
            yield content
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    kind = f'multipart/related; type="{of_parts}"; boundary={boundary}'
    return Response(stream_with_context(written()), content_type=kind)
