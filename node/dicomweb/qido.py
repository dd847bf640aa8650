"""QIDO-RS: searching for studies, series and instances (PS3.18 10.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from node.dicomweb.media import JSON_TYPES, MULTIPART, XML, choose, root_url
from node.dicomweb.multipart import Part, new_boundary, written
from node.dicomweb.xml import to_xml
from node.errors import BadRequest
from storage.database import Database
from storage.query import Key, Level, Query, find, parse_key, parse_tag

__all__ = ["router"]

#: So many answers are given at once; more are told of in a Warning (PS3.18 8.3.4.4).
_MAXIMUM_ANSWERS = 10_000
#: A database takes only so many conditions: so many matching keys, and values in their lists, a search may have.
_MAXIMUM_KEYS = 64
_MAXIMUM_VALUES = 500

_RESERVED = frozenset({"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "accept"})
_STUDY, _SERIES, _SOP = "0020000D", "0020000E", "00080018"


def _fields(*keywords: str) -> frozenset[str]:
    return frozenset(map(parse_tag, keywords))


# What is told where nothing more is asked for: PS3.18 Tables 10.6.3-3 to 10.6.3-5.
_STUDY_FIELDS = _fields(
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "InstanceAvailability",
    "ModalitiesInStudy",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)
_SERIES_FIELDS = _fields(
    "SpecificCharacterSet",
    "Modality",
    "TimezoneOffsetFromUTC",
    "InstanceAvailability",
    "SeriesDescription",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "NumberOfSeriesRelatedInstances",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "RequestAttributesSequence",
)
_INSTANCE_FIELDS = _fields(
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceAvailability",
    "TimezoneOffsetFromUTC",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "AvailableTransferSyntaxUID",
)


def router(database: Database) -> APIRouter:
    """Return the routes that search."""
    routes = APIRouter(tags=["QIDO-RS"])

    @routes.get("/studies", summary="Search for studies")
    def studies(request: Request) -> Response:
        return _search(request, database, Level.STUDY, {}, _STUDY_FIELDS)

    @routes.get("/series", summary="Search for series")
    def series(request: Request) -> Response:
        return _search(request, database, Level.SERIES, {}, _STUDY_FIELDS | _SERIES_FIELDS)

    @routes.get("/studies/{study}/series", summary="Search for a study's series")
    def series_of_study(request: Request, study: str) -> Response:
        return _search(request, database, Level.SERIES, {_STUDY: study}, _SERIES_FIELDS)

    @routes.get("/instances", summary="Search for instances")
    def instances(request: Request) -> Response:
        return _search(request, database, Level.INSTANCE, {}, _STUDY_FIELDS | _SERIES_FIELDS | _INSTANCE_FIELDS)

    @routes.get("/studies/{study}/instances", summary="Search for a study's instances")
    def instances_of_study(request: Request, study: str) -> Response:
        return _search(request, database, Level.INSTANCE, {_STUDY: study}, _SERIES_FIELDS | _INSTANCE_FIELDS)

    @routes.get("/studies/{study}/series/{series}/instances", summary="Search for a series' instances")
    def instances_of_series(request: Request, study: str, series: str) -> Response:
        return _search(request, database, Level.INSTANCE, {_STUDY: study, _SERIES: series}, _INSTANCE_FIELDS)

    return routes


def _search(
    request: Request, database: Database, level: Level, within: Mapping[str, str], fields: frozenset[str]
) -> Response:
    media_type = choose(request, (*JSON_TYPES, XML))
    parameters = request.query_params.multi_items()
    matching = [(name, value) for name, value in parameters if name not in _RESERVED]
    if len(matching) > _MAXIMUM_KEYS:
        raise BadRequest(f"at most {_MAXIMUM_KEYS} matching keys are taken in one search; this one has {len(matching)}")
    if sum(1 + value.count(",") + value.count("\\") for _, value in matching) > _MAXIMUM_VALUES:
        raise BadRequest(f"at most {_MAXIMUM_VALUES} values are taken in one search; ask in several")
    keys = [parse_key(name, value) for name, value in matching]
    include = _included(parameters, fields, keys)
    limit = _count(request, "limit")
    capped = min(limit if limit is not None else _MAXIMUM_ANSWERS, _MAXIMUM_ANSWERS)
    keys += [Key(path=(tag,), value=uid) for tag, uid in within.items()]
    with database.read() as connection:
        # One more than will be told shows whether there are more.
        query = Query(keys=tuple(keys), include=include, limit=capped + 1, offset=_count(request, "offset") or 0)
        found = find(connection, level, query)
    warnings = []
    more = len(found) > capped
    found = found[:capped]
    if more and (limit is None or limit > capped):
        warnings.append(f"The number of results exceeded the maximum of {capped}; ask for the rest with offset")
    if request.query_params.get("fuzzymatching", "").lower() == "true":
        warnings.append("The fuzzymatching parameter is not supported. Only literal matching has been performed.")
    if request.query_params.get("emptyvaluematching", "").lower() == "true":
        warnings.append(
            "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed."
        )
    root = root_url(request)
    headers = {"Warning": ", ".join(f'299 {root} "{text}"' for text in warnings)} if warnings else {}
    if not found:
        return Response(status_code=204, headers=headers)
    answers = [_addressed(one, level, root, include) for one in found]
    if media_type in JSON_TYPES:
        return JSONResponse(answers, headers=headers, media_type=media_type)
    boundary = new_boundary()
    parts = (Part({"Content-Type": XML}, [to_xml(one)]) for one in answers)
    content = b"".join(written(parts, boundary))
    return Response(content, headers=headers, media_type=f'{MULTIPART}; type="{XML}"; boundary={boundary}')


def _addressed(found: dict[str, Any], level: Level, root: str, include: frozenset[str] | None) -> dict[str, Any]:
    url = root
    for name, tag in list({"studies": _STUDY, "series": _SERIES, "instances": _SOP}.items())[:level]:
        url += f"/{name}/{found[tag]['Value'][0]}"
    told = found | {"00081190": {"vr": "UR", "Value": [url]}}
    return told if include is None else dict(sorted(told.items()))


def _included(
    parameters: Iterable[tuple[str, str]], fields: frozenset[str], keys: Iterable[Key]
) -> frozenset[str] | None:
    asked = {one.strip() for name, value in parameters if name == "includefield" for one in value.split(",")} - {""}
    if "all" in asked:
        return None
    # A path names its outermost sequence: a sequence is told as a whole.
    return fields | {parse_tag(one.split(".")[0]) for one in asked} | {key.path[0] for key in keys}


def _count(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise BadRequest(f"{name} must be a whole number, 0 or more")
    return int(text)
