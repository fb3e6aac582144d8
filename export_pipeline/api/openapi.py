"""The OpenAPI document: what FastAPI finds in the routes, with our problems in place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from export_pipeline.api import problems
from export_pipeline.api.schemas import Problem
from export_pipeline.render.formats import RENDERERS

Responses = dict[int | str, dict[str, Any]]
#: What a delivered file may be; sealed for a recipient it is an octet-stream.
FILE_CONTENT: dict[str, Any] = {renderer.media_type: {} for renderer in RENDERERS.values()} | {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}

_TAGS = [
    {"name": "exports", "description": "Ask for exports, follow them, fetch them."},
    {"name": "decisions", "description": "What people decide about requests of others."},
    {"name": "data types", "description": "What can be asked for."},
    {"name": "audit", "description": "What happened."},
    {"name": "system", "description": "For machines that look after this one."},
]
_MEANINGS = {
    400: "Something in the request is not valid.",
    401: "Nobody knows who calls: the token is absent, wrong or expired.",
    403: "The caller's roles do not allow this, or a fresh verification is needed.",
    404: "There is no such thing, or it is somebody else's: the answers are the same.",
    409: "The status does not allow this.",
    410: "The file was deleted or has expired, or the link to it has ended.",
    413: "The body has more than 64 KiB.",
    429: "The limit of requests in 24 hours is reached.",
    500: "The service failed.",
    503: "Something that the service needs is away; nothing was changed.",
}
_DESCRIPTION = """Give people their data. Every call needs a bearer token; what it may do stands in the table of roles
and scopes. Every error is a problem document (RFC 9457) whose `type` tells machines what is the case."""


def documented(*statuses: int) -> Responses:
    """Document problems of a route; those that every authenticated route may have come by themselves."""
    return {status: _problem(status) for status in sorted({401, 403, 500, 503, *statuses})}


def public(*statuses: int) -> Responses:
    """Document problems of a route that needs no sign-in."""
    return {status: _problem(status) for status in sorted({500, *statuses})}


def _problem(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": _MEANINGS[status],
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in {429, 503}:
        seconds = {"type": "integer", "minimum": 0}
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": seconds}}
    return answer


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Make an application give this document, made once.

    Args:
        app: The application.
        routers: Its routes, whose scopes are told.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, _scopes(routers))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _scopes(routers: Sequence[APIRouter]) -> dict[str | None, str]:
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {route.operation_id: scope for route in routes if (scope := _scope(route.dependant))}


def _scope(dependant: Dependant) -> str | None:
    """What `dependencies.require` left at the dependency that it made."""
    here: str | None = getattr(dependant.call, "scope", None)
    return here or next(filter(None, map(_scope, dependant.dependencies)), None)


def _document(app: FastAPI, scopes: dict[str | None, str]) -> dict[str, Any]:
    found = get_openapi(
        title="export-pipeline", version=app.version, description=_DESCRIPTION, routes=app.routes, tags=_TAGS
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A token of the issuer."}
    }
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            scope = scopes.get(operation["operationId"])
            operation["security"] = [{"bearer": [str(scope)]}] if scope else []
    return found
