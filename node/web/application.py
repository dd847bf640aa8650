"""The web application: DICOMweb, the API, health and metrics behind one door, and how it is run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from node.dicomweb import qido, stow, wado
from node.dicomweb.media import ROOT
from node.errors import BadRequest
from node.ops import metrics
from node.ops.health import Readiness
from node.ops.stability import Weighing
from node.security.bearer import RequireToken
from node.settings import Settings
from node.web import api, pages, problems
from node.web.access import AccessLog
from node.web.docs import Described, include_docs
from storage.blobs import Blobs
from storage.database import Database
from storage.intake import Archive
from storage.space import Room

__all__ = ["Services", "StopSignal", "create_application", "run_web"]

#: How long running requests may take once the node is told to stop.
_GRACE_SECONDS = 5

log = structlog.get_logger("web")


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the web side stands on; everything is open in this process.

    Parameters
    ----------
    incoming
        Where bodies are written as they come; on the file system of ``blobs``.
    room
        Where it says no, STOW-RS takes nothing and the node is not ready.
    """

    settings: Settings
    database: Database
    archive: Archive
    blobs: Blobs
    incoming: Path
    room: Room
    started_at: datetime


class StopSignal(Protocol):
    """Says when to stop: ``threading.Event`` and ``multiprocessing.Event`` both do."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the word; returns whether it came."""


def create_application(services: Services) -> FastAPI:
    """Wire the web side together."""
    http = services.settings.http
    application = Described(
        guarded=http.token is not None,
        title="Overread",
        description="A DICOM AI node. For research use only, not a medical device.",
        dependencies=[Depends(_without_nul)],
    )
    problems.install(application)
    include_docs(application)
    application.include_router(qido.router(services.database), prefix=ROOT)
    application.include_router(wado.router(services.database, services.blobs), prefix=ROOT)
    application.include_router(
        stow.router(
            services.archive,
            services.database,
            services.incoming,
            maximum_body=http.maximum_body_mb << 20,
            room=services.room,
        ),
        prefix=ROOT,
    )
    weighing = Weighing(services.settings)
    application.include_router(api.router(services))
    application.include_router(pages.router(services.settings, services.database, weighing))
    _include_operations(application, services, weighing)
    if http.token is not None:
        application.add_middleware(RequireToken, token=http.token.get_secret_value())
    application.add_middleware(AccessLog)
    return application


async def _without_nul(request: Request) -> None:
    """Refuse an address that no database and no file could hold: PostgreSQL fails on NUL, SQLite does not find it."""
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise BadRequest("the address holds a NUL character (%00)")


def _include_operations(application: FastAPI, services: Services, weighing: Weighing) -> None:
    readiness = Readiness(
        services.database, services.incoming, services.room, services.settings.dimse.tls, weighing.unfit
    )

    @application.get("/health/live", tags=["health"], summary="The process answers")
    def live() -> dict[str, Any]:
        seconds = (datetime.now(UTC) - services.started_at).total_seconds()
        return {"status": "live", "seconds": round(seconds, 1)}

    @application.get("/health/ready", tags=["health"], summary="The node can do its work")
    def ready() -> Response:
        complaints, warnings = readiness.complaints(), readiness.warnings()
        status = "not ready" if complaints else "degraded" if warnings else "ready"
        body = {
            "status": status,
            "complaints": complaints,
            "warnings": warnings,
            "background": readiness.background(),
        }
        return JSONResponse(body, 503 if complaints else 200)

    @application.get("/metrics", tags=["metrics"], summary="Metrics for Prometheus")
    def prometheus() -> Response:
        body = metrics.render(services.database, services.room, weighing)
        return Response(body, media_type=metrics.CONTENT_TYPE)


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to the process it is in: only its stop signal ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_web(listening: socket.socket, services: Services, stop: StopSignal) -> None:
    """Serve on a bound socket until told to stop; requests that are running get a few seconds to end."""
    # Accepted connections inherit it. Without it a short answer's second packet waits for the first's delayed
    # acknowledgement, 40 ms: asyncio sets it only where the socket says by name that it is TCP.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    configuration = uvicorn.Config(
        create_application(services),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=15,
    )
    server = _Server(configuration)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="web-stop", daemon=True).start()
    server.run(sockets=[listening])
