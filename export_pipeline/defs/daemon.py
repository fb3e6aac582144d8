"""Dagster's daemon, whose sensors look at once when a request is written: ``python -m export_pipeline.defs.daemon``.

A sensor stays the one way in. Its round, which Dagster makes every five seconds, begins early when the tables send a
notice; when notices fail, the rounds go on as before.
"""

import argparse
import threading
import time
from contextlib import suppress

import dagster as dg
import psycopg

from export_pipeline.defs.internals import capture_interrupts, run_daemons
from export_pipeline.defs.process import services
from export_pipeline.errors import ExportPipelineError

#: Dagster does not evaluate a sensor again within its minimum interval, so an earlier round would find nothing.
_MIN_INTERVAL_S = 1.0
_RECONNECT_S = 5.0


class Bell:
    """Rings when a request was written or changed."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._last = 0.0
        threading.Thread(target=self._listen, name="bell", daemon=True).start()

    def wait(self, timeout: float) -> None:
        """Wait for a ring, at most `timeout` seconds, and not less than the sensors' minimum interval."""
        self._rung.wait(timeout)
        self._rung.clear()
        time.sleep(max(0.0, self._last + _MIN_INTERVAL_S - time.monotonic()))
        self._last = time.monotonic()

    def _listen(self) -> None:
        while True:
            with suppress(psycopg.Error, ExportPipelineError), services().database.dedicated() as connection:
                connection.execute("LISTEN export_requests_open")
                self._rung.set()
                for _ in connection.notifies():
                    self._rung.set()
            time.sleep(_RECONNECT_S)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-w", "--workspace", required=True)
    options = parser.parse_args()
    with (
        suppress(KeyboardInterrupt),  # asked to end
        capture_interrupts(),
        dg.DagsterInstance.get() as instance,
        run_daemons(instance, options.workspace, Bell().wait) as wait_for_the_end,
    ):
        wait_for_the_end()


if __name__ == "__main__":
    main()
