"""What a checked token says, read without trust in its shape; and why one is refused, in words without its content."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt

from export_pipeline.errors import NotAuthenticated
from export_pipeline.models import MAX_ID_LENGTH

_REFUSALS: dict[type[jwt.PyJWTError], tuple[str, str]] = {
    jwt.ExpiredSignatureError: ("expired", "The token has expired."),
    jwt.ImmatureSignatureError: ("not_yet_valid", "The token is not valid yet."),
    jwt.InvalidAudienceError: ("wrong_audience", "The token is for somebody else."),
    jwt.InvalidIssuerError: (
        "wrong_issuer",
        "The token is by an issuer that is not known here.",
    ),
    jwt.InvalidAlgorithmError: (
        "wrong_algorithm",
        "The token is signed in a way that is not accepted.",
    ),
    jwt.InvalidSignatureError: ("bad_signature", "The token's signature is wrong."),
    jwt.MissingRequiredClaimError: (
        "missing_claim",
        "The token lacks a claim that is needed.",
    ),
}


class Claims:
    """The claims of a token whose signature is right. Whoever signed it may still have put anything into them.

    Args:
        claims: As decoded.
    """

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self._claims = claims

    def text(self, name: str) -> str | None:
        """A text that is not empty, else None."""
        value = self._find(name)
        return value if isinstance(value, str) and value else None

    def texts(self, name: str) -> list[str]:
        """A list of texts, or one text of words, as `scope` is."""
        value = self._find(name)
        if isinstance(value, str):
            return value.split()
        return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []

    def moment(self, name: str) -> datetime | None:
        """A time in seconds since 1970, else None."""
        value = self._find(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return datetime.fromtimestamp(value, UTC)
        except (OverflowError, OSError, ValueError):
            return None

    def number(self, name: str) -> int:
        """A whole number that is not negative, else 0."""
        value = self._find(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    def is_false(self, name: str) -> bool:
        """Whether it says no in so many words."""
        return self._find(name) in (False, "false")

    def _find(self, name: str) -> Any:
        """By its name, which may be a URL; else by a path with dots, as in `realm_access.roles`."""
        if name in self._claims:
            return self._claims[name]
        found: Any = self._claims
        for step in name.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
        return found


def is_user_id(text: str) -> bool:
    """Whether somebody could have this id in the tables."""
    return bool(text.strip()) and len(text) <= MAX_ID_LENGTH and text.isprintable()


def subject(claims: Claims, name: str) -> str:
    """The user id that a token is about.

    Raises:
        NotAuthenticated: It names nobody, or nobody that could be in the tables.
    """
    user_id = claims.text(name) or ""
    if not is_user_id(user_id):
        raise NotAuthenticated("The token names no user.", reason="no_user")
    return user_id


def refused(error: jwt.PyJWTError) -> NotAuthenticated:
    """Say why a token does not count. The library's text may quote the token, so it is not passed on."""
    for kind, (reason, message) in _REFUSALS.items():
        if isinstance(error, kind):
            return NotAuthenticated(message, reason=reason)
    return NotAuthenticated("This is not a token that can be read.", reason="malformed")
