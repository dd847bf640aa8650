"""WADO-RS: giving out studies, series and instances, their metadata, frames and bulk data (PS3.18 10.4)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from node.dicomweb.media import DICOM, JSON_TYPES, MULTIPART, accepted, choose, root_url
from node.dicomweb.metadata import Unreadable, bulk_value, metadata
from node.dicomweb.multipart import Part, new_boundary, written
from node.dicomweb.pixels import FRAME_TYPES, as_explicit_little_endian, frames
from node.errors import BadRequest, NotAcceptable
from storage import schema
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import Unknown
from storage.query import Key, Level, Query, find

__all__ = ["router"]

_CHUNK = 1 << 20
_OCTETS = "application/octet-stream"
_ENCAPSULATED = tuple(FRAME_TYPES)

log = structlog.get_logger("dicomweb.wado")


@dataclass(frozen=True, slots=True)
class _Stored:
    study: str
    series: str
    instance: str
    transfer_syntax: str
    size: int
    path: Path

    def url(self, root: str) -> str:
        return f"{root}/studies/{self.study}/series/{self.series}/instances/{self.instance}"


def router(database: Database, blobs: Blobs) -> APIRouter:
    """Return the routes that retrieve."""
    routes = APIRouter(tags=["WADO-RS"])
    one = "/studies/{study}/series/{series}/instances/{instance}"

    def stored(study: str, series: str | None = None, instance: str | None = None) -> list[_Stored]:
        return _find(database, blobs, study, series, instance)

    @routes.get("/studies/{study}", summary="Retrieve a study")
    def retrieve_study(request: Request, study: str) -> Response:
        return _objects(request, stored(study), single=False)

    @routes.get("/studies/{study}/metadata", summary="Retrieve a study's metadata")
    def study_metadata(request: Request, study: str) -> Response:
        return _metadata(request, database, stored(study))

    @routes.get("/studies/{study}/series/{series}", summary="Retrieve a series")
    def retrieve_series(request: Request, study: str, series: str) -> Response:
        return _objects(request, stored(study, series), single=False)

    @routes.get("/studies/{study}/series/{series}/metadata", summary="Retrieve a series' metadata")
    def series_metadata(request: Request, study: str, series: str) -> Response:
        return _metadata(request, database, stored(study, series))

    @routes.get(one, summary="Retrieve an instance")
    def retrieve_instance(request: Request, study: str, series: str, instance: str) -> Response:
        return _objects(request, stored(study, series, instance), single=True)

    @routes.get(f"{one}/metadata", summary="Retrieve an instance's metadata")
    def instance_metadata(request: Request, study: str, series: str, instance: str) -> Response:
        return _metadata(request, database, stored(study, series, instance))

    @routes.get(f"{one}/frames/{{numbers}}", summary="Retrieve frames")
    def retrieve_frames(request: Request, study: str, series: str, instance: str, numbers: str) -> Response:
        return _frames(request, stored(study, series, instance)[0], _frame_numbers(numbers))

    @routes.get(f"{one}/bulkdata/{{steps:path}}", summary="Retrieve bulk data")
    def retrieve_bulk_data(request: Request, study: str, series: str, instance: str, steps: str) -> Response:
        return _bulk_data(request, stored(study, series, instance)[0], steps)

    return routes


def _find(database: Database, blobs: Blobs, study: str, series: str | None, instance: str | None) -> list[_Stored]:
    t, s, i = schema.study.c, schema.series.c, schema.instance.c
    statement = (
        select(t.study_instance_uid, s.series_instance_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.size, i.blob)
        .select_from(schema.instance.join(schema.series, i.series_id == s.id).join(schema.study, i.study_id == t.id))
        .where(t.study_instance_uid == study)
        .order_by(i.id)
    )
    if series is not None:
        statement = statement.where(s.series_instance_uid == series)
    if instance is not None:
        statement = statement.where(i.sop_instance_uid == instance)
    with database.read() as connection:
        found = [_Stored(*row[:5], blobs.path(row[5])) for row in connection.execute(statement)]
    if not found:
        what = "instance" if instance else "series" if series else "study"
        raise Unknown(f"no such {what} is stored here")
    return found


def _objects(request: Request, stored: Sequence[_Stored], *, single: bool) -> Response:
    problem = f'objects are given as {MULTIPART}; type="{DICOM}", as stored or in {ExplicitVRLittleEndian}'
    for asked in accepted(request):
        multipart = asked.covers(MULTIPART) and asked.inner in ("", DICOM, "*/*")
        alone = single and asked.name == DICOM
        if not multipart and not alone:
            continue
        wanted = asked.transfer_syntax
        try:
            if alone:
                return _alone(stored[0], wanted)
            return _together(stored, wanted)
        except NotAcceptable as error:
            problem = str(error)
    raise NotAcceptable(problem)


def _needs_change(one: _Stored, wanted: str) -> bool:
    """Tell whether an object has to be transcoded; nothing said, or ``*``, means as it is stored."""
    if wanted in ("", "*", one.transfer_syntax):
        return False
    if wanted != ExplicitVRLittleEndian:
        raise NotAcceptable(
            f"the object is stored in {one.transfer_syntax}; it is given in that or in {ExplicitVRLittleEndian}"
        )
    return True


def _alone(one: _Stored, wanted: str) -> Response:
    if _needs_change(one, wanted):
        return Response(
            as_explicit_little_endian(one.path), media_type=f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}"
        )
    return FileResponse(one.path, media_type=f"{DICOM}; transfer-syntax={one.transfer_syntax}")


def _together(stored: Sequence[_Stored], wanted: str) -> Response:
    for one in stored:
        _needs_change(one, wanted)
    parts = (_part(one, wanted) for one in stored)
    # The first is made before anything is answered: where it cannot be decoded, this is a 406 and no broken body.
    first = next(parts)
    boundary = new_boundary()
    return StreamingResponse(
        written(chain([first], parts), boundary), media_type=f'{MULTIPART}; type="{DICOM}"; boundary={boundary}'
    )


def _part(one: _Stored, wanted: str) -> Part:
    if _needs_change(one, wanted):
        content = as_explicit_little_endian(one.path)
        syntax: str = ExplicitVRLittleEndian
        return Part({"Content-Type": f"{DICOM}; transfer-syntax={syntax}"}, [content])
    return Part({"Content-Type": f"{DICOM}; transfer-syntax={one.transfer_syntax}"}, _pieces(one.path))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _metadata(request: Request, database: Database, stored: Sequence[_Stored]) -> Response:
    media_type = choose(request, JSON_TYPES)
    root = root_url(request)

    def told() -> Iterator[bytes]:
        lead = b"["
        for one in stored:
            yield lead + json.dumps(_told(database, one, root), ensure_ascii=False, allow_nan=False).encode()
            lead = b","
        yield b"]"

    return StreamingResponse(told(), media_type=media_type)


def _told(database: Database, one: _Stored, root: str) -> dict[str, Any]:
    try:
        return metadata(one.path, one.url(root))
    except Unreadable as error:
        # One object must not hide its neighbours: the index knows enough of it to show that it is there.
        log.warning("metadata from the index only", study=one.study, instance=one.instance, reason=str(error))
        keys = tuple(
            Key(path=(tag,), value=uid)
            for tag, uid in (("0020000D", one.study), ("0020000E", one.series), ("00080018", one.instance))
        )
        with database.read() as connection:
            return find(connection, Level.INSTANCE, Query(keys=keys, limit=1))[0]


def _frame_numbers(text: str) -> list[int]:
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise BadRequest("frames are asked for as numbers from 1, with commas between them") from None


def _frames(request: Request, one: _Stored, numbers: Sequence[int]) -> Response:
    encapsulated = one.transfer_syntax in _ENCAPSULATED
    own_type = FRAME_TYPES.get(one.transfer_syntax, _OCTETS)
    problem = f'frames are given as {MULTIPART}; type="{_OCTETS}" or as they are stored, type="{own_type}"'
    for asked in accepted(request):
        inner = asked.inner if asked.name == MULTIPART else ""
        if not asked.covers(MULTIPART) or (inner and inner not in (_OCTETS, own_type, "*/*", "image/*")):
            continue
        same = asked.transfer_syntax in ("*", one.transfer_syntax)
        as_stored = not encapsulated or same or (inner in (own_type, "image/*") and not asked.transfer_syntax)
        if asked.transfer_syntax not in ("", "*", one.transfer_syntax, ExplicitVRLittleEndian):
            continue
        try:
            syntax, content = frames(one.path, numbers, stored=as_stored)
        except NotAcceptable as error:
            problem = str(error)
            continue
        kind = inner if inner in (_OCTETS, own_type) else own_type if syntax == one.transfer_syntax else _OCTETS
        return _parts([f"{kind}; transfer-syntax={syntax}"] * len(content), content)
    raise NotAcceptable(problem)


def _bulk_data(request: Request, one: _Stored, steps: str) -> Response:
    if steps == "7FE00010" and one.transfer_syntax in _ENCAPSULATED:
        # Compressed pixel data is given frame by frame (PS3.18 8.7.3.5).
        count = _frame_count(one.path)
        return _frames(request, one, range(1, count + 1))
    ranges = accepted(request)
    if any(asked.name == _OCTETS for asked in ranges):
        return Response(bulk_value(one.path, steps), media_type=_OCTETS)
    if any(asked.covers(MULTIPART) and asked.inner in ("", _OCTETS, "*/*") for asked in ranges):
        return _parts([_OCTETS], [bulk_value(one.path, steps)])
    raise NotAcceptable(f'bulk data is given as {_OCTETS} or {MULTIPART}; type="{_OCTETS}"')


def _frame_count(path: Path) -> int:
    import pydicom

    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return int(dataset.get("NumberOfFrames", 1) or 1)


def _parts(types: Sequence[str], contents: Sequence[bytes]) -> Response:
    boundary = new_boundary()
    parts = (Part({"Content-Type": kind}, [content]) for kind, content in zip(types, contents, strict=True))
    inner = types[0].split(";")[0] if types else _OCTETS
    return Response(b"".join(written(parts, boundary)), media_type=f'{MULTIPART}; type="{inner}"; boundary={boundary}')
