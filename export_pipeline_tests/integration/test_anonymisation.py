"""Altered columns: raw values never leave the source, and the manifest says what was done."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from export_pipeline.errors import ConfigurationError, InvalidRequest
from export_pipeline.models import Actor, DataTypeConfig, ExportRequest, RequestStatus
from export_pipeline.render.formats import delivered
from export_pipeline.wiring import Services
from export_pipeline_tests.exporting import execute

ADMIN = Actor(id="admin")
ROWS = [
    ("p-1", "ann.smith@example.org", "Ann Smith", "2026-03-17 10:11:12.123+00", "secret", "bob@example.org", 1),
    ("p-1", "日本語テキスト", None, "infinity", "s2", "bob@example.org", 2),
    ("p-1", "ab", "", None, "s3", None, 3),
]


@pytest.fixture
def people(services: Services) -> Callable[..., None]:
    """Make the table `people`, and its data type with the given policies."""
    with psycopg.connect(services.source_url) as connection:
        connection.execute(
            "CREATE TABLE people (user_id text, email text, name text, born timestamptz, note text, friend text,"
            " id int PRIMARY KEY)"
        )
        connection.cursor().executemany("INSERT INTO people VALUES (%s, %s, %s, %s, %s, %s, %s)", ROWS)

    def configure(**config: Any) -> None:
        services.data_types.apply(
            [DataTypeConfig(**{"data_type": "people", "table_name": "people", **config})], ADMIN, prune=True
        )

    return configure


def export(services: Services, **asked: Any) -> ExportRequest:
    request = services.intake.request(actor=ADMIN, **{"user_id": "p-1", "data_types": ["people"], **asked})
    return execute(services, request.request_id)


def document(services: Services, request: ExportRequest) -> dict[str, Any]:
    assert request.status is RequestStatus.COMPLETED
    metadata = services.requests.metadata(request.request_id)
    return json.loads(b"".join(delivered(services.vault().open(metadata.storage_key), metadata.content_encoding)))


def test_every_policy_in_one_profile(services: Services, people: Callable[..., None]) -> None:
    policies = {
        "email": {"mask": 2},
        "name": "hash",
        "born": {"truncate": "month"},
        "note": {"replace": "(removed)"},
        "friend": "drop",
        "user_id": "hash",
    }
    people(anonymization={"research": policies})
    found = document(services, export(services, anonymize="research"))
    rows = found["data"]["people"]
    assert list(rows[0]) == ["user_id", "email", "name", "born", "note", "id"]
    assert [row["email"] for row in rows] == ["an" + "*" * 17 + "rg", "*******", "**"]
    assert [row["born"] for row in rows] == ["2026-03-01T00:00:00+00:00", "infinity", None]
    assert [row["note"] for row in rows] == ["(removed)"] * 3
    assert rows[1]["name"] is None
    assert len(rows[0]["name"]) == 64
    assert {row["user_id"] for row in rows} == {found["user_id"]}
    assert found["user_id"] != "p-1"
    raw = json.dumps(found, ensure_ascii=False)
    assert not any(value in raw for value in ("ann.smith", "Ann", "日本語", "secret", "bob@"))
    (part,) = found["metadata"]["parts"]
    assert {altered["column"]: altered["policy"] for altered in part["altered"]} == {
        column: policy if isinstance(policy, str) else next(iter(policy)) for column, policy in policies.items()
    }
    assert found["metadata"]["anonymize"] == "research"
    assert part["column_types"] == ["text", "text", "text", "timestamp with time zone", "text", "integer"]


def test_hashes_are_stable_within_their_scope(services: Services, people: Callable[..., None]) -> None:
    people(anonymization={"a": {"email": "hash", "friend": {"hash": "installation"}}})
    first, second = (document(services, export(services, anonymize="a"))["data"]["people"] for _ in range(2))
    assert first[0]["friend"] == first[1]["friend"] == second[0]["friend"]
    assert first[0]["email"] != second[0]["email"]


def test_other_peoples_data_is_a_pseudonym_in_gdpr_exports(services: Services, people: Callable[..., None]) -> None:
    people(third_party=("friend",))
    answered = document(services, export(services, kind="gdpr"))
    assert answered["user_id"] == "p-1"
    assert answered["data"]["people"][0]["email"] == "ann.smith@example.org"
    assert "bob@example.org" not in json.dumps(answered)
    assert answered["data"]["people"][0]["friend"] == answered["data"]["people"][1]["friend"]
    kept = document(services, export(services, kind="backup"))
    assert kept["data"]["people"][0]["friend"] == "bob@example.org"


def test_always_cannot_be_weakened_and_others_covers_the_rest(services: Services, people: Callable[..., None]) -> None:
    people(anonymization={"always": {"note": "drop"}, "soft": {"*": {"replace": "x"}, "note": {"mask": 1}}})
    row = document(services, export(services, anonymize="soft"))["data"]["people"][0]
    assert row == {"user_id": "x", "email": "x", "name": "x", "born": "x", "friend": "x", "id": "x"}
    assert "note" not in document(services, export(services))["data"]["people"][0]


def test_order_follows_the_raw_column(services: Services, people: Callable[..., None]) -> None:
    people(anonymization={"a": {"id": {"replace": "same"}, "email": {"mask": 0}}}, order_by=("email",))
    rows = document(services, export(services, anonymize="a"))["data"]["people"]
    with psycopg.connect(services.source_url) as connection:
        lengths = [row[0] for row in connection.execute("SELECT length(email) FROM people ORDER BY email")]
    assert [len(row["email"]) for row in rows] == lengths


def test_csv_is_altered_too(services: Services, people: Callable[..., None]) -> None:
    people(anonymization={"a": {"email": {"mask": 1}, "note": "drop"}})
    request = export(services, anonymize="a", format="csv")
    metadata = services.requests.metadata(request.request_id)
    with zipfile.ZipFile(io.BytesIO(b"".join(services.vault().open(metadata.storage_key)))) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("people.csv"), encoding="utf-8")))
    assert rows[0]["email"] == "a" + "*" * 19 + "g"
    assert "note" not in rows[0]


def test_an_unknown_profile_is_refused(services: Services, people: Callable[..., None]) -> None:
    people(anonymization={"a": {"email": "hash"}})
    with pytest.raises(InvalidRequest, match="not configured for people"):
        services.intake.request(actor=ADMIN, user_id="p-1", data_types=["people"], anonymize="b")


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"email": "scramble"}, "unknown policy"),
        ({"email": {"mask": -1}}, "mask takes"),
        ({"email": {"hash": "world"}}, "hash takes"),
        ({"email": {"truncate": "month"}}, "needs a date or timestamp"),
        ({"born": "truncate"}, "truncate takes one of"),
        ({"email": "replace"}, "replace takes"),
        ({"nope": "drop"}, "has no column nope"),
        ({"*": "drop"}, "every column is dropped"),
        ({"email": ["mask"]}, "unknown policy"),
    ],
)
def test_wrong_policies_are_named(
    services: Services, people: Callable[..., None], policies: dict[str, Any], message: str
) -> None:
    people(anonymization={"a": policies})
    with pytest.raises(ConfigurationError, match=message):
        export(services, anonymize="a")


def test_the_key_is_in_no_statement(services: Services, people: Callable[..., None]) -> None:
    people(anonymization={"a": {"email": "hash"}})
    request = services.intake.request(actor=ADMIN, user_id="p-1", data_types=["people"], anonymize="a")
    services.requests.claim(10)
    run = services.run(request.request_id, "run", reopen=False)
    try:
        plan = run.plan()
        run.collect(plan, "people")
        with psycopg.connect(services.source_url) as connection:
            last = connection.execute(
                "SELECT query FROM pg_stat_activity WHERE application_name = 'export-pipeline source'"
            ).fetchall()
    finally:
        run.close()
    statement = last[0][0]
    assert "current_setting" in statement or "COMMIT" in statement or "RELEASE" in statement
    from export_pipeline.vault import pseudonyms
    from export_pipeline.wiring import pseudonym_key_file

    key = pseudonyms.derive(pseudonym_key_file(services.settings), f"export {request.request_id}")
    assert key.hex() not in statement
