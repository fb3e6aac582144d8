"""Signing in at the identity provider by browser: OpenID Connect's authorization code flow with PKCE (RFC 7636).

The browser goes to the provider with a challenge and comes back with a code. We change the code for an ID token, which
must be for us, by the provider, and the answer to the sign-in that this browser began. What was begun stands in a note
that we signed and the browser keeps: a code that somebody else got, or began, opens nothing here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit
from urllib.request import Request

from export_pipeline.errors import NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.sign_in.oidc import Verifier
from export_pipeline.sign_in.provider_http import ask, unavailable
from export_pipeline.sign_in.tokens import LEEWAY_S, Issuer

#: Within it a person must have typed their password at the provider.
LIFETIME = timedelta(minutes=15)
_MAX_CODE = 4096  # characters


@dataclass(frozen=True, kw_only=True)
class Client:
    """What this installation is at the provider.

    Attributes:
        client_id: Its name there.
        secret: Gives its secret; None where it has none, and PKCE alone protects the code.
        scopes: What is asked for; `openid` is always among it.
    """

    client_id: str
    secret: Callable[[], str | None] = field(repr=False)
    scopes: str = "openid"


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A sign-in that has begun.

    Attributes:
        url: Where the browser goes.
        note: What the browser keeps until it comes back.
    """

    url: str
    note: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A sign-in that has succeeded.

    Attributes:
        principal: Who signed in.
        to: Where they wanted to go.
    """

    principal: Principal
    to: str


class CodeFlow:
    """Sends browsers to the provider, and takes what they come back with.

    Args:
        verifier: Checks the provider's tokens.
        issuer: Signs the note.
        client: What we are at the provider.
    """

    def __init__(self, verifier: Verifier, issuer: Issuer, client: Client) -> None:
        self._verifier = verifier
        self._issuer = issuer
        self._client = client

    def require(self) -> None:
        """Make sure that people can sign in this way.

        Raises:
            IdentityProviderUnavailable: The provider does not answer, or offers no such thing.
            KeyUnusable: The client's secret cannot be read.
        """
        self._verifier.endpoint("authorization_endpoint")
        self._verifier.endpoint("token_endpoint")
        self._client.secret()

    def begin(self, *, redirect_uri: str, to: str, again: bool = False) -> Begun:
        """Begin a sign-in.

        Args:
            redirect_uri: Where the provider sends the browser back to; it must know this address.
            to: Where the person wants to go afterwards.
            again: Whether they shall prove anew who they are, although the provider knows them still.

        Raises:
            IdentityProviderUnavailable: The provider does not answer.
            KeyUnusable: There is no key to sign the note with.
        """
        state, nonce, verifier = (secrets.token_urlsafe(48) for _ in range(3))
        asked = {
            "response_type": "code",
            "client_id": self._client.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(dict.fromkeys(["openid", *self._client.scopes.split()])),
            "state": state,
            "nonce": nonce,
            "code_challenge": _challenge(verifier),
            "code_challenge_method": "S256",
        }
        if again:
            asked |= {"prompt": "login", "max_age": "0"}
        kept = {"state": state, "nonce": nonce, "verifier": verifier, "redirect_uri": redirect_uri, "to": to}
        note = self._issuer.note(kept | ({"again": "yes"} if again else {}), lifetime=LIFETIME)
        return Begun(url=_with_query(self._verifier.endpoint("authorization_endpoint"), asked), note=note)

    def finish(self, note: str | None, answer: Mapping[str, str]) -> Finished:
        """Take what the browser came back with.

        Args:
            note: What it kept; None when it kept nothing.
            answer: The query that the provider gave it.

        Raises:
            NotAuthenticated: It does not count; says why.
            IdentityProviderUnavailable: The provider does not answer, or does not accept us.
            KeyUnusable: There is no key to check the note with, or the client's secret cannot be read.
        """
        begun = self._begun(note, answer.get("state", ""))
        # RFC 9207: an answer of another provider must not be changed into a token of this one.
        told = self._verifier.described("authorization_response_iss_parameter_supported") is True or "iss" in answer
        if told and answer.get("iss") != self._verifier.provider.issuer:
            raise NotAuthenticated("The answer is by another identity provider.", reason="wrong_issuer")
        if "error" in answer:
            raise NotAuthenticated("The identity provider did not let you in.", reason="provider_refused")
        principal = self._verifier.verify_id_token(
            self._exchange(answer.get("code", ""), begun), client_id=self._client.client_id, nonce=begun["nonce"]
        )
        if "again" in begun and not _since(principal.auth_time, int(begun["iat"])):
            raise NotAuthenticated("The identity provider did not ask who you are.", reason="stale_sign_in")
        return Finished(principal=principal, to=begun["to"])

    def _begun(self, note: str | None, state: str) -> Mapping[str, str]:
        unknown = NotAuthenticated(
            "This sign-in was not begun in this browser, or too long ago.", hint="Begin again.", reason="sign_in_state"
        )
        try:
            begun = self._issuer.read_note(note) if note else None
        except NotAuthenticated:
            raise unknown from None
        if begun is None or not hmac.compare_digest(begun["state"].encode(), state.encode("utf-8", "replace")):
            raise unknown
        return begun

    def _exchange(self, code: str, begun: Mapping[str, str]) -> str:
        """Change the code for the ID token."""
        if not 0 < len(code) <= _MAX_CODE:
            raise NotAuthenticated("The identity provider gave no code.", reason="malformed")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": begun["redirect_uri"],
            "client_id": self._client.client_id,
            "code_verifier": begun["verifier"],
        }
        headers = {"Accept": "application/json"}
        secret = self._client.secret()
        if secret is not None:
            headers |= self._proof(secret, form)
        token = _post(self._verifier.endpoint("token_endpoint"), form, headers).get("id_token")
        if not isinstance(token, str):
            raise unavailable("it gave no ID token")
        return token

    def _proof(self, secret: str, form: dict[str, str]) -> dict[str, str]:
        """Show the client's secret: in the header, as the standard prefers, or in the form where only that is taken."""
        methods = self._verifier.described("token_endpoint_auth_methods_supported")
        if isinstance(methods, list) and "client_secret_basic" not in methods and "client_secret_post" in methods:
            form["client_secret"] = secret
            return {}
        # RFC 6749, section 2.3.1: both are form-encoded before they become Basic's name and password.
        pair = f"{quote_plus(self._client.client_id)}:{quote_plus(secret)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
    request = Request(url, urlencode(form).encode(), dict(headers))  # noqa: S310 - `endpoint` looked at it
    return ask(request, said_no=_refused)


def _refused(status: int, kind: object) -> Exception:
    if kind == "invalid_grant":
        return NotAuthenticated("The code of this sign-in does not count (any more).", reason="code_refused")
    if kind in {"invalid_client", "unauthorized_client"}:
        return unavailable("it does not know EXPORT_PIPELINE_OIDC_CLIENT_ID, or not with this secret")
    return unavailable(f"it answers {status}")


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _with_query(url: str, values: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(values)}"


def _since(moment: datetime | None, begun: int) -> bool:
    return moment is not None and moment >= datetime.fromtimestamp(begun - LEEWAY_S, UTC)
