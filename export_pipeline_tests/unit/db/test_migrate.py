"""Migrations as files: numbered without gaps, and never changed once applied. A stand-in keeps the ledger."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import psycopg
import pytest

from export_pipeline.db.migrate import Migration, migrate, migrations, require_current
from export_pipeline.errors import ConfigurationError, NotMigrated

KNOWN = {migration.version: migration.sha256 for migration in migrations()}


class Ledger:
    """A connection that knows which migrations were applied, and notes what is executed."""

    def __init__(self, applied: dict[int, str] | None) -> None:
        self._applied = applied
        self.executed: list[str] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def execute(self, statement: str | bytes, _values: Any = None) -> Ledger:
        self.executed.append(statement.decode() if isinstance(statement, bytes) else statement)
        return self

    def fetchone(self) -> tuple[object]:
        return (None if self._applied is None else "export_pipeline.schema_migrations",)

    def fetchall(self) -> list[tuple[int, str]]:
        return list((self._applied or {}).items())


def test_they_are_numbered_from_one_without_gaps() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_every_file_of_the_folder_is_one() -> None:
    folder = resources.files("export_pipeline.db") / "migrations"
    names = {file.name for file in folder.iterdir() if not file.name.startswith("__")}
    assert names == {f"{migration.version:04d}_{migration.name}.sql" for migration in migrations()}
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", name) for name in names)


def test_each_says_what_it_is_for_and_has_a_digest() -> None:
    for migration in migrations():
        assert migration.sql.lstrip().startswith("--")
        assert migration.sha256 == hashlib.sha256(migration.sql.encode()).hexdigest()


def test_the_digest_shows_any_change() -> None:
    assert Migration(version=1, name="a", sql="x").sha256 != Migration(version=1, name="a", sql="x ").sha256


@pytest.mark.parametrize("word", ["BEGIN;", "COMMIT;", "ROLLBACK;", "CONCURRENTLY", "VACUUM"])
def test_none_leaves_the_transaction(word: str) -> None:
    """All migrations are applied together or not at all."""
    code = ""
    for migration in migrations():
        body = re.sub(r"\$(\w*)\$.*?\$\1\$", "", migration.sql, flags=re.DOTALL)
        code += "\n".join(line.split("--")[0] for line in body.splitlines())
    assert word not in code.upper()


def test_on_current_tables_nothing_is_applied() -> None:
    ledger = Ledger(KNOWN)
    assert migrate(ledger) == []  # type: ignore[arg-type]
    require_current(ledger)  # type: ignore[arg-type]


def test_missing_ones_are_applied_in_order_and_noted() -> None:
    ledger = Ledger({})
    assert migrate(ledger) == migrations()  # type: ignore[arg-type]
    applied = [statement for statement in ledger.executed if statement in {one.sql for one in migrations()}]
    assert applied == [migration.sql for migration in migrations()]
    assert sum("INSERT INTO export_pipeline.schema_migrations" in one for one in ledger.executed) == len(migrations())


def test_the_lock_comes_first() -> None:
    ledger = Ledger({})
    migrate(ledger)  # type: ignore[arg-type]
    assert "pg_advisory_xact_lock" in ledger.executed[0]


def test_up_to_a_version() -> None:
    assert [one.version for one in migrate(Ledger({}), up_to=1)] == [1]  # type: ignore[arg-type]
    assert migrate(Ledger({}), up_to=0) == []  # type: ignore[arg-type]


def test_tables_of_a_newer_version_are_left_alone() -> None:
    ledger = Ledger({**KNOWN, 9000: "x"})
    with pytest.raises(ConfigurationError, match=r"version 9000 by a newer.*Upgrade"):
        migrate(ledger)  # type: ignore[arg-type]
    assert not any(one.sql in ledger.executed for one in migrations())


def test_a_migration_that_was_changed_afterwards_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Migration 1 was changed"):
        migrate(Ledger({**KNOWN, 1: "other"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("applied", "version"), [(None, 0), ({}, 0), ({1: KNOWN[1]}, 1), ({**KNOWN, 9000: "x"}, 9000)], ids=str
)
def test_other_tables_are_not_used(applied: dict[int, str] | None, version: int) -> None:
    if applied is not None and set(applied) == set(KNOWN):
        pytest.skip("there is only one migration")
    with pytest.raises(NotMigrated, match=f"at version {version}, this program needs {max(KNOWN)}") as caught:
        require_current(Ledger(applied))  # type: ignore[arg-type]
    assert "export-pipeline migrate" in caught.value.hint


@pytest.mark.parametrize("call", [migrate, require_current])
def test_a_role_without_rights_is_told_what_to_grant(call: Callable[[Any], object]) -> None:
    class Refusing(Ledger):
        def execute(self, statement: str | bytes, _values: Any = None) -> Ledger:
            raise psycopg.errors.InsufficientPrivilege("permission denied for canary")

    with pytest.raises(ConfigurationError, match="GRANT") as caught:
        call(Refusing({}))
    assert "canary" not in str(caught.value)
