"""What one run does, step by step: the ops of the job are doors to these methods.

A step takes and gives tickets (ids, keys, counts, hashes); rows never pass through Dagster. A run may die after any
step: a later run of the same request begins by clearing what it left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from export_pipeline import manifest
from export_pipeline.collect import catalogue, statements
from export_pipeline.collect.parts import Part, collect
from export_pipeline.collect.policies import HashScope, Policy, pseudonym, session_settings
from export_pipeline.collect.source import Snapshot, Source
from export_pipeline.db.data_types import DataTypeStore
from export_pipeline.db.lease import RequestLease
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import (
    ExportPipelineError,
    FileNotVerified,
    InvalidRequest,
    RunNotEntitled,
    SourceRefused,
    VaultError,
)
from export_pipeline.models import SYSTEM, DataTypeConfig, ExportMetadata, ExportRequest
from export_pipeline.plan import (
    ExportPlan,
    PlannedType,
    export_format,
    plan_type,
    request_type,
    requested_types,
    require_profile,
)
from export_pipeline.pump import ahead
from export_pipeline.render.formats import RENDERERS, delivered
from export_pipeline.render.renderer import Document, FoundPart, Renderer
from export_pipeline.render.streams import Digest
from export_pipeline.vault import recipients
from export_pipeline.vault.keys import Recipient, RunKeys
from export_pipeline.vault.signing import Signer
from export_pipeline.vault.store import Vault

#: The user's id is no value of the user column's type: no row can match.
_NOT_COMPARABLE = (psycopg.errors.DataError, psycopg.errors.InvalidTextRepresentation)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """The ticket for the sealed, delivered file.

    Attributes:
        key: Its name in the store.
        url: Where it lies.
        stored_size: Bytes as stored.
        size: Bytes as delivered.
        sha256: Hex digest of the file as it is delivered.
        export_date: When it was made, ISO 8601.
        manifest: What is in it, as it says itself, without the user's id.
        content_encoding: See `ExportMetadata`.
        sealed_for: Public key that opens it.
    """

    key: str
    url: str
    stored_size: int
    size: int
    sha256: str
    export_date: str
    manifest: dict[str, Any]
    content_encoding: str
    sealed_for: str

    def ticket(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _ReadBack:
    """A stored file as it will be delivered."""

    size: int
    sha256: str
    manifest: dict[str, Any]


class ExportRun:
    """One run of one request.

    Args:
        database: Our tables.
        source: Where users' data lives.
        vault: Where delivered files go.
        work: Where parts go, sealed like everything else.
        pseudonym_key: Gives the key of hashed columns for a purpose.
        signer: Signs manifests.
        retention: Request type → how long its file can be fetched.
        escape_formulas: Whether CSV must be safe to open in a spreadsheet.
        request_id: The request.
        run_id: The Dagster run.
        reopen: Whether the run may take up a request that failed or was cancelled.
    """

    def __init__(
        self,
        *,
        database: Database,
        source: Source,
        vault: Vault,
        work: Vault,
        pseudonym_key: Callable[[str], bytes],
        signer: Signer,
        retention: Callable[[str], timedelta],
        escape_formulas: bool = True,
        request_id: str,
        run_id: str,
        reopen: bool,
    ) -> None:
        self.request_id = request_id
        self.run_id = run_id
        self._requests = RequestStore(database)
        self._data_types = DataTypeStore(database)
        self._lease = RequestLease(database, request_id)
        self._source = source
        self._vault = vault
        self._work = work
        self._pseudonym_key = pseudonym_key
        self._signer = signer
        self._retention = retention
        self._collected: set[str] = set()
        self._made: str | None = None
        self._planned = False
        self._escape_formulas = escape_formulas
        self._reopen = reopen
        self._request: ExportRequest | None = None
        self._snapshot: Snapshot | None = None
        self._open = ExitStack()

    # --- the steps

    def plan(self) -> ExportPlan:
        """Decide what will be exported, and refuse what is wrong.

        Raises:
            InvalidRequest: Unknown type, format or user; nothing asked for.
            ConfigurationError: A configured table or column is not in the source.
            SourceError: The source cannot be asked.
            RunNotEntitled: Another run owns the request.
        """
        own_keys = self._vault
        request = self._begin()
        self._require_keys(request, own_keys)
        # Whatever earlier runs left: this one owns the request now.
        self._vault.delete_below(self.request_id)
        self._work.delete_below(self.request_id)
        form, configs = export_format(request.format), self._data_types.all()
        planned = self._plan_types(request, configs)
        chosen = {one.data_type for one in planned}
        others = [config for config in configs if config.data_type not in chosen]
        self._refuse_unknown_user(self._take_snapshot(), planned, others)
        self._planned = True
        return ExportPlan(format=form, types=planned)

    def collect(self, plan: ExportPlan, data_type: str) -> Part:
        """Collect one data type into a sealed part.

        Raises:
            SourceError: The source went away or refused; the part is not there.
            VaultError: The part could not be stored.
            RunNotEntitled: Another run owns the request.
            InvalidRequest: The plan is one of another run, and would be another one now.
        """
        request = self._begin()
        self._require_same(request, plan)
        planned = next(planned for planned in plan.types if planned.data_type == data_type)
        snapshot = self._take_snapshot()
        self._give_keys(snapshot, planned.extract)
        part = collect(
            snapshot,
            planned.extract,
            request.user_id,
            data_type=data_type,
            encoding=RENDERERS[plan.format].encoding,
            key=f"{self._folder}/{data_type}.part",
            store=self._work.store,
        )
        self._collected.add(part.key)
        if part.rows != part.rows_in_snapshot:
            raise SourceRefused(
                f"The source counted {part.rows_in_snapshot} rows and sent {part.rows}.",
                hint="A view that changes inside one snapshot cannot be exported.",
            )
        return part

    def render_and_store(self, plan: ExportPlan, parts: Sequence[Part], not_exported: Mapping[str, str]) -> StoredFile:
        """Make the delivered file out of the parts, store it sealed, and read it back.

        Raises:
            InvalidRequest: No data type could be collected, or the plan is out of date.
            FileNotVerified: What was read back is not what was collected.
            SourceError, VaultError, RunNotEntitled: As above.
        """
        request = self._begin()
        self._require_same(request, plan)
        if not parts:
            raise InvalidRequest(f"No data type could be exported: {_sentence(not_exported)}.")
        parts = self._complete(plan, parts)
        renderer = RENDERERS[plan.format]
        export_date = datetime.now(UTC)
        snapshot = self._take_snapshot().info
        contents = manifest.build(request, plan, parts, not_exported, snapshot, export_date)
        document = Document(
            user_id=self._shown_user_id(request),
            request_id=request.request_id,
            export_date=export_date,
            manifest=contents,
            sign=self._signer.sign,
        )
        stored = self._vault.store(
            f"{self._folder}/export.age",
            renderer.frame(document, parts, lambda part: self._work.open(part.key)),
        )
        file = self._read_back(renderer, stored.key, parts, contents)
        self._made = stored.key
        return StoredFile(
            key=stored.key,
            url=stored.url,
            stored_size=stored.size,
            size=file.size,
            sha256=file.sha256,
            export_date=export_date.isoformat(),
            manifest=file.manifest,
            content_encoding=renderer.content_encoding if request.recipient is None else "age",
            sealed_for=stored.sealed_for if request.recipient is None else request.recipient,
        )

    def write_metadata(self, file: StoredFile) -> ExportRequest:
        """Publish the file: metadata, status and audit row in one transaction; then clear the work area.

        Again after the database went away, it finds whether the first time got through: nothing says so to a caller
        whose connection breaks while it commits.

        Raises:
            RunNotEntitled: Another run owns the request by now; the file is discarded.
            VaultError: The file is gone: a re-execution of this step alone has the ticket of a run that was cleared.
        """
        finished = self._published() or self._publish(file)
        with suppress(VaultError):  # what stays is of no use, and goes with all that killed runs leave
            self._work.delete_below(self.request_id)
        return finished

    def _publish(self, file: StoredFile) -> ExportRequest:
        request = self._begin()
        self._require_there(file)
        try:
            return self._requests.complete(
                ExportMetadata(
                    request_id=self.request_id,
                    user_id=request.user_id,
                    total_records=file.manifest["total_records"],
                    data_types_included=tuple(file.manifest["data_types"]),
                    export_date=datetime.fromisoformat(file.export_date),
                    file_size_bytes=file.size,
                    format=file.manifest["format"],
                    stored_size_bytes=file.stored_size,
                    sha256=file.sha256,
                    storage_key=file.key,
                    content_encoding=file.content_encoding,
                    manifest=file.manifest,
                    sealed_for=file.sealed_for,
                ),
                run_id=self.run_id,
                file_url=file.url,
                partial=_partial(file.manifest),
                retention=self._retention(request.request_type),
            )
        except RunNotEntitled:
            self._clear()
            raise

    # --- the ends

    def fail(self, message: str) -> None:
        """End the request with a reason, and leave nothing half-stored."""
        self._requests.fail(self.request_id, run_id=self.run_id, message=message)
        self._clear()

    def abandon(self) -> None:
        """Clear what this run made of a request that is not its own any more."""
        self._clear()

    def cancel(self) -> None:
        """End the request because somebody terminated the run, or terminate it because the request has ended.

        Raises:
            WrongStatus: The request has ended, or is another run's; what this one made is cleared all the same.
        """
        try:
            detail = f"run {self.run_id} was terminated"
            self._requests.cancel(self.request_id, SYSTEM, run_id=self.run_id, detail=detail)
        finally:
            self._clear()

    def withdrawn(self) -> bool:
        """Whether somebody cancelled or deleted the request while it was this run's."""
        return self._requests.withdrawn(self.request_id, self.run_id)

    def drop_snapshot(self) -> None:
        """Close the snapshot after the source went away; the next step opens another."""
        self._open.close()
        self._snapshot = None

    def close(self) -> None:
        """Let go of everything that the run holds."""
        self.drop_snapshot()
        self._lease.release()

    # --- inside

    @property
    def _folder(self) -> str:
        """Of this run alone: one that lost its request can't touch what the next one makes."""
        return f"{self.request_id}/{self.run_id}"

    def _begin(self) -> ExportRequest:
        """Own the request: taken at the first step of this process, and made sure of at every later one.

        Taken only once: whoever cancels a request and puts it back means a new run, with a plan and a snapshot of then.
        """
        self._lease.acquire()
        if self._request is not None:
            self._request = self._requests.owned(self.request_id, self.run_id)
            return self._request
        request = self._requests.start(self.request_id, self.run_id, reopen=self._reopen)
        if request.recipient is not None:
            self._seal_for(recipients.parse(request.recipient))
        self._request = request
        return request

    def _seal_for(self, recipient: Recipient) -> None:
        """From here on nothing is sealed for the installation.

        Parts and file are sealed for a key that this run makes for itself, the file for the recipient too. So it can be
        read back now, and by nobody but the recipient after the run.
        """
        self._work = self._work.with_keys(RunKeys())
        self._vault = self._vault.with_keys(RunKeys(recipient))

    def _require_keys(self, request: ExportRequest, own: Vault) -> None:
        self._signer.require()
        public_keys = own.public_keys()
        if request.recipient in public_keys:
            raise InvalidRequest("The recipient is this installation itself.", hint="Leave the recipient out.")

    def _owned(self) -> ExportRequest:
        """The request as this step found it."""
        return self._request or self._begin()

    def _take_snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = self._open.enter_context(self._source.snapshot())
        return self._snapshot

    def _give_keys(self, snapshot: Snapshot, extract: statements.Extract) -> None:
        """Let the source hash: it gets keys that are derived for this purpose, as bound session settings."""
        scopes = {HashScope(policy.argument) for policy in extract.policies if policy.policy is Policy.HASH}
        for scope in scopes:
            snapshot.set(session_settings(scope, self._pseudonym_key(self._purpose(scope))))

    def _purpose(self, scope: HashScope) -> str:
        return f"export {self.request_id}" if scope is HashScope.EXPORT else scope.value

    def _shown_user_id(self, request: ExportRequest) -> str:
        """An anonymised file names its person as a hashed column of it would."""
        if not request.anonymize:
            return request.user_id
        return pseudonym(self._pseudonym_key(self._purpose(HashScope.EXPORT)), request.user_id)

    def _plan_types(self, request: ExportRequest, configs: Sequence[DataTypeConfig]) -> tuple[PlannedType, ...]:
        chosen = requested_types(request_type(request.request_type), request.data_types, configs)
        require_profile(request.anonymize, chosen)
        snapshot = self._take_snapshot()
        return tuple(self._plan_type(snapshot, config) for config in chosen)

    def _require_same(self, request: ExportRequest, plan: ExportPlan) -> None:
        """A re-execution from a failure has the plan of the run before it. Meanwhile somebody may have mended the
        configuration, and what should have been hidden would still be exported."""
        if self._planned:
            return
        now = self._plan_types(request, self._data_types.all())
        if [replace(one, note="") for one in now] != [replace(one, note="") for one in plan.types]:
            raise InvalidRequest("The configuration has changed since this was planned.", hint="Retry the request.")
        self._planned = True

    def _plan_type(self, snapshot: Snapshot, config: DataTypeConfig) -> PlannedType:
        table = catalogue.describe(snapshot, config)
        column_type = table.columns.get(config.user_id_column) if table else None
        matchable = column_type is not None and self._comparable(snapshot, column_type)
        request = self._owned()
        return plan_type(
            config,
            table,
            matchable=matchable,
            kind=request_type(request.request_type),
            profile=request.anonymize,
            escape_formulas=self._escape_formulas,
        )

    def _comparable(self, snapshot: Snapshot, column_type: str) -> bool:
        try:
            with snapshot.connection.transaction():
                statement = statements.comparable(column_type, self._owned().user_id)
                row = snapshot.connection.execute(statement).fetchone()
        except _NOT_COMPARABLE:
            return False
        except psycopg.Error:
            # Not our business here: the statement that reads the rows will say what is wrong.
            return True
        return bool(row and row[0])

    def _refuse_unknown_user(
        self, snapshot: Snapshot, planned: Sequence[PlannedType], others: Sequence[DataTypeConfig]
    ) -> None:
        """A user id that stands in no configured table is a typing error, not a person without data."""
        user_id = self._owned().user_id
        refused: SourceRefused | None = None
        for extract in self._extracts(snapshot, planned, others):
            try:
                with snapshot.attempt() as connection:
                    row = connection.execute(statements.exists(extract, user_id)).fetchone()
            except SourceRefused as error:
                # A table that cannot be read says nothing about the user, and the next one may.
                refused = refused or error
                continue
            if row and row[0]:
                return
        if refused:
            raise refused
        raise InvalidRequest("No configured table of the source knows this user id.", hint="Check the user id.")

    def _extracts(
        self, snapshot: Snapshot, planned: Sequence[PlannedType], others: Sequence[DataTypeConfig]
    ) -> Iterator[statements.Extract]:
        yield from (one.extract for one in planned)
        for config in others:
            try:
                yield self._plan_type(snapshot, config).extract
            except ExportPipelineError:
                continue  # a fault in a configuration that this request does not use

    def _complete(self, plan: ExportPlan, parts: Sequence[Part]) -> Sequence[Part]:
        """Make sure that all parts are there and show one moment; else collect them all again.

        A re-execution, or a source that went away in the middle, leaves parts of an older snapshot.
        """
        present = set(self._work.keys(self.request_id))
        if self._owned().recipient is not None:
            present &= self._collected  # what another process of this run sealed, only that process can open
        moments = {part.snapshot_id for part in parts}
        if moments == {self._take_snapshot().info.id} and all(part.key in present for part in parts):
            return parts
        return [self.collect(plan, part.data_type) for part in parts]

    def _read_back(self, renderer: Renderer, key: str, parts: Sequence[Part], contents: Mapping[str, Any]) -> _ReadBack:
        digest = Digest()
        if self._owned().recipient is None:
            plain = digest.watch(delivered(self._vault.open(key), renderer.content_encoding))
        else:  # what is delivered is the sealed file itself
            plain = delivered(self._vault.open(key, watch=digest.watch), renderer.content_encoding)
        found = renderer.inspect(ahead(plain))
        expected = {part.data_type: FoundPart(rows=part.rows, size=part.size, sha256=part.sha256) for part in parts}
        if found.parts != expected:
            raise FileNotVerified("The stored file does not hold what was collected.", hint="Retry the request.")
        stated = {name: value for name, value in found.manifest.items() if name != "user_id"}
        if any(stated.get(name) != value for name, value in contents.items()):
            raise FileNotVerified("The stored file does not state what was collected.", hint="Retry the request.")
        return _ReadBack(size=digest.size, sha256=digest.sha256, manifest=stated)

    def _require_there(self, file: StoredFile) -> None:
        """What this process made was read back a moment ago; what another left may have been removed since."""
        if file.key != self._made and file.key not in self._vault.keys(self.request_id):
            raise VaultError("The file that was to be published is gone.", hint="Retry the request.")

    def _published(self) -> ExportRequest | None:
        return self._requests.completed_by(self.request_id, self.run_id)

    def _clear(self) -> None:
        """Remove what this run made; never a file that people may fetch, whatever went wrong afterwards."""
        if self._request is None:
            return  # nothing was made here; were another process to execute the same run, it would be its
        self._work.delete_below(self._folder)
        if self._published() is None:
            self._vault.delete_below(self._folder)


def _partial(contents: Mapping[str, Any]) -> str:
    missing = {part["data_type"]: part["reason"] for part in contents["not_exported"]}
    return f"Not exported: {_sentence(missing)}." if missing else ""


def _sentence(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{data_type} ({reason.rstrip('.')})" for data_type, reason in reasons.items())
