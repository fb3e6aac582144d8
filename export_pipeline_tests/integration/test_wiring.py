"""Settings become working parts, and leave nothing behind."""

from __future__ import annotations

import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from export_pipeline import embedded, wiring
from export_pipeline.db.migrate import migrate, migrations, require_current
from export_pipeline.errors import ConfigurationError, DatabaseUnavailable, ExportPipelineError, NotMigrated
from export_pipeline.models import Actor
from export_pipeline.settings import Settings

if TYPE_CHECKING:
    from export_pipeline_tests.integration.conftest import Role

ADMIN = Actor(id="admin")
ALL = [f"{migration.version:04d} {migration.name}" for migration in migrations()]


def installation(home: Path, url: str | None = None, **more: object) -> Settings:
    return Settings(_env_file=None, home=home, database_url=SecretStr(url) if url else None, **more)


def sessions(server_url: str, database_url: str) -> int:
    with psycopg.connect(server_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
            [urlsplit(database_url).path[1:]],
        ).fetchone()
    assert row is not None
    return row[0]


# --- the embedded default


def test_the_default_starts_migrates_makes_a_key_and_stops(tmp_path: Path) -> None:
    settings = installation(tmp_path / "home")
    with wiring.connect(settings) as services:
        made = services.intake.request(user_id="u", data_types=["user_clicks"], actor=ADMIN)
        key = wiring.key_file(settings).read_text()
        assert stat.S_IMODE(wiring.key_file(settings).stat().st_mode) == 0o600
        assert services.source_url == services.database_url
        with psycopg.connect(services.database_url) as connection:
            require_current(connection)
        # A second process, or part of this one, shares the server and does not take it away.
        with wiring.connect(settings) as other:
            assert other.requests.get(made.request_id) == made
        assert embedded.is_running(settings)
        assert services.requests.get(made.request_id) == made
    assert not embedded.is_running(settings)

    # What was made is kept, the key above all.
    with wiring.connect(settings, prepare=False) as services:
        assert services.requests.get(made.request_id) == made
        assert wiring.key_file(settings).read_text() == key
        with psycopg.connect(services.database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO export_pipeline.schema_migrations (version, name, sha256) VALUES (9999, 'future', '')"
            )
    assert not embedded.is_running(settings)

    # One that may not go on lets go of the server as well.
    with pytest.raises(ConfigurationError, match="by a newer"):
        wiring.connect(settings)
    assert not embedded.is_running(settings)


def test_without_preparation_nothing_is_made_but_the_server(tmp_path: Path) -> None:
    settings = installation(tmp_path / "home")
    with wiring.connect(settings, prepare=False) as services:
        with psycopg.connect(services.database_url) as connection, pytest.raises(NotMigrated):
            require_current(connection)
        assert not wiring.key_file(settings).exists()
    assert wiring.apply_migrations(settings) == ALL
    assert wiring.apply_migrations(settings) == []
    assert wiring.key_file(settings).exists()
    assert not embedded.is_running(settings)


# --- a database of one's own


def test_ones_own_database_is_used_as_it_is(tmp_path: Path, tables_url: str) -> None:
    settings = installation(tmp_path / "home", tables_url)
    with wiring.connect(settings) as services:
        assert services.database_url == tables_url
        assert services.requests.search() == []
        assert len(services.data_types.all()) == 6
    assert not (tmp_path / "home" / "postgres").exists()


def test_ones_own_database_is_not_migrated_in_passing(tmp_path: Path, pg_url: str, server_url: str) -> None:
    settings = installation(tmp_path / "home", pg_url)
    with pytest.raises(NotMigrated) as refused:
        wiring.connect(settings)
    assert refused.value.hint == "Run `export-pipeline migrate`."
    assert not wiring.key_file(settings).exists()
    with psycopg.connect(pg_url) as connection:
        schemas = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'export_pipeline'").fetchall()
    assert schemas == []
    assert wiring.apply_migrations(settings) == ALL
    wiring.connect(settings).close()


def test_an_older_database_of_ones_own_is_not_migrated_in_passing(tmp_path: Path, pg_url: str) -> None:
    with psycopg.connect(pg_url) as connection:
        migrate(connection, up_to=1)
    with pytest.raises(NotMigrated, match="at version 1"):
        wiring.connect(installation(tmp_path / "home", pg_url))
    assert wiring.apply_migrations(installation(tmp_path / "home", pg_url)) == ALL[1:]


def test_closing_leaves_no_connection(
    tmp_path: Path, tables_url: str, server_url: str, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    wait_until(lambda: sessions(server_url, tables_url) == 0)
    services = wiring.connect(installation(tmp_path / "home", tables_url))
    services.requests.search()
    assert sessions(server_url, tables_url) >= 1
    services.close()
    services.close()
    wait_until(lambda: sessions(server_url, tables_url) == 0)


def test_a_refusal_leaves_no_connection(
    tmp_path: Path, pg_url: str, server_url: str, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    with pytest.raises(NotMigrated):
        wiring.connect(installation(tmp_path / "home", pg_url))
    wait_until(lambda: sessions(server_url, pg_url) == 0)


@pytest.mark.parametrize("act", [wiring.connect, wiring.apply_migrations])
def test_where_nobody_answers_the_database_is_unavailable(
    act: Callable[[Settings], object], tmp_path: Path, closed_port: int
) -> None:
    settings = installation(tmp_path / "home", f"postgresql://canary:canary-secret@127.0.0.1:{closed_port}/canary")
    with pytest.raises(DatabaseUnavailable) as refused:
        act(settings)
    assert refused.value.retryable
    assert "EXPORT_PIPELINE_DATABASE_URL" in refused.value.hint
    shown = "".join(traceback.format_exception(refused.value))
    assert "canary" not in shown.replace(str(tmp_path), "")
    assert not wiring.key_file(settings).exists()


@pytest.mark.parametrize("act", [wiring.connect, wiring.apply_migrations])
def test_who_may_not_come_in_is_told_so(
    act: Callable[[Settings], object], tmp_path: Path, tables_url: str, as_role: Callable[[str, str, str], str]
) -> None:
    with pytest.raises(DatabaseUnavailable) as refused:
        act(installation(tmp_path / "home", as_role(tables_url, "canary-role", "canary-secret")))
    assert "canary" not in str(refused.value)


def test_a_role_that_may_not_make_tables_is_told_so(tmp_path: Path, pg_url: str, new_role: Callable[..., Role]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        wiring.apply_migrations(installation(tmp_path / "home", new_role(pg_url).url))
    assert "GRANT CREATE ON DATABASE" in refused.value.hint


def test_a_role_that_may_not_look_at_our_tables_is_told_so(
    tmp_path: Path, tables_url: str, new_role: Callable[..., Role]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        wiring.connect(installation(tmp_path / "home", new_role(tables_url).url))
    assert "GRANT" in refused.value.hint


def test_a_role_that_may_only_use_the_tables_is_enough_to_run(
    tmp_path: Path, tables_url: str, admin: psycopg.Connection, new_role: Callable[..., Role]
) -> None:
    role = new_role(tables_url)
    for words in (
        "USAGE ON SCHEMA export_pipeline",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA export_pipeline",
    ):
        admin.execute(sql.SQL(f"GRANT {words} TO {{}}").format(sql.Identifier(role.name)))
    with wiring.connect(installation(tmp_path / "home", role.url)) as services:
        made = services.intake.request(user_id="u", data_types=["user_clicks"], actor=ADMIN)
        assert [claim.request_id for claim in services.requests.claim(10)] == [made.request_id]
        assert services.intake.cancel(made.request_id, ADMIN).status == "cancelled"


# --- the rest of the settings


def test_a_source_of_its_own_is_used(tmp_path: Path, tables_url: str, pg_url: str) -> None:
    settings = installation(tmp_path / "home", tables_url, source_url=SecretStr(pg_url))
    with wiring.connect(settings) as services, services.source().snapshot() as snapshot:
        row = snapshot.connection.execute("SELECT current_database()").fetchone()
    assert row == (urlsplit(pg_url).path[1:],)


def test_limits_of_the_source_come_from_the_settings(tmp_path: Path, tables_url: str) -> None:
    settings = installation(tmp_path / "home", tables_url, source_statement_timeout_s=77, source_lock_timeout_s=7)
    with wiring.connect(settings) as services, services.source().snapshot() as snapshot:
        row = snapshot.connection.execute(
            "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
        ).fetchone()
    assert row == ("77s", "7s")


def test_a_key_file_of_ones_own_is_never_made(tmp_path: Path, tables_url: str) -> None:
    settings = installation(tmp_path / "home", tables_url, key_file=tmp_path / "my" / "key.txt")
    assert wiring.apply_migrations(settings) == []
    with wiring.connect(settings) as services, pytest.raises(ExportPipelineError):
        services.vault().require_key()
    assert not (tmp_path / "my").exists()
    assert not (tmp_path / "home" / "keys" / "age.txt").exists()


def test_folders_are_below_the_home_unless_said_otherwise(tmp_path: Path) -> None:
    plain = installation(tmp_path / "a home")
    assert wiring.key_file(plain) == tmp_path / "a home" / "keys" / "age.txt"
    assert wiring.storage_url(plain) == (tmp_path / "a home" / "storage").as_uri()
    chosen = installation(tmp_path, storage_url="s3://bucket/prefix", key_file=tmp_path / "key")
    assert (wiring.storage_url(chosen), wiring.key_file(chosen)) == ("s3://bucket/prefix", tmp_path / "key")
