"""The node's own API under ``/api/v1``: what operators and outside tools ask and do; OpenAPI at ``/docs``.

Handlers raise the errors of the inside; the application's one table turns them into HTTP problems: nothing known by
that name is 404, a move that the lifecycle does not have is 409, a name that is not configured is 400.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from node.settings import Settings
from node.workflow import control, governing, leaving, overview, story
from storage import changefeed, quarantine
from storage import control as holds
from storage import models as model_rows
from storage.database import Database

__all__ = ["Services", "router"]

#: Letters too: some anonymisers write them, and what is badly named is held all the same.
_UID = r"^[0-9A-Za-z._-]{1,64}$"
_PRINTED = r"^[^\x00-\x1f\x7f]+$"
#: What a database's integers hold.
_LARGEST = (1 << 63) - 1
StudyUID = Annotated[str, Path(description="Study Instance UID", pattern=_UID, examples=["1.2.840.113619.2.55.3.1"])]


ModelName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$", examples=["lung-ct"])]


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
    """A version of a model, as its card says and as operators have set its stage."""

    name: str
    version: str
    stage: Annotated[str, Field(description="live, canary, shadow, candidate or retired")]
    share: Annotated[float | None, Field(description="Of a canary: the part of the studies that it reads")]
    title: str
    task: str
    digest: Annotated[str, Field(description="SHA-256 over all that decides the model's answers")]
    device_uid: Annotated[str, Field(description="Device UID (0018,1002) in what the model makes")]
    demonstration: bool
    active: Annotated[bool, Field(description="false for a demonstration where demonstrations are off")]
    paused: bool
    test_passed: Annotated[bool | None, Field(description="null where it has not been tested as it is now")]
    problem: Annotated[str, Field(description="Why it cannot run here; empty where it can")]
    idle: Annotated[str, Field(description="Why it reads no study; empty where it reads those of its routes")]
    way: Annotated[str, Field(description="What runs it here, where there is a choice, and whether measured")]
    todo: Annotated[str, Field(description="What is left to do about its test or its way; empty for nothing")]


class ModelChanged(_Model):
    """One change of a version of a model."""

    at: datetime
    model: str
    version: str
    action: Annotated[str, Field(examples=["promoted", "rolled-back", "retired", "removed", "tested", "tuned"])]
    before: str | None
    after: str | None
    by: str
    why: str
    detail: Mapping[str, Any]


class Because(By):
    """Who asks and why, for the history."""

    why: Annotated[str, Field(max_length=1000, description="Why, for the history")] = ""


class Promotion(Because):
    """What stage a version is to have."""

    stage: Literal["candidate", "shadow", "canary", "live"] = "live"
    share: Annotated[float | None, Field(gt=0, lt=1, description="Of a canary: the part of the studies")] = None


class Rollback(Because):
    """How far a model is to be turned back: by one step, or to a version."""

    to: str | None = None
    retire: Annotated[bool, Field(description="Also retire what is turned back")] = False


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
            return story.tell(connection, study_instance_uid, settings.data_dir.absolute() / "heat-maps")

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

    @api.get("/models", summary="Every version of every model, with stage and digest")
    def models() -> list[ModelShown]:
        wanted = ModelShown.model_fields
        return [
            ModelShown(**{key: value for key, value in asdict(one).items() if key in wanted})
            for one in overview.versions(settings, database)
        ]

    @api.get("/models/history", summary="Every change of versions and stages, the newest first")
    def model_history(
        model: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[ModelChanged]:
        with database.read() as connection:
            found = model_rows.history(connection, model, limit)
        return [ModelChanged(**{key: value for key, value in asdict(one).items() if key != "id"}) for one in found]

    @api.post("/models/{model}/versions/{version}/stage", summary="Set a version's stage, without a restart")
    def promote(model: ModelName, version: ModelName, body: Promotion) -> control.Done:
        reference = f"{model}@{version}"
        return governing.promote(settings, database, reference, body.stage, by=body.by, why=body.why, share=body.share)

    @api.post("/models/{model}/versions/{version}/retire", summary="Take a version out; what is scheduled is canceled")
    def retire(model: ModelName, version: ModelName, body: Because | None = None) -> control.Done:
        body = body or Because()
        return governing.retire(settings, database, f"{model}@{version}", by=body.by, why=body.why)

    @api.post("/models/{model}/versions/{version}/remove", summary="Take away the files of a version that was added")
    def remove(model: ModelName, version: ModelName, body: Because | None = None) -> control.Done:
        body = body or Because()
        return leaving.remove(settings, database, f"{model}@{version}", by=body.by, why=body.why)

    @api.post("/models/{model}/rollback", summary="Turn a model back by one step, without a restart")
    def rollback(model: ModelName, body: Rollback | None = None) -> control.Done:
        body = body or Rollback()
        return governing.rollback(settings, database, model, by=body.by, why=body.why, to=body.to, retired=body.retire)

    return api


def _by(body: By | None) -> str:
    return "api" if body is None else body.by
