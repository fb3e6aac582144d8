"""Dagster's URL: the same server as ours, another driver, a schema of its own."""

from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from export_pipeline.defs import storage
from export_pipeline.defs.storage import SettingsPostgresStorage, dagster_url

SCHEMA = "-csearch_path=dagster"


def connection(url: str) -> dict[str, Any]:
    """What the driver is given in the end."""
    made = dagster_url(url)
    positional, named = create_engine(made).dialect.create_connect_args(make_url(made))
    assert positional == []
    return {name: str(value) for name, value in named.items()}


def test_the_driver_is_psycopg2() -> None:
    made = dagster_url("postgresql://me@host/db")
    assert made.startswith("postgresql+psycopg2://")
    assert create_engine(made).dialect.driver == "psycopg2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me@host:5433/db", {"user": "me", "host": "host", "port": "5433", "dbname": "db"}),
        ("postgres://host/db", {"host": "host", "dbname": "db"}),
        ("postgresql://host", {"host": "host"}),
        ("postgresql:///db?host=/run/x&port=7", {"host": "/run/x", "port": "7", "dbname": "db"}),
        ("postgresql://%2Frun%2Fx/db", {"host": "/run/x", "dbname": "db"}),
        ("postgresql://[::1]:5432/db", {"host": "::1", "port": "5432", "dbname": "db"}),
        ("postgresql://one:1,two:2/db", {"host": "one,two", "port": "1,2", "dbname": "db"}),
        ("postgresql://host/a%20b%25", {"host": "host", "dbname": "a b%"}),
        (
            "postgresql://host/db?sslmode=require&application_name=a%20b+c",
            {"host": "host", "dbname": "db", "sslmode": "require", "application_name": "a b+c"},
        ),
    ],
)
def test_it_means_the_same_server(url: str, expected: dict[str, str]) -> None:
    assert connection(url) == {**expected, "options": SCHEMA}


@pytest.mark.parametrize("written", ["p%40s%3As%2F%23%3F%25%20", "p%40s:s%2F#?%25%20"])
def test_passwords_are_understood_as_postgresql_does(written: str) -> None:
    assert connection(f"postgresql://me:{written}@host/db")["password"] == "p@s:s/#?% "


@pytest.mark.parametrize(
    "options", ["-c%20statement_timeout%3D5s", "-csearch_path%3Dpublic%20-cstatement_timeout%3D5s"]
)
def test_options_of_ones_own_stay_and_the_schema_comes_last(options: str) -> None:
    given = connection(f"postgresql://host/db?options={options}")["options"]
    assert "statement_timeout=5s" in given
    assert given.endswith(f" {SCHEMA}")


def test_dagster_makes_the_storage_from_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Services:
        database_url = "postgresql://me:secret@host/db"

    monkeypatch.setattr(storage, "services", Services)
    monkeypatch.setattr(SettingsPostgresStorage, "__init__", lambda self, **given: made.append(given))
    SettingsPostgresStorage.from_config_value(None, {})
    assert made == [{"inst_data": None, "postgres_url": dagster_url(Services.database_url)}]
    assert SettingsPostgresStorage.config_type() == {}
