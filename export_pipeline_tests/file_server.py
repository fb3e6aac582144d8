"""An installation with files of known content, and a server that hands them out: for tests of downloads."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from export_pipeline import wiring
from export_pipeline.db.requests import _write_metadata as write_metadata
from export_pipeline.identity import Principal, Role
from export_pipeline.links import Link
from export_pipeline.models import Actor, AuditAction, ExportMetadata
from export_pipeline.render.streams import Digest, gzip_text

ANN = Actor(id="ann")
MIB = 1024 * 1024
#: More than one chunk of every layer, and no round number.
CONTENT = b"".join(hashlib.sha256(number.to_bytes(4)).digest() for number in range(50_000)) + b"end"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Installation:
    """Some files, and a server that hands them out."""

    services: wiring.Services
    port: int

    def place(self, request_id: str, chunks: Iterable[bytes], *, encoding: str = "identity") -> Digest:
        """Store a file as a run does, and write its rows."""
        digest, vault, key = Digest(), self.services.vault(), f"{request_id}/run-1/export"
        plain = digest.watch(chunks)
        stored = vault.store(key, map(gzip_text, plain) if encoding == "gzip" else plain)
        if encoding == "age":
            digest = Digest()
            assert sum(map(len, digest.watch(vault.sealed(key)))) == stored.size
        form = "json" if encoding == "gzip" else "csv"
        with self.services.database.connect() as connection:
            connection.execute(
                "INSERT INTO export_pipeline.export_requests"
                " (request_id, user_id, requested_by, request_type, data_types, format, status, completed_at)"
                " VALUES (%s, 'ann', 'ann', 'custom', '{user_clicks}', %s, 'completed', now())",
                [request_id, form],
            )
        metadata = ExportMetadata(
            request_id=request_id,
            user_id="ann",
            total_records=1,
            data_types_included=("user_clicks",),
            export_date=datetime.now(UTC),
            file_size_bytes=digest.size,
            format=form,
            stored_size_bytes=stored.size,
            sha256=digest.sha256,
            storage_key=stored.key,
            content_encoding=encoding,
            expires_at=datetime.now(UTC) + timedelta(days=7),
            manifest={},
        )
        with self.services.database.connect() as connection:
            write_metadata(connection, metadata)
        return digest

    def bearer(self, *roles: Role, user_id: str = ANN.id) -> dict[str, str]:
        """The header of somebody who is signed in."""
        principal = Principal(id=user_id, roles=frozenset(roles or [Role.SUBJECT]))
        return {"Authorization": f"Bearer {self.services.gatekeeper.issue(principal, timedelta(minutes=5))}"}

    def link(self, request_id: str = "one", **asked: timedelta) -> Link:
        return self.services.links.issue(request_id, ANN, **asked)

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers={"User-Agent": "test/1", **sent})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def downloads(self, request_id: str = "one") -> int:
        return [entry.action for entry in self.services.requests.trail(request_id)].count(AuditAction.DOWNLOADED)

    def execute(self, statement: str, *values: object) -> None:
        with self.services.database.connect() as connection:
            connection.execute(statement.encode(), values)
