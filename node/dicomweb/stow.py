"""STOW-RS: taking objects in over HTTP, by the same code and with the same promise as C-STORE (PS3.18 10.5).

A part goes to a file as it arrives, so that its size costs no memory; it is answered for only once it is durable.
"""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from node.dicomweb.media import DICOM, JSON_TYPES, MULTIPART, XML, MediaType, choose, parse_media_type, root_url
from node.dicomweb.multipart import MultipartReader, PartBegins, PartData, PartEnds
from node.dicomweb.xml import to_xml
from node.errors import BadRequest, BodyTooLarge, NoRoom, UnsupportedMedia
from storage import schema
from storage.database import Database
from storage.errors import NotDicom
from storage.headers import read_header
from storage.index import Origin
from storage.intake import Archive
from storage.space import Room

__all__ = ["router"]

#: Failure reasons (PS3.18 Table 10.5.3-2 and PS3.4 Table B.2-1).
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
#: A warning: stored, and truncated, say.
STORED_WITH_DEFECT = 0xB007

_AT_ONCE = 8
_MAXIMUM_PARTS = 10_000
#: So many of a request's bad parts go to quarantine; each costs the disk a file and a flush.
_KEPT_BAD_PARTS = 100
_WRITE = 1 << 20
_NO_ROOM = "not enough disk is free to take this; nothing was stored, send it again later"

log = structlog.get_logger("dicomweb.stow")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of one part."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    failure: int | None = None
    #: Stored all the same.
    warning: int | None = None
    #: Whether the bytes of what is bad are kept for someone to look at.
    kept: bool = True


class _Intake:
    """One request's parts: written one after the other, stored several at once."""

    def __init__(
        self, archive: Archive, incoming: Path, room: Room, origin: Origin, study_instance_uid: str | None
    ) -> None:
        self._archive = archive
        self._incoming = incoming
        self._room = room
        self._origin = origin
        self._study_instance_uid = study_instance_uid
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: list[asyncio.Task[_Answer]] = []
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._pending = bytearray()
        self._media = ""
        self._full = False
        self._begun = 0
        self._bad = 0

    async def begin(self, content_type: str) -> None:
        self._begun += 1
        if self._begun > _MAXIMUM_PARTS:
            raise BodyTooLarge(
                f"at most {_MAXIMUM_PARTS} parts are taken in one request; those before may be stored: send all "
                "again in several requests"
            )
        await self._slots.acquire()
        self._media = content_type
        self._full = False
        self._path = self._incoming / f"{uuid.uuid4().hex}.part"
        self._file = await asyncio.to_thread(self._path.open, "wb")

    async def write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= _WRITE:
            await self._flush()

    async def end(self) -> None:
        await self._flush()
        assert self._file is not None
        assert self._path is not None
        self._file.close()
        path, self._path, self._file = self._path, None, None
        self._tasks.append(asyncio.create_task(self._store(path, self._media, self._full)))

    async def answers(self) -> list[_Answer]:
        return list(await asyncio.gather(*self._tasks))

    async def close(self) -> None:
        """Let what was whole be stored, and remove what never became whole."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _flush(self) -> None:
        data, self._pending = self._pending, bytearray()
        if self._full or not data:
            return
        assert self._file is not None
        try:
            await asyncio.to_thread(self._write_now, self._file, data, self._room)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self._full = True

    @staticmethod
    def _write_now(file: BinaryIO, data: bytearray, room: Room) -> None:
        # What is announced in no header is seen only as it comes.
        if refusal := room.refusal():
            raise OSError(errno.ENOSPC, refusal)
        file.write(data)
        file.flush()

    async def _store(self, path: Path, content_type: str, full: bool) -> _Answer:
        try:
            keep = self._bad < _KEPT_BAD_PARTS
            answer = await asyncio.to_thread(self._store_now, path, content_type, full, keep)
            self._bad += answer.failure in (CANNOT_UNDERSTAND, DOES_NOT_MATCH)
            return answer
        finally:
            self._slots.release()

    def _store_now(self, path: Path, content_type: str, full: bool, keep: bool) -> _Answer:
        if full:
            path.unlink(missing_ok=True)
            return _Answer(failure=OUT_OF_RESOURCES)
        media = parse_media_type(content_type or DICOM)
        named = _named_by(path)
        try:
            if not keep and (failure := self._badness(path, media)) is not None:
                path.unlink(missing_ok=True)
                return _Answer(*named, failure=failure, kept=False)
            if media.name != DICOM:
                self._archive.refuse(path, f"STOW-RS: a part of type {media.name or 'unknown'}", self._origin)
                return _Answer(*named, failure=CANNOT_UNDERSTAND)
            if self._is_of_another_study(path):
                reason = f"STOW-RS: sent to study {self._study_instance_uid}, but of another study"
                self._archive.refuse(path, reason, self._origin)
                return _Answer(*named, failure=DOES_NOT_MATCH)
            receipt = self._archive.receive(path, self._origin)
        except NotDicom as error:
            log.warning("object refused", reason=str(error))
            return _Answer(*named, failure=CANNOT_UNDERSTAND)
        except Exception as error:  # noqa: BLE001 - whatever it was, the sender must be told that this was not stored
            path.unlink(missing_ok=True)
            log.error("object not stored", error=type(error).__name__)  # noqa: TRY400 - a trace may hold values
            return _Answer(*named, failure=OUT_OF_RESOURCES if _is_full(error) else PROCESSING_FAILURE)
        log.info(
            "object stored",
            study=receipt.study_instance_uid,
            instance=receipt.sop_instance_uid,
            outcome=receipt.outcome.value,
            by="STOW-RS",
        )
        return _Answer(
            receipt.sop_class_uid,
            receipt.sop_instance_uid,
            receipt.study_instance_uid,
            warning=STORED_WITH_DEFECT if receipt.defect else None,
        )

    def _badness(self, path: Path, media: MediaType) -> int | None:
        """Return the failure reason of a part that would go to quarantine, without keeping it."""
        if media.name != DICOM:
            return CANNOT_UNDERSTAND
        if self._is_of_another_study(path):
            return DOES_NOT_MATCH
        try:
            read_header(path)
        except NotDicom:
            return CANNOT_UNDERSTAND
        return None

    def _is_of_another_study(self, path: Path) -> bool:
        return self._study_instance_uid is not None and _study_of(path) not in (self._study_instance_uid, None)


def router(archive: Archive, database: Database, incoming: Path, *, maximum_body: int, room: Room) -> APIRouter:
    """Return the routes that store.

    Parameters
    ----------
    incoming
        Where parts are written; on the archive's file system.
    maximum_body
        The largest body that is taken, in bytes.
    room
        Where it says no, nothing is taken.
    """
    routes = APIRouter(tags=["STOW-RS"])

    @routes.post("/studies", summary="Store instances")
    async def store(request: Request) -> Response:
        return await _stored(request, None)

    @routes.post("/studies/{study}", summary="Store instances of one study")
    async def store_in_study(request: Request, study: str) -> Response:
        return await _stored(request, study)

    async def _stored(request: Request, study: str | None) -> Response:
        answer_type = choose(request, (*JSON_TYPES, XML, "application/xml"))
        media = _checked_type(request)
        declared = request.headers.get("content-length", "0")
        length = int(declared) if declared.isdigit() else 0
        if length > maximum_body:
            raise BodyTooLarge(f"at most {maximum_body} bytes are taken in one request")
        if room.refusal(length):
            raise NoRoom(_NO_ROOM)
        host = request.client.host if request.client else ""
        intake = _Intake(archive, incoming, room, Origin(calling_ae_title=f"STOW-RS {host}".strip()), study)
        try:
            if media.name == DICOM:
                await _take_single(request, intake, maximum_body)
            else:
                await _take_parts(request, intake, media, maximum_body)
            answers = await intake.answers()
        finally:
            await intake.close()
        if not answers:
            raise BadRequest("the body has no part")
        if all(one.failure == OUT_OF_RESOURCES for one in answers):
            raise NoRoom(_NO_ROOM)
        series = await asyncio.to_thread(_series_of, database, answers)
        return _response(answers, series, answer_type, root_url(request), study)

    return routes


def _checked_type(request: Request) -> MediaType:
    media = parse_media_type(request.headers.get("content-type", ""))
    if media.name == DICOM or (media.name == MULTIPART and media.inner in ("", DICOM)):
        return media
    if media.inner in (*JSON_TYPES, XML):
        raise UnsupportedMedia(
            f"metadata with separate bulk data ({media.inner}) is not taken yet; send whole objects as {DICOM} parts"
        )
    raise UnsupportedMedia(f'send {MULTIPART}; type="{DICOM}" with a boundary, or a single {DICOM} body')


async def _limited(request: Request, maximum: int) -> AsyncIterator[bytes]:
    taken = 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken > maximum:
            raise BodyTooLarge(f"at most {maximum} bytes are taken in one request")
        yield chunk


async def _take_single(request: Request, intake: _Intake, maximum: int) -> None:
    begun = False
    async for chunk in _limited(request, maximum):
        if chunk and not begun:
            await intake.begin(DICOM)
            begun = True
        if chunk:
            await intake.write(chunk)
    if begun:
        await intake.end()


async def _take_parts(request: Request, intake: _Intake, media: MediaType, maximum: int) -> None:
    reader = MultipartReader(media.parameters.get("boundary", ""))
    async for chunk in _limited(request, maximum):
        for event in reader.feed(chunk):
            match event:
                case PartBegins(headers):
                    await intake.begin(headers.get("content-type", ""))
                case PartData(data):
                    await intake.write(data)
                case PartEnds():
                    await intake.end()
    reader.close()


def _named_by(path: Path) -> tuple[str, str]:
    """Return the SOP Class and Instance UIDs that the file meta information names, empty where it cannot be read."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        found = str(meta.get("MediaStorageSOPClassUID", "")), str(meta.get("MediaStorageSOPInstanceUID", ""))
    except Exception:  # noqa: BLE001 - hostile bytes raise anything; then nothing is named
        return "", ""
    return found if all(_is_uid(one) for one in found) else ("", "")


def _study_of(path: Path) -> str | None:
    """Return the Study Instance UID, None where it cannot be read: the archive says precisely why."""
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
        value = str(dataset.get("StudyInstanceUID", "") or "").strip("\0 ")
    except Exception:  # noqa: BLE001 - hostile bytes raise anything
        return None
    return value or None


def _is_uid(value: str) -> bool:
    return 0 < len(value) <= 64 and all(part.isdigit() for part in value.split("."))


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, OperationalError) and "full" in str(error.orig)


def _series_of(database: Database, answers: list[_Answer]) -> dict[tuple[str, str], str]:
    """Return the series of each stored object by its Study and SOP Instance UIDs: its URL needs it."""
    uids = [one.sop_instance_uid for one in answers if one.failure is None]
    study, series, instance = schema.study, schema.series, schema.instance
    found: dict[tuple[str, str], str] = {}
    with database.read() as connection:
        for start in range(0, len(uids), 400):
            rows = connection.execute(
                select(study.c.study_instance_uid, instance.c.sop_instance_uid, series.c.series_instance_uid)
                .select_from(instance.join(series, instance.c.series_id == series.c.id))
                .join(study, instance.c.study_id == study.c.id)
                .where(instance.c.sop_instance_uid.in_(uids[start : start + 400]))
            )
            found.update({(row[0], row[1]): row[2] for row in rows})
    return found


def _response(
    answers: list[_Answer], series: dict[tuple[str, str], str], answer_type: str, root: str, study: str | None
) -> Response:
    """Write the Store Instances Response (PS3.18 10.5.3, module of Table 10.5.3-1)."""
    stored, failed, unnamed = [], [], []
    for one in answers:
        if one.failure is None:
            within = series.get((one.study_instance_uid, one.sop_instance_uid), "")
            url = f"{root}/studies/{one.study_instance_uid}/series/{within}/instances/{one.sop_instance_uid}"
            warning = {} if one.warning is None else {"00081196": _element("US", one.warning)}
            stored.append(_reference(one) | warning | {"00081190": _element("UR", url)})
        elif one.sop_instance_uid:
            failed.append(_reference(one) | {"00081197": _element("US", one.failure)})
        else:
            unnamed.append({"00081197": _element("US", one.failure)})
    body: dict[str, Any] = {}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": stored}
    if failed:
        body["00081198"] = {"vr": "SQ", "Value": failed}
    if unnamed:
        # Other Failures Sequence: what failed cannot be named.
        body["0008119A"] = {"vr": "SQ", "Value": unnamed}
    studies = {one.study_instance_uid for one in answers if one.failure is None}
    if study is not None or len(studies) == 1:
        body["00081190"] = _element("UR", f"{root}/studies/{study or studies.pop()}")
    warned = any(one.warning is not None for one in answers)
    status = 200 if not failed and not unnamed and not warned else 202 if stored else 409
    headers = {}
    if lost := sum(not one.kept for one in answers):
        headers["Warning"] = f'299 {root} "{lost} of the parts that failed are not kept in quarantine: too many did"'
    if answer_type in JSON_TYPES:
        return JSONResponse(body, status, headers, media_type=answer_type)
    return Response(to_xml(body), status, headers, media_type=answer_type)


def _reference(one: _Answer) -> dict[str, Any]:
    return {"00081150": _element("UI", one.sop_class_uid), "00081155": _element("UI", one.sop_instance_uid)}


def _element(vr: str, value: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
