"""What ends sessions and tokens of ours before their time. Of a person nothing is kept but the id."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import cast

from export_pipeline.db.pool import Database
from export_pipeline.db.sign_in import where
from export_pipeline.models import Actor, AuditAction

_IS_OVER = """
SELECT EXISTS (SELECT FROM export_pipeline.export_revoked_tokens WHERE token_id = ANY(%(token_ids)s))
    OR EXISTS (SELECT FROM export_pipeline.export_sign_outs
               WHERE user_id = %(user_id)s AND sign_out_id > %(came_after)s)
"""
_LAST = "SELECT coalesce(max(sign_out_id), 0) FROM export_pipeline.export_sign_outs WHERE user_id = %s"
_LOG = """
INSERT INTO export_pipeline.export_audit_logs (user_id, action, actor, ip_address, user_agent, detail)
SELECT %(user_id)s, %(action)s, %(actor)s, %(ip_address)s, %(user_agent)s, %(detail)s
"""
_REVOKE = f"""
WITH old AS (
    DELETE FROM export_pipeline.export_revoked_tokens WHERE expires_at < now()
), revoked AS (
    INSERT INTO export_pipeline.export_revoked_tokens (token_id, expires_at) VALUES (%(token_id)s, %(until)s)
    ON CONFLICT DO NOTHING RETURNING token_id
)
{_LOG} FROM revoked
"""
#: Links that wait for the person would let somebody in again; an older sign-out ends nothing that this one does not.
_SIGN_OUT = f"""
WITH old AS (
    DELETE FROM export_pipeline.export_sign_outs WHERE user_id = %(user_id)s OR expires_at < now()
), links AS (
    DELETE FROM export_pipeline.export_sign_in_codes WHERE user_id = %(user_id)s
), added AS (
    INSERT INTO export_pipeline.export_sign_outs (user_id, expires_at) VALUES (%(user_id)s, now() + %(lifetime)s)
    RETURNING signed_out_at
), logged AS (
    {_LOG} FROM added
)
SELECT signed_out_at FROM added
"""


class SignOutStore:
    """Which sessions and tokens are over.

    Args:
        database: Our tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def is_over(self, *, user_id: str, token_ids: Sequence[str], came_after: int) -> bool:
        """Tell whether a session or token was ended.

        Args:
            user_id: Whose it is.
            token_ids: Its own id, and that of what it began with.
            came_after: The number of the person's last sign-out when it was made.

        Raises:
            DatabaseUnavailable: It cannot be told now.
        """
        values = {"user_id": user_id, "token_ids": list(token_ids), "came_after": came_after}
        with self._database.connect() as connection:
            row = connection.execute(_IS_OVER, values).fetchone()
        return row is None or bool(row[0])

    def last(self, user_id: str) -> int:
        """The number of the person's last sign-out everywhere; 0 when there is none that still matters."""
        with self._database.connect() as connection:
            row = connection.execute(_LAST, [user_id]).fetchone()
        return int(row[0]) if row else 0

    def revoke(
        self, token_id: str, actor: Actor, *, user_id: str, until: datetime, action: AuditAction, detail: str
    ) -> bool:
        """End one session or token, with a row in the trail.

        Args:
            token_id: Its id.
            actor: Who ends it.
            user_id: Whose it is.
            until: From then on neither it nor what began with it could count anyway.
            action: For the trail.
            detail: For the trail.

        Returns:
            Whether it ended now, and not before.
        """
        values = {"token_id": token_id, "until": until}
        with self._database.connect() as connection:
            return connection.execute(_REVOKE.encode(), {**values, **_row(actor, user_id, action, detail)}).rowcount > 0

    def sign_out(self, user_id: str, actor: Actor, *, lifetime: timedelta) -> datetime:
        """End everything that lets a person in and was made before now, links that wait for them too.

        Args:
            user_id: The person.
            actor: Who ends it.
            lifetime: After it nothing that was made before now could count anyway.

        Returns:
            When, by the database's clock.
        """
        values = {"lifetime": lifetime, **_row(actor, user_id, AuditAction.SIGNED_OUT, "everywhere")}
        with self._database.connect() as connection:
            [(moment,)] = connection.execute(_SIGN_OUT.encode(), values).fetchall()
        return cast(datetime, moment)


def _row(actor: Actor, user_id: str, action: AuditAction, detail: str) -> dict[str, str | None]:
    return {"user_id": user_id, "action": action, "actor": actor.id, "detail": detail, **where(actor)}
