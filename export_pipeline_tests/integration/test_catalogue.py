"""What the source says about configured tables, of every kind and under every name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from export_pipeline.collect.catalogue import SourceTable, describe
from export_pipeline.collect.source import Source
from export_pipeline.db.data_types import DataTypeStore
from export_pipeline.db.pool import Database
from export_pipeline.errors import ConfigurationError
from export_pipeline.models import DataTypeConfig
from export_pipeline.plan import PlannedType, plan_type

if TYPE_CHECKING:
    from export_pipeline_tests.integration.conftest import Role

Look = Callable[..., SourceTable | None]


@pytest.fixture
def look(tables_url: str) -> Look:
    """Describe a table, in a snapshot of its own."""

    def see(table_name: str, *, url: str = tables_url, **config: Any) -> SourceTable | None:
        with Source(url).snapshot() as snapshot:
            return describe(snapshot, DataTypeConfig(data_type="t", table_name=table_name, **config))

    return see


def found(look: Look, table_name: str, **more: Any) -> SourceTable:
    table = look(table_name, **more)
    assert table is not None
    return table


# --- names


@pytest.mark.parametrize(
    "name",
    [
        "plain", "Upper", "MiXeD case", "Ünïcode", "日本語", "select", "user", "table", 'we"ird', "a;b", "a.b", "a.b.c",
        "x'); DROP TABLE users;--", "%s", "%(name)s", "{0}", "{}", "back\\slash", "E'\\n'", "line\nbreak", "tab\there",
        " leading", "trailing ", " ", "'", '"', '""', "$$", "$1", "--", "/*", "1", "16384", "-", "*", "ctid", "a,b",
        "public", "pg_class_", "NULL", "x" * 63, "é" * 31, "\u202eright to left", "a\u0301",
    ],
)  # fmt: skip
def test_every_name_is_found_as_it_is_and_quoted(name: str, look: Look, admin: psycopg.Connection) -> None:
    identifier = sql.Identifier(name)
    column = sql.Identifier(name if name != "ctid" else "CTID")  # the one name that no column may have
    admin.execute(sql.SQL("CREATE TABLE public.{} ({} int, user_id text)").format(identifier, column))
    quoted = identifier.as_string()
    for how in (name, f"public.{name}", quoted, f"public.{quoted}", f'"public".{quoted}'):
        table = found(look, how)
        assert (table.schema, table.table) == ("public", name), how
        assert list(table.columns) == [column.as_string()[1:-1].replace('""', '"'), "user_id"], how


@pytest.mark.parametrize("name", ["PLAIN", "Plain", "Public.PLAIN", " public . plain ", '"plain"'])
def test_what_postgresql_understands_is_understood(name: str, look: Look, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.plain (user_id text)")
    assert found(look, name).table == "plain"


@pytest.mark.parametrize(
    "name",
    [
        "nothing", "no.thing", "a.b.c.d", "other_database.public.plain", '"', '""', '"unended', "public.", ".plain",
        ".", "", " ", "plain plain", "plain; DROP TABLE plain", "plain--", "(SELECT 1)", "plain WHERE true", "\\", "%s",
        "{0}", "-", "0", "pg_nothing", "'plain'", "ONLY plain", "plain*", "x" * 200, "plain\n", "plain\t;",
    ],
)  # fmt: skip
def test_what_is_no_table_is_not_found(name: str, look: Look, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.plain (user_id text)")
    table = look(name)
    # White space around a name is PostgreSQL's own latitude.
    assert table is None or (name.strip() == "plain" and table.table == "plain")
    assert admin.execute("SELECT count(*) FROM public.plain").fetchone() == (0,)


def test_a_number_is_never_an_oid(look: Look, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.plain (user_id text)")
    [(oid,)] = admin.execute("SELECT 'public.plain'::regclass::oid::bigint").fetchall()
    assert look(str(oid)) is None
    assert look(f" {oid} ") is None


def test_an_exact_name_goes_before_a_folded_one(look: Look, admin: psycopg.Connection) -> None:
    admin.execute('CREATE TABLE public."Users" (user_id text); CREATE TABLE public.users (user_id text)')
    assert found(look, "Users").table == "Users"
    assert found(look, "users").table == "users"
    assert found(look, "USERS").table == "users"
    assert found(look, "public.Users").table == "Users"


def test_a_name_that_could_mean_two_tables_is_refused(look: Look, admin: psycopg.Connection) -> None:
    admin.execute('CREATE TABLE public.users (user_id text); CREATE TABLE public."public.users" (user_id text)')
    with pytest.raises(ConfigurationError, match=r"public\.users could mean 2 tables") as refused:
        look("public.users")
    assert "Quote each part" in refused.value.hint
    assert found(look, 'public."users"').table == "users"
    assert found(look, '"public.users"').table == "public.users"
    assert found(look, "public.public.users").table == "public.users"


def test_dots_in_schema_and_table_are_no_way_to_another_table(look: Look, admin: psycopg.Connection) -> None:
    admin.execute(
        'CREATE SCHEMA a; CREATE SCHEMA "a.b"; CREATE TABLE a."b.c" (user_id text); CREATE TABLE "a.b".c (user_id text)'
    )
    with pytest.raises(ConfigurationError, match="could mean 2 tables"):
        look("a.b.c")
    assert found(look, 'a."b.c"').schema == "a"
    assert found(look, '"a.b".c').schema == "a.b"


def test_the_search_path_is_followed(
    look: Look, admin: psycopg.Connection, tables_url: str, new_role: Callable[..., Role]
) -> None:
    role = new_role(tables_url, "SUPERUSER LOGIN")
    admin.execute(
        "CREATE SCHEMA first; CREATE SCHEMA second; CREATE TABLE first.users (user_id text);"
        "CREATE TABLE second.users (user_id text); CREATE TABLE second.only_here (user_id text);"
        "CREATE TABLE public.users (user_id text); CREATE TABLE public.not_on_the_path (user_id text)"
    )
    admin.execute(sql.SQL("ALTER ROLE {} SET search_path = first, second").format(sql.Identifier(role.name)))
    assert found(look, "users", url=role.url).schema == "first"
    assert found(look, "only_here", url=role.url).schema == "second"
    assert found(look, "public.users", url=role.url).schema == "public"
    assert look("not_on_the_path", url=role.url) is None


def test_a_catalogue_of_ones_own_on_the_search_path_changes_nothing(
    look: Look, admin: psycopg.Connection, tables_url: str, new_role: Callable[..., Role]
) -> None:
    """Whoever may create tables in the source must not be able to lie about it to us."""
    role = new_role(tables_url, "SUPERUSER LOGIN")
    admin.execute(
        "CREATE SCHEMA evil; CREATE TABLE evil.pg_class (oid oid, relname name, relnamespace oid, relkind text);"
        "CREATE TABLE evil.pg_index (indrelid oid); CREATE TABLE evil.pg_attribute (attrelid oid);"
        "CREATE TABLE public.users (user_id text PRIMARY KEY)"
    )
    admin.execute(sql.SQL("ALTER ROLE {} SET search_path = evil, public, pg_catalog").format(sql.Identifier(role.name)))
    table = found(look, "users", url=role.url)
    assert (table.columns, table.key, table.user_column_indexed) == ({"user_id": "text"}, ("user_id",), True)


# --- kinds


@pytest.mark.parametrize(
    ("kind", "ctid"),
    [
        ("CREATE TABLE public.t (n int, user_id text)", True),
        ("CREATE UNLOGGED TABLE public.t (n int, user_id text)", True),
        ("CREATE VIEW public.t AS SELECT 1 AS n, 'u'::text AS user_id", False),
        ("CREATE MATERIALIZED VIEW public.t AS SELECT 1 AS n, 'u'::text AS user_id", True),
        ("CREATE TABLE public.t (n int, user_id text) PARTITION BY LIST (n)", False),
    ],
)
def test_tables_and_views_of_every_kind_are_found(kind: str, ctid: bool, look: Look, admin: psycopg.Connection) -> None:
    admin.execute(kind)
    table = found(look, "t")
    assert (table.columns, table.has_ctid, table.key) == ({"n": "integer", "user_id": "text"}, ctid, ())


@pytest.mark.parametrize(
    "thing",
    ["CREATE SEQUENCE public.t", "CREATE TYPE public.t AS (n int)", "CREATE FUNCTION public.t() RETURNS int RETURN 1"],
)
def test_what_holds_no_rows_is_not_found(thing: str, look: Look, admin: psycopg.Connection) -> None:
    admin.execute(thing)
    assert look("t") is None
    assert look("public.t") is None


def test_an_index_is_not_found(look: Look, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t (n int PRIMARY KEY)")
    assert look("t_pkey") is None


def test_a_partition_is_a_table(look: Look, admin: psycopg.Connection) -> None:
    admin.execute(
        "CREATE TABLE public.t (n int, user_id text, PRIMARY KEY (n)) PARTITION BY RANGE (n);"
        "CREATE TABLE public.part PARTITION OF public.t FOR VALUES FROM (0) TO (9);"
        "CREATE INDEX ON public.t (user_id)"
    )
    for name in ("t", "part"):
        table = found(look, name)
        assert (table.key, table.user_column_indexed) == (("n",), True)


# --- columns


def test_columns_are_in_their_order_with_their_types(look: Look, admin: psycopg.Connection) -> None:
    admin.execute(
        """
        CREATE TYPE public."weird""type" AS ENUM ('a');
        CREATE DOMAIN public.id AS text CHECK (VALUE <> '');
        CREATE TABLE public.t (
            z varchar(5), a numeric(10, 2), m timestamptz(3), e public."weird""type", d public.id, l text[],
            dropped int, g int GENERATED ALWAYS AS (length(z)) STORED, i int GENERATED ALWAYS AS IDENTITY, "C" "char",
            "Upper" int, "quo""te" int);
        ALTER TABLE public.t DROP COLUMN dropped;
        ALTER TABLE public.t ADD COLUMN late int;
        """
    )
    columns = found(look, "t").columns
    assert list(columns.items()) == [
        ("z", "character varying(5)"), ("a", "numeric(10,2)"), ("m", "timestamp(3) with time zone"),
        ("e", 'public."weird""type"' if "." in columns["e"] else '"weird""type"'),
        ("d", "public.id" if "." in columns["d"] else "id"), ("l", "text[]"),
        ("g", "integer"), ("i", "integer"), ("C", '"char"'), ("Upper", "integer"), ('quo"te', "integer"),
        ("late", "integer"),
    ]  # fmt: skip


# --- keys


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("CREATE TABLE public.t (a int, b int)", ()),
        ("CREATE TABLE public.t (a int, b int PRIMARY KEY)", ("b",)),
        ("CREATE TABLE public.t (a int, b int, PRIMARY KEY (b, a))", ("b", "a")),
        ("CREATE TABLE public.t (a int, b int, PRIMARY KEY (b) INCLUDE (a))", ("b",)),
        ("CREATE TABLE public.t (a int NOT NULL, b int, UNIQUE (a))", ("a",)),
        ("CREATE TABLE public.t (a int, b int, UNIQUE (a))", ()),
        ("CREATE TABLE public.t (a int NOT NULL, b int, UNIQUE (a, b))", ()),
        ("CREATE TABLE public.t (a int NOT NULL, b int NOT NULL, UNIQUE (a, b))", ("a", "b")),
        ("CREATE TABLE public.t (a int NOT NULL, b int NOT NULL, UNIQUE (a, b), UNIQUE (b))", ("b",)),
        ("CREATE TABLE public.t (a int NOT NULL UNIQUE, b int PRIMARY KEY)", ("b",)),
        ("CREATE TABLE public.t (a int NOT NULL, b int); CREATE UNIQUE INDEX ON public.t (a) WHERE b > 0", ()),
        ("CREATE TABLE public.t (a int NOT NULL, b int); CREATE UNIQUE INDEX ON public.t ((a + 1))", ()),
        ("CREATE TABLE public.t (a int NOT NULL, b int); CREATE UNIQUE INDEX ON public.t (a, (b + 1))", ()),
        ("CREATE TABLE public.t (a int NOT NULL, b int); CREATE INDEX ON public.t (a)", ()),
        ("CREATE TABLE public.t (a int NOT NULL, b int); CREATE UNIQUE INDEX ON public.t (a) INCLUDE (b)", ("a",)),
    ],
)
def test_the_key_is_what_gives_each_row_its_place(
    words: str, key: tuple[str, ...], look: Look, admin: psycopg.Connection
) -> None:
    admin.execute(words)
    assert found(look, "t").key == key


def test_an_invalid_index_is_neither_a_key_nor_an_index(look: Look, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t (user_id int NOT NULL)")
    admin.execute("INSERT INTO public.t VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        admin.execute("CREATE UNIQUE INDEX CONCURRENTLY ON public.t (user_id)")
    assert admin.execute("SELECT indisvalid FROM pg_index WHERE indrelid = 'public.t'::regclass").fetchone() == (False,)
    table = found(look, "t")
    assert (table.key, table.user_column_indexed) == ((), False)


@pytest.mark.parametrize(
    ("index", "indexed"),
    [
        ("ON public.t (user_id)", True),
        ("ON public.t (user_id, n)", True),
        ("ON public.t USING hash (user_id)", True),
        ("ON public.t (n, user_id)", False),
        ("ON public.t (n)", False),
        ("ON public.t (n) INCLUDE (user_id)", False),
        ("ON public.t (lower(user_id))", False),
        ("ON public.t (user_id) WHERE n > 0", False),
    ],
)
def test_an_index_helps_when_it_begins_with_the_user_column(
    index: str, indexed: bool, look: Look, admin: psycopg.Connection
) -> None:
    admin.execute("CREATE TABLE public.t (n int, user_id text)")
    admin.execute(f"CREATE INDEX {index}".encode())
    assert found(look, "t").user_column_indexed is indexed
    assert found(look, "t", user_id_column="other").user_column_indexed is False


# --- permission


@pytest.mark.parametrize(
    ("grants", "readable"),
    [
        ([], False),
        (["SELECT ON s.t"], False),
        (["USAGE ON SCHEMA s"], False),
        (["USAGE ON SCHEMA s", "INSERT ON s.t"], False),
        (["USAGE ON SCHEMA s", "SELECT ON s.t"], True),
        (["USAGE ON SCHEMA s", "SELECT (user_id) ON s.t"], True),
    ],
)
def test_it_says_whether_our_role_may_read(
    grants: list[str],
    readable: bool,
    look: Look,
    admin: psycopg.Connection,
    tables_url: str,
    new_role: Callable[..., Role],
) -> None:
    admin.execute("CREATE SCHEMA s; CREATE TABLE s.t (user_id text)")
    role = new_role(tables_url)
    for grant in grants:
        admin.execute(sql.SQL(f"GRANT {grant} TO {{}}").format(sql.Identifier(role.name)))
    assert found(look, "s.t", url=role.url).readable is readable


# --- the plan of a real table


@pytest.fixture
def plan(tables_url: str) -> Callable[..., PlannedType]:
    def make(**config: Any) -> PlannedType:
        made = DataTypeConfig(data_type="t", **{"table_name": "t", **config})
        with Source(tables_url).snapshot() as snapshot:
            return plan_type(made, describe(snapshot, made), matchable=True)

    return make


def test_the_plan_takes_every_column_and_the_key(admin: psycopg.Connection, plan: Callable[..., PlannedType]) -> None:
    admin.execute("CREATE TABLE public.t (b int, user_id text, a int PRIMARY KEY); CREATE INDEX ON public.t (user_id)")
    planned = plan()
    assert planned.extract.columns == ("b", "user_id", "a")
    assert planned.types == ("integer", "text", "integer")
    assert (planned.extract.order_by, planned.extract.by_address, planned.note) == (("a",), False, "")


def test_the_plan_orders_by_address_where_there_is_no_key(
    admin: psycopg.Connection, plan: Callable[..., PlannedType]
) -> None:
    admin.execute("CREATE TABLE public.t (b int, user_id text)")
    planned = plan(columns_to_export=("b",))
    assert (planned.extract.order_by, planned.extract.by_address) == ((), True)
    assert planned.note == "no index begins with user_id"


@pytest.mark.parametrize(
    "config",
    [
        {"table_name": "other"},
        {"columns_to_export": ("b", "missing")},
        {"columns_to_export": ("b", "b")},
        {"columns_to_export": ("B",)},
        {"columns_to_export": ("",)},
        {"columns_to_export": ("ctid",)},
        {"columns_to_export": ("b AS c",)},
        {"columns_to_export": ("*",)},
        {"columns_to_export": ('"b"',)},
        {"user_id_column": "missing"},
        {"user_id_column": "user_id = user_id OR user_id"},
        {"user_id_column": "1=1--"},
        {"order_by": ("b DESC",)},
        {"order_by": ("1",)},
        {"order_by": ("random()",)},
    ],
)
def test_what_the_source_does_not_have_is_refused_by_name(
    config: dict[str, Any], admin: psycopg.Connection, plan: Callable[..., PlannedType]
) -> None:
    admin.execute("CREATE TABLE public.t (b int, user_id text)")
    with pytest.raises(
        ConfigurationError, match=r"^Data type t: .*(has no column|listed twice|no table other)"
    ) as refused:
        plan(**config)
    assert "data-types apply" in refused.value.hint


@pytest.mark.parametrize("column", ["columns_to_export", "order_by"])
@pytest.mark.parametrize("wrong", ["ARRAY['b', NULL]", "ARRAY[['b'], ['user_id']]"])
def test_an_array_that_is_no_list_of_names_is_refused(
    column: str, wrong: str, admin: psycopg.Connection, database: Database, tables_url: str
) -> None:
    """SQL can put into the configuration what the program can't."""
    admin.execute("CREATE TABLE public.t (b int, user_id text)")
    admin.execute(
        f"INSERT INTO export_pipeline.data_type_configs (data_type, table_name, {column})"
        f" VALUES ('t', 't', {wrong})".encode()
    )
    config = next(config for config in DataTypeStore(database).all() if config.data_type == "t")
    with Source(tables_url).snapshot() as snapshot, pytest.raises(ConfigurationError, match="Data type t: "):
        plan_type(config, describe(snapshot, config), matchable=True)
