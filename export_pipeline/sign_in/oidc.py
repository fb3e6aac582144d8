"""Tokens of an OpenID Connect provider: found by discovery, checked with the keys that it publishes.

Keys are fetched when a token first needs them, kept for an hour, and fetched again when a token names one that we do
not know, at most once a minute: strangers can't make us ask. A provider that does not answer is our trouble and not the
person's (503, never 401); keys that we have go on counting for a day.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

import jwt

from export_pipeline.errors import IdentityProviderUnavailable, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.sign_in.claims import Claims, refused, subject
from export_pipeline.sign_in.provider_http import ask, unavailable
from export_pipeline.sign_in.tokens import LEEWAY_S

#: Kind of key → how it may sign. Only keys with a public half: what anybody can read must not be what signs.
_ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_ALL = tuple(name for names in _ALGORITHMS.values() for name in names)
_FRESH_S = timedelta(hours=1).total_seconds()
_USABLE_S = timedelta(days=1).total_seconds()
_ASK_AGAIN_S = 60.0
_ASK_AGAIN_AFTER_FAILURE_S = 5.0
_REQUIRED = ["exp", "iat", "iss", "aud"]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What we know of a provider, as its administrator told us.

    Attributes:
        issuer: Its URL, exactly as in `iss`.
        audience: What `aud` must hold.
        user_claim: The claim that is the user id in our tables.
        roles_claim: The claim with the roles; dots lead into objects.
        role_names: Their names at the provider → ours.
    """

    issuer: str
    audience: str
    user_claim: str = "sub"
    roles_claim: str = "roles"
    role_names: Mapping[str, Role] = field(default_factory=lambda: {role.value: role for role in Role})


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """What the provider publishes: its keys, and its description of itself."""

    by_id: Mapping[str | None, Mapping[str, Any]]
    about: Mapping[str, Any]
    fetched_at: float


class Verifier:
    """Checks the tokens of one provider.

    Args:
        provider: Whose.
        clock: Seconds that only grow.
    """

    def __init__(self, provider: Provider, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.provider = provider
        self._clock = clock
        self._lock = threading.Lock()
        self._keys = _Keys(by_id={}, about={}, fetched_at=float("-inf"))
        self._failed_at = float("-inf")

    @property
    def fetched_at(self) -> float:
        """When the keys in use were fetched, by the clock."""
        return self._keys.fetched_at

    def verify(self, token: str) -> Principal:
        """Check a token.

        Raises:
            NotAuthenticated: It does not count; says why.
            IdentityProviderUnavailable: The provider's keys are needed and cannot be had.
        """
        return self._principal(Claims(self._decode(token, self.provider.audience)))

    def verify_id_token(self, token: str, *, client_id: str, nonce: str) -> Principal:
        """Check the token that says to one of the provider's clients who signed in.

        Args:
            token: Of the provider.
            client_id: Which client we are.
            nonce: What was sent along when the sign-in began: it is the answer to that one.

        Raises:
            NotAuthenticated: It does not count; says why.
            IdentityProviderUnavailable: The provider's keys are needed and cannot be had.
        """
        claims = Claims(self._decode(token, client_id))
        if (claims.text("azp") or client_id) != client_id:
            raise NotAuthenticated("The token is for somebody else.", reason="wrong_audience")
        if not hmac.compare_digest((claims.text("nonce") or "").encode(), nonce.encode()):
            raise NotAuthenticated("The token answers another sign-in.", reason="wrong_nonce")
        return self._principal(claims)

    def endpoint(self, name: str) -> str:
        """Address of the provider for a purpose, as it describes itself.

        Args:
            name: As in its description: `authorization_endpoint`, `token_endpoint`.

        Raises:
            IdentityProviderUnavailable: It cannot be had, or is none that can be trusted.
        """
        if self._clock() - self._keys.fetched_at > _FRESH_S:
            self.require()
        address = self._keys.about.get(name)
        if not isinstance(address, str) or not secure(address):
            raise unavailable(f"it describes no {name} with https://")
        return address

    def described(self, name: str) -> Any:
        """What the provider says of itself, as far as it was asked; None else."""
        return self._keys.about.get(name)

    def _principal(self, claims: Claims) -> Principal:
        named = claims.texts(self.provider.roles_claim)
        roles = {self.provider.role_names[name] for name in named if name in self.provider.role_names}
        return Principal(
            id=subject(claims, self.provider.user_claim),
            # Whoever the provider knows may see their own data.
            roles=frozenset(roles | {Role.SUBJECT}),
            auth_time=claims.moment("auth_time"),
            email=None if claims.is_false("email_verified") else claims.text("email"),
        )

    def require(self) -> None:
        """Make sure that the provider's keys can be had.

        Raises:
            IdentityProviderUnavailable: They cannot.
        """
        with self._lock:
            self._refresh(None)

    def _decode(self, token: str, audience: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in _ALL:
                raise jwt.InvalidAlgorithmError
            key = jwt.PyJWK(dict(self._key(header.get("kid"), algorithm)), algorithm=algorithm)
            decoded: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=audience,
                issuer=self.provider.issuer,
                leeway=LEEWAY_S,
                options={"require": _REQUIRED},
            )
        except jwt.PyJWTError as error:
            raise refused(error) from None
        return decoded

    def _key(self, key_id: str | None, algorithm: str) -> Mapping[str, Any]:
        key = self._look_up(key_id)
        if algorithm not in _ALGORITHMS.get((key["kty"], key.get("crv")), ()) or key.get("alg", algorithm) != algorithm:
            raise jwt.InvalidAlgorithmError
        return key

    def _look_up(self, key_id: str | None) -> Mapping[str, Any]:
        age = self._clock() - self._keys.fetched_at
        if not self._known(key_id) or age > _FRESH_S:
            self._renew(key_id, wait=not self._known(key_id) or age > _USABLE_S)
        found = self._keys.by_id.get(key_id)
        if found is None and key_id is None and len(self._keys.by_id) == 1:
            [found] = self._keys.by_id.values()
        if found is None:
            raise NotAuthenticated(
                "The token is signed by a key that the provider does not have.",
                reason="unknown_key",
            )
        return found

    def _known(self, key_id: str | None) -> bool:
        return key_id in self._keys.by_id or (key_id is None and bool(self._keys.by_id))

    def _renew(self, key_id: str | None, *, wait: bool) -> None:
        """Refresh; with a key that does meanwhile, nobody waits for whoever is asking the provider already."""
        if self._lock.acquire(blocking=wait):
            try:
                self._refresh(key_id)
            finally:
                self._lock.release()

    def _refresh(self, key_id: str | None) -> None:
        """Fetch the keys again unless that was done a moment ago; the caller holds the lock."""
        now = self._clock()
        age = now - self._keys.fetched_at
        if age < _ASK_AGAIN_S:
            return
        usable = self._known(key_id) and age <= _USABLE_S
        try:
            if now - self._failed_at >= _ASK_AGAIN_AFTER_FAILURE_S:
                self._ask()
            elif not usable:
                raise unavailable("it did not answer a moment ago")
        except IdentityProviderUnavailable:
            if not usable:
                raise

    def _ask(self) -> None:
        asked_at = self._clock()
        try:
            self._keys = _published(self.provider.issuer, asked_at)
        except IdentityProviderUnavailable:
            # When it did not answer, not when it was asked: who waited meanwhile must not each wait as long again.
            self._failed_at = self._clock()
            raise


def secure(url: str) -> bool:
    """Whether what a URL gives can't be exchanged on the way: by TLS, or within this machine."""
    parts = urlsplit(url)
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and local))


def _published(issuer: str, now: float) -> _Keys:
    about = _fetch(issuer.rstrip("/") + "/.well-known/openid-configuration")
    if about.get("issuer") != issuer:
        raise unavailable("it calls itself by another name than EXPORT_PIPELINE_OIDC_ISSUER")
    listed = _fetch(str(about.get("jwks_uri"))).get("keys")
    usable = [key for key in listed if _signs(key)] if isinstance(listed, list) else []
    if not usable:
        raise unavailable("it publishes no key that could sign")
    return _Keys(by_id={key.get("kid"): key for key in usable}, about=about, fetched_at=now)


def _signs(key: Any) -> bool:
    return (
        isinstance(key, dict)
        and key.get("use", "sig") == "sig"
        and isinstance(key.get("kid"), str | None)
        and (key.get("kty"), key.get("crv")) in _ALGORITHMS
    )


def _fetch(url: str) -> dict[str, Any]:
    if not secure(url):
        raise unavailable("it names an address that is not https://")
    return ask(Request(url, headers={"Accept": "application/json"}))  # noqa: S310 - `secure` looked at it
