"""Which address answers what. Nothing here changes anything, and nothing waits for the storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from backupd import status
from backupd.config_models import Server
from backupd.metrics import CONTENT_TYPE
from backupd.standing import Reading
from backupd.web import pages
from backupd.web.doors import Doors

_STATIC = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Health(Protocol):
    """How the daemon is."""

    @property
    def alive(self) -> bool: ...

    @property
    def troubles(self) -> Mapping[str, str]:
        """By what is not well: config, storage, clock."""


def build(read: Callable[[], Reading], metrics: Callable[[], bytes], health: Health, doors: Server) -> Starlette:
    """The application. What is shown is what `read` returns at that moment."""

    def overview(_: Request) -> Response:
        return HTMLResponse(pages.overview(status.overview(read())))

    def database(request: Request) -> Response:
        found = status.details(read(), request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        try:
            number = int(request.query_params.get("page", "1"))
        except ValueError:
            raise HTTPException(404) from None
        text = pages.database(found, number)
        if text is None:
            raise HTTPException(404)
        return HTMLResponse(text)

    def api(_: Request) -> Response:
        return _json(status.overview(read()))

    def api_database(request: Request) -> Response:
        found = status.details(read(), request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return _json(found)

    def scrape(_: Request) -> Response:
        return Response(metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n" if health.alive else "not ok\n", 200 if health.alive else 503)

    async def readyz(_: Request) -> Response:
        troubles = health.troubles if health.alive else {"loop": "it hangs", **health.troubles}
        text = "".join(f"{name}: {pages.printable(text)}\n" for name, text in troubles.items())
        return PlainTextResponse(text or "ok\n", 503 if troubles else 200)

    return Starlette(
        routes=[
            Route("/", overview),
            Route("/databases/{name}", database),
            Route("/api/status", api),
            Route("/api/status/{name}", api_database),
            Route("/metrics", scrape),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            *(Route(f"/static/{name}", _static(name, kind)) for name, kind in _STATIC.items()),
        ],
        middleware=[Middleware(Doors, doors=doors), Middleware(GZipMiddleware, minimum_size=2000)],
        exception_handlers={HTTPException: _refused},
    )


def _json(value: object) -> Response:
    return Response(json.dumps(status.document(value)), media_type="application/json")


def _static(name: str, kind: str) -> Callable[[Request], Response]:
    data = (files("backupd.web") / "static" / name).read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'

    def answer(request: Request) -> Response:
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return answer


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.startswith("/api/"):
        return Response(json.dumps({"error": error.detail}), error.status_code, media_type="application/json")
    return HTMLResponse(pages.refused(error.status_code, error.detail), error.status_code)
