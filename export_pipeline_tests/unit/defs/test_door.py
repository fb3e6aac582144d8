"""The door: every error ends as a status of the request, and nothing of an unexpected one reaches Dagster."""

from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info

from export_pipeline.defs.door import MAX_RETRIES, door
from export_pipeline.errors import (
    DatabaseUnavailable,
    ExportPipelineError,
    InvalidRequest,
    RunNotEntitled,
    SourceUnavailable,
    WrongStatus,
)

CANARY = "ada.lovelace@example.org"


class Run:
    """Stands for `ExportRun`: notes what it is told."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.told: list[str] = []
        self._refuses = refuses

    def fail(self, message: str) -> None:
        self._tell(f"fail: {message}")

    def cancel(self) -> None:
        self._tell("cancel")

    def drop_snapshot(self) -> None:
        self._tell("drop snapshot")

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if self._refuses:
            raise self._refuses


class Lazy:
    """Stands for `LazyExportRun`."""

    def __init__(self, run: Run, refuses: Exception | None = None) -> None:
        self._run = run
        self._refuses = refuses

    def get(self) -> Run:
        if self._refuses:
            raise self._refuses
        return self._run


class Context:
    """Stands for the op's context."""

    def __init__(self, retry_number: int = 0) -> None:
        self.retry_number = retry_number


def through(error: BaseException, run: Run, *, retry_number: int = 0, lazy: Lazy | None = None) -> BaseException:
    """What comes out of the door when `error` is raised inside, in the middle of handling another."""
    with pytest.raises(BaseException) as caught, door(Context(retry_number), lazy or Lazy(run)):
        try:
            raise KeyError(CANARY)
        except KeyError:
            raise error  # noqa: B904
    return caught.value


def everything_about(error: BaseException) -> str:
    """The text of an error and of all that hangs on it, as Python and as Dagster tell it."""
    texts = [str(serializable_error_info_from_exc_info((type(error), error, error.__traceback__)))]
    while error is not None:
        texts += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def test_a_step_that_succeeds_gets_its_run() -> None:
    run = Run()
    with door(Context(), Lazy(run)) as given:
        assert given is run
    assert run.told == []


@pytest.mark.parametrize("retry_number", range(MAX_RETRIES))
def test_a_retryable_error_asks_for_a_retry_with_a_new_snapshot(retry_number: int) -> None:
    run = Run()
    outcome = through(SourceUnavailable("away"), run, retry_number=retry_number)
    assert isinstance(outcome, dg.RetryRequested)
    assert (outcome.max_retries, run.told) == (MAX_RETRIES, ["drop snapshot"])


def test_after_the_last_retry_it_fails_the_request() -> None:
    run = Run()
    outcome = through(SourceUnavailable("The source is away.", hint="Wait."), run, retry_number=MAX_RETRIES)
    assert isinstance(outcome, dg.Failure)
    assert outcome.description == "The source is away. Wait."
    assert not outcome.allow_retries
    assert run.told == ["fail: The source is away. Wait."]


def test_any_other_error_of_ours_fails_at_once() -> None:
    run = Run()
    outcome = through(InvalidRequest("Nothing was asked for."), run)
    assert isinstance(outcome, dg.Failure)
    assert run.told == ["fail: Nothing was asked for."]


def test_a_run_that_is_not_entitled_leaves_the_request_alone() -> None:
    run = Run()
    outcome = through(RunNotEntitled("Another run owns it."), run)
    assert isinstance(outcome, dg.Failure)
    assert outcome.description == "Another run owns it."
    assert run.told == []


def test_a_failure_passes_as_it_is() -> None:
    run = Run()
    failure = dg.Failure("Choose a partition.")
    assert through(failure, run) is failure
    assert run.told == []


def test_an_unexpected_error_is_told_by_type_and_place_only() -> None:
    run = Run()
    outcome = through(ValueError(CANARY), run)
    assert isinstance(outcome, dg.Failure)
    assert outcome.description.startswith("Unexpected ValueError at test_door.py:")
    assert run.told == [f"fail: {outcome.description}"]
    assert not outcome.allow_retries


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        psycopg.errors.UniqueViolation(f"Key (email)=({CANARY}) already exists."),
        OSError(2, "No such file", CANARY),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
        InvalidRequest("Refused."),
        SourceUnavailable("Away."),
        RunNotEntitled("Not yours."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("retry_number", [0, MAX_RETRIES])
def test_nothing_of_the_original_hangs_on_what_is_raised(error: Exception, retry_number: int) -> None:
    run = Run()
    outcome = through(error, run, retry_number=retry_number)
    assert (outcome.__cause__, outcome.__context__) == (None, None)
    assert CANARY not in everything_about(outcome) + "".join(run.told)


@pytest.mark.parametrize("refusal", [WrongStatus("no"), psycopg.OperationalError(CANARY), ValueError(CANARY)])
@pytest.mark.parametrize("error", [ValueError(CANARY), InvalidRequest("Refused."), SourceUnavailable("Away.")])
def test_a_request_that_cannot_be_told_does_not_hide_the_failure(error: Exception, refusal: Exception) -> None:
    outcome = through(error, Run(refusal))
    assert isinstance(outcome, dg.RetryRequested if isinstance(error, SourceUnavailable) else dg.Failure)
    assert CANARY not in everything_about(outcome)


def test_a_database_that_is_away_before_the_run_is_made_asks_for_a_retry() -> None:
    outcome = through(ValueError("never raised"), Run(), lazy=Lazy(Run(), DatabaseUnavailable("away")))
    assert isinstance(outcome, dg.RetryRequested)


def test_a_database_that_stays_away_ends_as_a_failure() -> None:
    lazy = Lazy(Run(), DatabaseUnavailable("Our database is away."))
    outcome = through(ValueError("never raised"), Run(), lazy=lazy, retry_number=MAX_RETRIES)
    assert isinstance(outcome, dg.Failure)
    assert outcome.description == "Our database is away."


def test_a_terminated_run_cancels_its_request() -> None:
    run = Run()
    interruption = dg.DagsterExecutionInterruptedError()
    assert through(interruption, run) is interruption
    assert run.told == ["cancel"]


@pytest.mark.parametrize("refusal", [WrongStatus("It is completed."), psycopg.OperationalError("away")])
def test_a_termination_stays_one_when_the_request_cannot_be_cancelled(refusal: Exception) -> None:
    interruption = dg.DagsterExecutionInterruptedError()
    assert through(interruption, Run(refusal)) is interruption


def test_dagsters_event_log_holds_nothing_of_an_unexpected_error() -> None:
    run = Run()

    @dg.op
    def step(context: dg.OpExecutionContext) -> None:
        with door(context, Lazy(run)):
            raise psycopg.errors.UniqueViolation(f"Key (email)=({CANARY}) already exists.")

    @dg.job(executor_def=dg.in_process_executor)
    def one_step() -> None:
        step()

    with dg.DagsterInstance.ephemeral() as instance:
        result = one_step.execute_in_process(instance=instance, raise_on_error=False)
        entries: list[Any] = instance.all_logs(result.run_id)
    assert not result.success
    text = "\n".join(f"{entry}{entry.to_json()}" for entry in entries)
    assert "Unexpected UniqueViolation (SQLSTATE 23505) at test_door.py" in text
    assert CANARY not in text


def test_errors_of_ours_are_shown_by_dagster() -> None:
    outcome = through(ExportPipelineError("One clear sentence.", hint="Mend it."), Run())
    assert "One clear sentence. Mend it." in everything_about(outcome)
