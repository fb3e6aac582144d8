"""Every private name of Dagster's that we use, in one place.

What protects from a version of Dagster that changes one of them is the pin in `pyproject.toml`, which may be moved only
when `export_pipeline_tests/integration/test_dagster_contract.py` passes. There is no fallback name by name.

`definitions.py` and all that it imports come without this module, so jobs, sensors and schedules work on stock Dagster:
``dagster dev -m export_pipeline.definitions``, with a `dagster.yaml` of one's own. What `up` starts and what our
`dagster.yaml` names (storage, warm launcher and coordinator, daemon, the UI behind the sign-in) needs it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import dagster as dg
import sqlalchemy
from dagster._cli.api import _execute_run_command_body
from dagster._config import UserConfigSchema
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._core.run_coordinator import DefaultRunCoordinator
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import DaemonIterator, DagsterDaemon, SensorDaemon
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, unpack_value
from dagster._utils.interrupts import capture_interrupts
from dagster_postgres import PostgresEventLogStorage
from dagster_webserver.version import __version__ as webserver_version
from dagster_webserver.webserver import DagsterWebserver
from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

__all__ = [
    "MAY_CHANGE",
    "CheckRunHealthResult",
    "ConfigurableClass",
    "ConfigurableClassData",
    "DefaultRunCoordinator",
    "LaunchRunContext",
    "RunLauncher",
    "UserConfigSchema",
    "WaitingEvent",
    "WorkerStatus",
    "begin_run",
    "capture_interrupts",
    "dagster_ui",
    "execute_run",
    "insert_events",
    "run_daemons",
    "run_to_execute",
    "share_pool",
]

#: In the scope of an ASGI request: whether whoever asks may launch and terminate. Absent means no.
MAY_CHANGE = "export_pipeline.may_change"
_POOL_SIZE = 2
_MAX_OVERFLOW = 20


def begin_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Say that a queued run is starting, as Dagster does when it launches one."""
    starting = dg.DagsterEvent(event_type_value=dg.DagsterEventType.PIPELINE_STARTING.value, job_name=run.job_name)
    instance.report_dagster_event(starting, run_id=run.run_id)


def execute_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Execute a launched run in this process: what `dagster api execute_run` does after its imports."""
    _execute_run_command_body(run_id, instance, lambda _event: None, set_exit_code_on_failure=False)


def run_to_execute(arguments: Any) -> str:
    """The id of the run that `CeleryRunLauncher` put into a message."""
    return unpack_value(arguments, as_type=ExecuteRunArgs).run_id


def share_pool(url: str, *storages: object) -> None:
    """Give Dagster's storages one small pool that asks before it hands out a connection.

    They open a connection for every statement otherwise. Without asking, a restart of the server in the middle of a run
    would make it fail after it had succeeded.
    """
    engine = sqlalchemy.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_pre_ping=True,
        pool_size=_POOL_SIZE,
        max_overflow=_MAX_OVERFLOW,
        hide_parameters=True,  # in the text of errors
    )
    for storage in storages:
        vars(storage)["_engine"].dispose()
        vars(storage)["_engine"] = engine


def insert_events(storage: PostgresEventLogStorage, events: Sequence[dg.EventLogEntry]) -> None:
    """Write events that concern no asset in one statement, in their order."""
    rows = [storage._event_to_row(event) for event in events]
    with storage._connect() as connection:
        connection.execute(SqlEventLogStorageTable.insert().values(rows))


class _GuardedWebserver(DagsterWebserver):  # type: ignore[type-arg]
    """Dagster's web server, read-only for every request that does not say that it may change something."""

    def _make_request_context(self, conn: HTTPConnection) -> WorkspaceRequestContext:
        context: WorkspaceRequestContext = super()._make_request_context(conn)
        if conn.scope.get(MAY_CHANGE) is not True:
            context._read_only = True
        return context

    async def gen_graphql_response(
        self, request_context: WorkspaceRequestContext, query: str, *args: Any, **named: Any
    ) -> JSONResponse:
        """Refuse mutations as such: not every one of Dagster's asks for a permission."""
        if request_context.read_only and _mutates(query):
            refused = {"data": None, "errors": [{"message": "You may look, and change nothing."}]}
            return JSONResponse(refused, 403)
        return await super().gen_graphql_response(request_context, query, *args, **named)


def _mutates(query: str) -> bool:
    try:
        definitions = parse(query).definitions
    except GraphQLError:
        return False  # answered as such
    return any(
        isinstance(node, OperationDefinitionNode) and node.operation is OperationType.MUTATION for node in definitions
    )


@contextmanager
def dagster_ui(instance: dg.DagsterInstance, workspace: str) -> Iterator[Starlette]:
    """Make the application that `dagster-webserver` serves; what may change something it takes from `MAY_CHANGE`."""
    with WorkspaceProcessContext(
        instance, version=webserver_version, workspace_load_target=WorkspaceFileTarget(paths=[workspace])
    ) as context:
        yield _GuardedWebserver(context, live_data_poll_rate=2000).create_asgi_app()


class WaitingEvent:
    """Stands in for the event by which Dagster's sensor loop waits between its rounds.

    Args:
        event: Set when the daemon shall end.
        wait: Waits at most so many seconds, less when there is something to do.
    """

    def __init__(self, event: object, wait: Callable[[float], None]) -> None:
        self._event = event
        self._wait = wait

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end or for something to do."""
        self._wait(5.0 if timeout is None else timeout)
        return self.is_set()

    def is_set(self) -> bool:
        """Whether the daemon shall end."""
        return bool(self._event.is_set())  # type: ignore[attr-defined]


class _WokenSensorDaemon(SensorDaemon):
    """Dagster's sensor daemon, whose pauses end when there is something to do. Ticks and UI are unchanged."""

    def __init__(self, settings: dict[str, object], wait: Callable[[float], None], wake: Callable[[], None]) -> None:
        super().__init__(settings)
        self._wait_for_work = wait
        self._wake = wake

    def core_loop(self, workspace_process_context, shutdown_event) -> DaemonIterator:  # type: ignore[no-untyped-def] # noqa: ANN001
        waiting = WaitingEvent(shutdown_event, self._wait_for_work)
        Thread(target=self._wake_at_the_end, args=[shutdown_event], name="wake-at-the-end", daemon=True).start()
        yield from super().core_loop(workspace_process_context, waiting)  # type: ignore[arg-type]

    def _wake_at_the_end(self, shutdown_event: Event) -> None:
        """Else whoever ends the daemon waits for the pause to be over."""
        shutdown_event.wait()
        self._wake()


@contextmanager
def run_daemons(
    instance: dg.DagsterInstance, workspace: str, wait: Callable[[float], None], wake: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Run Dagster's daemons as `dagster-daemon run` does, with a sensor daemon that waits by `wait`.

    Args:
        instance: Dagster's instance.
        workspace: The file that names the code server.
        wait: Waits at most so many seconds, less when there is something to do.
        wake: Ends such a wait.

    Yields:
        What blocks until the daemons end, and raises when one of them dies.
    """

    def daemons(instance: dg.DagsterInstance) -> list[DagsterDaemon[Any]]:
        return [
            _WokenSensorDaemon(dict(instance.get_sensor_settings()), wait, wake)
            if daemon_type == SensorDaemon.daemon_type()
            else create_daemon_of_type(daemon_type, instance)
            for daemon_type in instance.get_required_daemon_types()
        ]

    with daemon_controller_from_instance(
        instance, workspace_load_target=WorkspaceFileTarget(paths=[workspace]), gen_daemons=daemons
    ) as controller:
        yield controller.check_daemon_loop
