"""Sessions and tokens of ours that ended before their time: one that was shown, or everything that let a person in.

A session that began with a token of ours ends with it, and comes after the same sign-outs as the token: else whoever
has a leaked token would get around its end by a session. What the identity provider signed is ended there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from export_pipeline.db.sign_outs import SignOutStore
from export_pipeline.errors import InvalidRequest, NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.models import Actor, AuditAction
from export_pipeline.sign_in.tokens import LIFETIME, LONGEST, Audience, Issuer, Proof

#: Rows stay longer than what they end could count: clocks differ, and a token's end has its leeway.
_MARGIN = timedelta(hours=1)


class SignOuts:
    """Ends sessions and tokens, and tells which have ended.

    Args:
        issuer: Reads them.
        store: Remembers which are over.
    """

    def __init__(self, issuer: Issuer, store: SignOutStore) -> None:
        self._issuer = issuer
        self._store = store

    def last(self, user_id: str) -> int:
        """The number of a person's last sign-out everywhere, for what is made for them now.

        Raises:
            DatabaseUnavailable: It cannot be told now.
        """
        return self._store.last(user_id)

    def require_standing(self, proof: Proof) -> Principal:
        """Make sure that a session or token has not ended; gives whom it speaks for.

        Raises:
            NotAuthenticated: It has.
            DatabaseUnavailable: It cannot be told now.
        """
        if self._is_over(proof):
            raise NotAuthenticated("This session or token was ended.", reason="revoked")
        return proof.principal

    def end_session(self, session: str, actor: Actor) -> None:
        """End the session of a cookie; harmless when it is none, or over.

        Raises:
            DatabaseUnavailable: It did not end.
            KeyUnusable: The same.
        """
        try:
            proof = self._issuer.read(session, Audience.SESSION)
        except NotAuthenticated:
            return
        if not self._is_over(proof):
            self._revoke(proof, Actor(id=proof.principal.id, ip_address=actor.ip_address, user_agent=actor.user_agent))

    def revoke(self, token: str, actor: Actor) -> Proof:
        """End a token, or the session of a copied cookie; also one that has expired, for the sessions that it began.

        Raises:
            InvalidRequest: It is none of ours.
            DatabaseUnavailable: It did not end.
            KeyUnusable: The same.
        """
        try:
            proof = self._issuer.read(token, Audience.BEARER, Audience.SESSION, expired_too=True)
        except NotAuthenticated:
            raise InvalidRequest(
                "This is no token or session that one of our keys signed.",
                hint="What an identity provider signed is ended there; what a removed key signed is over.",
            ) from None
        self._revoke(proof, actor, AuditAction.REVOKED)
        return proof

    def everywhere(self, user_id: str, actor: Actor) -> datetime:
        """End every session and token of ours of a person, and links that would sign them in; gives when.

        Raises:
            DatabaseUnavailable: Nothing ended.
        """
        return self._store.sign_out(user_id, actor, lifetime=LONGEST + _MARGIN)

    def _is_over(self, proof: Proof) -> bool:
        return self._store.is_over(user_id=proof.principal.id, token_ids=list(_ids(proof)), came_after=proof.came_after)

    def _revoke(self, proof: Proof, actor: Actor, action: AuditAction = AuditAction.SIGNED_OUT) -> None:
        # A session that began with it a moment ago may end later than it.
        last = max(proof.expires_at, datetime.now(UTC) + LIFETIME)
        self._store.revoke(
            proof.token_id,
            actor,
            user_id=proof.principal.id,
            until=last + _MARGIN,
            action=action,
            detail=f"token {proof.token_id}",
        )


def _ids(proof: Proof) -> Iterator[str]:
    yield proof.token_id
    if proof.begun_with:
        yield proof.begun_with
