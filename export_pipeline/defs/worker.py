"""A warm worker: imports everything once, then executes one run after the other.

Started by `export-pipeline up` and `export-pipeline worker`: ``python -m export_pipeline.defs.worker``.
A run that brings its process down takes nothing else with it; the process is started again.
"""

import argparse
import os
import signal
import threading
from contextlib import suppress

import dagster as dg

from export_pipeline.db.run_queue import RunQueue, Seat
from export_pipeline.defs.internals import begin_run, capture_interrupts, execute_run
from export_pipeline.defs.lasting import UNAVAILABLE
from export_pipeline.defs.launcher import NOT_BEGUN
from export_pipeline.defs.process import services
from export_pipeline.defs.warm import begin_buffering, begin_canceling, end_run, load_definitions, make_way, patiently
from export_pipeline.errors import DatabaseUnavailable

_IDLE_S = 5.0


class Worker:
    """Takes runs from the queue and executes them here.

    Args:
        instance: Dagster's instance, held for the worker's life.
        recycle_after: Runs after which the process ends, to be started afresh; 0 means never.
    """

    def __init__(self, instance: dg.DagsterInstance, *, recycle_after: int) -> None:
        self._instance = instance
        self._recycle_after = recycle_after
        self._queue = RunQueue(services().database)
        self._current: str | None = None
        #: Held while it changes, and while the run that it names is interrupted.
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._seat = Seat(services().database, self._interrupt)

    def serve(self) -> None:
        """Work until told to stop, or recycled."""
        executed = 0
        while not self._stopping.is_set():
            if run_id := self._take():
                self._execute(run_id)
                executed += 1
                if executed == self._recycle_after:
                    break
            else:
                self._seat.wait(_IDLE_S)
        self._seat.leave()

    def _take(self) -> str | None:
        try:
            return self._queue.take(self._seat.worker)
        except DatabaseUnavailable:
            return None  # asked again after a pause, or at once when the seat is taken again

    def stop(self) -> None:
        """End after the run that is going on."""
        self._stopping.set()
        self._seat.wake()

    def _execute(self, run_id: str) -> None:
        """Execute a run and see to its end, also when our database goes away meanwhile."""
        if patiently(lambda: self._queue.begin(run_id, self._seat.worker), self._stopping):
            patiently(lambda: self._run(run_id), self._stopping)
        patiently(lambda: self._end(run_id), self._stopping)

    def _run(self, run_id: str) -> None:
        run = self._instance.get_run_by_id(run_id)
        if run is not None and run.status in NOT_BEGUN:
            with self._changing:
                self._current = run_id
            try:
                with capture_interrupts():
                    if run.status is dg.DagsterRunStatus.QUEUED:
                        begin_run(self._instance, run)
                    execute_run(self._instance, run_id)
            finally:
                with self._changing:
                    self._current = None

    def _end(self, run_id: str) -> None:
        """What was begun has ended: here, or with the worker from which it was taken over."""
        if self._queue.holds(run_id, self._seat.worker):
            end_run(self._instance, run_id)
            self._queue.done(run_id)

    def _interrupt(self, run_id: str) -> None:
        """Called in the seat's thread: the main thread executes the run and must be interrupted.

        Dagster takes an interruption for a failure unless the run was said to be canceling before.
        """
        with self._changing:
            if run_id == self._current:
                with suppress(*UNAVAILABLE):  # it is interrupted all the same
                    begin_canceling(self._instance, run_id)
                os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recycle-after", type=int, default=0)
    options = parser.parse_args()
    # Between runs nothing may interrupt us; during a run Dagster installs a handler of its own. It would take SIGTERM,
    # by which we are asked to end, for the wish to cancel the run: that signal is kept for a thread that waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    make_way()
    load_definitions()
    with dg.DagsterInstance.get() as instance:
        begin_buffering(instance)
        worker = Worker(instance, recycle_after=options.recycle_after)
        threading.Thread(target=_stop_on_sigterm, args=[worker], name="stop", daemon=True).start()
        worker.serve()


def _stop_on_sigterm(worker: Worker) -> None:
    signal.sigwait({signal.SIGTERM})
    worker.stop()


if __name__ == "__main__":
    main()
