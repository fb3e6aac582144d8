"""Lists stay quick however many requests there are: each page is read from an index, and nothing is sorted."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from export_pipeline.db import listing
from export_pipeline.db.listing import Listing, Place
from export_pipeline.db.pool import Database
from export_pipeline_tests.conftest import database_url

_PAST = """
INSERT INTO export_pipeline.export_requests
    (request_id, user_id, requested_by, request_type, data_types, format, status, requested_at)
SELECT 'past-' || n, 'user-' || n % 50, 'import', 'backup', '{user_clicks}', 'json', 'completed',
       now() - n * interval '1 minute'
FROM generate_series(1, 20000) AS n
"""


@pytest.fixture(scope="module")
def past_url(server_url: str, migrated_template: str) -> str:
    """A database with a long past; nobody writes to it."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE listing TEMPLATE {migrated_template}")
    url = database_url(server_url, "listing")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(_PAST)
        connection.execute("ANALYZE export_pipeline.export_requests")
    return url


@pytest.mark.parametrize("filters", [{}, {"user_id": "user-7"}, {"format": "json"}])
@pytest.mark.parametrize("place", [None, 9000])
def test_a_page_is_read_from_an_index(
    past_url: str, filters: dict[str, str], place: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(past_url)
    store = Listing(database)
    after = None if place is None else Place.of(store.get(f"past-{place}").request)
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(Listing, "_read", lambda _, query, values: asked.append((query, values)) or [])
    store.page(limit=50, after=after, **filters)
    [(query, values)] = asked
    with database.connect() as connection:
        plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN (ANALYZE) {query}".encode(), values))
    database.close()
    assert "Sort" not in plan and "newest" in plan, plan


def test_pages_of_one_person_are_all_of_theirs(past_url: str) -> None:
    store, seen, after = Listing(Database(past_url)), [], None
    while page := store.page(limit=64, after=after, user_id="user-7"):
        seen += [one.request.request_id for one in page]
        after = Place.of(page[-1].request)
    assert seen == [f"past-{n}" for n in range(7, 20_001, 50)]


def test_counts_are_by_status_and_format(past_url: str) -> None:
    assert Listing(Database(past_url)).counts() == [listing.Count(status="completed", format="json", requests=20_000)]
