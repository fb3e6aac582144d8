"""Commands around the installation's keys. Private halves are never printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import psycopg
import typer

from export_pipeline import settings, wiring
from export_pipeline.cli.account import me
from export_pipeline.cli.output import AsJson, cell, console, print_json, print_table
from export_pipeline.errors import ConfigurationError, DatabaseError, ExportPipelineError, KeyUnusable
from export_pipeline.settings import Settings
from export_pipeline.vault import keys, signing

app = typer.Typer(no_args_is_help=True)


@app.command()
def new(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write an identity to this file instead, to keep or to give.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the first key file where there is none, or an identity in a file of its own."""
    chosen = settings.load()
    if output is None and chosen.keys is not None:
        raise ConfigurationError(
            "The keys come from EXPORT_PIPELINE_KEYS.", hint="Give --output FILE to make an identity for it."
        )
    file = output or wiring.key_file(chosen)
    made = keys.create(file, None if output else wiring.key_service(chosen))
    if not made:
        raise ConfigurationError(f"{file} is there already.", hint="`export-pipeline keys rotate` adds a key to it.")
    [fact] = keys.facts(file)
    if as_json:
        print_json({"file": file, "public_key": fact.public_key})
    else:
        console.print(f"{cell(file)}  {fact.public_key}")
        console.print("Keep a copy elsewhere: a lost key is a lost file.")


@app.command(name="list")
def list_keys(as_json: AsJson = False) -> None:
    """Show the public keys: which seals, how many stored files each opens, and which signs."""
    chosen = settings.load()
    shown = wiring.public_keys(chosen)
    counts = _counts(chosen)
    sealed = [
        {
            "public_key": fact.public_key,
            "seals": number == 0,
            "created": fact.created,
            "wrapped": fact.wrapped,
            "files": None if counts is None else counts.get(fact.public_key, 0),
        }
        for number, fact in enumerate(shown)
    ]
    known = {fact.public_key for fact in shown}
    lost = sum(files for key, files in (counts or {}).items() if key and key not in known)
    unknown = (counts or {}).get("", 0)
    signers = _signers(chosen)
    if as_json:
        print_json(
            {"keys": sealed, "signing_keys": signers, "files_without_key": lost, "files_of_unknown_key": unknown}
        )
        return
    print_table(
        ["public key", "use", "created", "stored files"],
        [[key["public_key"], _use(seals=bool(key["seals"])), key["created"], key["files"]] for key in sealed],
    )
    print_table(
        ["public signing key", "use", "id", "created"],
        [[f.public_key, "signs" if f.signs else "signed earlier", f.key_id, f.created] for f in signers],
    )
    if unknown:
        console.print(f"{unknown} stored files do not say which of these keys opens them.")
    if lost:
        console.print(f"[red]{lost} stored files are sealed for a key that is not here: nobody can open them.[/]")


@app.command()
def rotate(
    sign: Annotated[
        bool, typer.Option("--signing", help="Rotate the key that signs, instead of the one that seals.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new first key; running exports go on, and what older keys sealed or signed stays readable."""
    chosen = settings.load()
    if sign:
        public_key = signing.rotate(wiring.signing_key_file(chosen))
    elif chosen.keys is not None:
        raise ConfigurationError(
            "The keys come from EXPORT_PIPELINE_KEYS.",
            hint="Put the identity of `export-pipeline keys new -o FILE` in front of the others and restart.",
        )
    else:
        public_key = keys.rotate(wiring.key_file(chosen), wiring.key_service(chosen))
    logged = _log_rotation(chosen, f"{public_key} {'signs' if sign else 'seals'}")
    if as_json:
        print_json({"public_key": public_key, "signing": sign, "in_trail": logged})
        return
    console.print(f"{public_key} {'signs' if sign else 'seals'} from now on.")
    console.print("Keep a copy of the key file elsewhere.")
    if not logged:
        console.print("It does not stand in the audit trail: our database did not take it.")


def _log_rotation(chosen: Settings, detail: str) -> bool:
    """Write it into the trail; a key that may be stolen is replaced also where the database is away."""
    try:
        with wiring.connect(chosen) as services:
            services.files.log_rotation(me(), detail)
    except (ExportPipelineError, psycopg.Error):
        return False
    return True


def _counts(chosen: Settings) -> dict[str, int] | None:
    """Public key → stored files; None when the database cannot tell now: keys can be listed without it."""
    try:
        with wiring.connect(chosen, prepare=False) as services:
            return services.files.by_key()
    except DatabaseError:
        return None


def _signers(chosen: Settings) -> list[signing.SignerFact]:
    try:
        return signing.facts(wiring.signing_key_file(chosen))
    except KeyUnusable:
        return []


def _use(*, seals: bool) -> str:
    return "seals and opens" if seals else "opens"
