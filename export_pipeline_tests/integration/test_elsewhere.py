"""A run begins on one machine and its request is finished on another: no shared disk, nothing lost, nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from export_pipeline import leftovers, wiring
from export_pipeline.collect.parts import Part
from export_pipeline.errors import InvalidRequest, VaultError
from export_pipeline.export_run import ExportRun
from export_pipeline.models import Actor, RequestStatus
from export_pipeline.plan import ExportPlan
from export_pipeline.render.formats import delivered
from export_pipeline.settings import Settings
from export_pipeline.wiring import Services

ADMIN = Actor(id="admin")
TYPES = ["user_profile", "user_clicks"]


@pytest.fixture
def here(settings: Settings, tmp_path: Path) -> Iterator[Services]:
    with wiring.connect(settings.model_copy(update={"storage_url": (tmp_path / "store").as_uri()})) as made:
        yield made


@pytest.fixture
def there(here: Services, tmp_path: Path) -> Iterator[Services]:
    """Another machine: a state folder of its own, copies of the keys, the same database and store."""
    home = tmp_path / "there"
    home.mkdir()
    shutil.copytree(here.settings.home / "keys", home / "keys")
    with wiring.connect(here.settings.model_copy(update={"home": home})) as made:
        yield made


def begin(services: Services) -> ExportRun:
    request = services.intake.request(actor=ADMIN, user_id="user-0004", data_types=TYPES)
    services.requests.claim(10)
    return services.run(request.request_id, "run-1", reopen=False)


def collect(run: ExportRun) -> tuple[ExportPlan, list[Part]]:
    plan = run.plan()
    return plan, [run.collect(plan, planned.data_type) for planned in plan.types]


def work(services: Services) -> list[str]:
    return services.work().keys()


def clear(services: Services) -> list[str]:
    return leftovers.clear(services.database, services.work(), services.settings.home / "work")


def delivered_file(services: Services, request_id: str) -> dict[str, object]:
    metadata = services.requests.metadata(request_id)
    chunks = delivered(services.vault().open(metadata.storage_key), metadata.content_encoding)
    return json.loads(b"".join(chunks))


def test_a_reexecution_from_failure_collects_what_is_not_there(here: Services, there: Services) -> None:
    """The tickets say that the parts were made; they lie on the other machine."""
    run = begin(here)
    plan, parts = collect(run)
    here.requests.fail(run.request_id, run_id="run-1", message="render_and_store failed")
    run.close()
    assert len(work(here)) == 2
    again = there.run(run.request_id, "run-2", reopen=True)
    try:
        finished = again.write_metadata(again.render_and_store(plan, parts, {}))
    finally:
        again.close()
    assert (finished.status, finished.run_id) == (RequestStatus.COMPLETED, "run-2")
    file = delivered_file(here, run.request_id)
    assert {name: len(rows) for name, rows in file["data"].items()} == {part.data_type: part.rows for part in parts}
    assert work(there) == []


@pytest.mark.parametrize("step", ["collect", "render_and_store"])
def test_a_reexecution_does_not_follow_a_plan_that_would_be_another_one_now(here: Services, step: str) -> None:
    """Who mends an anonymisation and lets Dagster go on from the failure must not get what was to be hidden."""
    run = begin(here)
    plan, parts = collect(run)
    ticket = json.loads(json.dumps(plan.ticket()))
    here.requests.fail(run.request_id, run_id="run-1", message="it broke")
    run.close()
    [clicks] = [config for config in here.data_types.all() if config.data_type == "user_clicks"]
    hidden = replace(clicks, anonymization={"always": {"element_id": "drop"}})

    def go_on(run_id: str) -> None:
        again = here.run(run.request_id, run_id, reopen=True)
        try:
            if step == "collect":
                again.collect(ExportPlan.from_ticket(ticket), "user_profile")
            else:
                again.render_and_store(ExportPlan.from_ticket(ticket), parts, {})
        finally:
            here.requests.fail(run.request_id, run_id=run_id, message="it broke again")
            again.close()

    go_on("run-2")
    here.data_types.apply([hidden], ADMIN)
    with pytest.raises(InvalidRequest, match="configuration has changed"):
        go_on("run-3")


@pytest.mark.parametrize("cleared", [True, False])
def test_a_reexecution_of_the_last_step_publishes_only_a_file_that_is_there(here: Services, cleared: bool) -> None:
    """Its ticket names the file of the run that failed, and a run that fails removes what it made, if it still can."""
    run = begin(here)
    plan, parts = collect(run)
    stored = run.render_and_store(plan, parts, {})
    if cleared:
        run.fail("write_metadata failed")
    else:
        here.requests.fail(run.request_id, run_id="run-1", message="write_metadata failed")
    run.close()
    again = here.run(run.request_id, "run-2", reopen=True)
    try:
        if cleared:
            with pytest.raises(VaultError, match="to be published is gone"):
                again.write_metadata(stored)
            assert here.requests.metadata(run.request_id) is None
        else:
            assert again.write_metadata(stored).status is RequestStatus.COMPLETED
            assert delivered_file(here, run.request_id)["request_id"] == run.request_id
    finally:
        again.close()


def test_what_a_killed_run_left_is_cleared_when_its_request_moved_on(
    here: Services, there: Services, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    run = begin(here)
    collect(run)
    unfinished = here.settings.home / "work" / run.request_id / "run-1" / "user_errors.part#1"
    unfinished.write_bytes(b"half")
    assert clear(here) == [], "the run owns its request"
    assert clear(there) == []
    run.close()  # as if it had been killed: the lease is gone, and nobody cleared anything
    wait_until(lambda: bool(here.requests.stalled(grace=timedelta(0))))
    [stalled] = here.requests.stalled(grace=timedelta(0))
    here.requests.requeue(stalled, max_attempts=3, detail="its machine is gone")
    there.requests.claim(10)
    next_run = there.run(run.request_id, "run-2", reopen=False)
    try:
        plan, parts = collect(next_run)
        assert clear(there) == []
        assert clear(here) == [f"{run.request_id}/run-1"]
        assert not any((here.settings.home / "work").iterdir())
        next_run.write_metadata(next_run.render_and_store(plan, parts, {}))
    finally:
        next_run.close()
    assert there.requests.get(run.request_id).status is RequestStatus.COMPLETED
    assert clear(there) == []


def test_a_folder_that_is_not_ours_keeps_nothing_from_being_cleared(here: Services) -> None:
    area = here.settings.home / "work"
    for name in (".Trash-0/files", "lost+found/1", "request/.hidden", "request/run-1", "zzz/run-1"):
        (area / name).mkdir(parents=True)
    assert sorted(clear(here)) == ["request/run-1", "zzz/run-1"]
    assert sorted(path.name for path in area.glob("*/*")) == [".hidden", "1", "files"]
