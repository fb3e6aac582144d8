"""`data_type_configs`: which data types there are, and where they live in the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from export_pipeline.db.pool import Database
from export_pipeline.errors import ConfigurationError
from export_pipeline.models import Actor, DataTypeConfig

_NAMES = tuple(field.name for field in fields(DataTypeConfig))
_UPSERT = f"""
INSERT INTO export_pipeline.data_type_configs ({", ".join(_NAMES)})
VALUES ({", ".join(f"%({name})s" for name in _NAMES)})
ON CONFLICT (data_type) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _NAMES)}
WHERE (data_type_configs.*) IS DISTINCT FROM (excluded.*)
"""
_ACT = """
SELECT set_config('export_pipeline.actor', %s, true), set_config('export_pipeline.ip_address', %s, true),
       set_config('export_pipeline.user_agent', %s, true)
"""


class DataTypeStore:
    """The configuration of data types.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[DataTypeConfig]:
        """Every configured data type, by name."""
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                f"SELECT {', '.join(_NAMES)} FROM export_pipeline.data_type_configs ORDER BY data_type".encode()
            )
            return [_config(row) for row in cursor]

    def apply(self, configs: Sequence[DataTypeConfig], actor: Actor, *, prune: bool = False) -> list[str]:
        """Make the table say what `configs` says, in one transaction with its audit rows: a trigger writes them.

        Args:
            configs: The data types to insert or update.
            actor: Who changes the configuration.
            prune: Whether data types that `configs` does not name are removed.

        Returns:
            The data types that changed.

        Raises:
            ConfigurationError: A name cannot be stored; nothing was changed.
        """
        with self._database.connect() as connection:
            _act(connection, actor)
            changed = [config.data_type for config in configs if _upsert(connection, config)]
            if prune:
                removed = connection.execute(
                    "DELETE FROM export_pipeline.data_type_configs WHERE data_type <> ALL(%s) RETURNING data_type",
                    [[config.data_type for config in configs]],
                )
                changed += [row[0] for row in removed]
        return changed

    def remove(self, data_type: str, actor: Actor) -> bool:
        """Take a data type out of the configuration, with its audit row.

        Returns:
            Whether it was there.
        """
        with self._database.connect() as connection:
            _act(connection, actor)
            statement = "DELETE FROM export_pipeline.data_type_configs WHERE data_type = %s"
            return connection.execute(statement, [data_type]).rowcount > 0


def _act(connection: psycopg.Connection, actor: Actor) -> None:
    """Tell the table's trigger, which writes the trail, who acts in this transaction."""
    connection.execute(_ACT, [actor.id, actor.ip_address or "", actor.user_agent or ""])


def _upsert(connection: psycopg.Connection, config: DataTypeConfig) -> bool:
    try:
        return connection.execute(_UPSERT.encode(), _row(config)).rowcount > 0
    except (psycopg.DataError, psycopg.IntegrityError, UnicodeEncodeError):
        raise ConfigurationError(
            f"The configuration of data type {config.data_type[:100]!a} cannot be stored.",
            hint="A data type is 1 to 100 letters, digits, dashes and underscores, beginning with a letter; a table"
            " name has at most 255 characters, a user id column 100; nothing holds a NUL character.",
        ) from None


def _config(row: dict[str, Any]) -> DataTypeConfig:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return DataTypeConfig(**values)


def _row(config: DataTypeConfig) -> dict[str, Any]:
    return {name: _stored(value) for name, value in asdict(config).items()}


def _stored(value: Any) -> Any:
    if isinstance(value, dict):
        return Jsonb(value)
    return list(value) if isinstance(value, tuple) else value
