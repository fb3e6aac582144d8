"""A process that ends with the one that started it, also when that one is killed; only Linux can do this."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: a child may call it and do nothing else.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send us a signal when the thread that started us is gone; end at once when it is gone already.

    Args:
        parent: The process id of who started us, as it knew it.
        number: The signal.
    """
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # killed between our birth and the question: nobody will send it any more
            os._exit(128 + number)
