"""Our own tokens: JWT signed by Ed25519. The first line of the key file signs, every line verifies.

There is no shared secret and no second algorithm: a token says which key signed it, never how to check it. One key
signs three kinds that cannot stand in for each other, because they name different audiences: bearer tokens, the
sessions of browsers, and notes to ourselves that a browser keeps while somebody signs in elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import jwt

from export_pipeline.errors import InvalidRequest, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.sign_in.claims import Claims, refused, subject
from export_pipeline.vault import secret_file, token_keys
from export_pipeline.vault.secret_file import Stamp

ISSUER = "export-pipeline"
LEEWAY_S = 30
LIFETIME = timedelta(hours=12)
LONGEST = timedelta(hours=8760)
_ALGORITHM = "EdDSA"
_REQUIRED = ("exp", "iat", "iss", "aud", "sub", "jti")
_REQUIRED_OF_A_NOTE = ("exp", "iat", "iss", "aud", "note")


class Audience(StrEnum):
    """What a token of ours is for."""

    BEARER = "export-pipeline"
    SESSION = "export-pipeline-session"
    NOTE = "export-pipeline-note"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A session or token of ours whose signature is right.

    Attributes:
        principal: Whom it speaks for.
        token_id: Its id.
        begun_with: The id of the token that a session began with.
        came_after: The number of the person's last sign-out everywhere when it was made.
        expires_at: From then on it does not count.
    """

    principal: Principal = field(repr=False)
    token_id: str
    begun_with: str | None
    came_after: int
    expires_at: datetime


class Issuer:
    """Makes and checks our own tokens.

    Args:
        file: Holds the keys; read at each use, so that a rotation counts at once.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def stamp(self) -> Stamp:
        """Tell whether the keys are still the ones that were used, without reading them.

        Raises:
            KeyUnusable: The key file is absent.
        """
        return secret_file.stamp(self._file)

    def issue(
        self,
        principal: Principal,
        *,
        audience: Audience = Audience.BEARER,
        lifetime: timedelta = LIFETIME,
    ) -> str:
        """Make a token.

        Args:
            principal: Whom it speaks for. A bearer token without `auth_time` was asked for just now; a session keeps
                that it is not known when the person signed in.
            audience: What it is for.
            lifetime: How long it counts.

        Raises:
            InvalidRequest: Nothing counts that long: what ends all of a person's tokens is kept no longer.
            KeyUnusable: The key file is absent, readable by others, or damaged.
        """
        if lifetime > LONGEST:
            raise InvalidRequest("No token counts longer than a year.")
        now = datetime.now(UTC)
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": audience.value,
            "sub": principal.id,
            "roles": sorted(principal.roles),
            "iat": now,
            "exp": now + lifetime,
            "jti": secrets.token_urlsafe(16),
            "came_after": principal.came_after or 0,
        }
        if audience is Audience.SESSION and principal.token_id:
            claims["begun_with"] = principal.token_id
        signed_in = principal.auth_time or (now if audience is Audience.BEARER else None)
        if signed_in:
            claims["auth_time"] = int(signed_in.timestamp())
        if principal.email:
            claims["email"] = principal.email
        key = token_keys.read(self._file)[0]
        return jwt.encode(claims, key.private, algorithm=_ALGORITHM, headers={"kid": key.key_id})

    def verify(self, token: str, *, audience: Audience = Audience.BEARER) -> Principal:
        """Check a token.

        Raises:
            NotAuthenticated: It does not count; says why.
            KeyUnusable: As for `issue`.
        """
        return self.read(token, audience).principal

    def read(self, token: str, *audiences: Audience, expired_too: bool = False) -> Proof:
        """Check a token, and tell what is needed to end it.

        Args:
            token: The token.
            audiences: What it may be for.
            expired_too: Whether it may have expired.

        Raises:
            NotAuthenticated: It does not count; says why.
            KeyUnusable: As for `issue`.
        """
        claims = Claims(self._decode(token, *audiences, expired_too=expired_too))
        roles = frozenset(Role(name) for name in claims.texts("roles") if name in set(Role))
        token_id, expires_at = claims.text("jti"), claims.moment("exp")
        if token_id is None or expires_at is None:
            raise NotAuthenticated("The token lacks a claim that is needed.", reason="missing_claim")
        principal = Principal(
            id=subject(claims, "sub"),
            roles=roles,
            auth_time=claims.moment("auth_time"),
            email=claims.text("email"),
            token_id=token_id,
            came_after=claims.number("came_after"),
        )
        return Proof(
            principal=principal,
            token_id=token_id,
            begun_with=claims.text("begun_with"),
            came_after=claims.number("came_after"),
            expires_at=expires_at,
        )

    def note(self, values: Mapping[str, str], *, lifetime: timedelta) -> str:
        """Write something down for ourselves, to be kept by somebody else: they can read it, and not change it.

        Args:
            values: What to remember.
            lifetime: For how long.

        Raises:
            KeyUnusable: As for `issue`.
        """
        now = datetime.now(UTC)
        claims = {"iss": ISSUER, "aud": Audience.NOTE.value, "iat": now, "exp": now + lifetime, "note": dict(values)}
        key = token_keys.read(self._file)[0]
        return jwt.encode(claims, key.private, algorithm=_ALGORITHM, headers={"kid": key.key_id})

    def read_note(self, token: str) -> Mapping[str, str]:
        """Read what was written down; `iat` is added, seconds since 1970.

        Raises:
            NotAuthenticated: We did not write it, or too long ago.
            KeyUnusable: As for `issue`.
        """
        claims = self._decode(token, Audience.NOTE, required=_REQUIRED_OF_A_NOTE)
        return {**claims["note"], "iat": str(claims["iat"])}

    def _decode(
        self, token: str, *audiences: Audience, required: Sequence[str] = _REQUIRED, expired_too: bool = False
    ) -> dict[str, Any]:
        try:
            named = jwt.get_unverified_header(token).get("kid")
            known = [key for key in token_keys.read(self._file) if key.key_id == named]
            if not known:
                raise NotAuthenticated(
                    "The token is signed by a key that is not ours.",
                    reason="unknown_key",
                )
            decoded: dict[str, Any] = jwt.decode(
                token,
                known[0].private.public_key(),
                algorithms=[_ALGORITHM],
                audience=[audience.value for audience in audiences],
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": list(required), "verify_exp": not expired_too},
            )
        except jwt.PyJWTError as error:
            raise refused(error) from None
        return decoded
