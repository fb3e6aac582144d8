"""What must go, and when: files whose time is over, and whatever crashes left in the stores.

The order makes every moment good to be killed in. A request becomes `expired` first: from then on nobody gets its file.
Then the file goes, and then that is written down. Whoever is killed in between leaves a file that no request needs any
more; the next purge finds it, because it lists the stores and compares them with the tables, both ways.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from export_pipeline.db.files import FileState, FileStore, HeldRequest
from export_pipeline.db.pool import Database
from export_pipeline.models import RequestStatus
from export_pipeline.vault.store import ListedObject, Vault

#: request/run/object, the object perhaps half uploaded; or the probe of `doctor`.
_OURS = re.compile(
    r"(?P<folder>(?P<owner>[A-Za-z0-9][A-Za-z0-9_-]*)/[A-Za-z0-9][A-Za-z0-9_-]*)/"
    r"(?:export\.age|[A-Za-z][A-Za-z0-9_-]*\.part)(?:#\d+)?"
    r"|(?P<probe>doctor-[0-9a-f]{16})/probe(?:#\d+)?"
)
#: No run lives on in what was written longer ago than this and whose lease is free.
_SETTLED = timedelta(minutes=10)


@dataclass(kw_only=True)
class Purge:
    """What a purge did, or would do.

    Attributes:
        dry_run: Whether it only looked.
        expired: Requests that became `expired` now.
        removed: Requests whose stored file is gone now.
        leftovers: Objects that no request needs: parts, files of runs that were not completed, half uploads.
        freed_bytes: Size of all that was removed.
        missing: Requests that have a file, which is not in the store.
        busy: Requests with leftovers that a run may be working on; the next purge looks again.
        foreign: Objects whose names are not ours, or whose request our tables do not know and that are younger than any
            file may get; they are left alone.
    """

    dry_run: bool
    expired: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    leftovers: int = 0
    freed_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    foreign: int = 0

    def facts(self) -> dict[str, Any]:
        """As people and machines see it: names where somebody must act, else numbers."""
        return {
            "expired requests": len(self.expired),
            "removed files": len(self.removed),
            "removed leftovers": self.leftovers,
            "freed bytes": self.freed_bytes,
            "missing files": self.missing,
            "left for later": len(self.busy),
            "objects not ours": self.foreign,
        }


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The purge.

    Attributes:
        database: Our tables.
        vault: Where delivered files are.
        work: Where parts are, on this machine.
        longest: No file is promised for longer; an object of an unknown request goes when it is older.
        settled: An object that is younger may still belong to a run.
    """

    database: Database
    vault: Vault
    work: Vault
    longest: timedelta
    settled: timedelta = _SETTLED

    def purge(self, *, dry_run: bool = False) -> Purge:
        """Remove what is due, and report what is not as it should be.

        Args:
            dry_run: Only look.

        Raises:
            DatabaseUnavailable: Our database does not answer; whatever was done stays done.
            StorageUnavailable: A store cannot be used; the next purge goes on.
        """
        files, purge = FileStore(self.database), Purge(dry_run=dry_run)
        purge.expired = files.due() if dry_run else files.expire()
        # In this order: a file that is completed after the tables were read is in the listing all the same.
        tracked = files.tracked()
        listing = self.vault.listing()
        self._report_missing(files, tracked, {found.key for found in listing}, purge)
        due = {state.request_id for state in tracked if not state.has_file} | set(purge.expired)
        self._sweep(files, self.vault, listing, due, purge)
        self._sweep(files, self.work, self.work.listing(), set(), purge)
        return purge

    def _report_missing(self, files: FileStore, tracked: Iterable[FileState], present: set[str], purge: Purge) -> None:
        """Somebody took a file away behind our back: that is never put right in silence."""
        lacking = [state for state in tracked if state.has_file and state.storage_key not in present]
        if purge.dry_run:
            purge.missing = [state.request_id for state in lacking if state.request_id not in purge.expired]
        else:
            purge.missing = files.missing(lacking)

    def _sweep(
        self, files: FileStore, vault: Vault, listing: Iterable[ListedObject], due: set[str], purge: Purge
    ) -> None:
        owned = self._by_owner(vault, listing, purge)
        states = files.states(sorted(owned.keys() | due))
        for request_id in sorted(owned.keys() | due):
            objects = owned.get(request_id, [])
            state = states.get(request_id)
            if state is None:
                self._remove_unknown(vault, objects, purge)
            elif request_id in due or self._leftovers(state, objects, vault):
                self._clear(files, vault, request_id, objects, purge)

    def _by_owner(
        self, vault: Vault, listing: Iterable[ListedObject], purge: Purge
    ) -> Mapping[str, list[ListedObject]]:
        owned = defaultdict(list)
        for found in listing:
            name = _OURS.fullmatch(found.key)
            if name is None:
                purge.foreign += 1
            elif name["owner"]:
                owned[name["owner"]].append(found)
            elif _older(found, self.settled):
                self._remove(vault, [found], purge)
        return owned

    def _remove_unknown(self, vault: Vault, objects: Iterable[ListedObject], purge: Purge) -> None:
        """Perhaps our tables came back from a backup. But what is older than any file of ours may get is nobody's."""
        for found in objects:
            if _older(found, self.longest + timedelta(days=1)):
                self._remove(vault, [found], purge)
            else:
                purge.foreign += 1

    def _clear(
        self, files: FileStore, vault: Vault, request_id: str, objects: list[ListedObject], purge: Purge
    ) -> None:
        """Remove what a request does not need, while no run can begin or go on with it."""
        with files.hold(request_id) as held:
            if held is None or held.state is None:
                purge.busy.append(request_id)
                return
            self._clear_held(held, held.state, vault, objects, purge)

    def _clear_held(
        self, held: HeldRequest, state: FileState, vault: Vault, objects: list[ListedObject], purge: Purge
    ) -> None:
        ended = not (state.has_file or state.is_open) or (purge.dry_run and state.request_id in purge.expired)
        gone = [found for found in objects if ended and found.key == state.storage_key]
        self._remove(vault, gone, purge, counted=False)
        left = self._leftovers(state, [found for found in objects if found not in gone], vault)
        self._remove(vault, left, purge)
        if vault is self.vault and ended and not state.removed and state.storage_key is not None:
            # Whoever deleted it removed the file too, and the trail says so already.
            before = not gone and state.status == RequestStatus.DELETED
            if not before:
                purge.removed.append(state.request_id)
            if not purge.dry_run:
                held.removed(None if before else f"{sum(found.size for found in gone)} bytes")

    def _leftovers(self, state: FileState, objects: Iterable[ListedObject], vault: Vault) -> list[ListedObject]:
        """Objects that the request does not need: a run that still comes clears the rest itself."""
        if state.is_open:
            return []
        kept = state.storage_key if vault is self.vault and state.has_file else None
        return [found for found in objects if found.key != kept and _older(found, self.settled)]

    def _remove(self, vault: Vault, objects: Iterable[ListedObject], purge: Purge, *, counted: bool = True) -> None:
        for found in objects:
            if not purge.dry_run:
                vault.delete(found)
            purge.freed_bytes += found.size
            purge.leftovers += counted


def _older(found: ListedObject, age: timedelta) -> bool:
    return found.modified < datetime.now(UTC) - age
