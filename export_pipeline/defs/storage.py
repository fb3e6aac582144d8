"""Dagster's storage: PostgreSQL beside our tables, in a schema of its own, found through our settings.

Named in `dagster.yaml` as `storage: custom`, Dagster's public way to bring one's own; so no URL and no password has to
stand in that file, and `dagster dev`, `export-pipeline up` and tests all use the same storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

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

    SQLAlchemy would take psycopg 3 for `postgresql://`, and Dagster's storage hangs with it.
    """
    parts = urlsplit(url)
    option = "options=-csearch_path%3Ddagster"
    query = f"{parts.query}&{option}" if parts.query else option
    return urlunsplit(("postgresql+psycopg2", parts.netloc, parts.path, query, ""))
