"""Asking an identity provider: one JSON object each time, and nothing that its answer could lead us to."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from export_pipeline.errors import IdentityProviderUnavailable

_TIMEOUT_S = 5.0
_MAX_ANSWER = 1_000_000  # bytes
#: What a server can do instead of answering as it should; an HTTPError is an URLError too.
_FAILURES = (URLError, OSError, ValueError, HTTPException, RecursionError)


class _NoRedirects(HTTPRedirectHandler):
    """A secret and a code are for one address alone; and no answer sends us to an address that nobody looked at."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follow nothing."""


def unavailable(why: str) -> IdentityProviderUnavailable:
    """Say what is wrong with the provider."""
    return IdentityProviderUnavailable(
        f"The identity provider cannot be used now: {why}.",
        hint="Check EXPORT_PIPELINE_OIDC_ISSUER, and try again.",
    )


def _not_as_it_should(status: int, _error: object) -> Exception:
    return unavailable(f"it answers {status}")


def ask(request: Request, *, said_no: Callable[[int, object], Exception] = _not_as_it_should) -> dict[str, Any]:
    """Ask, and give the JSON object that comes.

    Args:
        request: Whose address was looked at already.
        said_no: Makes the error for another status than success, out of it and of the answer's `error`.

    Raises:
        IdentityProviderUnavailable: There is no such answer.
    """
    try:
        with build_opener(_NoRedirects).open(request, timeout=_TIMEOUT_S) as response:
            answer = json.loads(response.read(_MAX_ANSWER))
    except HTTPError as error:
        with error:
            raise said_no(error.code, _kind(error)) from None
    except _FAILURES as error:
        raise unavailable(f"it does not answer as it should ({type(error).__name__})") from None
    if not isinstance(answer, dict):
        raise unavailable("it does not answer as it should")
    return answer


def _kind(error: HTTPError) -> object:
    try:
        said = json.loads(error.read(_MAX_ANSWER))
    except _FAILURES:
        return None
    return said.get("error") if isinstance(said, dict) else None
