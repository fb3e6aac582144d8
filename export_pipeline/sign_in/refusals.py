"""Refused sign-ins in the trail: each one, until somebody tries to fill the trail with them; then their number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from export_pipeline.db.sign_in import SignInStore
from export_pipeline.models import Actor

_ROWS = 10
_PER_S = 60.0


class Refusals:
    """Writes at most ten rows a minute for one process.

    Args:
        store: Writes them.
        clock: Seconds that only grow.
    """

    def __init__(self, store: SignInStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._began = float("-inf")
        self._written = 0
        self._left_out = 0

    def record(self, actor: Actor, reason: str) -> None:
        """Write a row, or only count it.

        Args:
            actor: Where it came from.
            reason: A word of ours; nothing of what was shown.

        Raises:
            DatabaseUnavailable: Our tables cannot be reached.
        """
        left_out = self._take()
        if left_out is not None:
            self._store.refused(
                actor,
                reason if not left_out else f"{reason}; {left_out} more were not written",
            )

    def _take(self) -> int | None:
        """How many were left out before the row that may be written now; None when none may be."""
        with self._lock:
            now = self._clock()
            if now - self._began >= _PER_S:
                self._began, self._written = now, 0
            if self._written >= _ROWS:
                self._left_out += 1
                return None
            self._written += 1
            left_out, self._left_out = self._left_out, 0
            return left_out
