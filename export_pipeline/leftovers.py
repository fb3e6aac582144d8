"""What killed runs left in the work area of this machine: their requests may have moved to another one.

Sealed like everything else, but of no use any more. A run's folder is named by its request and itself, and exists
only while the run owns its request; so a folder whose run owns nothing is of the past, whoever looks and whenever.
"""

from __future__ import annotations

from pathlib import Path

from export_pipeline.db.owners import owners
from export_pipeline.db.pool import Database
from export_pipeline.models import REQUEST_ID_PATTERN
from export_pipeline.vault.store import Vault


def clear(database: Database, work: Vault, folder: Path) -> list[str]:
    """Remove the folders of runs that own nothing.

    Args:
        database: Our tables.
        work: The work area.
        folder: Where it lies.

    Returns:
        What was removed, as request/run.

    Raises:
        DatabaseUnavailable: The server does not answer.
        VaultError: Something cannot be removed.
    """
    # Looked at before the database is asked: a run that begins meanwhile is not among them.
    found = [(path.parent.name, path.name) for path in folder.glob("*/*") if _is_of_a_run(path)]
    if not found:
        return []
    owned = owners(database, [request_id for request_id, _ in found])
    left = [f"{request_id}/{run_id}" for request_id, run_id in found if owned.get(request_id) != run_id]
    for name in left:
        work.delete_below(name)
    return left


def _is_of_a_run(path: Path) -> bool:
    """What a disk or a desktop puts beside our folders is nobody's leftover."""
    names = (path.parent.name, path.name)
    return path.is_dir() and all(REQUEST_ID_PATTERN.fullmatch(name) for name in names)
