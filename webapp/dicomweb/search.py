"""QIDO-RS: searches for studies, series and instances."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from flask import Response, request
from sqlalchemy import ColumnElement, case, func, select
from werkzeug.exceptions import BadRequest

from webapp.dicomweb.access import (
    TAGS,
    address,
    address_of,
    are_visible,
    as_dicom_json,
    blueprint,
    element,
    has_sop_instance_uid,
    objects,
    require_model_accepted,
    require_uid,
    warn,
)
from webapp.extensions import db
from webapp.models import Report, ReportKind, Scan
from webapp.storage import storage

USUAL_LIMIT, MOST = 100, 1000
KEYWORDS = {tag: keyword for keyword, tag in TAGS.items()}
ALWAYS_EMPTY = {
    "StudyDate": "DA",
    "StudyTime": "TM",
    "AccessionNumber": "SH",
    "ReferringPhysicianName": "PN",
    "PatientName": "PN",
    "PatientID": "LO",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "StudyID": "SH",
}
"""Attributes that Hemoscan does not store, with their value representations."""
OF_KIND: dict[str, Callable[[ReportKind], str]] = {
    "SOPClassUID": lambda kind: kind.facts.sop_class_uid,
    "Modality": lambda kind: kind.facts.modality,
    "ModalitiesInStudy": lambda kind: kind.facts.modality,
    "SeriesDescription": lambda kind: kind.facts.series_description,
    "SeriesNumber": lambda kind: str(kind.facts.series_number),
    "InstanceNumber": lambda _: "1",
}
"""Attributes that are determined by the kind of object."""
DICOM_KINDS = tuple(kind for kind in ReportKind if kind.is_dicom)
UIDS: dict[str, Callable[..., ColumnElement[bool]]] = {
    "StudyInstanceUID": lambda *uids: Scan.study_uid.in_(uids),
    "SeriesInstanceUID": lambda *uids: Report.series_uid.in_(uids),
    "SOPInstanceUID": has_sop_instance_uid,
}
"""Conditions of UIDs, which may be thousands: SQLite refuses as many joined by OR."""
MOST_PARAMETERS = 100


@dataclass
class Query:
    """The query of a search request.

    Attributes:
        which: the conditions for objects.
        warnings: sentences for the client.
        wants_all: whether all known attributes of instances are returned.
    """

    limit: int = USUAL_LIMIT
    offset: int = 0
    which: list[ColumnElement[bool]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    wants_all: bool = False


@blueprint.get("/studies")
def search_studies() -> Response:
    """List studies."""
    query = query_of()
    chosen = select(Scan.study_uid).join(Report, Report.scan_id == Scan.id)
    chosen = chosen.where(*are_visible(), *query.which)
    of_kind = [func.sum(case((Report.kind == kind, 1), else_=0)) for kind in DICOM_KINDS]
    rows = db.session.execute(
        select(Scan.study_uid, func.min(Scan.title), *of_kind)
        .join(Report, Report.scan_id == Scan.id)
        .where(*are_visible(), Scan.study_uid.in_(chosen.correlate(None)))
        .group_by(Scan.study_uid)
        .order_by(func.max(Scan.created_at).desc(), Scan.study_uid)
        .offset(query.offset)
        .limit(query.limit + 1)
    ).all()
    return listed([study_as_json(*row) for row in rows], query)


@blueprint.get("/series")
@blueprint.get("/studies/<study_uid>/series")
def search_series(study_uid: str | None = None) -> Response:
    """List series, of a study or of all; each has one instance."""
    query = query_of(StudyInstanceUID=study_uid)
    return listed([series_as_json(row) for row in matching_objects(query)], query)


@blueprint.get("/instances")
@blueprint.get("/studies/<study_uid>/instances")
@blueprint.get("/studies/<study_uid>/series/<series_uid>/instances")
def search_instances(study_uid: str | None = None, series_uid: str | None = None) -> Response:
    """List instances, of a series, of a study or of all."""
    query = query_of(StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)
    reports = matching_objects(query)
    return listed(
        [instance_as_json(report, wants_all=query.wants_all) for report in reports], query
    )


def matching_objects(query: Query) -> list[Report]:
    """Return the objects that match a query, and one more than the limit if there are more."""
    chosen = objects(*query.which).offset(query.offset).limit(query.limit + 1)
    return list(db.session.scalars(chosen))


def listed(objects: list[dict[str, Any]], query: Query) -> Response:
    """Return the response for the objects found, which are one more than the limit if there are
    more.
    """
    shown = objects[: query.limit]
    answer = as_dicom_json(shown) if shown else Response(status=204)
    if len(objects) > query.limit:
        query.warnings.append("There are additional results that can be requested with offset.")
    for sentence in query.warnings:
        warn(answer, sentence)
    return answer


def query_of(**of_path: str | None) -> Query:
    """Return the query of the request, from its path and its parameters (PS3.18 8.3.4).

    Raises:
        BadRequest: it cannot be parsed.
        NotAcceptable: the client does not read JSON.
    """
    require_model_accepted()
    if len(list(request.args.items(multi=True))) > MOST_PARAMETERS:
        raise BadRequest(f"A query has at most {MOST_PARAMETERS} parameters.")
    query, ignored = Query(), []
    query.which += [UIDS[name](require_uid(uid)) for name, uid in of_path.items() if uid]
    for key, value in request.args.items(multi=True):
        keyword = KEYWORDS.get(key.upper(), key)
        if keyword in ("limit", "offset"):
            number = int(value) if re.fullmatch("[0-9]{1,9}", value) else -1
            if number < 0:
                raise BadRequest(f"{keyword}: Must be a whole number, 0 or more.")
            setattr(query, keyword, number)
        elif keyword == "fuzzymatching":
            if value == "true":
                query.warnings.append(
                    "The fuzzymatching parameter is not supported. Only literal matching has been"
                    " performed."
                )
        elif keyword == "includefield":
            query.wants_all = True
        elif keyword in TAGS:
            query.which += conditions_of(keyword, value)
        elif keyword != "accept":
            ignored.append(printable(key))
    if query.limit > MOST:
        query.limit = MOST
        query.warnings.append(f"At most {MOST} results are returned at once.")
    if ignored:
        query.warnings.append(f"These parameters are not supported: {', '.join(ignored)}.")
    return query


def conditions_of(keyword: str, value: str) -> list[ColumnElement[bool]]:
    """Return the condition for objects to match a key; nothing if any value matches.

    Raises:
        BadRequest: the value of a UID is not a UID, or the value is not text.
    """
    if "\0" in value:  # PostgreSQL rejects NUL characters.
        raise BadRequest(f"{keyword}: Please use printable characters only.")
    if value.strip("*") == "" and keyword not in UIDS:
        return []
    if keyword in UIDS:
        uids = [require_uid(uid) for uid in re.split(r"[,\\]", value) if uid]
        return [UIDS[keyword](*uids)] if uids else []
    if keyword in ALWAYS_EMPTY:
        return [Report.kind.in_(())]
    if keyword == "StudyDescription":
        text = re.sub(r"([%_\\])", r"\\\1", value).replace("*", "%").replace("?", "_")
        return [Scan.title.like(text, escape="\\")]
    wanted = re.split(r"[,\\]", value) if keyword != "SeriesDescription" else [value]
    kinds = [
        kind
        for kind in DICOM_KINDS
        if any(fnmatchcase(OF_KIND[keyword](kind), _pattern(text)) for text in wanted)
    ]
    return [Report.kind.in_(kinds)]


def _pattern(text: str) -> str:
    """Convert the wildcards of DICOM, * and ?, to those of fnmatch, which has more."""
    return text.replace("[", "[[]")


def printable(key: str) -> str:
    """Return the name of a parameter in a form that may be quoted."""
    return re.sub("[^A-Za-z0-9_.-]", "?", key)[:40]


def study_as_json(study_uid: str, title: str, *of_kind: int) -> dict[str, Any]:
    """Return the attributes of a study.

    Args:
        of_kind: the number of its objects of each kind (`DICOM_KINDS`).
    """
    kinds = [kind for kind, count in zip(DICOM_KINDS, of_kind, strict=True) if count]
    return {
        **of_study(study_uid, title),
        "00080056": element("CS", "ONLINE"),
        TAGS["ModalitiesInStudy"]: element("CS", *(kind.facts.modality for kind in kinds)),
        "00081190": element("UR", address("studies", study_uid)),
        "00201206": element("IS", sum(of_kind)),
        "00201208": element("IS", sum(of_kind)),
    }


def of_study(study_uid: str, title: str) -> dict[str, Any]:
    """Return the attributes of a study that are repeated for its series and instances."""
    return {
        **{TAGS[keyword]: element(vr) for keyword, vr in ALWAYS_EMPTY.items()},
        TAGS["StudyDescription"]: element("LO", *([title[:64]] if title else [])),
        TAGS["StudyInstanceUID"]: element("UI", study_uid),
    }


def series_as_json(report: Report) -> dict[str, Any]:
    """Return the attributes of the series that an object belongs to."""
    facts = ReportKind(report.kind).facts
    return {
        **of_study(str(report.scan.study_uid), report.scan.title),
        TAGS["Modality"]: element("CS", facts.modality),
        TAGS["SeriesDescription"]: element("LO", facts.series_description),
        "00081190": element("UR", address_of(report, "series")),
        TAGS["SeriesInstanceUID"]: element("UI", report.series_uid),
        TAGS["SeriesNumber"]: element("IS", facts.series_number),
        "00201209": element("IS", 1),
    }


def instance_as_json(report: Report, *, wants_all: bool) -> dict[str, Any]:
    """Return the attributes of an object; all of them if `wants_all`."""
    known = metadata_of(report) if wants_all else {}
    return {
        **known,
        **{tag: value for tag, value in series_as_json(report).items() if tag not in known},
        TAGS["SOPClassUID"]: element("UI", ReportKind(report.kind).facts.sop_class_uid),
        TAGS["SOPInstanceUID"]: element("UI", report.sop_instance_uid),
        "00080056": element("CS", "ONLINE"),
        "00081190": element("UR", address_of(report)),
        TAGS["InstanceNumber"]: element("IS", 1),
    }


def metadata_of(report: Report) -> Mapping[str, Any]:
    """Return the metadata of an object, without its pixels.

    Raises:
        StorageError: it cannot be read.
    """
    key = next(key for key in report.file_keys if key.endswith(".json"))
    metadata: Mapping[str, Any] = json.loads(storage.get(key))
    return metadata
