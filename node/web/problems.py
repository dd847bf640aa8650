"""From errors to HTTP: the one table that gives each its status, as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from inference.errors import CardError
from node import errors as node_errors
from storage import errors as storage_errors

__all__ = ["STATUSES", "install", "problem_response"]

#: The first that an error is an instance of counts; what is not here is a 500 and says nothing of the inside.
STATUSES: Final[Mapping[type[Exception], int]] = {
    node_errors.NotAcceptable: 406,
    node_errors.UnsupportedMedia: 415,
    node_errors.BodyTooLarge: 413,
    node_errors.NoRoom: 507,
    node_errors.RequestError: 400,
    node_errors.ModelRefused: 409,
    node_errors.NotConfigured: 400,
    node_errors.ConfigurationError: 400,
    CardError: 409,
    storage_errors.InvalidQuery: 400,
    storage_errors.NotDicom: 400,
    storage_errors.AlreadyThere: 409,
    storage_errors.Unknown: 404,
    storage_errors.IllegalTransition: 409,
    storage_errors.StillNeeded: 409,
}

log = structlog.get_logger("web")


def problem_response(status: int, detail: str, **members: Any) -> JSONResponse:
    """Return a problem details object; ``type`` is left out and so is ``about:blank`` (RFC 9457 4.2.1)."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    answer = JSONResponse(body, status, media_type="application/problem+json")
    if status in (503, 507):
        answer.headers["Retry-After"] = "30"
    return answer


def install(application: FastAPI) -> None:
    """Make the application answer every error as a problem."""
    for kind in (node_errors.NodeError, storage_errors.StorageError, CardError):
        application.add_exception_handler(kind, _known)
    application.add_exception_handler(RequestValidationError, _invalid)
    application.add_exception_handler(HTTPException, _http)
    application.add_exception_handler(ClientDisconnect, _gone)
    application.add_exception_handler(Exception, _unknown)


async def _known(request: Request, error: Exception) -> JSONResponse:
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return problem_response(status, str(error))
    return await _unknown(request, error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The values stay out: they may be a patient's.
    places = [{"at": ".".join(map(str, one["loc"])), "expected": one["msg"]} for one in error.errors()]
    return problem_response(422, "the request does not say what is expected", errors=places)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = problem_response(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(400, "the connection ended within the request")


async def _unknown(_request: Request, error: Exception) -> JSONResponse:
    log.error("request failed", error=node_errors.kind_and_place(error))
    return problem_response(500, "the node could not do this; its log says where it failed")
