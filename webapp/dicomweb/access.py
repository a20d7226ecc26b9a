"""Access to DICOMweb: tokens, origins, media types, and which objects are visible."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.request import parse_http_list

from flask import Blueprint, Response, current_app, g, request
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import contains_eager
from werkzeug.exceptions import BadRequest, NotAcceptable
from werkzeug.http import parse_options_header

from webapp.api.access import require_bearer, require_scope, within_api_rate
from webapp.extensions import db
from webapp.models import JobStatus, Report, ReportKind, Scan, Scope
from webapp.review.sharing import visible_to
from webapp.web_extensions import csrf

DICOM, DICOM_JSON, DICOM_XML, OCTETS = (
    "application/dicom",
    "application/dicom+json",
    "application/dicom+xml",
    "application/octet-stream",
)
JSON, XML = "application/json", (DICOM_XML, "application/xml", "text/xml")
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
"""The transfer syntax of all objects."""
TAGS = {
    "SOPClassUID": "00080016",
    "SOPInstanceUID": "00080018",
    "StudyDate": "00080020",
    "StudyTime": "00080030",
    "AccessionNumber": "00080050",
    "Modality": "00080060",
    "ModalitiesInStudy": "00080061",
    "ReferringPhysicianName": "00080090",
    "StudyDescription": "00081030",
    "SeriesDescription": "0008103E",
    "PatientName": "00100010",
    "PatientID": "00100020",
    "PatientBirthDate": "00100030",
    "PatientSex": "00100040",
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "StudyID": "00200010",
    "SeriesNumber": "00200011",
    "InstanceNumber": "00200013",
}
"""The query keys."""
UNQUOTED_TYPE = re.compile(r'(;\s*type=)([^\s";,]+)', re.IGNORECASE)
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
PREFLIGHT = {
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type",
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Max-Age": "600",
}

blueprint = Blueprint("dicomweb", __name__)
csrf.exempt(blueprint)  # Cookies are ignored, so another site cannot use a browser's login.


@blueprint.before_request
def require_token() -> None:
    """Authenticate the request by its token, as the API does: storing needs the scope `submit`,
    everything else `read`. Preflight requests of browsers have no token.

    Raises:
        Unauthorized: the token is missing or unknown.
        Forbidden: the token lacks the scope.
        TooManyRequests: the owner of the token has sent too many requests.
    """
    if request.method != "OPTIONS":
        require_bearer()
        require_scope(Scope.SUBMIT if request.method == "POST" else Scope.READ)
        count_request()


@within_api_rate
def count_request() -> None:
    """Count the request together with the same user's API requests. Not a limit of the blueprint,
    which would be checked before the user is known, and would count all users' requests together.
    """


@blueprint.after_request
def let_viewers_in(answer: Response) -> Response:
    """Let the viewers of `DICOMWEB_ORIGINS` read responses, and forbid shared caches."""
    answer.headers.setdefault("Cache-Control", "private, no-cache")
    allowed, origin = current_app.config["DICOMWEB_ORIGINS"], request.headers.get("Origin")
    if allowed:
        answer.headers.add("Vary", "Origin")
    if origin in allowed:
        answer.headers["Access-Control-Allow-Origin"] = origin
        answer.headers["Access-Control-Expose-Headers"] = "Link, Retry-After, Warning"
        if request.method == "OPTIONS":
            answer.headers.update(PREFLIGHT)
    return answer


def require_uid(uid: str) -> str:
    """Return a UID of a request.

    Raises:
        BadRequest: it is not a valid UID (PS3.5 9.1).
    """
    if len(uid) > 64 or not UID.fullmatch(uid):
        raise BadRequest("A UID consists of numbers and dots, at most 64 characters.")
    return uid


def objects(*which: ColumnElement[bool]) -> Select[Report]:
    """Return the statement for the DICOM objects that the token's owner may see, with their scans,
    those of the latest scans first.
    """
    return (
        select(Report)
        .join(Report.scan)
        .options(contains_eager(Report.scan))
        .where(*are_visible(), *which)
        .order_by(Scan.created_at.desc(), Scan.study_uid, Scan.id, Report.kind)
    )


def are_visible() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions, on a join of reports and scans, of DICOM objects that the token's
    owner may see.
    """
    return (
        visible_to(g.token_owner_id),
        Scan.study_uid.is_not(None),
        Report.status == JobStatus.DONE,
        Report.kind != ReportKind.PDF,
        Report.series_uid.is_not(None),
    )


def has_sop_instance_uid(*uids: str) -> ColumnElement[bool]:
    """Return the condition of the objects with these UIDs."""
    parts = [uid.rpartition(".") for uid in uids]
    numbers = [int(number) for root, _, number in parts if root == "2.25"]
    return Report.id.in_([f"{number:032x}" for number in numbers if number < 2**128])


@dataclass(frozen=True)
class Acceptable:
    """A media type that a client accepts: for multipart, the type of the parts; and the transfer
    syntax of pixels.
    """

    media_type: str
    is_multipart: bool
    transfer_syntax: str

    def includes(self, media_type: str) -> bool:
        """Return whether this media type, or media range, includes `media_type`."""
        main, _, sub = self.media_type.partition("/")
        wanted, _, wanted_sub = media_type.partition("/")
        return main in ("*", wanted) and sub in ("*", wanted_sub)

    @property
    def includes_our_syntax(self) -> bool:
        """Whether the transfer syntax of our objects is acceptable."""
        return self.transfer_syntax in ("", "*", EXPLICIT_VR_LITTLE_ENDIAN)


def accepted() -> list[Acceptable]:
    """Return what the request accepts (PS3.18 8.3.3), by its query or else by its header; anything
    if it does not say.
    """
    accepted_types = []
    for text in parse_http_list(
        request.args.get("accept") or request.headers.get("Accept") or "*/*"
    ):
        media_type, options = options_of(text)
        is_multipart = media_type.startswith("multipart/")
        if is_multipart:
            media_type = options.get("type", "*/*")
        syntax = options.get("transfer-syntax", "")
        if options.get("q") not in ("0", "0.0", "0.00", "0.000"):
            accepted_types.append(Acceptable(media_type.lower(), is_multipart, syntax))
    return accepted_types


def options_of(text: str) -> tuple[str, dict[str, str]]:
    """Return a media type and its parameters. Many clients leave out the quotation marks around the
    type of the parts, although it contains a slash.
    """
    return parse_options_header(UNQUOTED_TYPE.sub(r'\1"\2"', text))


def require_json_accepted() -> None:
    """Check that the client reads JSON.

    Raises:
        NotAcceptable: it does not.
    """
    if not any(media.includes(kind) for media in _whole() for kind in (DICOM_JSON, JSON)):
        raise NotAcceptable(f"Only {DICOM_JSON} is available here.")


def require_model_accepted() -> None:
    """Check that the client reads JSON or XML.

    Raises:
        NotAcceptable: it reads neither.
    """
    of_xml = any(media.media_type in XML for media in accepted())
    if not of_xml and not any(
        media.includes(kind) for media in _whole() for kind in (DICOM_JSON, JSON)
    ):
        raise NotAcceptable(f"Only {DICOM_JSON} and {DICOM_XML} are available here.")


def _whole() -> list[Acceptable]:
    return [media for media in accepted() if not media.is_multipart]


def as_dicom_json(content: Any, status: int = 200) -> Response:
    """Return a response in the DICOM JSON model."""
    return Response(json.dumps(content, separators=(",", ":")), status, content_type=DICOM_JSON)


def element(vr: str, *values: object) -> dict[str, Any]:
    """Return an element of the DICOM JSON model, empty without a value."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def warn(answer: Response, sentence: str) -> None:
    """Add a warning (RFC 7234, 5.5, as PS3.18 defines it) to a response."""
    plain = sentence.translate({ord(mark): "'" for mark in '’‘“”"\\'})
    plain = plain.encode("ascii", "replace").decode()
    answer.headers.add("Warning", f'299 Hemoscan "{plain}"')


def address(*path: str) -> str:
    """Return the address of a resource, given its path below the base.

    It is based on `PUBLIC_URL` if that is set: some clients send a host without its port.
    """
    root = current_app.config["PUBLIC_URL"] or request.url_root.rstrip("/")
    return f"{root}{current_app.config['DICOMWEB_URL_PREFIX']}/{'/'.join(path)}"


def address_of(report: Report, level: str = "instance") -> str:
    """Return the address of an object, or of its series or study."""
    path = ["studies", str(report.scan.study_uid)]
    if level != "study":
        path += ["series", str(report.series_uid)]
    if level == "instance":
        path += ["instances", report.sop_instance_uid]
    return address(*path)


def visible_scans(study_uid: str) -> Sequence[Scan]:
    """Return the scans of a study that the token's owner may see."""
    which = select(Scan).where(Scan.study_uid == study_uid, visible_to(g.token_owner_id))
    return db.session.scalars(which).all()
