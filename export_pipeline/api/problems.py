"""Every error as a problem document (RFC 9457): one table from our errors to status codes.

Of what a person sent, nothing but names of fields, data types and columns is repeated. Of what happened inside, nothing
is told: a 5xx says only that it is not the caller's fault.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from export_pipeline import errors

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:export-pipeline:problem:"
#: Seconds after which what is away is worth another try.
_RETRY_AFTER_S = 5
_MAX_FAULTS = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of problem.

    Attributes:
        status: The HTTP status.
        name: The last part of the type URI.
        title: The same for every problem of the kind.
        detail: What is said instead of the error's own message; None says that.
    """

    status: int
    name: str
    title: str
    detail: str | None = None


_AWAY = "Something that the service needs cannot be reached now. Nothing was changed; try again."
_INTERNAL = "The service failed. This is not your fault; an operator finds the reason in its log."

#: Looked up by the error's class, then by its parents.
KINDS: dict[type[errors.ExportPipelineError], Kind] = {
    errors.InvalidRequest: Kind(status=400, name="invalid-request", title="The request is not valid"),
    errors.NotAuthenticated: Kind(status=401, name="not-authenticated", title="Sign in first"),
    errors.NotAllowed: Kind(status=403, name="not-allowed", title="This is not allowed"),
    errors.VerificationRequired: Kind(status=403, name="verification-required", title="A fresh verification is needed"),
    errors.RequestNotFound: Kind(
        status=404, name="not-found", title="There is no such export", detail="There is no export request with this id."
    ),
    errors.LinkNotFound: Kind(
        status=404,
        name="link-not-found",
        title="There is no such link",
        detail="This request has no link with this id.",
    ),
    errors.DataTypeUnusable: Kind(
        status=409, name="data-type-unusable", title="The configuration of a data type is wrong"
    ),
    errors.WrongStatus: Kind(status=409, name="wrong-status", title="The status does not allow this"),
    errors.LinkEnded: Kind(status=410, name="link-ended", title="The link opens nothing any more"),
    errors.FileGone: Kind(status=410, name="gone", title="The file was removed"),
    errors.RateLimited: Kind(status=429, name="rate-limited", title="Too many requests"),
    errors.IdentityProviderUnavailable: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.DatabaseUnavailable: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.MailUnavailable: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.NotMigrated: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.SourceUnavailable: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.StorageUnavailable: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.KeyUnusable: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
    errors.ExportPipelineError: Kind(status=500, name="internal", title="The service failed", detail=_INTERNAL),
}
#: What the framework refuses by itself.
HTTP_KINDS = {
    400: Kind(status=400, name="invalid-request", title="The request is not valid", detail="The body is not readable."),
    404: Kind(status=404, name="not-found", title="There is nothing here", detail="This address leads nowhere."),
    405: Kind(status=405, name="method-not-allowed", title="Not with this method", detail="See the header Allow."),
    413: Kind(status=413, name="too-large", title="The body is too large", detail="64 KiB are the limit."),
    503: Kind(status=503, name="unavailable", title="Not available now", detail=_AWAY),
}


def kind_of(error: errors.ExportPipelineError) -> Kind:
    """What kind of problem an error is."""
    return next(KINDS[cls] for cls in type(error).__mro__ if cls in KINDS)


def install(app: FastAPI, routers: Sequence[APIRouter] = ()) -> None:
    """Turn every error of an application into a problem document.

    Args:
        app: The application.
        routers: Its routes, in the order in which they are looked at.
    """
    app.state.routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    app.add_exception_handler(errors.ExportPipelineError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)


def response(kind: Kind, *, detail: str = "", headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Make the document.

    Args:
        kind: What kind of problem.
        detail: What is the case this time.
        headers: For the answer.
        more: Further members; empty ones are left out.
    """
    body: dict[str, Any] = {"type": TYPE_PREFIX + kind.name, "title": kind.title, "status": kind.status}
    body["detail"] = kind.detail or detail
    body |= {name: value for name, value in more.items() if value not in (None, "", [])}
    headers = {"Cache-Control": "no-store"} | (headers or {})
    return JSONResponse(body, kind.status, headers, MEDIA_TYPE)


def unexpected(error: Exception) -> JSONResponse:
    """Answer for an error that nobody foresaw. The log gets the places and never the text: it may quote a person."""
    places = "; ".join(f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-8:])
    _log.error("Unexpected %s at %s", type(error).__name__, places)
    return response(KINDS[errors.ExportPipelineError])


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, errors.ExportPipelineError):
        return unexpected(error)
    kind = kind_of(error)
    if kind.status >= 500:
        _log.error("%s: %s", type(error).__name__, error)
        return response(kind, headers={"Retry-After": str(_RETRY_AFTER_S)} if kind.status == 503 else None)
    hint = "" if kind.detail else error.hint
    if isinstance(error, errors.RateLimited):
        headers = {"Retry-After": str(error.retry_after_s)}
        more = {"limit": error.limit, "remaining": 0, "retry_after": error.retry_after_s}
        return response(kind, detail=error.message, headers=headers, hint=hint, **more)
    challenge = {"WWW-Authenticate": _challenge(error)} if kind.status == 401 else None
    return response(kind, detail=error.message, headers=challenge, hint=hint)


def _challenge(error: errors.ExportPipelineError) -> str:
    return getattr(error, "challenge", "") or 'Bearer realm="export-pipeline"'


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    faults = [{"pointer": _pointer(fault["loc"]), "detail": fault["msg"]} for fault in found[:_MAX_FAULTS]]
    return response(KINDS[errors.InvalidRequest], detail="Something in the request is not valid.", errors=faults)


def _pointer(location: tuple[int | str, ...]) -> str:
    """A JSON pointer into the body, or `path`, `query`, `header` and the name."""
    if not location or location[0] == "body":
        steps = [str(step).replace("~", "~0").replace("/", "~1")[:100] for step in location[1:]]
        return "#" + "".join(f"/{step}" for step in steps)
    return "/".join(str(step)[:100] for step in location)


async def _framework(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        return unexpected(error)
    known = HTTP_KINDS.get(error.status_code)
    kind = known or Kind(status=error.status_code, name="refused", title="Refused", detail="The request was refused.")
    headers = dict(error.headers or {})
    if error.status_code == 405 and (methods := _methods(request)):
        headers["Allow"] = ", ".join(methods)
    return response(kind, headers=headers)


def _methods(request: Request) -> list[str]:
    """What an address takes. The framework tells only what its first route takes, and each method has one."""
    matching = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching if route.path == matching[0].path for method in route.methods or ()})
