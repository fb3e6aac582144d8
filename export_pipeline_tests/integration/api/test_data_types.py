"""What can be asked for, and its administration by the API."""

from __future__ import annotations

from typing import Any

import pytest

from export_pipeline import doctor
from export_pipeline.doctor import Verdict
from export_pipeline.models import AuditAction
from export_pipeline_tests.integration.api.conftest import SUBJECT, Api, problem

PATH = "/api/exports/data-types"


def trail(api: Api) -> list[tuple[Any, ...]]:
    with api.services.database.connect() as connection:
        return connection.execute(
            "SELECT action, actor, detail FROM export_pipeline.export_audit_logs ORDER BY log_id"
        ).fetchall()


def test_everybody_sees_what_can_be_asked_for(api: Api) -> None:
    for who in ("subject", "operator", "approver", "auditor", "admin"):
        found = api("GET", PATH, by=who).json()
        assert {"json", "csv", "pdf"} < set(found["formats"])
        profile = next(one for one in found["data_types"] if one["data_type"] == "user_profile")
        assert (profile["table_name"], profile["is_sensitive"], profile["requires_approval"]) == ("users", True, False)
    problem(api("GET", PATH, by="nobody"), 403, "not-allowed")
    problem(api("GET", PATH, by=None), 401, "not-authenticated")


def test_an_admin_changes_them_and_the_trail_says_so(api: Api) -> None:
    fields = {"table_name": "shop.orders", "user_id_column": "customer", "requires_approval": True}
    assert api("PUT", f"{PATH}/orders", by="admin", json=fields).json() == {"data_type": "orders", "changed": True}
    whole = api("GET", f"{PATH}/orders", by="admin")
    assert whole.json().items() >= fields.items()
    again = api("PUT", f"{PATH}/orders", by="admin", json=whole.json())
    assert again.json() == {"data_type": "orders", "changed": False}
    assert api("DELETE", f"{PATH}/orders", by="admin").json()["changed"] is True
    problem(api("DELETE", f"{PATH}/orders", by="admin"), 404, "not-found")
    problem(api("GET", f"{PATH}/orders", by="admin"), 404, "not-found")
    assert trail(api) == [
        (AuditAction.CONFIGURATION_CHANGED, "adam", "orders: added"),
        (AuditAction.CONFIGURATION_CHANGED, "adam", "orders: removed"),
    ]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("1st", {"table_name": "t"}),
        ("x" * 101, {"table_name": "t"}),
        ("orders", {}),
        ("orders", {"table_name": ""}),
        ("orders", {"table_name": "t", "tabel": "t"}),
        ("orders", {"table_name": "t\0"}),
        ("orders", {"table_name": "t", "columns_to_export": ["a\0"]}),
        ("orders", {"table_name": "t", "anonymization": {"always": {"email": "nonsense"}}}),
        ("orders", {"table_name": "t", "anonymization": {"always": {"email": {"replace": "a\0"}}}}),
    ],
)
def test_what_cannot_be_stored_is_refused(api: Api, name: str, fields: dict[str, Any]) -> None:
    problem(api("PUT", f"{PATH}/{name}", by="admin", json=fields), 400, "invalid-request")
    assert trail(api) == []


@pytest.mark.parametrize("who", ["subject", "operator", "approver", "auditor"])
def test_nobody_else_changes_them(api: Api, who: str) -> None:
    problem(api("PUT", f"{PATH}/orders", by=who, json={"table_name": "t"}), 403, "not-allowed")
    problem(api("DELETE", f"{PATH}/user_clicks", by=who), 403, "not-allowed")
    problem(api("GET", f"{PATH}/user_clicks", by=who), 403, "not-allowed")


# --- rows that were written by SQL

BY_SQL = [
    ("columns_to_export", "'{NULL}'", "columns_to_export.0"),
    ("columns_to_export", "'{{a,b},{c,d}}'", "columns_to_export.0"),
    ("order_by", "'{NULL}'", "order_by.0"),
    ("third_party", "'{{a}}'", "third_party.0"),
    ("table_name", "''", "table_name"),
    ("user_id_column", "''", "user_id_column"),
    ("anonymization", """'{"research": {"email": "nonsense"}}'""", "anonymization"),
    ("anonymization", """'{"research": "hash"}'""", "anonymization.research"),
]


def write(api: Api, column: str, value: str) -> None:
    """Make the data type `odd` as docs/configuration.md says."""
    values = {"data_type": "'odd'", "table_name": "'users'", "user_id_column": "'user_id'", column: value}
    with api.services.database.connect() as connection:
        connection.execute(
            f"INSERT INTO export_pipeline.data_type_configs ({', '.join(values)})"
            f" VALUES ({', '.join(values.values())})".encode()
        )


@pytest.mark.parametrize(("column", "value", "field"), BY_SQL)
def test_a_wrong_row_is_named_and_hides_no_other(api: Api, column: str, value: str, field: str) -> None:
    write(api, column, value)
    answer = problem(api("GET", f"{PATH}/odd", by="admin"), 409, "data-type-unusable")
    assert answer["detail"].startswith(f"Data type odd is not usable: {field}: ")
    assert "data-types apply" in answer["hint"]
    listed = {one["data_type"]: one["usable"] for one in api("GET", PATH, by="admin").json()["data_types"]}
    assert [name for name, usable in listed.items() if not usable] == ["odd"]
    assert len(listed) > 5


@pytest.mark.parametrize(("column", "value"), [one[:2] for one in BY_SQL])
def test_a_wrong_row_can_be_replaced(api: Api, column: str, value: str) -> None:
    write(api, column, value)
    assert api("PUT", f"{PATH}/odd", by="admin", json={"table_name": "users"}).json()["changed"] is True
    assert api("GET", f"{PATH}/odd", by="admin").json()["columns_to_export"] == []


def test_a_profile_that_cannot_be_applied_is_refused_with_its_reason(api: Api) -> None:
    write(api, "anonymization", """'{"research": {"email": "nonsense"}, "plain": {"email": "hash"}}'""")
    body = {"user_id": SUBJECT, "data_types": ["odd"], "anonymize": "research"}
    refused = problem(api("POST", "/api/exports/request", by="operator", json=body), 409, "data-type-unusable")
    assert refused["detail"] == "Data type odd, profile research: Column email: unknown policy."
    assert "hash" in refused["hint"]
    assert api("POST", "/api/exports/request", by="operator", json=body | {"anonymize": "plain"}).status_code == 202


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ('{"research": {"email": "nonsense"}}', "Data type odd, profile research: Column email: unknown policy."),
        ('{"a": {}, "b": {"*": {"mask": -1}}}', "Data type odd, profile b: Column user_id: mask takes"),
        ('{"a": "hash"}', "Data type odd, profile a: it must map"),
        ('{"a": {"user_id": {"truncate": "month"}}}', "truncate needs a date"),
        ('{"a": {"*": "drop"}}', "Data type odd: every column is dropped."),
    ],
)
def test_the_doctor_looks_at_every_profile(api: Api, profiles: str, message: str) -> None:
    write(api, "anonymization", f"'{profiles}'")
    found = {finding.check: finding for finding in doctor.examine(api.services.settings)}
    assert found["odd"].verdict is Verdict.BAD
    assert message in found["odd"].message
    assert found["user_clicks"].verdict is not Verdict.BAD
