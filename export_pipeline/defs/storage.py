"""Dagster's storage: PostgreSQL beside our tables, in a schema of its own, found through our settings.

Named in `dagster.yaml` as `storage: custom`, Dagster's public way to bring one's own; so no URL and no password has to
stand in that file, and `dagster dev`, `export-pipeline up` and tests all use the same storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from export_pipeline.defs.process import services


class SettingsPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` whose URL comes from `EXPORT_PIPELINE_DATABASE_URL` or the embedded server."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> SettingsPostgresStorage:
        """Called by Dagster for each instance."""
        return cls(inst_data=inst_data, postgres_url=dagster_url(services().database_url))


def dagster_url(url: str) -> str:
    """Point a PostgreSQL URL at Dagster's schema, by the driver that Dagster's storage needs.

    SQLAlchemy would take psycopg 3 for `postgresql://`, and Dagster's storage hangs with it. What libpq understands by
    a URL (several hosts, sockets, odd passwords, options of its own) goes on as parameters: SQLAlchemy reads URLs by
    other rules.
    """
    known = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    # The last setting of a name counts.
    known["options"] = f"{known.get('options', '')} -csearch_path=dagster".strip()
    return URL.create(
        "postgresql+psycopg2",
        username=known.pop("user", None),
        password=known.pop("password", None),
        database=known.pop("dbname", None),
        query=known,
    ).render_as_string(hide_password=False)
