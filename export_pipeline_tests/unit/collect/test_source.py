"""Errors of the driver: what a person can act on, and never the driver's own words, which quote values."""

from __future__ import annotations

import traceback

import psycopg
import pytest
from psycopg import errors

from export_pipeline.collect.source import literal, translate
from export_pipeline.errors import SourceError, SourceRefused, SourceUnavailable

CANARY = "ada.lovelace@example.org"

AWAY = [
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ConnectionException,
    errors.ConnectionFailure,
    errors.SqlclientUnableToEstablishSqlconnection,
    errors.InvalidPassword,
    errors.InvalidAuthorizationSpecification,
    errors.InvalidCatalogName,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.DatabaseDropped,
]
REFUSALS = [
    (errors.InsufficientPrivilege, "42501", "permission", "GRANT SELECT"),
    (errors.QueryCanceled, "57014", "took too long", "EXPORT_PIPELINE_SOURCE_STATEMENT_TIMEOUT_S"),
    (errors.LockNotAvailable, "55P03", "locked", "EXPORT_PIPELINE_SOURCE_LOCK_TIMEOUT_S"),
    (errors.UndefinedTable, "42P01", "table vanished", "data-types list"),
    (errors.UndefinedColumn, "42703", "column vanished", "data-types list"),
    (errors.DiskFull, "53100", "out of resources", "Retry later"),
    (errors.OutOfMemory, "53200", "out of resources", "Retry later"),
    (errors.DivisionByZero, "22012", "refused a statement", ""),
    (errors.InvalidTextRepresentation, "22P02", "refused a statement", ""),
    (errors.SyntaxError, "42601", "refused a statement", ""),
    (errors.InternalError_, "XX000", "refused a statement", ""),
]


@pytest.mark.parametrize("kind", AWAY)
def test_a_source_that_cannot_be_reached_may_be_tried_again(kind: type[psycopg.Error]) -> None:
    error = translate(kind(f"connection failed for {CANARY}"))
    assert isinstance(error, SourceUnavailable)
    assert error.retryable
    assert "EXPORT_PIPELINE_SOURCE_URL" in error.hint
    assert (kind.sqlstate or "cannot be reached.") in error.message


@pytest.mark.parametrize(("kind", "state", "words", "hint"), REFUSALS)
def test_a_refusal_says_what_and_how_to_mend_it(kind: type[psycopg.Error], state: str, words: str, hint: str) -> None:
    error = translate(kind(f"Key (email)=({CANARY}) already exists."))
    assert isinstance(error, SourceRefused)
    assert not error.retryable
    assert words in error.message
    assert error.message.endswith(f" (SQLSTATE {state}).")
    assert hint in error.hint


@pytest.mark.parametrize("kind", [*AWAY, *(refusal[0] for refusal in REFUSALS)])
def test_the_drivers_words_are_not_passed_on(kind: type[psycopg.Error]) -> None:
    with pytest.raises(SourceError) as caught:
        try:
            raise kind(CANARY)
        except psycopg.Error as error:
            raise translate(error) from None
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(("value", "written"), [("a", "'a'"), ("o'b", "'o''b'"), ("\\", "E'\\\\'"), ("%s{}", "'%s{}'")])
def test_literals_are_quoted_by_the_driver(value: str, written: str) -> None:
    assert literal(value).as_string(None).strip() == written


@pytest.mark.parametrize("value", ["\0", "canary\0", "\0canary"])
def test_nul_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(SourceRefused, match="NUL") as caught:
        literal(value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("kind", [errors.SerializationFailure, errors.DeadlockDetected, errors.TooManyConnections])
def test_what_passes_by_itself_may_be_tried_again(kind: type[psycopg.Error]) -> None:
    error = translate(kind(f"of {CANARY}"))
    assert isinstance(error, SourceUnavailable)
    assert kind.sqlstate in error.message
    assert CANARY not in str(error)
