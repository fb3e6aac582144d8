"""The trail as evidence: check its chain, export it, and name its head so that it can be kept elsewhere.

The database chains every row itself (migration `audit_chain`), whoever inserts it. Here the hashes are computed a
second time, from what `docs/audit.md` specifies and not by the database's function: who could change the function
could otherwise hide what they changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from export_pipeline.db.pool import Database
from export_pipeline.errors import InvalidRequest

#: What the first row of the chain has for its previous hash.
GENESIS = "0" * 64
_HEAD = b"export-pipeline/audit/1\n"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROWS_AT_ONCE = 2000
_BREAKS_TOLD = 100

_ENTRY = "l.log_id, l.request_id, l.user_id, l.action, l.timestamp::text, l.ip_address, l.user_agent, l.actor, l.detail"
_FIELDS = ("log_id", "request_id", "user_id", "action", "timestamp", "ip_address", "user_agent", "actor", "detail")
_CHAIN = f"""
SELECT c.position, c.log_id, c.previous_hash, c.hash, {_ENTRY}
FROM export_pipeline.export_audit_chain AS c LEFT JOIN export_pipeline.export_audit_logs AS l USING (log_id)
ORDER BY c.position
"""
_OUTSIDE = """
SELECT l.log_id FROM export_pipeline.export_audit_logs AS l
WHERE NOT EXISTS (SELECT FROM export_pipeline.export_audit_chain AS c WHERE c.log_id = l.log_id)
  AND NOT EXISTS (SELECT FROM export_pipeline.export_audit_unchained AS u WHERE u.log_id = l.log_id)
ORDER BY l.log_id
"""
_EXPORT = f"""
SELECT c.position, c.previous_hash, c.hash, {_ENTRY}
FROM export_pipeline.export_audit_logs AS l LEFT JOIN export_pipeline.export_audit_chain AS c USING (log_id)
WHERE (%(since)s::timestamptz IS NULL OR l.timestamp >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR l.timestamp < %(until)s)
  AND (%(request_id)s::text IS NULL OR l.request_id = %(request_id)s)
ORDER BY c.position, l.log_id
"""
_NEWEST = """
SELECT position, log_id, hash FROM export_pipeline.export_audit_chain ORDER BY position DESC LIMIT 1
"""


class BreakKind(StrEnum):
    """What became of a row."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    HEAD_MISSING = "head_missing"


@dataclass(frozen=True, kw_only=True)
class Break:
    """One place where the trail is not what it was.

    Attributes:
        kind: What happened there.
        log_id: The row; None when no row can be named.
        why: One sentence.
    """

    kind: BreakKind
    log_id: int | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """The newest row of the chain. Kept elsewhere, it is the proof that nothing before it was changed or removed.

    Attributes:
        hash: Its hash in hex; 64 zeros when the trail is empty.
        rows: Rows up to it.
        log_id: The row; None when the trail is empty.
    """

    hash: str
    rows: int
    log_id: int | None


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What `verify` found.

    Attributes:
        rows: Rows in the chain.
        head: Where the chain ends.
        waiting: Rows that are committed and not chained yet, because a transaction keeps the chain's lock.
        breaks: The first hundred places where the trail is not what it was, in the order of the chain.
        more: Further places.
    """

    rows: int
    head: Head
    waiting: int
    breaks: tuple[Break, ...]
    more: int

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return not self.breaks


def digest(entry: Iterable[Any], previous_hash: str) -> str:
    """Hash a row as `docs/audit.md` specifies.

    Args:
        entry: log_id, request_id, user_id, action, timestamp (aware), ip_address, user_agent, actor, detail.
        previous_hash: The hash of the row before it in the chain, in hex.
    """
    fields = (_text(value) for value in (*entry, previous_hash))
    return hashlib.sha256(_HEAD + b"".join(map(_framed, fields))).hexdigest()


def head(database: Database) -> Head:
    """Read the newest row of the chain, after chaining what waits.

    Raises:
        DatabaseUnavailable: The server does not answer.
    """
    _chain_late(database)
    with database.connect() as connection:
        row = connection.execute(_NEWEST).fetchone()
    return Head(rows=row[0], log_id=row[1], hash=row[2]) if row else Head(rows=0, log_id=None, hash=GENESIS)


def verify(database: Database, *, kept_head: str | None = None) -> AuditReport:
    """Compute every hash of the trail again, in constant memory.

    Args:
        database: Our tables; SELECT on the trail is enough.
        kept_head: A hash that `head` gave earlier. Without it nobody can tell that the newest rows were removed.

    Raises:
        InvalidRequest: `kept_head` is no hash.
        DatabaseUnavailable: The server does not answer.
    """
    if kept_head is not None and not re.fullmatch(r"[0-9a-f]{64}", kept_head):
        raise InvalidRequest(
            "The kept head is no hash.", hint="`export-pipeline audit head` prints one: 64 digits of 0-9 and a-f."
        )
    _chain_late(database)
    walk = _Walk(kept_head=kept_head)
    with database.connect() as connection:
        _one_snapshot(connection)
        for link in _stream(connection, _CHAIN):
            walk.step(link)
        for (log_id,) in _stream(connection, _OUTSIDE):
            walk.found(BreakKind.INSERTED, log_id, "It was inserted past the chain: no link leads to it.")
        waiting = connection.execute("SELECT count(*) FROM export_pipeline.export_audit_unchained").fetchone()
    return walk.report(waiting=waiting[0] if waiting else 0)


def export(
    database: Database,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    request_id: str | None = None,
) -> Iterator[bytes]:
    """Give the trail as NDJSON, one line a row, in the order of the chain, in constant memory.

    The whole trail can be verified from it without the database; a part of it row by row.

    Args:
        database: Our tables; SELECT on the trail is enough.
        since: Only rows from then on.
        until: Only rows before then.
        request_id: Only rows of this request.

    Raises:
        DatabaseUnavailable: The server does not answer.
    """
    _chain_late(database)
    with database.connect() as connection:
        _one_snapshot(connection)
        for position, previous_hash, own_hash, *entry in _stream(
            connection, _EXPORT, {"since": since, "until": until, "request_id": request_id}
        ):
            row = dict(zip(_FIELDS, entry, strict=True))
            row["timestamp"] = _iso(row["timestamp"])
            row = {"position": position, **row, "previous_hash": previous_hash, "hash": own_hash}
            yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


@dataclass(kw_only=True)
class _Walk:
    """Goes along the chain and remembers where it was broken."""

    kept_head: str | None
    _position: int = 0
    _log_id: int | None = None
    _hash: str = GENESIS
    _head_found: bool = False
    _breaks: list[Break] = field(default_factory=list)
    _more: int = 0

    def __post_init__(self) -> None:
        self._head_found = self.kept_head in (None, GENESIS)

    def step(self, link: tuple[Any, ...]) -> None:
        """Compare one link with the one before it, and with its row."""
        position, log_id, previous_hash, own_hash, *entry = link
        if position != self._position + 1:
            missing = position - self._position - 1
            self.found(
                BreakKind.REMOVED,
                log_id,
                f"Between it and the row before, {missing} links are missing: rows were removed.",
            )
        elif previous_hash != self._hash:
            before = "the beginning" if self._log_id is None else f"row {self._log_id}"
            self.found(
                BreakKind.REORDERED,
                log_id,
                f"It does not follow {before}: links were put into another order, taken out, or written anew.",
            )
        if entry[0] is None:
            self.found(BreakKind.REMOVED, log_id, "It was removed: its link is there, the row is not.")
        elif _digest_of(entry, previous_hash) != own_hash:
            self.found(BreakKind.CHANGED, log_id, "It was changed: its hash is not the one in its link.")
        self._position, self._log_id, self._hash = position, log_id, own_hash
        self._head_found = self._head_found or own_hash == self.kept_head

    def found(self, kind: BreakKind, log_id: int | None, why: str) -> None:
        """Remember a break; only count it when there are many."""
        if len(self._breaks) < _BREAKS_TOLD:
            self._breaks.append(Break(kind=kind, log_id=log_id, why=why))
        else:
            self._more += 1

    def report(self, *, waiting: int) -> AuditReport:
        """Put it together."""
        if not self._head_found:
            why = "The kept head is not in the chain: the newest rows were removed, or the chain was written anew."
            self._breaks.append(Break(kind=BreakKind.HEAD_MISSING, log_id=None, why=why))
        return AuditReport(
            rows=self._position,
            head=Head(hash=self._hash, rows=self._position, log_id=self._log_id),
            waiting=waiting,
            breaks=tuple(self._breaks),
            more=self._more,
        )


def _digest_of(entry: list[Any], previous_hash: str) -> str | None:
    """Hash a row as it was read; None when its time is no date that could ever have been hashed."""
    try:
        return digest([*entry[:4], _time(entry[4]), *entry[5:]], previous_hash)
    except ValueError:
        return None


def _text(value: Any) -> str | None:
    if isinstance(value, datetime):
        return str((value - _EPOCH) // timedelta(microseconds=1))
    return None if value is None else str(value)


def _framed(text: str | None) -> bytes:
    if text is None:
        return b"-\n"
    encoded = text.encode()
    return b"%d:%b\n" % (len(encoded), encoded)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _iso(text: str) -> str:
    try:
        return _time(text).isoformat(timespec="microseconds")
    except ValueError:
        return text


def _chain_late(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("SELECT export_pipeline.chain_late_audit_logs()")


def _one_snapshot(connection: psycopg.Connection) -> None:
    """Set up the transaction of a borrowed connection: one moment for all statements, and times as ISO 8601 in UTC."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    connection.execute("SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'")


def _stream(
    connection: psycopg.Connection, statement: str, values: dict[str, Any] | None = None
) -> Iterator[tuple[Any, ...]]:
    with connection.cursor(name="audit", row_factory=tuple_row) as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        cursor.execute(statement.encode(), values)
        yield from cursor
