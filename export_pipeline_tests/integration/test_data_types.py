"""The configuration of data types, and the trail of its changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from export_pipeline.db.data_types import DataTypeStore
from export_pipeline.db.pool import Database
from export_pipeline.errors import ConfigurationError
from export_pipeline.models import Actor, DataTypeConfig

OPERATOR = Actor(id="operator", ip_address="192.0.2.7", user_agent="tests/1.0")
ORDERS = DataTypeConfig(
    data_type="orders",
    table_name='shop."Order s"',
    user_id_column="Customer",
    columns_to_export=("id", "na,me", "{brace}", 'quo"te', "NULL", ""),
    is_sensitive=True,
    requires_approval=True,
    order_by=("placed", "id"),
    title="Your orders",
)


@pytest.fixture
def store(database: Database) -> DataTypeStore:
    return DataTypeStore(database)


def trail(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT action, actor, ip_address, user_agent, detail, request_id, user_id"
        " FROM export_pipeline.export_audit_logs ORDER BY log_id"
    ).fetchall()


def changed(detail: str) -> tuple[Any, ...]:
    return ("configuration_changed", "operator", "192.0.2.7", "tests/1.0", detail, None, None)


def test_all_are_in_the_order_of_their_names(store: DataTypeStore) -> None:
    names = [config.data_type for config in store.all()]
    assert names == sorted(names)
    assert len(names) == 6


def test_what_was_applied_is_what_is_read(store: DataTypeStore, admin: psycopg.Connection) -> None:
    assert store.apply([ORDERS], OPERATOR) == ["orders"]
    assert [config for config in store.all() if config.data_type == "orders"] == [ORDERS]
    assert len(store.all()) == 7
    assert trail(admin) == [changed("orders: added")]


def test_applying_the_same_again_changes_nothing(store: DataTypeStore, admin: psycopg.Connection) -> None:
    store.apply([ORDERS], OPERATOR)
    assert store.apply([ORDERS, *store.all()], OPERATOR) == []
    assert len(trail(admin)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"table_name": "other"},
        {"user_id_column": "other"},
        {"columns_to_export": ()},
        {"is_sensitive": False},
        {"requires_approval": False},
        {"order_by": ("id", "placed")},
        {"title": ""},
        {"anonymization": {"always": {"email": "drop"}}},
        {"third_party": ("email",)},
        {"order_by": (), "table_name": "other"},
    ],
)
def test_every_field_counts_as_a_change(
    change: dict[str, Any], store: DataTypeStore, admin: psycopg.Connection
) -> None:
    store.apply([ORDERS], OPERATOR)
    assert store.apply([replace(ORDERS, **change)], OPERATOR) == ["orders"]
    assert replace(ORDERS, **change) in store.all()
    assert trail(admin) == [changed("orders: added"), changed(f"orders: changed {', '.join(change)}")]


def test_pruning_removes_what_is_not_named(store: DataTypeStore, admin: psycopg.Connection) -> None:
    kept = next(config for config in store.all() if config.data_type == "user_clicks")
    gone = {config.data_type for config in store.all()} - {"user_clicks"}
    said = store.apply([ORDERS, kept], OPERATOR, prune=True)
    assert said[0] == "orders"
    assert set(said[1:]) == gone
    assert store.all() == [ORDERS, kept]
    assert {row[4] for row in trail(admin)} == {"orders: added", *(f"{name}: removed" for name in gone)}


def test_without_pruning_nothing_is_removed(store: DataTypeStore) -> None:
    assert store.apply([], OPERATOR) == []
    assert len(store.all()) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_type": "two words"},
        {"data_type": "../outside"},
        {"data_type": ""},
        {"data_type": "x" * 101},
        {"table_name": "x" * 256},
        {"table_name": "nul\0"},
        {"user_id_column": "x" * 101},
        {"columns_to_export": ("a", "nul\0")},
    ],
)
def test_what_cannot_be_stored_is_refused_whole(
    wrong: dict[str, Any], store: DataTypeStore, admin: psycopg.Connection
) -> None:
    before = store.all()
    with pytest.raises(ConfigurationError):
        store.apply([ORDERS, replace(ORDERS, **{"data_type": "wrong", **wrong})], OPERATOR, prune=True)
    assert store.all() == before
    assert trail(admin) == []


def test_a_plain_insert_with_the_specified_columns_does(store: DataTypeStore, admin: psycopg.Connection) -> None:
    admin.execute(
        "INSERT INTO export_pipeline.data_type_configs (data_type, table_name, columns_to_export, is_sensitive)"
        " VALUES ('orders', 'orders', ARRAY['id', 'user_id'], false)"
    )
    assert DataTypeConfig(data_type="orders", table_name="orders", columns_to_export=("id", "user_id")) in store.all()


def test_who_changes_it_by_sql_leaves_the_same_trail(store: DataTypeStore, admin: psycopg.Connection) -> None:
    store.apply([ORDERS], OPERATOR)
    store.remove("orders", OPERATOR)
    for statement in (
        "UPDATE {} SET requires_approval = true, title = 'a secret' WHERE data_type = 'user_errors'",
        "UPDATE {} SET requires_approval = true WHERE data_type = 'user_errors'",  # changes nothing
        "UPDATE {} SET data_type = 'failures' WHERE data_type = 'user_errors'",
        "INSERT INTO {} (data_type, table_name) VALUES ('more', 'more')",
        "DELETE FROM {} WHERE data_type = 'more'",
        "TRUNCATE {}",
    ):
        admin.execute(statement.format("export_pipeline.data_type_configs").encode())
    [(role,)] = admin.execute("SELECT session_user").fetchall()
    by_hand = [row[1:] for row in trail(admin)[2:]]
    assert by_hand == [
        (role, None, None, detail, None, None)
        for detail in (
            "user_errors: changed requires_approval, title",
            "user_errors: changed data_type; now failures",
            "more: added",
            "more: removed",
            "every data type: removed",
        )
    ]


def test_who_acted_is_forgotten_with_the_transaction(database: Database, store: DataTypeStore) -> None:
    """The next who gets the connection is somebody else."""
    store.apply([ORDERS], OPERATOR)
    with database.connect() as connection:
        connection.execute("DELETE FROM export_pipeline.data_type_configs WHERE data_type = 'orders'")
        actors = [row[1] for row in trail(connection)]
    assert actors[0] == "operator"
    assert actors[1:] != ["operator"]


def test_a_new_installation_begins_with_an_empty_trail(admin: psycopg.Connection, migrated_url: str) -> None:
    with psycopg.connect(migrated_url) as connection:
        assert trail(connection) == []


@pytest.mark.parametrize("data_type", ["two words", "1st", "a/b", "a.b", "", "a\nb", "a\n"])
def test_a_name_that_can_be_no_file_name_is_refused_by_the_table(data_type: str, admin: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        admin.execute(
            "INSERT INTO export_pipeline.data_type_configs (data_type, table_name) VALUES (%s, 't')", [data_type]
        )
