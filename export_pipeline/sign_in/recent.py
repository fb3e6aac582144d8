"""Proofs that were checked a moment ago: who asks again and again need not have the same signature checked each time.

What is kept is a hash of the proof. It counts for a few seconds, and not at all once the keys are others.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from export_pipeline.identity import Principal

#: Well within the leeway that a token's expiry has anyway.
LIFETIME_S = 5.0
_MOST = 10_000


@dataclass(frozen=True, kw_only=True)
class _Known:
    principal: Principal
    keys: Hashable
    until: float


class Recent:
    """Remembers who showed what.

    Args:
        keys: Names the keys that proofs are checked with now: another name, and nothing is remembered.
        clock: Seconds that only grow.
    """

    def __init__(self, keys: Callable[[], Hashable], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()
        self._forgotten = 0

    def find(self, kind: str, proof: str) -> Principal | None:
        """Whose proof this is, if that was checked a moment ago.

        Args:
            kind: What it was shown as: a proof of one kind is none of another.
            proof: The token.
        """
        known = self._known.get(_name(kind, proof))
        if known is None or known.until < self._clock() or known.keys != self._keys():
            return None
        return known.principal

    def check(self, kind: str, proof: str, check: Callable[[str], Principal]) -> Principal:
        """Check a proof and remember whose it is.

        Args:
            kind: What it was shown as.
            proof: The token.
            check: Tells whose it is, or raises.
        """
        keys = self._keys()  # before the check: keys that change meanwhile make it forgotten
        forgotten = self._forgotten
        principal = check(proof)
        with self._lock:
            if self._forgotten != forgotten:  # what was checked may have ended meanwhile
                return principal
            name = _name(kind, proof)
            self._known[name] = _Known(principal=principal, keys=keys, until=self._clock() + LIFETIME_S)
            self._known.move_to_end(name)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return principal

    def forget(self, kind: str, proof: str) -> None:
        """Have a proof checked again when it is shown next, for it has just ended.

        Args:
            kind: What it was shown as.
            proof: The token.
        """
        with self._lock:
            self._known.pop(_name(kind, proof), None)
            self._forgotten += 1

    def forget_all(self) -> None:
        """Have every proof checked again: something ended, and which proofs ended with it is not known here."""
        with self._lock:
            self._known.clear()
            self._forgotten += 1


def _name(kind: str, proof: str) -> bytes:
    return hashlib.sha256(f"{kind}\n{proof}".encode()).digest()
