"""The node's own API under ``/api/v1``: what operators and outside tools ask and do; OpenAPI at ``/docs``.

Handlers raise the errors of the inside; the application's one table turns them into HTTP problems: nothing known by
that name is 404, a move that the lifecycle does not have is 409, a name that is not configured is 400.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from node.settings import Settings
from node.workflow import control, story
from storage import changefeed, quarantine
from storage import control as holds
from storage.database import Database

__all__ = ["Services", "router"]

#: Letters too: some anonymisers write them, and what is badly named is held all the same.
_UID = r"^[0-9A-Za-z._-]{1,64}$"
_PRINTED = r"^[^\x00-\x1f\x7f]+$"
#: What a database's integers hold.
_LARGEST = (1 << 63) - 1
StudyUID = Annotated[str, Path(description="Study Instance UID", pattern=_UID, examples=["1.2.840.113619.2.55.3.1"])]


class Services(Protocol):
    """What the API stands on."""

    @property
    def settings(self) -> Settings:
        """The loaded configuration."""
        ...

    @property
    def database(self) -> Database:
        """Opened in this process."""
        ...


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class By(_Model):
    """Who asks, for the audit trail."""

    by: Annotated[
        str, Field(min_length=1, max_length=64, pattern=_PRINTED, description="Name of the operator or tool")
    ] = "api"


class Exclusion(By):
    """What of a study is to be taken out of all judging, or back in; the whole study where nothing is named."""

    series_instance_uid: Annotated[str | None, Field(pattern=_UID)] = None
    sop_instance_uid: Annotated[str | None, Field(pattern=_UID)] = None
    undo: Annotated[bool, Field(description="Take it back in")] = False


class Hold(By):
    """Something that can be held still, by its name in the configuration."""

    kind: Literal["route", "model", "destination", "notifier"]
    name: Annotated[str, Field(min_length=1, pattern=_PRINTED, examples=["pacs"])]


class Change(_Model):
    """One event; ``sequence`` only grows, so that a reader asks for what came after the last that it has."""

    sequence: int
    at: datetime
    kind: Annotated[str, Field(examples=["workitem"])]
    object_id: int | None
    study_id: int | None
    before: Annotated[str | None, Field(description="State before; null where it began")]
    after: str | None
    reason: str
    detail: Mapping[str, Any]


class Changes(_Model):
    """Events, oldest first; ask again with ``since=next``."""

    changes: list[Change]
    next: int


class RefusedShown(_Model):
    """Bytes that were refused; the commands of ``overread quarantine`` take the ``id``."""

    id: int
    size: int
    digest: Annotated[str | None, Field(description="SHA-256 of all the bytes")]
    reason: str
    calling_ae_title: str
    received_at: datetime


class RouteShown(_Model):
    """A route as configured."""

    name: str
    match: Mapping[str, Any]
    models: list[str]
    deliver: list[str]
    notify: list[str]
    select: Literal["best", "each"] | None
    paused: bool


class ModelShown(_Model):
    """A model as its card says."""

    name: str
    version: str
    title: str
    task: str
    digest: Annotated[str, Field(description="SHA-256 over all that decides the model's answers")]
    device_uid: Annotated[str, Field(description="Device UID (0018,1002) in what the model makes")]
    demonstration: bool
    active: Annotated[bool, Field(description="false for a demonstration where demonstrations are off")]
    paused: bool


def router(services: Services) -> APIRouter:
    """Return the routes of the API, under ``/api/v1``; FastAPI runs the handlers in its threads."""
    api = APIRouter(prefix="/api/v1", tags=["operators"])
    database, settings = services.database, services.settings

    @api.get("/status", summary="What waits, what is parked, and what to do about each")
    def status() -> control.Status:
        with database.read() as connection:
            return control.status(connection)

    @api.get("/studies/{study_instance_uid}/story", summary="What became of a study, and why")
    def tell(study_instance_uid: StudyUID) -> story.Story:
        with database.read() as connection:
            return story.tell(connection, study_instance_uid)

    @api.post("/studies/{study_instance_uid}/retry", summary="Try again everything of a study that is parked")
    def retry(study_instance_uid: StudyUID, body: By | None = None) -> control.Done:
        return control.retry(database, study_instance_uid, by=_by(body))

    @api.post(
        "/studies/{study_instance_uid}/rerun", summary="Route a study anew, with the routes and models as they are now"
    )
    def rerun(study_instance_uid: StudyUID, body: By | None = None) -> control.Done:
        return control.rerun(database, study_instance_uid, by=_by(body))

    @api.post("/studies/{study_instance_uid}/complete", summary="Judge a study now, whatever is still waited for")
    def complete(study_instance_uid: StudyUID, body: By | None = None) -> control.Done:
        return control.complete(database, study_instance_uid, by=_by(body))

    @api.post("/studies/{study_instance_uid}/cancel", summary="Stop everything of a study that is open")
    def cancel(study_instance_uid: StudyUID, body: By | None = None) -> control.Done:
        return control.cancel(database, study_instance_uid, by=_by(body))

    @api.post("/studies/{study_instance_uid}/exclude", summary="Take a study or a part of it out of judging")
    def exclude(study_instance_uid: StudyUID, body: Exclusion | None = None) -> control.Done:
        asked = body or Exclusion()
        return control.exclude(
            database,
            study_instance_uid,
            by=asked.by,
            series_instance_uid=asked.series_instance_uid,
            sop_instance_uid=asked.sop_instance_uid,
            undo=asked.undo,
        )

    @api.post("/pause", summary="Hold a route, model, destination or notifier still")
    def pause(body: Hold) -> control.Done:
        return control.pause(database, settings, body.kind, body.name, by=body.by)

    @api.post("/resume", summary="Let what was paused move again")
    def resume(body: Hold) -> control.Done:
        return control.resume(database, settings, body.kind, body.name, by=body.by)

    @api.get("/changes", summary="The change feed: every event, in one sequence")
    def changes(
        since: Annotated[int, Query(ge=0, le=_LARGEST, description="The last sequence number that the reader has")] = 0,
        limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    ) -> Changes:
        with database.read() as connection:
            found = changefeed.since(connection, since, limit)
        told = [
            Change(
                sequence=one.sequence,
                at=one.at,
                kind=one.kind,
                object_id=one.object_id,
                study_id=one.study_id,
                before=one.before,
                after=one.after,
                reason=one.reason,
                detail=one.detail,
            )
            for one in found
        ]
        return Changes(changes=told, next=told[-1].sequence if told else since)

    @api.get("/quarantine", summary="What was refused, and why")
    def refused(
        after: Annotated[int, Query(ge=0, le=_LARGEST, description="The last number that the reader has")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[RefusedShown]:
        with database.read() as connection:
            found = quarantine.listed(connection, limit=limit, after=after)
        return [
            RefusedShown(
                id=one.id,
                size=one.size,
                digest=one.digest,
                reason=one.reason,
                calling_ae_title=one.calling_ae_title,
                received_at=one.received_at,
            )
            for one in found
        ]

    @api.get("/routes", summary="The routes, in the order in which they are weighed")
    def routes() -> list[RouteShown]:
        with database.read() as connection:
            held = holds.paused(connection, "route")
        return [
            RouteShown(
                name=one.name,
                match=one.match,
                models=list(one.models),
                deliver=list(one.deliver),
                notify=list(one.notify),
                select=one.select,
                paused=one.name in held,
            )
            for one in settings.route_list
        ]

    @api.get("/models", summary="The models that are installed, with version and digest")
    def models() -> list[ModelShown]:
        from inference.registry import Registry

        with database.read() as connection:
            held = holds.paused(connection, "model")
        return [
            ModelShown(
                name=card.name,
                version=card.version,
                title=card.title,
                task=card.task,
                digest=card.digest,
                device_uid=card.device_uid,
                demonstration=card.demonstration,
                active=settings.demonstration_models or not card.demonstration,
                paused=card.name in held,
            )
            for card in Registry.from_folder(settings.models)
        ]

    return api


def _by(body: By | None) -> str:
    return "api" if body is None else body.by
