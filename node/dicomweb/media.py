"""Media types: reading Content-Type and Accept, and choosing what to answer with (PS3.18 8.7, RFC 9110 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request

from node.errors import NotAcceptable

__all__ = [
    "DICOM",
    "JSON_TYPES",
    "MULTIPART",
    "ROOT",
    "XML",
    "MediaType",
    "accepted",
    "choose",
    "parse_media_type",
    "root_url",
]

#: Where DICOMweb begins.
ROOT = "/dicom-web"
DICOM = "application/dicom"
JSON_TYPES = ("application/dicom+json", "application/json")
XML = "application/dicom+xml"
MULTIPART = "multipart/related"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaType:
    """A media type or range; names of parameters are lower case."""

    name: str
    parameters: Mapping[str, str]
    quality: float = 1.0

    @property
    def inner(self) -> str:
        """The type of the parts of a multipart/related, lower case; empty where it is not said."""
        return self.parameters.get("type", "").lower()

    @property
    def transfer_syntax(self) -> str:
        """The transfer syntax that is asked for, ``*`` for any; empty where it is not said."""
        return self.parameters.get("transfer-syntax", "")

    def covers(self, name: str) -> bool:
        """Tell whether this range holds a type."""
        kind, _, subtype = self.name.partition("/")
        return self.name in ("*/*", name) or (subtype == "*" and name.startswith(f"{kind}/"))


def parse_media_type(text: str) -> MediaType:
    """Read one media type; what cannot be read has an empty name."""
    return (_split(text) or [MediaType(name="", parameters={})])[0]


def accepted(request: Request) -> list[MediaType]:
    """Return what the caller accepts, best first; the ``accept`` query parameter stands over the header (PS3.18 8.3.3).

    Raises
    ------
    NotAcceptable
        When something is sent that names no media type.
    """
    asked = ",".join(request.query_params.getlist("accept")) or ",".join(request.headers.getlist("accept"))
    if not asked.strip():
        return [MediaType(name="*/*", parameters={})]
    ranges = [one for one in _split(asked) if one.quality > 0]
    if not ranges:
        raise NotAcceptable("the Accept header names no media type")
    return sorted(ranges, key=lambda one: -one.quality)


def choose(request: Request, offers: Sequence[str]) -> str:
    """Return the offer that the caller likes best; offers are in our own order.

    ``application/dicom+xml`` is also meant by a multipart/related of that type.

    Raises
    ------
    NotAcceptable
        When none will do; says what there is.
    """
    for one in accepted(request):
        for offer in offers:
            if one.covers(offer) or (one.name == MULTIPART and one.inner == offer == XML):
                return offer
    raise NotAcceptable(f"this resource is given as {', '.join(offers)}")


def _split(text: str) -> list[MediaType]:
    found: list[MediaType] = []
    pieces: list[str] = []
    position = 0
    # Commas and semicolons within quotes separate nothing.
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[,;]', text):
        if match.group() == ",":
            pieces.append(text[position : match.start()])
            found += _from_pieces(pieces)
            pieces, position = [], match.end()
        elif match.group() == ";":
            pieces.append(text[position : match.start()])
            position = match.end()
    pieces.append(text[position:])
    return found + _from_pieces(pieces)


def _from_pieces(pieces: Sequence[str]) -> list[MediaType]:
    name = pieces[0].strip().lower()
    if not re.fullmatch(r"[^\s/]+/[^\s/]+", name):
        return []
    parameters: dict[str, str] = {}
    for piece in pieces[1:]:
        key, _, value = piece.partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        parameters[key.strip().lower()] = value
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = 0.0
    return [MediaType(name=name, parameters=parameters, quality=quality)]


def root_url(request: Request) -> str:
    """Return the DICOMweb root as the caller reached it."""
    base = request.base_url
    server = request.scope.get("server")
    # dicomweb-client and others name the host without the port that they have just reached it by.
    if base.port is None and server and server[1] and base.hostname == server[0]:
        base = base.replace(port=server[1])
    return f"{str(base).rstrip('/')}{ROOT}"
