"""Commands around one request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from export_pipeline import settings, wiring
from export_pipeline.cli import recipient_key
from export_pipeline.cli.account import me
from export_pipeline.cli.output import AsJson, cell, console, errors, human_size, print_json, print_table, refuse
from export_pipeline.db.watch import ON_ITS_WAY, follow
from export_pipeline.delivery import deliver, save
from export_pipeline.errors import ExportPipelineError
from export_pipeline.intake import Intake
from export_pipeline.models import ExportFormat, ExportRequest, RequestStatus, RequestType
from export_pipeline.verify import verify as verify_file

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]
#: Where something runs, a request is claimed long before.
_SOON_S = 5.0
Reason = Annotated[str, typer.Option(help="Why; stands in the audit trail.")]


def request(
    user: Annotated[str, typer.Option("--user", "-u", help="Whose data.")],
    data_types: Annotated[
        list[str] | None, typer.Option("--type", "-t", help="A data type; repeat it for more. Not needed for gdpr.")
    ] = None,
    form: Annotated[str, typer.Option("--format", "-f", help=f"One of: {', '.join(ExportFormat)}.")] = "json",
    kind: Annotated[str, typer.Option("--request-type", help=f"One of: {', '.join(RequestType)}.")] = "custom",
    anonymize: Annotated[
        str | None, typer.Option("--anonymize", help="Anonymization profile of the data types.")
    ] = None,
    recipient: Annotated[
        str | None,
        typer.Option("--recipient", help="Public key (age1… or SSH), or @FILE with it, that alone opens the file."),
    ] = None,
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help="Make a key pair here, closed with a passphrase; only it opens the file."),
    ] = False,
    key_out: Annotated[
        Path | None, typer.Option("--key-out", help="With --passphrase: where the closed key goes.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the request has ended; needs `up`.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Longest wait, in seconds.")] = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Ask for an export; prints the request's id."""
    key = recipient_key.chosen(recipient, passphrase=passphrase, key_out=key_out)
    with wiring.connect(settings.load()) as services:
        with recipient_key.on_disk(key):
            made = services.intake.request(
                user_id=user,
                data_types=data_types or [],
                actor=me(),
                format=form,
                kind=kind,
                anonymize=anonymize,
                recipient=key.public_key,
            )
        shown = None
        for changed in _followed(services, made.request_id, timeout if wait else 0.0, quiet=as_json):
            made = changed
            if wait and not as_json and made.status is not shown:
                shown = made.status
                console.print(f"{made.request_id}  {cell(made.status)}")
    _show_made(made, waited=wait, as_json=as_json)


def status(request_id: RequestId, as_json: AsJson = False) -> None:
    """Show where a request stands, what its file holds and what happened to it."""
    with wiring.connect(settings.load()) as services:
        found = services.requests.get(request_id)
        metadata = services.requests.metadata(request_id)
        trail = services.requests.trail(request_id)
    if as_json:
        print_json({"request": found, "metadata": metadata, "trail": trail})
        return
    shown = {
        "status": found.status,
        "user": found.user_id,
        "requested by": found.requested_by,
        "type": found.request_type,
        "format": found.format,
        "data types": found.data_types,
        "requested at": found.requested_at,
        "due at": found.due_at,
        "due date moved": found.due_extension,
        "completed at": found.completed_at,
        "attempt": found.attempt,
        "Dagster run": found.run_id,
        "message": found.error_message,
        "only for": found.recipient,
    }
    if metadata:
        shown |= {"file": human_size(metadata.file_size_bytes), "sha256": metadata.sha256}
        shown |= {"expires at": metadata.expires_at}
    print_table(["", found.request_id], list(shown.items()))
    if metadata:
        parts = [[p["data_type"], p["rows"], human_size(p["bytes"])] for p in metadata.manifest["parts"]]
        print_table(["data type", "rows", "size"], parts)
    print_table(["when", "what", "who", "detail"], [[e.timestamp, e.action, e.actor, e.detail] for e in trail])


def list_requests(
    state: Annotated[RequestStatus | None, typer.Option("--status", help="Only this status.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Only this user.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List requests, newest first."""
    with wiring.connect(settings.load()) as services:
        found = services.requests.search(status=state and state.value, user_id=user, limit=limit)
    if as_json:
        print_json({"requests": found})
        return
    print_table(
        ["id", "status", "user", "type", "format", "requested at", "due"],
        [
            [r.request_id, r.status, r.user_id, r.request_type, r.format, r.requested_at, _day(r.due_at)]
            for r in found
        ],
        fixed=2,
    )  # fmt: skip


def queue(as_json: AsJson = False) -> None:
    """Show how many requests wait and work, and how long the oldest has been waiting."""
    with wiring.connect(settings.load()) as services:
        state = services.requests.queue()
    if as_json:
        print_json(state)
        return
    waiting = "-" if not state.pending + state.claimed else f"{state.oldest_waiting_seconds:,.0f} s"
    print_table(
        ["queue", "requests"],
        [
            ["pending, to be claimed", state.pending],
            ["claimed, run not begun", state.claimed],
            ["processing", state.processing],
            ["oldest waits", waiting],
        ],
    )


def retry(request_id: RequestId, as_json: AsJson = False) -> None:
    """Put a failed or cancelled request back into the queue, as a new attempt."""
    _move(lambda intake: intake.retry(request_id, me()), as_json=as_json)


def cancel(request_id: RequestId, as_json: AsJson = False) -> None:
    """End a request that has no file yet."""
    _move(lambda intake: intake.cancel(request_id, me()), as_json=as_json)


def approve(request_id: RequestId, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let a request that waits for approval go into the queue."""
    _move(lambda intake: intake.approve(request_id, me(), reason), as_json=as_json)


def reject(request_id: RequestId, reason: Reason, as_json: AsJson = False) -> None:
    """End a request that waits for approval."""
    _move(lambda intake: intake.reject(request_id, me(), reason), as_json=as_json)


def extend(request_id: RequestId, reason: Reason, as_json: AsJson = False) -> None:
    """Move the due date of a gdpr request by two months, once."""
    _move(lambda intake: intake.extend(request_id, me(), reason), as_json=as_json)


def delete(request_id: RequestId, as_json: AsJson = False) -> None:
    """Remove the file of a request for good; its row and its trail stay."""
    _move(lambda intake: intake.delete(request_id, me()), as_json=as_json)


def download(
    request_id: RequestId,
    out: Annotated[Path, typer.Option("--output", "-o", help="Where to write the decrypted file.")],
    as_json: AsJson = False,
) -> None:
    """Write the decrypted file of a request, checked on the way."""
    with wiring.connect(settings.load()) as services:
        delivery = deliver(services.database, services.vault(), request_id, me())
        save(delivery, out)
    if as_json:
        print_json({"file": out, "bytes": delivery.metadata.file_size_bytes, "sha256": delivery.metadata.sha256})
    else:
        size = human_size(delivery.metadata.file_size_bytes)
        console.print(f"{cell(out)}  {size}  sha256 {delivery.metadata.sha256}")


def verify(
    file: Annotated[Path, typer.Argument(help="A delivered, decrypted file.")],
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="A public signing key to trust, from `keys list`; repeat it for more."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a delivered file against its own manifest: rows, sizes, hashes, signature. Needs nothing but the file."""
    inspection = verify_file(file, key or [])
    signer = inspection.signer
    if as_json:
        signed = signer and {"key_id": signer.key_id, "public_key": signer.public_key, "trusted": bool(key)}
        missing = inspection.manifest["not_exported"]
        print_json({"verified": True, "parts": inspection.parts, "not_exported": missing, "signature": signed})
        return
    print_table(
        ["data type", "rows", "size", "sha256"],
        [[name, part.rows, human_size(part.size), part.sha256] for name, part in inspection.parts.items()],
    )
    for missing in inspection.manifest["not_exported"]:
        console.print(f"[yellow]Not exported:[/] {cell(missing['data_type'])}: {cell(missing['reason'])}")
    console.print("[green]The file holds what its manifest says.[/]")
    if signer is None:
        console.print("[yellow]The manifest is not signed.[/]")
    elif key:
        console.print(f"[green]It is signed by the key that you trust:[/] {cell(signer.key_id)}")
    else:
        console.print(f"Unchanged since it was signed by {cell(signer.public_key)}: compare with `--key`.")


COMMANDS = (
    request,
    status,
    list_requests,
    queue,
    approve,
    reject,
    extend,
    retry,
    cancel,
    delete,
    download,
    verify,
)


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d}"


def _followed(services: wiring.Services, request_id: str, timeout: float, *, quiet: bool) -> Iterator[ExportRequest]:
    """Whoever waits hears soon when nothing seems to be there that could take the request up."""
    yield from follow(services.database, [request_id], timeout=min(timeout, _SOON_S))
    if timeout <= _SOON_S:
        return
    queue = services.requests.queue()
    if not quiet and queue.pending and not queue.claimed + queue.processing:
        errors.print(
            "Nothing seems to run: no request is claimed. Start `export-pipeline up` for this state folder; waiting on."
        )
    yield from follow(services.database, [request_id], timeout=timeout - _SOON_S)


def _move(move: Callable[[Intake], ExportRequest], *, as_json: bool) -> None:
    with wiring.connect(settings.load()) as services:
        moved = move(services.intake)
    _show_made(moved, waited=False, as_json=as_json)


def _show_made(made: ExportRequest, *, waited: bool, as_json: bool) -> None:
    if as_json:
        print_json(made)
    elif not waited:
        console.print(f"{made.request_id}  {cell(made.status)}")
    if not waited:
        return
    if made.status in ON_ITS_WAY:
        hint = "Is `export-pipeline up` running for this state folder?"
        refuse(ExportPipelineError(f"The request is still {made.status.value}.", hint=hint), reported=as_json)
    if made.status is RequestStatus.AWAITING_APPROVAL:
        hint = "Somebody else lets it go on: `export-pipeline approve ID`."
        refuse(ExportPipelineError("The request waits for approval.", hint=hint), reported=as_json)
    if made.status not in (RequestStatus.COMPLETED, RequestStatus.PARTIAL):
        why = made.error_message or "no reason was given"
        refuse(ExportPipelineError(f"The request is {made.status.value}: {why}"), reported=as_json)
