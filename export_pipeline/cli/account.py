"""Who sits at the terminal."""

from __future__ import annotations

import os
import pwd

from export_pipeline.models import Actor


def account() -> str:
    """Name of the account that runs the command, as the system knows it: not as the environment says.

    Who decides about a request must be somebody else than who asked for it, and the trail names both.
    """
    user = os.getuid()
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # a container may run as a number that has no name
        return f"uid-{user}"


def me() -> Actor:
    """The operator at the command line, for the trail."""
    return Actor(id=account())
