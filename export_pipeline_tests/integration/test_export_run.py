"""The steps of a run against a real source, without Dagster."""

from __future__ import annotations

import csv
import io
import json
import zipfile

import psycopg
import pytest

from export_pipeline import sample_source
from export_pipeline.delivery import deliver
from export_pipeline.errors import InvalidRequest, KeyUnusable, RunNotEntitled, SealBroken, VaultError
from export_pipeline.models import Actor, ExportRequest, RequestStatus
from export_pipeline.render.formats import delivered
from export_pipeline.wiring import Services
from export_pipeline_tests.exporting import execute

ADMIN = Actor(id="admin")


def export(services: Services, **asked: object) -> ExportRequest:
    request = services.intake.request(actor=ADMIN, **{"kind": "custom", **asked})
    return execute(services, request.request_id)


def fetch(services: Services, request: ExportRequest) -> bytes:
    metadata = services.requests.metadata(request.request_id)
    return b"".join(delivered(services.vault().open(metadata.storage_key), metadata.content_encoding))


def test_json_holds_every_row_of_the_heavy_user(services: Services) -> None:
    done = export(services, user_id=sample_source.HEAVY_USER, data_types=["user_clicks", "user_profile"])
    document = json.loads(fetch(services, done))
    with psycopg.connect(services.source_url) as connection:
        count = connection.execute(
            "SELECT count(*) FROM user_clicks WHERE user_id = %s", [sample_source.HEAVY_USER]
        ).fetchone()[0]
    assert done.status is RequestStatus.COMPLETED
    assert len(document["data"]["user_clicks"]) == count >= 200_000
    assert document["metadata"]["total_records"] == count + 1


def test_a_type_without_rows_gives_a_header_and_a_zero(services: Services) -> None:
    done = export(services, user_id=sample_source.EMPTY_USER, data_types=["user_clicks"], format="csv")
    with zipfile.ZipFile(io.BytesIO(fetch(services, done))) as archive:
        rows = list(csv.reader(io.TextIOWrapper(archive.open("user_clicks.csv"), encoding="utf-8", newline="")))
        manifest = json.loads(archive.read("manifest.json"))
    assert rows == [["user_id", "element_id", "timestamp"]]
    assert manifest["parts"][0]["rows"] == 0


def test_the_trail_names_a_download_once_the_file_is_open_and_not_before(services: Services) -> None:
    done = export(services, user_id="user-0004", data_types=["user_clicks"])

    def downloads() -> int:
        return [entry.action for entry in services.requests.trail(done.request_id)].count("export_downloaded")

    stored = services.settings.home / "storage" / done.request_id / "run-1" / "export.age"
    key, sealed = services.settings.home / "keys" / "age.txt", stored.read_bytes()
    stored.write_bytes(sealed[:-1])
    with pytest.raises(SealBroken):
        deliver(services.database, services.vault(), done.request_id, ADMIN)
    stored.unlink()
    with pytest.raises(VaultError, match="is gone"):
        deliver(services.database, services.vault(), done.request_id, ADMIN)
    stored.write_bytes(sealed)
    key.rename(key.with_name("away"))
    with pytest.raises(KeyUnusable):
        deliver(services.database, services.vault(), done.request_id, ADMIN)
    assert downloads() == 0
    key.with_name("away").rename(key)
    opened = deliver(services.database, services.vault(), done.request_id, ADMIN)
    assert downloads() == 1
    assert b"".join(opened.chunks) == fetch(services, done)


def test_an_unknown_user_is_refused(services: Services) -> None:
    with pytest.raises(InvalidRequest, match="knows this user id"):
        export(services, user_id="nobody-at-all", data_types=["user_clicks"])


def test_a_run_does_not_take_its_request_back(services: Services) -> None:
    """Who cancels, mends the configuration and retries must not get what the old plan collects."""
    request = services.intake.request(actor=ADMIN, user_id="user-0004", data_types=["user_clicks"])
    services.requests.claim(10)
    old, new = (services.run(request.request_id, name, reopen=False) for name in ("run-1", "run-2"))
    try:
        plan = old.plan()
        services.intake.cancel(request.request_id, ADMIN)
        services.intake.retry(request.request_id, ADMIN)
        with pytest.raises(RunNotEntitled, match="is pending"):
            old.collect(plan, "user_clicks")
        old.abandon()
        old.close()
        services.requests.claim(10)
        assert new.plan() == plan
        assert services.requests.get(request.request_id).run_id == "run-2"
    finally:
        old.close()
        new.close()


def test_a_second_run_is_not_entitled(services: Services) -> None:
    request = services.intake.request(actor=ADMIN, user_id="user-0004", data_types=["user_clicks"])
    services.requests.claim(10)
    first = services.run(request.request_id, "run-1", reopen=False)
    second = services.run(request.request_id, "run-2", reopen=True)
    try:
        first.plan()
        with pytest.raises(RunNotEntitled):
            second.plan()
    finally:
        first.close()
        second.close()
