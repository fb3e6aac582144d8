"""The command around download links."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import typer

from export_pipeline import settings, wiring
from export_pipeline.cli.account import me
from export_pipeline.cli.output import AsJson, cell, console, print_json, print_table
from export_pipeline.db.links import IssuedLink
from export_pipeline.links import Links
from export_pipeline.models import Actor


def link(
    request_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The request's id.")] = None,
    lifetime: Annotated[
        int | None,
        typer.Option(min=1, max=525_600, help="Minutes that the link works; without it EXPORT_PIPELINE_LINK_MINUTES."),
    ] = None,
    revoke: Annotated[str | None, typer.Option(metavar="LINK_ID", help="End this link.")] = None,
    revoke_all: Annotated[bool, typer.Option("--revoke-all", help="End every link of the request.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the links of the request.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a download link to the file of a request, or end links. Whoever has a link has the file."""
    if (request_id is None) == (revoke is None):
        raise typer.BadParameter("Name either a request or, with --revoke, a link.")
    actor = me()
    configured = settings.load()
    with wiring.connect(configured) as services:
        if request_id is None or revoke_all or show:
            found = _ended(services.links, actor, request_id=request_id, link_id=revoke, end=revoke_all)
            return _show(found, as_json=as_json)
        made = services.links.issue(request_id, actor, None if lifetime is None else timedelta(minutes=lifetime))
    url = configured.api_url + made.url_path
    if as_json:
        return print_json({"url": url, "expires_at": made.expires_at, "link_id": made.link_id})
    typer.echo(url)
    console.print(f"Until {cell(made.expires_at)}; end it with `export-pipeline link --revoke {made.link_id}`.")


COMMANDS = (link,)


def _ended(
    links: Links, actor: Actor, *, request_id: str | None, link_id: str | None, end: bool
) -> Sequence[IssuedLink]:
    if link_id is not None:
        return [links.revoke(link_id, actor)]
    if request_id is None:
        return []
    if end:
        links.revoke_all(request_id, actor)
    return links.of_request(request_id)


def _show(found: Sequence[IssuedLink], *, as_json: bool) -> None:
    if as_json:
        return print_json({"links": found})
    print_table(
        ["link", "issued to", "issued at", "expires at", "revoked at", "downloads"],
        [[one.link_id, one.issued_to, one.issued_at, one.expires_at, one.revoked_at, one.downloads] for one in found],
    )
