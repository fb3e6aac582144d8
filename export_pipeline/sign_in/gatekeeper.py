"""Who is asking? One answer for every door that speaks HTTP: the API, its web pages, and the Dagster UI.

A bearer token counts anywhere. The cookie of a session counts too, with a second look at what changes something: a
browser sends cookies along with whatever a page of somebody else's makes it send, and other programs on this machine
share our cookies, because those know no ports. So a changing call must come from a page of ours.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import jwt

from export_pipeline.db.sign_in import SignInStore
from export_pipeline.db.sign_outs import SignOutStore
from export_pipeline.errors import ConfigurationError, InvalidRequest, KeyUnusable, NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.models import SYSTEM, Actor
from export_pipeline.sign_in.claims import is_user_id
from export_pipeline.sign_in.code_flow import Begun, CodeFlow, Finished
from export_pipeline.sign_in.oidc import Verifier, secure
from export_pipeline.sign_in.recent import Recent
from export_pipeline.sign_in.refusals import Refusals
from export_pipeline.sign_in.sign_outs import SignOuts
from export_pipeline.sign_in.tokens import ISSUER, LIFETIME, Audience, Issuer, Proof

LINK_LIFETIME = timedelta(minutes=15)
COOKIE = "export_pipeline_session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_TOKEN = 16_384  # characters


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What of an HTTP request tells who asks.

    Attributes:
        changes: Whether it may change something, so that a cookie alone does not do.
        headers: By their names in small letters.
        ip_address: Where it comes from.
    """

    changes: bool
    headers: Mapping[str, str] = field(repr=False)
    ip_address: str | None = None

    @property
    def actor(self) -> Actor:
        """For the trail, while it is not known who asks."""
        return Actor(
            id="unknown",
            ip_address=self.ip_address,
            user_agent=self.headers.get("user-agent"),
        )


def changes(method: str) -> bool:
    """Whether requests of this method may change something."""
    return method.upper() not in _SAFE


class Gatekeeper:
    """Tells who asks.

    Args:
        issuer: Our own tokens, and sessions.
        store: Codes of sign-in links, and the trail.
        sign_outs: Which sessions and tokens of ours ended before their time.
        provider: Checks the tokens of an identity provider, where there is one.
        local: Whether our own bearer tokens and sign-in links count.
        flow: Signs browsers in at the identity provider, where that is set up.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        issuer: Issuer,
        store: SignInStore,
        sign_outs: SignOutStore,
        provider: Verifier | None = None,
        local: bool = False,
        flow: CodeFlow | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._store = store
        self._provider = provider
        self._local = local
        self._flow = flow
        self._refusals = Refusals(store)
        self._sign_outs = SignOuts(issuer, sign_outs)
        self._recent = Recent(self._keys, clock=clock)

    @property
    def open(self) -> bool:
        """Whether anybody can sign in at all."""
        return self._local or self._provider is not None

    @property
    def local(self) -> bool:
        """Whether sign-in links count."""
        return self._local

    @property
    def by_browser(self) -> bool:
        """Whether browsers can sign in at the identity provider."""
        return self._flow is not None

    def require_provider(self) -> None:
        """Make sure that the identity provider, where there is one, can be used now.

        Raises:
            IdentityProviderUnavailable: It cannot.
        """
        if self._provider is not None:
            self._provider.require()
        if self._flow is not None:
            self._flow.require()

    def recall(self, asking: Asking) -> Principal | None:
        """Tell who asks, if what they show was checked a moment ago; else None. Quick: an event loop may call it."""
        try:
            shown = _shown(asking)
            return self._recent.find(shown.kind, shown.proof)
        except NotAuthenticated:
            return None  # `admit` says why

    def admit(self, asking: Asking) -> Principal:
        """Tell who asks. May ask the provider and write to the trail: not for the event loop's thread.

        Raises:
            NotAuthenticated: Nobody that we know; what was shown and did not count stands in the trail.
            IdentityProviderUnavailable: It cannot be told now.
            DatabaseUnavailable: The same.
        """
        try:
            shown = _shown(asking)
            check = self._by_token if shown.kind is Audience.BEARER else self._by_session
            return self._recent.check(shown.kind, shown.proof, check)
        except NotAuthenticated as refused:
            if refused.reason:
                self._refusals.record(asking.actor, refused.reason)
            raise

    def open_session(self, principal: Principal) -> str:
        """Make the value of a session's cookie. May ask our tables: not for the event loop's thread.

        Raises:
            DatabaseUnavailable: It cannot be told now after which sign-out it comes.
        """
        return self._issuer.issue(self._placed(principal), audience=Audience.SESSION)

    def issue(self, principal: Principal, lifetime: timedelta, actor: Actor = SYSTEM) -> str:
        """Make a bearer token of our own, with a row in the trail.

        Args:
            principal: Whom it speaks for.
            lifetime: How long it counts.
            actor: Who makes it.

        Raises:
            ConfigurationError: They do not count here.
            InvalidRequest: Nobody can have this user id, or nothing counts that long.
            DatabaseUnavailable: It stands in no trail, so there is none.
        """
        self._require_local()
        _require_user(principal.id)
        token = self._issuer.issue(self._placed(principal), lifetime=lifetime)
        made = self._issuer.read(token, Audience.BEARER, expired_too=True)
        self._store.issued(principal, actor, token_id=made.token_id, until=made.expires_at)
        return token

    def link(self, address: str, principal: Principal) -> str:
        """Make a link that signs a browser in, once.

        Args:
            address: Of the server that it leads to.
            principal: Whom it signs in.

        Raises:
            ConfigurationError: Sign-in links do not count here.
            InvalidRequest: Nobody can have this user id.
        """
        self._require_local()
        _require_user(principal.id)
        return f"{address}/sign-in?code={self._store.make_code(principal, LINK_LIFETIME)}"

    def redeem(self, code: str, asking: Asking) -> Principal:
        """Take the code of a sign-in link; it counts once.

        Raises:
            NotAuthenticated: It does not count (any more).
        """
        principal = self._store.redeem(code, asking.actor) if self._local else None
        if principal is None:
            self._refusals.record(asking.actor, "sign_in_code")
            raise NotAuthenticated(
                "This sign-in link does not count any more.",
                hint=_HINT,
                reason="sign_in_code",
            )
        return principal

    def begin(self, *, redirect_uri: str, to: str, again: bool = False) -> Begun:
        """Begin a sign-in at the identity provider; see `CodeFlow.begin`. May ask the provider.

        Raises:
            NotAuthenticated: Nobody can sign in this way here.
            IdentityProviderUnavailable: It does not answer.
        """
        return self._required_flow().begin(redirect_uri=redirect_uri, to=to, again=again)

    def finish(self, note: str | None, answer: Mapping[str, str], asking: Asking) -> Finished:
        """End a sign-in at the identity provider; see `CodeFlow.finish`. Asks it, and writes to the trail.

        Raises:
            NotAuthenticated: It does not count; that stands in the trail.
            IdentityProviderUnavailable: It cannot be told now.
        """
        try:
            finished = self._required_flow().finish(note, answer)
        except NotAuthenticated as refused:
            if refused.reason:
                self._refusals.record(asking.actor, refused.reason)
            raise
        self._store.signed_in(replace(asking.actor, id=finished.principal.id))
        return finished

    def sign_out(self, asking: Asking) -> None:
        """End the session that is shown, so that copies of its cookie count no more; other processes remember it for a
        few seconds. Harmless when none is shown, or one that is over.

        Raises:
            DatabaseUnavailable: It did not end.
            KeyUnusable: The same.
        """
        for session in _cookies(asking.headers.get("cookie", "")):  # a neighbour may have planted one before ours
            if len(session) <= _MAX_TOKEN and session.isascii():
                self._sign_outs.end_session(session, asking.actor)
                self._recent.forget(Audience.SESSION, session)

    def sign_out_everywhere(self, user_id: str, actor: Actor) -> datetime:
        """End every session and token of ours that a person has, and links that would sign them in; gives when. Whoever
        signs in afterwards is in.

        Raises:
            InvalidRequest: Nobody can have this user id.
            DatabaseUnavailable: Nothing ended.
        """
        _require_user(user_id)
        at = self._sign_outs.everywhere(user_id, actor)
        self._recent.forget_all()
        return at

    def revoke(self, token: str, actor: Actor) -> Proof:
        """End one token of ours, the sessions that began with it too; or one session, by its cookie's value.

        Raises:
            InvalidRequest: It is none of ours.
            DatabaseUnavailable: It did not end.
            KeyUnusable: The same.
        """
        ended = self._sign_outs.revoke(token, actor)
        self._recent.forget_all()
        return ended

    def provider_sign_out(self) -> str | None:
        """Where people end what the identity provider remembers of them, as far as that is known."""
        address = self._provider.described("end_session_endpoint") if self._provider and self._flow else None
        return address if isinstance(address, str) and secure(address) else None

    def _required_flow(self) -> CodeFlow:
        if self._flow is None:
            raise NotAuthenticated("Nobody can sign in at an identity provider here.", hint=_HINT)
        return self._flow

    def _require_local(self) -> None:
        if not self._local:
            raise ConfigurationError(
                "Tokens of our own and sign-in links do not count with a database of your own.",
                hint="Let an identity provider say who people are (EXPORT_PIPELINE_OIDC_ISSUER), or allow them by"
                " EXPORT_PIPELINE_LOCAL_TOKENS=true.",
            )

    def _keys(self) -> Hashable:
        fetched = self._provider.fetched_at if self._provider is not None else None
        try:
            return self._issuer.stamp(), fetched
        except KeyUnusable:  # a provider's tokens need no key of ours
            return None, fetched

    def _placed(self, principal: Principal) -> Principal:
        """Whoever comes by something of ours comes after the sign-outs that it came after, and everybody else now."""
        if principal.came_after is not None:
            return principal
        return replace(principal, came_after=self._sign_outs.last(principal.id))

    def _by_session(self, session: str) -> Principal:
        return self._sign_outs.require_standing(self._issuer.read(session, Audience.SESSION))

    def _by_token(self, token: str) -> Principal:
        issuer = _named_issuer(token)
        if self._local and issuer == ISSUER:
            return self._sign_outs.require_standing(self._issuer.read(token, Audience.BEARER))
        if self._provider is not None and issuer == self._provider.provider.issuer:
            return self._provider.verify(token)
        raise NotAuthenticated("The token is by an issuer that is not known here.", reason="wrong_issuer")


_HINT = "`export-pipeline sign-in` makes a link, `export-pipeline token` a token; or use your identity provider's."
SESSION_LIFETIME_S = int(LIFETIME.total_seconds())


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What somebody shows to be let in: a bearer token, or the cookie of a session."""

    kind: Audience
    proof: str = field(repr=False)


def _shown(asking: Asking) -> _Shown:
    scheme, _, token = asking.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise NotAuthenticated("Only bearer tokens are accepted.", hint=_HINT, reason="wrong_scheme")
        return _Shown(kind=Audience.BEARER, proof=_short(token.strip()))
    session = _cookie(asking.headers.get("cookie", ""))
    if session is None:
        raise NotAuthenticated("Nobody is signed in.", hint=_HINT)
    if asking.changes and not _from_our_page(asking.headers):
        raise NotAuthenticated("The call does not come from a page of this server.", reason="foreign_page")
    return _Shown(kind=Audience.SESSION, proof=_short(session))


def _require_user(user_id: str) -> None:
    if not is_user_id(user_id):
        raise InvalidRequest("This is no user id: it is empty, too long, or holds control characters.")


def _named_issuer(token: str) -> object:
    """Who a token says that it is by: only chooses who checks it."""
    try:
        return jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError:
        raise NotAuthenticated("This is not a token that can be read.", reason="malformed") from None


def _short(token: str) -> str:
    if len(token) > _MAX_TOKEN or not token.isascii():
        raise NotAuthenticated("This is not a token that can be read.", reason="malformed")
    return token


def _cookie(header: str) -> str | None:
    return next(_cookies(header), None)


def _cookies(header: str) -> Iterator[str]:
    """Ours, whatever others are called or hold: one that `http.cookies` cannot read makes it forget those behind it."""
    pairs = (pair.partition("=") for pair in header.split(";"))
    return (value.strip() for name, _, value in pairs if name.strip() == COOKIE and value.strip())


def foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another server sends this."""
    return "origin" in headers and not _from_our_page(headers)


def _from_our_page(headers: Mapping[str, str]) -> bool:
    """Browsers name the page's origin with every changing call and every WebSocket; nothing else needs cookies."""
    origin = headers.get("origin", "").partition("://")[2]
    return bool(origin) and hmac.compare_digest(origin.encode(), headers.get("host", "").encode())
