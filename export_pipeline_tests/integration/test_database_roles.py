"""The roles of an installation: each can do its work, and nothing else.

On a server of its own: roles are the server's, and `migrate` would grant to them in every other test.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from export_pipeline import audit, embedded, sample_source, wiring
from export_pipeline.db.migrate import migrate, roles_sql
from export_pipeline.db.run_queue import RunQueue, Seat
from export_pipeline.defs.pruning import Pruning
from export_pipeline.defs.storage import dagster_url
from export_pipeline.errors import ConfigurationError, NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.models import Actor, DataTypeConfig, RequestStatus
from export_pipeline.postgres.programs import find_binaries
from export_pipeline.sample_source import HEAVY_USER
from export_pipeline.settings import Settings
from export_pipeline.sign_in.gatekeeper import COOKIE, Asking
from export_pipeline_tests.conftest import database_url

ADMIN = Actor(id="admin", ip_address="192.0.2.1", user_agent="test")
ROLES = ("owner", "app", "intake", "auditor", "source")


def as_role(url: str, role: str, password: str = "secret") -> str:
    return re.sub("//[^@]*@", f"//export_pipeline_{role}:{password}@", url, count=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded.lease(Settings(_env_file=None, home=tmp_path_factory.mktemp("roles"))) as lease:
        yield lease.server.url


@pytest.fixture(scope="module")
def url(server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What docs/database-roles.md says, done once: roles by a superuser, tables by the owner, users' data by others."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE exports")
    url = database_url(server, "exports")
    script = tmp_path_factory.mktemp("sql") / "roles.sql"
    script.write_text(roles_sql())
    for _ in range(2):  # again changes nothing
        subprocess.run(
            [find_binaries() / "psql", "-qv", "ON_ERROR_STOP=1", "-f", script, url],
            check=True,
        )
    with psycopg.connect(url, autocommit=True) as superuser:
        for role in ROLES:
            superuser.execute(
                sql.SQL("ALTER ROLE {} PASSWORD 'secret'").format(sql.Identifier(f"export_pipeline_{role}"))
            )
        sample_source.install(superuser)
        superuser.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO export_pipeline_source")
        superuser.execute("CREATE SCHEMA other; CREATE TABLE other.secrets (secret TEXT)")
    settings = Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("owner"),
        database_url=SecretStr(as_role(url, "owner")),
    )
    assert wiring.apply_migrations(settings)
    assert wiring.apply_migrations(settings) == []
    return url


@pytest.fixture
def installation(url: str, tmp_path: Path) -> Settings:
    """The application and the source's role, as they are configured."""
    made = Settings(
        _env_file=None,
        home=tmp_path / "home",
        database_url=SecretStr(as_role(url, "app")),
        source_url=SecretStr(as_role(url, "source")),
    )
    wiring.make_keys(made)
    return made


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[str], psycopg.Connection]]:
    opened: list[psycopg.Connection] = []

    def make(role: str) -> psycopg.Connection:
        opened.append(psycopg.connect(as_role(url, role), autocommit=True))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close()


# --- each can do its work


@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
def test_the_application_takes_a_request_through_its_life(format: str, installation: Settings) -> None:
    with wiring.connect(installation) as services:
        made = services.intake.request(
            user_id=HEAVY_USER,
            data_types=["user_profile", "user_feedback"],
            format=format,
            actor=ADMIN,
        )
        assert [claim.request_id for claim in services.requests.claim(10)] == [made.request_id]
        services.requests.queue()
        services.tickets.put("run", "step", "result", {"key": 1})
        assert services.tickets.get("run", "step", "result") == {"key": 1}
        run = services.run(made.request_id, f"run-{format}", reopen=False)
        try:
            plan = run.plan()
            parts = [run.collect(plan, planned.data_type) for planned in plan.types]
            done = run.write_metadata(run.render_and_store(plan, parts, {}))
        finally:
            run.close()
        assert done.status is RequestStatus.COMPLETED
        assert next(entry.actor for entry in services.requests.trail(made.request_id)) == "admin"
        assert audit.verify(services.database).intact


def test_the_application_reconciles_retries_cancels_and_deletes(
    installation: Settings,
) -> None:
    with wiring.connect(installation) as services:
        made = services.intake.request(user_id=HEAVY_USER, data_types=["user_clicks"], actor=ADMIN)
        services.requests.claim(10)
        [stalled] = services.requests.stalled(grace=timedelta(0))
        services.requests.requeue(stalled, max_attempts=1, detail="its run was never launched")
        services.intake.retry(made.request_id, ADMIN)
        services.intake.cancel(made.request_id, ADMIN)
        assert services.requests.delete(made.request_id, ADMIN).status is RequestStatus.DELETED
        config = DataTypeConfig(data_type="extra", table_name="users")
        assert services.data_types.apply([config], ADMIN) == ["extra"]
        before = [kept for kept in services.data_types.all() if kept.data_type != "extra"]
        assert services.data_types.apply(before, ADMIN, prune=True) == ["extra"]
        assert audit.verify(services.database).intact


def test_a_configuration_changed_by_hand_names_the_role(
    connect: Callable[[str], psycopg.Connection], installation: Settings
) -> None:
    for role in ("app", "owner"):
        for approval in ("true", "false"):
            connect(role).execute(
                f"UPDATE export_pipeline.data_type_configs SET requires_approval = {approval}"
                " WHERE data_type = 'user_clicks'".encode()
            )
        [(actor, detail)] = (
            connect("auditor")
            .execute("SELECT actor, detail FROM export_pipeline.export_audit_logs ORDER BY log_id DESC LIMIT 1")
            .fetchall()
        )
        assert (actor, detail) == (f"export_pipeline_{role}", "user_clicks: changed requires_approval")
    with wiring.connect(installation) as services:
        assert audit.verify(services.database).intact


def test_the_application_ends_sessions(installation: Settings) -> None:
    with wiring.connect(installation) as services:
        gatekeeper = services.gatekeeper
        session = gatekeeper.open_session(Principal(id="anna", roles=frozenset()))
        asking = Asking(changes=False, headers={"cookie": f"{COOKIE}={session}"})
        assert gatekeeper.admit(asking).id == "anna"
        gatekeeper.sign_out(asking)
        for _ in range(2):
            gatekeeper.sign_out_everywhere("anna", ADMIN)
        with pytest.raises(NotAuthenticated):
            gatekeeper.admit(asking)


def test_the_application_hands_runs_to_workers(installation: Settings) -> None:
    with wiring.connect(installation) as services:
        queue, seat = (
            RunQueue(services.database),
            Seat(services.database, lambda _run: None),
        )
        try:
            assert queue.put("run-of-a-worker")
            assert queue.take(seat.worker) == "run-of-a-worker"
            queue.done("run-of-a-worker")
        finally:
            seat.leave()


def test_dagster_and_its_housekeeping_work_as_the_application(
    url: str, installation: Settings, tmp_path: Path, connect: Callable[[str], psycopg.Connection]
) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "telemetry:\n  enabled: false\nstorage:\n  postgres:\n    postgres_url: "
        + json.dumps(dagster_url(as_role(url, "app")))
    )
    instance = dg.DagsterInstance.from_config(str(home))
    try:
        instance.add_dynamic_partitions("export_requests", ["gone"])
    finally:
        instance.dispose()
    owners = connect("app").execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'dagster'").fetchall()
    assert owners == [("export_pipeline_app",)]
    with wiring.connect(installation) as services:
        pruning = Pruning(database=services.database, partitions_def="export_requests", keep=0, age=timedelta(days=1))
        assert pruning.run().partitions == 1


def test_a_program_of_yours_asks_for_exports(
    connect: Callable[[str], psycopg.Connection], installation: Settings
) -> None:
    intake = connect("intake")
    made = intake.execute(
        "INSERT INTO export_pipeline.export_requests"
        " (user_id, requested_by, request_type, data_types, format, anonymize, recipient)"
        " VALUES ('user-0001', 'shop', 'gdpr', '{user_clicks}', 'json', NULL, NULL) RETURNING request_id"
    ).fetchone()
    assert made
    status = intake.execute("SELECT status FROM export_pipeline.export_requests WHERE request_id = %s", made).fetchone()
    assert status == ("pending",)
    with wiring.connect(installation) as services:
        services.intake.cancel(made[0], ADMIN)
        assert [entry.action for entry in services.requests.trail(made[0])] == [
            "export_requested",
            "export_cancelled",
        ]
        assert audit.verify(services.database).intact


def test_the_auditor_verifies_and_exports(url: str, tmp_path: Path, installation: Settings) -> None:
    with wiring.connect(installation) as services:
        services.intake.request(user_id=HEAVY_USER, data_types=["user_errors"], actor=ADMIN)
    auditor = Settings(
        _env_file=None,
        home=tmp_path / "auditor",
        database_url=SecretStr(as_role(url, "auditor")),
    )
    with wiring.connect(auditor) as services:
        head = audit.head(services.database)
        assert audit.verify(services.database, kept_head=head.hash).intact
        assert len(list(audit.export(services.database))) == head.rows > 0


# --- and nothing else

_REFUSED = {
    "app": [
        "UPDATE export_pipeline.export_audit_logs SET detail = ''",
        "DELETE FROM export_pipeline.export_audit_logs",
        "TRUNCATE export_pipeline.export_audit_logs",
        "INSERT INTO export_pipeline.export_audit_logs (action, actor, timestamp) VALUES ('x', 'y', now())",
        "ALTER TABLE export_pipeline.export_audit_logs DISABLE TRIGGER append_only",
        "DROP TRIGGER chain_audit_log ON export_pipeline.export_audit_logs",
        "ALTER TABLE export_pipeline.data_type_configs DISABLE TRIGGER log_configuration",
        "TRUNCATE export_pipeline.data_type_configs",
        "INSERT INTO export_pipeline.export_audit_chain VALUES (1000, 1000, '', '')",
        "UPDATE export_pipeline.export_audit_chain SET hash = ''",
        "DELETE FROM export_pipeline.export_audit_chain",
        "TRUNCATE export_pipeline.export_audit_chain",
        "INSERT INTO export_pipeline.export_audit_unchained VALUES (1)",
        "DELETE FROM export_pipeline.export_audit_unchained",
        "SELECT FROM export_pipeline.export_audit_chain_lock FOR UPDATE",
        "SELECT export_pipeline.append_to_audit_chain('{1}')",
        "SELECT export_pipeline.lock_audit_chain()",
        "CREATE OR REPLACE FUNCTION export_pipeline.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "DELETE FROM export_pipeline.export_requests",
        "TRUNCATE export_pipeline.export_requests CASCADE",
        "DELETE FROM export_pipeline.export_metadata",
        "UPDATE export_pipeline.schema_migrations SET name = ''",
        "UPDATE export_pipeline.export_revoked_tokens SET expires_at = now()",
        "UPDATE export_pipeline.export_sign_outs SET user_id = ''",
        "CREATE TABLE export_pipeline.mine (id INT)",
        "CREATE SCHEMA mine",
        "SELECT * FROM other.secrets",
        "SELECT * FROM public.users",
        "SET ROLE export_pipeline_owner",
        "SET session_replication_role = replica",
    ],
    "intake": [
        "SELECT * FROM export_pipeline.export_requests",
        "SELECT user_id FROM export_pipeline.export_requests",
        "SELECT FROM export_pipeline.export_audit_logs",
        "SELECT FROM export_pipeline.export_metadata",
        "SELECT FROM export_pipeline.data_type_configs",
        "SELECT FROM export_pipeline.export_revoked_tokens",
        "INSERT INTO export_pipeline.export_sign_outs (user_id, expires_at) VALUES ('u', now())",
        "INSERT INTO export_pipeline.export_requests (user_id, requested_by, status) VALUES ('u', 'u', 'completed')",
        "INSERT INTO export_pipeline.export_audit_logs (action, actor) VALUES ('export_approved', 'y')",
        "UPDATE export_pipeline.export_requests SET status = 'pending'",
        "DELETE FROM export_pipeline.export_requests",
        "SELECT export_pipeline.chain_late_audit_logs()",
        "SELECT * FROM other.secrets",
        "SELECT * FROM public.users",
        "CREATE TABLE dagster.mine (id INT)",
    ],
    "auditor": [
        "SELECT FROM export_pipeline.export_requests",
        "SELECT FROM export_pipeline.export_metadata",
        "SELECT FROM export_pipeline.export_revoked_tokens",
        "SELECT FROM export_pipeline.export_sign_outs",
        "INSERT INTO export_pipeline.export_audit_logs (action, actor) VALUES ('x', 'y')",
        "UPDATE export_pipeline.export_audit_logs SET detail = ''",
        "DELETE FROM export_pipeline.export_audit_logs",
        "TRUNCATE export_pipeline.export_audit_chain",
        "SELECT * FROM public.users",
        "CREATE TABLE dagster.mine (id INT)",
    ],
    "source": [
        "SELECT FROM export_pipeline.export_requests",
        "SELECT FROM export_pipeline.export_audit_logs",
        "SELECT * FROM other.secrets",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; DELETE FROM public.users",
    ],
    "owner": [
        "SELECT * FROM other.secrets",
        "SELECT * FROM public.users",
        "CREATE ROLE mine",
    ],
}


@pytest.mark.parametrize(
    ("role", "statement"),
    [(role, each) for role, some in _REFUSED.items() for each in some],
)
def test_it_is_refused(role: str, statement: str, connect: Callable[[str], psycopg.Connection]) -> None:
    connection = connect(role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
        for each in statement.split("; "):
            connection.execute(each)
    assert refused.value.sqlstate == "42501"


def test_the_source_is_read_only_by_default(
    connect: Callable[[str], psycopg.Connection],
) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connect("source").execute("DELETE FROM public.users")


def test_the_application_cannot_migrate(installation: Settings) -> None:
    with pytest.raises(ConfigurationError, match="may not make the tables"):
        wiring.apply_migrations(installation)


def test_every_table_of_ours_is_named(url: str) -> None:
    """A new table needs a decision: which role may do what with it? It stands in grants.sql and in the docs."""
    root = Path(__file__).parents[2]
    grants = (root / "export_pipeline" / "db" / "grants.sql").read_text("utf-8")
    page = (root / "docs" / "database-roles.md").read_text("utf-8")
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'export_pipeline'").fetchall()
    assert [name for (name,) in tables if name not in grants] == []
    assert [name for (name,) in tables if f"`{name}`" not in page] == []


def test_functions_with_the_owners_rights_have_a_fixed_search_path(url: str) -> None:
    with psycopg.connect(url) as connection:
        loose = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'export_pipeline'::regnamespace AND prosecdef"
            " AND NOT EXISTS (SELECT FROM unnest(proconfig) AS s WHERE s LIKE 'search_path=%%pg_temp')"
        ).fetchall()
    assert loose == []


def test_what_is_not_granted_is_taken_away(url: str, connect: Callable[[str], psycopg.Connection]) -> None:
    with connect("owner") as owner:
        owner.execute("GRANT DELETE ON export_pipeline.export_requests TO export_pipeline_app")
        migrate(owner)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connect("app").execute("DELETE FROM export_pipeline.export_requests")
