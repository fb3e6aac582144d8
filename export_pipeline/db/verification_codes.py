"""One-time codes that people got by e-mail. Whether a code counts is decided and written down in one transaction."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from export_pipeline.db.pool import Database
from export_pipeline.errors import TooManyCodes
from export_pipeline.models import Actor, AuditAction

_TURN = "SELECT pg_advisory_xact_lock(hashtextextended(%(user_id)s, 20260104))"
_COUNT = """
SELECT count(*), extract(epoch FROM min(created_at) + interval '1 hour' - now())::int
FROM export_pipeline.export_verification_codes
WHERE user_id = %(user_id)s AND created_at > now() - interval '1 hour'
"""
_INSERT = """
WITH old AS (
    DELETE FROM export_pipeline.export_verification_codes WHERE created_at < now() - interval '1 day'
)
INSERT INTO export_pipeline.export_verification_codes (user_id, code_hash, expires_at, tries_left)
VALUES (%(user_id)s, %(code_hash)s, now() + %(lifetime)s, %(tries)s)
RETURNING code_id, expires_at
"""
_WITHDRAW = "DELETE FROM export_pipeline.export_verification_codes WHERE code_id = %(code_id)s"
#: Takes a try off the newest code, and locks it until it is known whether it counts.
_TRY = """
UPDATE export_pipeline.export_verification_codes SET tries_left = tries_left - 1
WHERE code_id = (SELECT max(code_id) FROM export_pipeline.export_verification_codes WHERE user_id = %(user_id)s)
  AND expires_at > now() AND used_at IS NULL AND tries_left > 0
RETURNING code_id, code_hash
"""
_USE = "UPDATE export_pipeline.export_verification_codes SET used_at = now() WHERE code_id = %(code_id)s"
_LOG = """
INSERT INTO export_pipeline.export_audit_logs (user_id, action, actor, ip_address, user_agent, detail)
VALUES (%(user_id)s, %(action)s, %(actor)s, %(ip_address)s, %(user_agent)s, %(detail)s)
"""


class Outcome(StrEnum):
    """What became of a try."""

    RIGHT = "right"
    WRONG = "wrong"
    #: There is no code that could be tried: none was sent, it expired, was used, or has no tries left.
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A code that was written down."""

    code_id: int
    expires_at: datetime


class VerificationCodeStore:
    """The table of codes.

    Args:
        database: Our tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, user_id: str, code_hash: bytes, *, lifetime: timedelta, tries: int, per_hour: int) -> Made:
        """Write down a code; older ones of the person do not count any more.

        Raises:
            TooManyCodes: So many were made in the last hour already.
        """
        with self._database.connect() as connection:
            connection.execute(_TURN, {"user_id": user_id})
            made, retry_after_s = connection.execute(_COUNT, {"user_id": user_id}).fetchone() or (0, 0)
            if made >= per_hour:
                raise TooManyCodes(limit=per_hour, retry_after_s=max(1, retry_after_s))
            values = {"user_id": user_id, "code_hash": code_hash, "lifetime": lifetime, "tries": tries}
            row = connection.execute(_INSERT, values).fetchone()
        assert row is not None  # noqa: S101 - it was inserted
        return Made(code_id=row[0], expires_at=row[1])

    def withdraw(self, code_id: int) -> None:
        """Forget a code that could not be sent."""
        with self._database.connect() as connection:
            connection.execute(_WITHDRAW, {"code_id": code_id})

    def attempt(self, user_id: str, code_hash: bytes, actor: Actor) -> Outcome:
        """Try a code, with a row in the trail when there is one to be tried."""
        with self._database.connect() as connection:
            row = connection.execute(_TRY, {"user_id": user_id}).fetchone()
            if row is None:
                return Outcome.NONE
            right = hmac.compare_digest(bytes(row[1]), code_hash)
            if right:
                connection.execute(_USE, {"code_id": row[0]})
            action = AuditAction.VERIFIED if right else AuditAction.VERIFICATION_REFUSED
            connection.execute(_LOG, {**_entry(user_id, actor), "action": action})
        return Outcome.RIGHT if right else Outcome.WRONG


def _entry(user_id: str, actor: Actor) -> dict[str, str | None]:
    return {
        "user_id": user_id,
        "actor": actor.id,
        "ip_address": actor.ip_address,
        "user_agent": actor.user_agent,
        "detail": "code by e-mail",
    }
