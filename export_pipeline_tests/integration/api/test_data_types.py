"""What can be asked for, and its administration by the API."""

from __future__ import annotations

from typing import Any

import pytest

from export_pipeline.models import AuditAction
from export_pipeline_tests.integration.api.conftest import Api, problem

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
    assert trail(api) == [(AuditAction.CONFIGURATION_CHANGED, "adam", "orders")] * 2


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
