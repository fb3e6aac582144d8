"""What we use of Dagster without its promise: a version that changes one of these must fail here, not in production."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import pytest
from dagster._cli.api import _execute_run_command_body
from dagster._core.run_coordinator import DefaultRunCoordinator, QueuedRunCoordinator
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.permissions import get_user_permissions
from dagster._daemon import sensor
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import SensorDaemon
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from dagster_webserver import webserver
from dagster_webserver.webserver import DagsterWebserver

import export_pipeline
from export_pipeline import dagster_home
from export_pipeline.defs.coordinator import WarmRunCoordinator
from export_pipeline.defs.internals import WaitingEvent
from export_pipeline.defs.launcher import WarmRunLauncher
from export_pipeline.models import Actor
from export_pipeline.settings import Settings
from export_pipeline.wiring import Services


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_minor_version_is_the_one_that_was_tried() -> None:
    assert dg.__version__.startswith("1.13."), "Try the new version, then move this and the pin in pyproject.toml."


def test_a_run_is_executed_by_the_same_entry_point() -> None:
    expected = ["run_id", "instance", "write_stream_fn", "set_exit_code_on_failure"]
    assert parameters(_execute_run_command_body) == expected


def test_daemons_can_be_chosen() -> None:
    assert "gen_daemons" in parameters(daemon_controller_from_instance)
    assert parameters(create_daemon_of_type) == ["daemon_type", "instance"]
    assert parameters(SensorDaemon.__init__) == ["self", "settings"]
    assert parameters(SensorDaemon.core_loop) == ["self", "workspace_process_context", "shutdown_event"]


def test_the_sensor_loop_waits_by_its_event() -> None:
    loop = inspect.getsource(sensor.execute_sensor_iteration_loop)
    assert "shutdown_event.wait(" in loop
    assert "shutdown_event.wait(" not in loop.replace("shutdown_event.wait(sleep_time)", "")
    assert sensor.MIN_INTERVAL_LOOP_TIME == 5


@pytest.mark.parametrize("storage", [PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage])
def test_storages_keep_one_engine(storage: type) -> None:
    assert "self._engine = create_pg_engine(" in inspect.getsource(storage.__init__)


def test_the_web_server_asks_for_a_context_at_each_request() -> None:
    assert parameters(DagsterWebserver.__init__)[:4] == [
        "self",
        "process_context",
        "app_path_prefix",
        "live_data_poll_rate",
    ]
    assert parameters(DagsterWebserver._make_request_context) == ["self", "conn"]
    assert parameters(DagsterWebserver.gen_graphql_response)[:3] == ["self", "request_context", "query"]
    # Whatever of it answers a request asks there.
    assert "self._make_request_context(conn)" in inspect.getsource(DagsterWebserver.request_context)
    assert "create_request_context" not in inspect.getsource(webserver).replace(
        inspect.getsource(DagsterWebserver._make_request_context), ""
    )
    assert "gen_graphql_response" in inspect.getsource(DagsterWebserver.graphql_execution_thread)


def test_a_context_s_permissions_go_by_its_read_only() -> None:
    assert "get_user_permissions(self._read_only)" in inspect.getsource(WorkspaceRequestContext.permissions.fget)
    assert "self._read_only" in inspect.getsource(WorkspaceRequestContext.permissions_for_location)
    assert "read_only" in parameters(WorkspaceProcessContext.__init__)
    assert not any(get_user_permissions(True)[name].enabled for name in get_user_permissions(True))


def test_the_web_server_has_the_routes_that_were_looked_at() -> None:
    """A new one may change something without asking for a permission: look at it, then add it here."""
    source = inspect.getsource(DagsterWebserver.build_routes)
    assert sorted(set(re.findall(r'Route\(\s*"([^"]+)"', source))) == [
        "/",
        "/dagit/notebook",
        "/dagit_info",
        "/download_debug/{run_id:str}",
        "/graphql",
        "/logs/{path:path}",
        "/notebook",
        "/report_asset_check/{asset_key:path}",
        "/report_asset_materialization/{asset_key:path}",
        "/report_asset_observation/{asset_key:path}",
        "/server_info",
        "/{path:path}",
    ]


def test_events_become_rows() -> None:
    assert parameters(PostgresEventLogStorage._event_to_row) == ["self", "event"]
    assert hasattr(PostgresEventLogStorage, "_connect")


def test_the_launcher_is_whole() -> None:
    assert not WarmRunLauncher.__abstractmethods__
    assert WarmRunLauncher(inst_data=None).supports_check_run_worker_health


def test_a_run_is_queued_and_launched_as_dagster_does_it() -> None:
    """`begin_run` and the coordinator say what these would."""
    assert not WarmRunCoordinator.__abstractmethods__
    assert parameters(DefaultRunCoordinator.submit_run) == parameters(WarmRunCoordinator.submit_run)
    assert "run_launcher.terminate(run_id)" in inspect.getsource(DefaultRunCoordinator.cancel_run)
    assert "DagsterEvent.job_enqueue(dagster_run)" in inspect.getsource(QueuedRunCoordinator.submit_run)
    assert "event_type_value=DagsterEventType.PIPELINE_STARTING.value" in inspect.getsource(
        dg.DagsterInstance.launch_run
    )


def test_the_waiting_event_is_the_event_that_it_stands_for() -> None:
    end, waited = threading.Event(), []
    event = WaitingEvent(end, waited.append)
    assert event.wait(3.0) is False
    end.set()
    assert event.wait() is True
    assert (waited, event.is_set()) == ([3.0, 5.0], True)


def test_private_names_stand_in_one_file() -> None:
    importing = re.compile(r"^\s*(?:from|import) dagster\w*\._", re.MULTILINE)
    package = Path(export_pipeline.__file__).parent
    found = {file.name for file in package.rglob("*.py") if importing.search(file.read_text())}
    assert found == {"internals.py"}


_STOCK = """
import sys
from dagster._cli import api
del api._execute_run_command_body
sys.modules["export_pipeline.defs.internals"] = None
import dagster as dg
from export_pipeline.definitions import defs
request_id = sys.argv[1]
with dg.DagsterInstance.ephemeral() as instance:
    for job in ("housekeeping", "purge_expired", "warn_deadlines"):
        defs.get_job_def(job).execute_in_process(instance=instance)
    instance.add_dynamic_partitions("export_requests", [request_id])
    defs.get_job_def("export_user_data").execute_in_process(
        instance=instance, partition_key=request_id, tags={"export_pipeline/attempt": "1"})
"""


def test_without_any_private_name_the_definitions_load_and_a_run_completes(
    settings: Settings, services: Services
) -> None:
    """On stock Dagster, when a version has changed what our launcher, daemon and web server use."""
    asked = services.intake.request(actor=Actor(id="admin"), user_id="user-0004", data_types=["user_profile"])
    services.requests.claim(1)
    environment = {**os.environ, **dagster_home.environment(settings)}
    del environment["DAGSTER_HOME"]
    done = subprocess.run(
        [sys.executable, "-c", _STOCK, asked.request_id], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert services.requests.get(asked.request_id).status == "completed"
