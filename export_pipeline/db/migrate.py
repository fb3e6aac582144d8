"""Numbered SQL files, applied in order, once each, under a lock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

import psycopg

from export_pipeline.errors import ConfigurationError, NotMigrated

#: Any constant serves, as long as every version uses the same.
_LOCK = 0x6578_706F_7274

_LEDGER = """
CREATE SCHEMA IF NOT EXISTS export_pipeline;
CREATE SCHEMA IF NOT EXISTS dagster;
CREATE TABLE IF NOT EXISTS export_pipeline.schema_migrations (
    version    INTEGER     PRIMARY KEY,
    name       TEXT        NOT NULL,
    sha256     TEXT        NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
"""

#: Those of roles.sql that have rights on our tables.
_ROLES = ["export_pipeline_app", "export_pipeline_auditor", "export_pipeline_intake"]


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One file of the folder `migrations`."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest that shows whether an applied file was changed afterwards."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Every migration that this version of the package knows, in order."""
    folder = resources.files(__package__) / "migrations"
    found = [
        Migration(version=int(file.name[:4]), name=file.name[5:-4], sql=file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.version)


def roles_sql() -> str:
    """The statements that make the roles of an installation; a superuser runs them once."""
    return _text("roles.sql")


def migrate(connection: psycopg.Connection, *, up_to: int | None = None) -> list[Migration]:
    """Bring the tables to the newest version, all or nothing; and where the roles of `roles_sql` exist, give each its
    rights.

    Args:
        connection: A connection that may create schemas and tables.
        up_to: Stop after this version; for tests of the upgrade path.

    Returns:
        The migrations that were applied now.

    Raises:
        ConfigurationError: The tables come from a newer version, an applied migration was changed, or our role may not
            make tables.
    """
    try:
        with connection.transaction():
            applied = _apply(connection, up_to)
            if up_to is None:
                _grant(connection)
            return applied
    except psycopg.errors.InsufficientPrivilege:
        raise ConfigurationError(
            "The role of the database URL may not make the tables.",
            hint="GRANT CREATE ON DATABASE to it, or run `export-pipeline migrate` as the role that owns the tables;"
            " docs/database-roles.md.",
        ) from None


def _apply(connection: psycopg.Connection, up_to: int | None) -> list[Migration]:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    connection.execute(_LEDGER)
    applied = _applied(connection)
    _refuse_strangers(applied)
    todo = [m for m in migrations() if m.version not in applied and (up_to is None or m.version <= up_to)]
    for migration in todo:
        connection.execute(migration.sql.encode())
        connection.execute(
            "INSERT INTO export_pipeline.schema_migrations (version, name, sha256) VALUES (%s, %s, %s)",
            [migration.version, migration.name, migration.sha256],
        )
    return todo


def require_current(connection: psycopg.Connection) -> None:
    """Make sure that the tables are those that this version expects.

    Raises:
        NotMigrated: They are not; the hint names the command.
        ConfigurationError: Our role may not look at them.
    """
    try:
        with connection.transaction():
            ledger = connection.execute("SELECT to_regclass('export_pipeline.schema_migrations')").fetchone()
            applied = _applied(connection) if ledger and ledger[0] else {}
    except psycopg.errors.InsufficientPrivilege:
        raise ConfigurationError(
            "The role of the database URL may not look at the tables.",
            hint="GRANT it what docs/database-roles.md says, or connect as a role that `export-pipeline roles` makes.",
        ) from None
    if set(applied) != {migration.version for migration in migrations()}:
        raise NotMigrated(
            f"The tables are at version {max(applied, default=0)}, this program needs {migrations()[-1].version}.",
            hint="Run `export-pipeline migrate`.",
        )


def _grant(connection: psycopg.Connection) -> None:
    """Each time and not only with a migration: the roles may have been made since."""
    found = connection.execute("SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname = ANY (%s)", [_ROLES]).fetchone()
    if found == (len(_ROLES),):
        connection.execute(_text("grants.sql").encode())


def _text(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _applied(connection: psycopg.Connection) -> dict[int, str]:
    rows = connection.execute("SELECT version, sha256 FROM export_pipeline.schema_migrations").fetchall()
    return dict(rows)


def _refuse_strangers(applied: dict[int, str]) -> None:
    known = {migration.version: migration.sha256 for migration in migrations()}
    for version, sha256 in applied.items():
        if version not in known:
            raise ConfigurationError(
                f"The database was migrated to version {version} by a newer export-pipeline.",
                hint="Upgrade this installation.",
            )
        if known[version] != sha256:
            raise ConfigurationError(f"Migration {version} was changed after it had been applied.")
