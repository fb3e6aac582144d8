"""What Dagster hears of an error: a sentence of ours, or of any other its type and place, as its text may quote values.

Dagster keeps an error's text, and that of every other that led to it, in its tables and logs.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from export_pipeline.errors import ExportPipelineError


@contextmanager
def own_errors() -> Iterator[None]:
    """The frame around what Dagster calls outside of ops; also a decorator.

    Raises:
        ExportPipelineError: The one that was raised inside, or one in the place of any other. Nothing hangs on it.
    """
    try:
        yield
        return
    except ExportPipelineError as error:
        shown = error
    except Exception as error:
        shown = unexpected(error)
    raise_alone(shown)


def unexpected(error: Exception) -> ExportPipelineError:
    """Tell of an error that is not of ours without its text."""
    return ExportPipelineError(
        f"Unexpected {type(error).__name__}{_sqlstate(error)} at {_place(error)}.", hint="Please report it."
    )


def raise_alone(error: Exception) -> NoReturn:
    """Raise an error, and nothing of what it was made from.

    Python notes what is being handled on what is raised, also where the handling has left the `except` but not the
    `with` block; Dagster stores such notes.
    """
    try:
        raise error
    finally:
        error.__cause__ = error.__context__ = None


def _sqlstate(error: Exception) -> str:
    # Of ours, or of SQLAlchemy, which Dagster's storage speaks through.
    state = getattr(error, "sqlstate", None) or getattr(getattr(error, "orig", None), "pgcode", None)
    return f" (SQLSTATE {state})" if state else ""


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "export_pipeline" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
