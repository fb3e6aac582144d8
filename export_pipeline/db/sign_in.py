"""Codes of sign-in links, each of which counts once, and sign-ins in the trail. Of a code only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from export_pipeline.db.pool import Database
from export_pipeline.identity import Principal, Role
from export_pipeline.models import Actor, AuditAction

_MAX_AGENT = 256

_INSERT = """
WITH old AS (DELETE FROM export_pipeline.export_sign_in_codes WHERE expires_at < now())
INSERT INTO export_pipeline.export_sign_in_codes (code_hash, user_id, roles, expires_at)
VALUES (%(code_hash)s, %(user_id)s, %(roles)s, now() + %(lifetime)s)
"""
_TAKE = """
WITH taken AS (
    DELETE FROM export_pipeline.export_sign_in_codes WHERE code_hash = %(code_hash)s RETURNING *
), logged AS (
    INSERT INTO export_pipeline.export_audit_logs (action, actor, ip_address, user_agent)
    SELECT %(action)s, user_id, %(ip_address)s, %(user_agent)s FROM taken WHERE expires_at > now()
)
SELECT user_id, roles, now(), (
    SELECT coalesce(max(sign_out_id), 0) FROM export_pipeline.export_sign_outs AS s WHERE s.user_id = taken.user_id
) FROM taken WHERE expires_at > now()
"""
_LOG = """
INSERT INTO export_pipeline.export_audit_logs (user_id, action, actor, ip_address, user_agent, detail)
VALUES (%(user_id)s, %(action)s, %(actor)s, %(ip_address)s, %(user_agent)s, %(detail)s)
"""


class SignInStore:
    """What signing in leaves in our tables.

    Args:
        database: Our tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def make_code(self, principal: Principal, lifetime: timedelta) -> str:
        """Make the code of a sign-in link, 256 random bits."""
        code = secrets.token_urlsafe(32)
        values = {
            "code_hash": _hash(code),
            "user_id": principal.id,
            "roles": sorted(principal.roles),
        }
        with self._database.connect() as connection:
            connection.execute(_INSERT, {**values, "lifetime": lifetime})
        return code

    def redeem(self, code: str, actor: Actor) -> Principal | None:
        """Take a code, with a row in the trail; None when there is none such, or it is too old."""
        values = {"code_hash": _hash(code), "action": AuditAction.SIGNED_IN}
        with self._database.connect() as connection:
            row = connection.execute(_TAKE, {**values, **where(actor)}).fetchone()
        if row is None:
            return None
        user_id, roles, now, came_after = row
        return Principal(id=user_id, roles=frozenset(map(Role, roles)), auth_time=now, came_after=came_after)

    def issued(self, principal: Principal, actor: Actor, *, token_id: str, until: datetime) -> None:
        """Write into the trail that somebody made a token.

        Args:
            principal: Whom it speaks for.
            actor: Who made it.
            token_id: Its id, by which it can be told from others and which opens nothing.
            until: How long it counts.
        """
        roles = ", ".join(sorted(principal.roles)) or "none"
        detail = f"token {token_id}; roles: {roles}; until {until:%Y-%m-%d %H:%M}Z"
        self._log(AuditAction.TOKEN_ISSUED, actor, detail, user_id=principal.id)

    def signed_in(self, actor: Actor) -> None:
        """Write into the trail that somebody signed in at the identity provider."""
        self._log(AuditAction.SIGNED_IN, actor, "by the identity provider")

    def refused(self, actor: Actor, detail: str) -> None:
        """Write into the trail that somebody was not let in."""
        self._log(AuditAction.SIGN_IN_REFUSED, actor, detail)

    def _log(self, action: AuditAction, actor: Actor, detail: str, *, user_id: str | None = None) -> None:
        values = {"user_id": user_id, "action": action, "actor": actor.id, "detail": detail}
        with self._database.connect() as connection:
            connection.execute(_LOG, {**values, **where(actor)})


def _hash(code: str) -> bytes:
    # The code is random and long: a slow hash or a salt would add nothing.
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).digest()


def where(actor: Actor) -> dict[str, str | None]:
    """From where somebody came, for the trail."""
    agent = actor.user_agent
    return {
        "ip_address": actor.ip_address,
        "user_agent": agent and "".join(filter(str.isprintable, agent))[:_MAX_AGENT],
    }
