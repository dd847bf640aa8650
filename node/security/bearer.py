"""The bearer token that every request must carry where one is configured; health and the description are open."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from node.web.problems import problem_response

__all__ = ["RequireToken"]

_OPEN_BELOW = ("/health/", "/docs/assets/")
#: They describe the services, which is no secret, and a browser cannot send a token for a page.
_OPEN = frozenset({"/docs", "/openapi.json"})


class RequireToken:
    """ASGI middleware: 401 without ``Authorization: Bearer`` and the right token (RFC 6750 2.1, 3).

    Parameters
    ----------
    token
        What is asked for.
    """

    def __init__(self, application: ASGIApp, *, token: str) -> None:
        self._application = application
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http" and not _is_open(scope["path"]) and not self._carried(scope):
            answer = problem_response(401, "send the header Authorization: Bearer with the node's token")
            answer.headers["WWW-Authenticate"] = 'Bearer realm="overread"'
            await answer(scope, receive, send)
            return
        await self._application(scope, receive, send)

    def _carried(self, scope: Scope) -> bool:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        # In constant time: how long the comparison takes must not tell how much of a guess is right.
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_BELOW)
