"""Errors: one sentence and a hint, drawn as a tree, retryable by class, and whole after a pickle."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from export_pipeline import errors
from export_pipeline.errors import ExportPipelineError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
]


#: Those that say a sentence of their own, made from numbers.
LIMITS = [errors.RateLimited, errors.TooManyCodes, errors.TooManyRetries]
SAYING = [error for error in CLASSES if error not in LIMITS]


@pytest.mark.parametrize("error", SAYING)
def test_it_shows_message_and_hint(error: type[ExportPipelineError]) -> None:
    raised = error("One sentence.", hint="Mend it so.")
    assert str(raised) == "One sentence. Mend it so."
    assert (raised.message, raised.hint) == ("One sentence.", "Mend it so.")


@pytest.mark.parametrize("error", SAYING)
def test_without_a_hint_the_message_stands_alone(error: type[ExportPipelineError]) -> None:
    raised = error("One sentence.")
    assert (str(raised), raised.hint) == ("One sentence.", "")


@pytest.mark.parametrize("error", LIMITS)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_a_limit_survives_it_too(error: type[errors.RateLimited], again: object) -> None:
    raised = again(error(limit=5, retry_after_s=60))  # type: ignore[operator]
    assert (type(raised), raised.limit, raised.retry_after_s) == (error, 5, 60)
    assert str(raised) == str(error(limit=5, retry_after_s=60))
    assert raised.hint == "The next one is possible in 2 minutes."


@pytest.mark.parametrize("error", SAYING)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_it_survives_the_way_between_processes(error: type[ExportPipelineError], again: object) -> None:
    raised = again(error("One sentence.", hint="Mend it so."))  # type: ignore[operator]
    assert type(raised) is error
    assert str(raised) == "One sentence. Mend it so."


@pytest.mark.parametrize("error", CLASSES)
def test_it_is_explained_and_hangs_on_the_tree(error: type[ExportPipelineError]) -> None:
    assert error.__doc__
    assert issubclass(error, ExportPipelineError)
    assert errors.__doc__
    assert f"{error.__name__} " in errors.__doc__.replace("\n", " \n"), "the tree at the head of the file"


def test_what_can_be_retried_is_what_may_pass_by_itself() -> None:
    assert {error.__name__ for error in CLASSES if error.retryable} == {
        "DatabaseUnavailable",
        "IdentityProviderUnavailable",
        "KeyServiceUnavailable",
        "MailUnavailable",
        "SourceUnavailable",
        "StorageUnavailable",
    }
    assert {
        name[: -len("(retryable)")].split()[-1]
        for name in map(str.strip, (errors.__doc__ or "").splitlines())
        if name.endswith("(retryable)")
    } == {error.__name__ for error in CLASSES if error.retryable}
