"""The frame around every op: whatever happens inside ends as a status of the request and a clear, safe failure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import dagster as dg

from export_pipeline.defs.own_errors import own_errors, raise_alone, unexpected
from export_pipeline.defs.resources import LazyExportRun
from export_pipeline.errors import ExportPipelineError, RunNotEntitled
from export_pipeline.export_run import ExportRun

MAX_RETRIES = 2
_RETRY_WAIT_S = 3


@contextmanager
def door(context: dg.OpExecutionContext, lazy: LazyExportRun) -> Iterator[ExportRun]:
    """Give the op its run, and turn errors into what Dagster and the request should say.

    Errors of our own are safe to show. Any other may quote values in its text, so only its type and place are shown,
    and the exception itself never reaches Dagster.
    """
    run = None
    try:
        run = lazy.get()
        yield run
        return
    except dg.Failure:
        raise
    except dg.DagsterExecutionInterruptedError:
        _attempt(lambda: lazy.get().cancel())
        raise
    except ExportPipelineError as error:
        if error.retryable and context.retry_number < MAX_RETRIES:
            if run is not None:
                _attempt(run.drop_snapshot)
            outcome: Exception = dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=_RETRY_WAIT_S)
        else:
            _fail(lazy, error)
            if isinstance(error, RunNotEntitled):
                _attempt(lambda: _end_as_canceled(context, lazy.get()))
            outcome = dg.Failure(str(error), allow_retries=False)
    except Exception as error:
        safe = unexpected(error)
        _fail(lazy, safe)
        outcome = dg.Failure(str(safe), allow_retries=False)
    raise_alone(outcome)


@contextmanager
def plain_door() -> Iterator[None]:
    """The same for an op that works on no request: there is nobody to be told but Dagster."""
    try:
        with own_errors():
            yield
        return
    except ExportPipelineError as error:
        failure = dg.Failure(str(error))
    raise_alone(failure)


def _fail(lazy: LazyExportRun, error: ExportPipelineError) -> None:
    """Tell the request, unless it is not ours to tell; what this run made is cleared either way."""
    if isinstance(error, RunNotEntitled):
        _attempt(lambda: lazy.get().abandon())
    else:
        _attempt(lambda: lazy.get().fail(str(error)))


def _end_as_canceled(context: dg.OpExecutionContext, run: ExportRun) -> None:
    """A run whose request somebody cancelled did not fail: Dagster ends it by what is said of it here."""
    if run.withdrawn():
        context.instance.report_run_canceling(context.run, "Its request was cancelled or deleted.")


def _attempt(tell: Callable[[], None]) -> None:
    """Do what can be done after a failure. When even that fails, the reconcile sensor finds the request without a run,
    and the first failure stays the one that people see."""
    with suppress(Exception):
        tell()
