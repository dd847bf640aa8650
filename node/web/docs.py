"""The description of the services at ``/docs``, with every script and image from this node: hospitals are offline."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

__all__ = ["ASSETS", "Described", "include_docs"]

PAGE: Final = "/docs"
ASSETS: Final = "/docs/assets"
#: The browser itself refuses whatever a later Swagger UI may want from elsewhere; the page has one script of its own.
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
_SCHEME: Final = "bearer"
_OPERATIONS: Final = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})


class Described(FastAPI):
    """An application whose OpenAPI says that a token is wanted, so that the page has "Authorize".

    Parameters
    ----------
    guarded
        Whether a token is configured; ``/health`` is open even so.
    """

    def __init__(self, *, guarded: bool, **options: Any) -> None:
        super().__init__(docs_url=None, redoc_url=None, **options)
        self._guarded = guarded

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; made once."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        if self._guarded:
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes[_SCHEME] = {"type": "http", "scheme": "bearer", "description": "The node's http.token"}
            document["security"] = [{_SCHEME: []}]
            for path, item in document["paths"].items():
                if path.startswith("/health/"):
                    for method in _OPERATIONS & set(item):
                        item[method]["security"] = []
        return document


def include_docs(application: FastAPI) -> None:
    """Serve the page and, from an installed package, what it loads."""
    application.mount(ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")), name="docs-assets")

    @application.get(PAGE, include_in_schema=False)
    def page() -> HTMLResponse:
        answer = get_swagger_ui_html(
            # Relative, so that it is right behind a proxy that puts a prefix before all paths.
            openapi_url="openapi.json",
            title=application.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon.png",
            # Its default asks a public server for an opinion on the document.
            swagger_ui_parameters={"validatorUrl": None},
        )
        answer.headers["Content-Security-Policy"] = _POLICY
        return answer
