"""`export_links`: which links were issued, which were taken back, and what was downloaded by them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from export_pipeline.db.pool import Database
from export_pipeline.models import Actor, AuditAction

_LOG = """
INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, ip_address, user_agent, detail)
SELECT request_id, user_id, %(action)s, %(actor)s, %(ip_address)s, %(user_agent)s, 'link ' || link_id
"""
_ADD = f"""
WITH added AS (
    INSERT INTO export_pipeline.export_links (link_id, request_id, issued_to, expires_at)
    VALUES (%(link_id)s, %(request_id)s, %(issued_to)s, %(expires_at)s)
    RETURNING link_id, request_id
)
{_LOG} FROM added JOIN export_pipeline.export_requests USING (request_id)
"""
_REVOKE = f"""
WITH revoked AS (
    UPDATE export_pipeline.export_links SET revoked_at = now()
    WHERE revoked_at IS NULL AND (link_id = %(link_id)s OR request_id = %(request_id)s)
    RETURNING link_id, request_id
)
{_LOG} FROM revoked JOIN export_pipeline.export_requests USING (request_id)
"""
#: A client that fetches pieces is one download: the piece that begins the file, or the client's first one in a while.
_COUNT = f"""
WITH counted AS (
    UPDATE export_pipeline.export_links AS l SET downloads = downloads + 1
    WHERE link_id = %(link_id)s AND (%(from_start)s OR NOT EXISTS (
        SELECT FROM export_pipeline.export_audit_logs AS a
        WHERE a.request_id = l.request_id AND a.action = %(action)s AND a.detail = 'link ' || l.link_id
          AND a.ip_address IS NOT DISTINCT FROM %(ip_address)s AND a.user_agent IS NOT DISTINCT FROM %(user_agent)s
          AND a.timestamp > now() - %(window)s))
    RETURNING link_id, request_id
)
{_LOG} FROM counted JOIN export_pipeline.export_requests USING (request_id)
"""
_COLUMNS = (
    "link_id, request_id, issued_to, issued_at, expires_at, revoked_at, downloads, expires_at <= now() AS expired"
)


@dataclass(frozen=True, kw_only=True)
class IssuedLink:
    """One row of `export_links`.

    Attributes:
        expired: Whether its time is over, by the database's clock.
    """

    link_id: str
    request_id: str
    issued_to: str
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    downloads: int
    expired: bool


class LinkStore:
    """The links of all requests.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, *, link_id: str, request_id: str, expires_at: datetime, actor: Actor) -> None:
        """Write a link and its audit row."""
        self._logged(
            _ADD,
            AuditAction.LINK_ISSUED,
            actor,
            link_id=link_id,
            request_id=request_id,
            issued_to=actor.id,
            expires_at=expires_at,
        )

    def find(self, link_id: str) -> IssuedLink | None:
        """Read one link."""
        found = self._read(f"SELECT {_COLUMNS} FROM export_pipeline.export_links WHERE link_id = %s", link_id)
        return found[0] if found else None

    def of_request(self, request_id: str) -> list[IssuedLink]:
        """Read the links of a request, the oldest first."""
        return self._read(
            f"SELECT {_COLUMNS} FROM export_pipeline.export_links WHERE request_id = %s ORDER BY issued_at, link_id",
            request_id,
        )

    def latest(self, request_id: str, limit: int) -> list[IssuedLink]:
        """Read the links of a request, the newest first.

        Args:
            request_id: The request.
            limit: At most so many.
        """
        return self._read(
            f"SELECT {_COLUMNS} FROM export_pipeline.export_links WHERE request_id = %s"
            " ORDER BY issued_at DESC, link_id LIMIT %s",
            request_id,
            limit,
        )

    def revoke(self, actor: Actor, *, link_id: str | None = None, request_id: str | None = None) -> int:
        """End one link, or all links of a request, with an audit row for each.

        Returns:
            How many ended now.
        """
        return self._logged(_REVOKE, AuditAction.LINK_REVOKED, actor, link_id=link_id, request_id=request_id)

    def count_download(self, link_id: str, actor: Actor, *, from_start: bool, window: timedelta) -> bool:
        """Count a download and write its audit row, once for all the pieces that one client fetches.

        Args:
            link_id: The link.
            actor: Who fetches: for whom the link was issued, from which address, by which program.
            from_start: Whether this piece begins the file.
            window: A later piece counts when the same client had none so long.

        Returns:
            Whether it counted.
        """
        counted = self._logged(
            _COUNT, AuditAction.DOWNLOADED, actor, link_id=link_id, from_start=from_start, window=window
        )
        return counted > 0

    def _logged(self, statement: str, action: AuditAction, actor: Actor, **values: object) -> int:
        """Change links and write an audit row for each that changed.

        Returns:
            How many did.
        """
        with self._database.connect() as connection:
            # Pieces that come at the same time take turns; a later statement of a transaction sees what others wrote.
            connection.execute(
                "SELECT FROM export_pipeline.export_links WHERE link_id = %s FOR UPDATE", [values["link_id"]]
            )
            who = {"actor": actor.id, "ip_address": actor.ip_address, "user_agent": actor.user_agent}
            return connection.execute(statement.encode(), {**values, **who, "action": action.value}).rowcount

    def _read(self, statement: str, *values: object) -> list[IssuedLink]:
        with (
            self._database.connect() as connection,
            connection.cursor(row_factory=class_row(IssuedLink)) as cursor,
        ):
            return cursor.execute(statement.encode(), values).fetchall()
