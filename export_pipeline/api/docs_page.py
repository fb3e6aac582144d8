"""The page on which people try the API out. Its script and style come from this server, from nowhere else."""

from __future__ import annotations

from pathlib import Path

import fastapi_swagger
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

_ASSETS = Path(fastapi_swagger.__file__).parent / "resources"
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>export-pipeline API</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body>
</html>
"""
_START = """SwaggerUIBundle({ url: "openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null });
"""
#: Its script writes style attributes, and draws its icons as data.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def install(app: FastAPI) -> None:
    """Serve the page at `/api/docs`."""

    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    app.add_api_route("/api/docs", page, include_in_schema=False)
    app.add_api_route("/api/docs/start.js", start, include_in_schema=False)
    for name, media_type in _FILES.items():
        app.add_api_route(f"/api/docs/{name}", _file(name, media_type), include_in_schema=False)


def _file(name: str, media_type: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    async def file() -> FileResponse:
        return FileResponse(_ASSETS / name, media_type=media_type, headers={"Cache-Control": "public, max-age=3600"})

    return file
