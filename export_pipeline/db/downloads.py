"""Downloads in the trail: one row for all the pieces that one client fetches."""

from __future__ import annotations

from datetime import timedelta

from export_pipeline.db.pool import Database
from export_pipeline.models import Actor, AuditAction

#: A later piece is a download of its own when the same client had none so long.
ONE_DOWNLOAD = timedelta(hours=1)

#: Pieces that come at the same time take turns; a later statement of a transaction sees what others wrote.
_TURN = "SELECT FROM export_pipeline.export_requests WHERE request_id = %(request_id)s FOR NO KEY UPDATE"
_COUNT = """
INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, ip_address, user_agent)
SELECT r.request_id, r.user_id, %(action)s::text, %(actor)s::text, %(ip_address)s::text, %(user_agent)s::text
FROM export_pipeline.export_requests AS r
WHERE r.request_id = %(request_id)s AND (%(from_start)s OR NOT EXISTS (
    SELECT FROM export_pipeline.export_audit_logs AS a
    WHERE a.request_id = r.request_id AND a.action = %(action)s::text AND a.actor = %(actor)s::text AND a.detail = ''
      AND a.ip_address IS NOT DISTINCT FROM %(ip_address)s::text
      AND a.user_agent IS NOT DISTINCT FROM %(user_agent)s::text
      AND a.timestamp > now() - %(window)s))
"""


def count_download(database: Database, request_id: str, actor: Actor, *, from_start: bool) -> bool:
    """Write the row of a download by somebody who is signed in.

    Args:
        database: Our tables.
        request_id: Whose file.
        actor: Who fetches it, from which address, by which program.
        from_start: Whether this piece begins the file.

    Returns:
        Whether there is a row more now.

    Raises:
        DatabaseUnavailable: The server does not answer.
    """
    values = {
        "request_id": request_id,
        "actor": actor.id,
        "ip_address": actor.ip_address,
        "user_agent": actor.user_agent,
        "action": AuditAction.DOWNLOADED.value,
        "from_start": from_start,
        "window": ONE_DOWNLOAD,
    }
    with database.connect() as connection:
        connection.execute(_TURN, values)
        return connection.execute(_COUNT, values).rowcount > 0
