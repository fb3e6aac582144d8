"""Errors of ours go on to Dagster as they are; of any other it hears the type and the place."""

import psycopg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info
from psycopg2 import errors as psycopg2_errors
from sqlalchemy.exc import IntegrityError

from export_pipeline.defs.own_errors import own_errors
from export_pipeline.errors import DatabaseUnavailable, ExportPipelineError

CANARY = "ada.lovelace@example.org"
QUOTING = f"Key (email)=({CANARY}) already exists."


@own_errors()
def fail_with(error: BaseException | None) -> str:
    """Raises in the middle of handling another error, because of a third."""
    if error is None:
        return "done"
    try:
        raise KeyError(CANARY)
    except KeyError:
        raise error from ValueError(CANARY)


def outcome(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught:
        fail_with(error)
    return caught.value


def test_what_succeeds_is_left_alone() -> None:
    assert [fail_with(None), fail_with(None)] == ["done", "done"]


def test_an_error_of_ours_is_raised_as_it_was() -> None:
    error = DatabaseUnavailable("Our database is away.", hint="Wait.")
    assert outcome(error) is error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(CANARY), "Unexpected ValueError at "),
        (psycopg.errors.UniqueViolation(QUOTING), "Unexpected UniqueViolation (SQLSTATE 23505) at "),
        (psycopg.OperationalError(QUOTING), "Unexpected OperationalError at "),
        (IntegrityError("INSERT", {"email": CANARY}, psycopg2_errors.UniqueViolation(QUOTING)), "IntegrityError at "),
        (DatabaseUnavailable("Our database is away."), "Our database is away."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_of_the_original_hangs_on_what_is_raised(error: Exception, told: str) -> None:
    raised = outcome(error)
    assert isinstance(raised, ExportPipelineError)
    assert told in str(raised)
    assert (raised.__cause__, raised.__context__) == (None, None)
    shown = serializable_error_info_from_exc_info((type(raised), raised, raised.__traceback__))
    assert CANARY not in f"{shown}{raised!r}"


def test_the_place_is_the_innermost_of_ours() -> None:
    assert "at test_own_errors.py:" in str(outcome(ValueError()))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_passes(interruption: BaseException) -> None:
    assert outcome(interruption) is interruption
