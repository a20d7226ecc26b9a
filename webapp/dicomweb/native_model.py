"""The Native DICOM Model (PS3.19 A.1): responses as XML, for clients that ask for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from flask import Response, request

from webapp.dicomweb.access import DICOM_JSON, DICOM_XML, JSON, TAGS, XML, accepted, blueprint, warn
from webapp.dicomweb.related import response_of

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
KEYWORDS = {tag: keyword for keyword, tag in TAGS.items()} | {
    "00080056": "InstanceAvailability",
    "00081150": "ReferencedSOPClassUID",
    "00081155": "ReferencedSOPInstanceUID",
    "00081190": "RetrieveURL",
    "00081197": "FailureReason",
    "00081198": "FailedSOPSequence",
    "00081199": "ReferencedSOPSequence",
    "0008119A": "OtherFailuresSequence",
    "00201206": "NumberOfStudyRelatedSeries",
    "00201208": "NumberOfStudyRelatedInstances",
    "00201209": "NumberOfSeriesRelatedInstances",
}
"""The keywords of the attributes in responses to searches and store requests; XML contains
keywords.
"""
NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
JSON_ONLY = ("dicomweb.retrieve_metadata",)
"""Responses with arbitrary attributes, whose keywords would require a dictionary; not available as
XML.
"""
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that are not allowed in XML 1.0."""


@blueprint.after_request
def as_wanted(answer: Response) -> Response:
    """Convert a response in the DICOM JSON model to XML if the client prefers that, including a
    stored response to a repeated request.
    """
    may_be_xml = answer.mimetype == DICOM_JSON and request.endpoint not in JSON_ONLY
    if may_be_xml and wants_xml():
        content = answer.get_json(force=True)
        if isinstance(content, list):
            parts = [(DICOM_XML, as_xml(item)) for item in content]
            multipart = response_of(parts, DICOM_XML)
            answer.response, answer.content_type = multipart.response, multipart.content_type
            del answer.headers["Content-Length"]
            if any(item.keys() - KEYWORDS.keys() for item in content):
                warn(answer, "XML has the attributes of searches only; JSON has all.")
        else:
            answer.data, answer.content_type = as_xml(content), DICOM_XML
    return answer


def wants_xml() -> bool:
    """Return whether the client lists XML before JSON, or only XML."""
    for media in accepted():
        if media.media_type in XML:
            return True
        if media.includes(DICOM_JSON) or media.includes(JSON):
            return False
    return False


def as_xml(dataset: Mapping[str, Any]) -> bytes:
    """Return a data set in the DICOM JSON model as a document in the native model; attributes
    whose keyword is not known here are left out.
    """
    root = ElementTree.Element("NativeDicomModel", {"xmlns": NAMESPACE, "xml:space": "preserve"})
    _add(root, dataset)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _add(parent: ElementTree.Element, dataset: Mapping[str, Any]) -> None:
    for tag, element in sorted(dataset.items()):
        if tag not in KEYWORDS:
            continue
        attributes = {"tag": tag, "vr": element["vr"], "keyword": KEYWORDS[tag]}
        attribute = ElementTree.SubElement(parent, "DicomAttribute", attributes)
        for number, value in enumerate(element.get("Value", []), start=1):
            place = {"number": str(number)}
            if element["vr"] == "SQ":
                _add(ElementTree.SubElement(attribute, "Item", place), value)
            elif element["vr"] == "PN":
                _add_name(ElementTree.SubElement(attribute, "PersonName", place), value)
            elif value is not None:
                _add_text(attribute, "Value", str(value), place)


def _add_name(parent: ElementTree.Element, value: Mapping[str, str]) -> None:
    for group, name in value.items():
        of_group = ElementTree.SubElement(parent, group)
        for part, text in zip(NAME_PARTS, name.split("^"), strict=False):
            if text:
                _add_text(of_group, part, text)


def _add_text(
    parent: ElementTree.Element, tag: str, text: str, attributes: Mapping[str, str] | None = None
) -> None:
    child = ElementTree.SubElement(parent, tag, dict(attributes or {}))
    child.text = NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
