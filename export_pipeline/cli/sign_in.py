"""Commands that let people in, a token for programs, a link for browsers; and the one that ends all this."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from export_pipeline import settings, supervisor, wiring
from export_pipeline.cli.account import account, me
from export_pipeline.cli.output import AsJson, cell, console, print_json
from export_pipeline.errors import ConfigurationError
from export_pipeline.identity import Principal, Role

_MAX_BYTES = 64 * 1024
_Roles = Annotated[
    list[Role] | None,
    typer.Option("--role", help="A role; repeat it for more. Unset means only the person's own data."),
]


def token(
    user: Annotated[str, typer.Option("--user", "-u", help="Whom the token speaks for.")],
    roles: _Roles = None,
    email: Annotated[str | None, typer.Option(help="Where codes for the additional verification go.")] = None,
    lifetime: Annotated[float, typer.Option(min=0.01, max=8760, help="Hours that the token counts.")] = 12.0,
    as_json: AsJson = False,
) -> None:
    """Print a bearer token of our own; whoever has it is the person that it names."""
    principal = Principal(id=user, roles=frozenset(roles or [Role.SUBJECT]), email=email)
    with wiring.connect(settings.load()) as services:
        made = services.gatekeeper.issue(principal, timedelta(hours=lifetime), me())
    if as_json:
        print_json({"token": made, "user": user, "roles": sorted(principal.roles), "lifetime_s": int(lifetime * 3600)})
    else:
        typer.echo(made)


def sign_in(
    user: Annotated[
        str | None, typer.Option("--user", "-u", help="Who signs in; unset means the name of the account.")
    ] = None,
    roles: Annotated[
        list[Role] | None, typer.Option("--role", help="A role; repeat it for more. Unset means every role.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a link that signs a browser in, once, within 15 minutes; needs `up`."""
    chosen = settings.load()
    with wiring.connect(chosen) as services:
        link = services.gatekeeper.link(supervisor.ui_url(chosen), somebody(user, roles))
    if as_json:
        print_json({"sign_in_url": link})
    else:
        typer.echo(link)


def sign_out(
    user_id: Annotated[
        str | None, typer.Argument(metavar="[USER_ID]", help="Whose sessions, tokens and sign-in links end.")
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token", metavar="FILE", help="End only what this file holds: a token, or a session; - is standard input."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End all that lets a person in, or one token. What was looked at a moment ago counts for 5 seconds more."""
    if (user_id is None) == (token_file is None):
        raise typer.BadParameter("Name either a person or, with --token, a file.")
    if user_id is not None:
        _everywhere(user_id, as_json=as_json)
    elif token_file is not None:
        _one(_read(token_file), as_json=as_json)


def _everywhere(user_id: str, *, as_json: bool) -> None:
    with wiring.connect(settings.load()) as services:
        at = services.gatekeeper.sign_out_everywhere(user_id, me())
    if as_json:
        return print_json({"user": user_id, "signed_out_at": at})
    console.print(f"Signed out everywhere: {cell(user_id)}. Whoever signs in from now on is in.")


def _one(token: str, *, as_json: bool) -> None:
    with wiring.connect(settings.load()) as services:
        ended = services.gatekeeper.revoke(token, me())
    user_id = ended.principal.id
    if as_json:
        return print_json({"user": user_id, "token_id": ended.token_id, "expires_at": ended.expires_at})
    console.print(f"Ended: token {cell(ended.token_id)} of {cell(user_id)}, and every session that began with it.")


def _read(file: str) -> str:
    """A token never stands in the command line, which other programs of the machine see."""
    try:
        if file == "-":
            text = typer.get_binary_stream("stdin").read(_MAX_BYTES)
        else:
            with Path(file).open("rb") as opened:
                text = opened.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    return text.decode("utf-8", errors="replace").strip()


def somebody(user: str | None = None, roles: list[Role] | None = None) -> Principal:
    """Whoever sits at this terminal: they have the keys already, so every role adds nothing."""
    return Principal(id=user or account(), roles=frozenset(roles or Role))


def link_of(services: wiring.Services, address: str) -> str | None:
    """Where whoever started the system signs in by browser; None where nobody can."""
    if services.settings.local_sign_in:
        return services.gatekeeper.link(address, somebody())
    return f"{address}/sign-in" if services.gatekeeper.by_browser else None


def print_link(services: wiring.Services, address: str) -> None:
    """Print a sign-in link for whoever started the system, or how to make signing in possible."""
    if (link := link_of(services, address)) is not None:
        # Whole, on a line of its own: a link that a terminal breaks can't be followed.
        console.print("Sign in     ", end="")
        typer.echo(link)
    elif not services.gatekeeper.open:
        console.print("Sign in     closed: set EXPORT_PIPELINE_OIDC_ISSUER, or EXPORT_PIPELINE_LOCAL_TOKENS=true")


COMMANDS = (token, sign_in, sign_out)
