"""The access log: method, route, status and time of each request, and nothing that a query string might say."""

from __future__ import annotations

import time
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ROOTS = ("/dicom-web", "/api/v1")

__all__ = ["AccessLog"]

log = structlog.get_logger("web.access")


class AccessLog:
    """ASGI middleware that writes one line a request, after its last byte."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and write down what became of it."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, noting)
        finally:
            # The route's template, not the path: what somebody typed may be anything.
            route: Any = scope.get("route")
            path = getattr(route, "path", None) or "(none)"
            # An included router's template begins below where it was included.
            root = next((root for root in _ROOTS if scope["path"].startswith(f"{root}/")), "")
            path = path if path.startswith((root, "(")) else root + path
            if not path.startswith("/health/"):
                milliseconds = round((time.perf_counter() - begun) * 1000, 1)
                log.info("request", method=scope["method"], route=path, status=status, ms=milliseconds)
