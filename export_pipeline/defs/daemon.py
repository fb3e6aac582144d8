"""Dagster's daemon, whose sensors look at once when a request is written: ``python -m export_pipeline.defs.daemon``.

A sensor stays the one way in. Its round, which Dagster makes every five seconds, begins early when the tables send a
notice; when notices fail, the rounds go on as before.
"""

import argparse
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psycopg
import yaml

from export_pipeline.defs.internals import capture_interrupts, run_daemons
from export_pipeline.defs.process import services
from export_pipeline.defs.sensors import in_flight
from export_pipeline.errors import ExportPipelineError

#: Dagster skips a sensor whose last tick began less than its minimum interval ago, and says so to nobody: a ring heard
#: then would wait for the next regular round. So the rounds go on quickly as long as there is something to claim.
_AGAIN_S = 0.25
#: Rounds in vain after which the regular ones do: somebody may have switched the sensor off.
_PATIENCE = 8
_RECONNECT_S = 5.0
_CODE_SERVER_S = 30.0


class Bell:
    """Rings when a request was written or changed.

    Args:
        instance: Dagster's instance.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._rung = threading.Event()
        self._last = 0.0
        self._in_vain = 0
        threading.Thread(target=self._listen, name="bell", daemon=True).start()

    def ring(self) -> None:
        """End a `wait`."""
        self._rung.set()

    def wait(self, timeout: float) -> None:
        """Wait for a ring, at most `timeout` seconds; only shortly while requests are left that can be claimed."""
        self._in_vain = self._in_vain + 1 if _claimable(self._instance) else 0
        if not 0 < self._in_vain <= _PATIENCE:
            self._in_vain = 0
            self._rung.wait(timeout)
        self._rung.clear()
        time.sleep(max(0.0, self._last + _AGAIN_S - time.monotonic()))
        self._last = time.monotonic()

    def _listen(self) -> None:
        while True:
            with suppress(psycopg.Error, ExportPipelineError), services().database.dedicated() as connection:
                connection.execute("LISTEN export_requests_open")
                self._rung.set()
                for _ in connection.notifies():
                    self._rung.set()
            time.sleep(_RECONNECT_S)


def _claimable(instance: dg.DagsterInstance) -> bool:
    """Whether a tick of the sensor would find something."""
    with suppress(psycopg.Error, ExportPipelineError):
        queue, most = services().requests.queue(), in_flight(instance)
        return queue.pending > 0 and queue.claimed + queue.processing < most
    return False


def _await_code_server(workspace: Path) -> None:
    """Begin when the code server of this machine is there, if it comes soon: Dagster looks again only seconds later."""
    locations = yaml.safe_load(workspace.read_text(encoding="utf-8"))["load_from"]
    sockets = [path for location in locations if (path := location.get("grpc_server", {}).get("socket"))]
    deadline = time.monotonic() + _CODE_SERVER_S
    while sockets and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(sockets[0]) == 0:
                return
        time.sleep(0.1)  # a socket sends no word


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-w", "--workspace", required=True)
    options = parser.parse_args()
    _await_code_server(Path(options.workspace))
    with suppress(KeyboardInterrupt), capture_interrupts(), dg.DagsterInstance.get() as instance:  # asked to end
        bell = Bell(instance)
        with run_daemons(instance, options.workspace, bell.wait, bell.ring) as wait_for_the_end:
            wait_for_the_end()


if __name__ == "__main__":
    main()
