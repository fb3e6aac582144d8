"""Download links: issued for a while, bound to one file, taken back at will, counted. docs/links.md tells the rules."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from export_pipeline.db.downloads import ONE_DOWNLOAD
from export_pipeline.db.links import IssuedLink, LinkStore
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import (
    FileGone,
    InvalidRequest,
    LinkEnded,
    LinkNotFound,
    LinkRefused,
    RequestNotFound,
    WrongStatus,
)
from export_pipeline.models import Actor, ExportMetadata, RequestStatus
from export_pipeline.vault import link_tokens
from export_pipeline.vault.link_tokens import LinkClaim

#: Where links lead, below the address of the API.
PATH = "/api/exports/files/"

_WITH_FILE = (RequestStatus.COMPLETED, RequestStatus.PARTIAL)
_ASK_AGAIN = "Ask for a new link."


@dataclass(frozen=True, kw_only=True)
class Link:
    """A new link. Whoever has its path has the file: hand it to one person, and keep it nowhere.

    Attributes:
        url_path: Below the address of the API.
        expires_at: When it stops to work.
        link_id: By which it is revoked and found in the trail; it opens nothing.
    """

    url_path: str
    expires_at: datetime
    link_id: str


class Links:
    """The use cases around download links.

    Args:
        database: Our tables.
        key_file: Holds the keys that sign links.
        lifetime: How long a link works, unless it is issued for another time.
    """

    def __init__(self, database: Database, key_file: Path, *, lifetime: timedelta) -> None:
        self._requests = RequestStore(database)
        self._links = LinkStore(database)
        self._key_file = key_file
        self._lifetime = lifetime

    def issue(self, request_id: str, actor: Actor, lifetime: timedelta | None = None) -> Link:
        """Make a link to the file of a request. It never works for longer than the file is kept.

        Args:
            request_id: The request.
            actor: Who gets the link; the trail names them for what is downloaded by it.
            lifetime: How long it works, from a minute on.

        Raises:
            RequestNotFound: There is no such request.
            WrongStatus: It has no file (yet, or any more).
            InvalidRequest: The lifetime is shorter than a minute.
            KeyUnusable: There is no key to sign with.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        wanted = self._lifetime if lifetime is None else lifetime
        if wanted < timedelta(minutes=1):
            raise InvalidRequest("A link works for one minute at least.")
        file = self._file(request_id)
        expires_at = min(now + wanted, file.expires_at or now + wanted).replace(microsecond=0)
        claim = LinkClaim(link_id=secrets.token_hex(16), expires_at=expires_at, binding=_binding(file))
        token = link_tokens.sign(self._key_file, claim)
        self._links.add(link_id=claim.link_id, request_id=request_id, expires_at=expires_at, actor=actor)
        return Link(url_path=PATH + token, expires_at=expires_at, link_id=claim.link_id)

    def redeem(self, token: str) -> IssuedLink:
        """Find out what a token opens. Looking is free: it works as often as somebody asks until it ends.

        Raises:
            LinkRefused: It is not one of ours, or was altered.
            LinkEnded: It has expired, was revoked, or its file is gone or was made anew.
            KeyUnusable: There is no key to check it with.
        """
        claim = link_tokens.read(self._key_file, token)
        link = self._links.find(claim.link_id)
        if link is None:
            raise LinkRefused("We did not issue this download link.", hint=_ASK_AGAIN)
        if link.revoked_at is not None:
            raise LinkEnded("This download link was revoked, or its file is gone.", hint=_ASK_AGAIN)
        if link.expired or claim.expires_at <= datetime.now(UTC):
            raise LinkEnded("This download link has expired.", hint=_ASK_AGAIN)
        try:
            current = _binding(self._file(link.request_id))
        except (WrongStatus, RequestNotFound) as error:
            raise LinkEnded(error.message, hint=error.hint) from None
        if not hmac.compare_digest(current, claim.binding):
            raise LinkEnded("The file of this download link was made anew.", hint=_ASK_AGAIN)
        return link

    def is_open(self, link: IssuedLink) -> bool:
        """Whether nobody has taken the link back; a download that began in time may go on after its expiry."""
        found = self._links.find(link.link_id)
        return found is not None and found.revoked_at is None

    def count_download(self, link: IssuedLink, client: Actor, *, from_start: bool) -> bool:
        """Put a download into the trail: see `LinkStore.count_download`.

        Args:
            link: By which the file is fetched.
            client: Address and program of who fetches; the id is that of the person who got the link.
            from_start: Whether the piece begins the file.
        """
        actor = replace(client, id=link.issued_to)
        return self._links.count_download(link.link_id, actor, from_start=from_start, window=ONE_DOWNLOAD)

    def revoke(self, link_id: str, actor: Actor, *, request_id: str | None = None) -> IssuedLink:
        """End one link; twice is harmless.

        Args:
            link_id: Which.
            actor: Who ends it.
            request_id: Only when it is a link of this request.

        Raises:
            LinkNotFound: There is no such link.
        """
        found = self._links.find(link_id)
        if found is None or request_id not in {None, found.request_id}:
            raise LinkNotFound("There is no download link with this id.")
        self._links.revoke(actor, link_id=link_id)
        return self._links.find(link_id) or found

    def revoke_all(self, request_id: str, actor: Actor) -> int:
        """End every link of a request.

        Returns:
            How many ended now.

        Raises:
            RequestNotFound: There is no such request.
        """
        self._requests.get(request_id)
        return self._links.revoke(actor, request_id=request_id)

    def of_request(self, request_id: str) -> list[IssuedLink]:
        """Links of a request, the oldest first.

        Raises:
            RequestNotFound: There is no such request.
        """
        self._requests.get(request_id)
        return self._links.of_request(request_id)

    def latest(self, request_id: str, limit: int) -> list[IssuedLink]:
        """Links of a request, the newest first; none when there is no such request.

        Args:
            request_id: The request.
            limit: At most so many.
        """
        return self._links.latest(request_id, limit)

    def _file(self, request_id: str) -> ExportMetadata:
        request = self._requests.get(request_id)
        metadata = self._requests.metadata(request_id)
        if request.status not in _WITH_FILE or metadata is None:
            raise WrongStatus(f"There is no file to download: the request is {request.status.value.replace('_', ' ')}.")
        if metadata.expired:
            raise FileGone("There is no file to download: it has expired.", hint="Request the export again.")
        return metadata


def _binding(file: ExportMetadata) -> bytes:
    return link_tokens.binding(file.request_id, file.storage_key, file.sha256)
