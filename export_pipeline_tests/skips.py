"""What may be skipped where the environment variable `CI` is set: what a machine cannot give, and nothing else.

On a machine of somebody's own a test that lacks a program or the network is skipped. A check that is green because of
that would have proven less than it says, so there every other skip is a failure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

#: Which account runs the tests, and what it may do here.
_ACCOUNT = (
    "needs root",
    "only root can give a folder to somebody else",
    "only root can give files away",
    "root may write everywhere",
    "may not mount",
    "needs a small file system of its own",
)
#: Programs of the machine that no package of ours brings along; what they confirm is tested without them as well.
_PROGRAMS = (
    "the age command is not installed",
    "ssh-keygen is not installed",
    "needs systemd-analyze",
)
#: What a kernel other than Linux lacks, and what there is nothing of with the launcher that is tested.
_SITUATION = (
    "needs the kernel's help",
    "elsewhere the dead count",
    "Linux names these options so",
    "reads /proc",
    "needs /proc to tell which file a descriptor is",
    "this system has no files without a name",
    "only warm workers have this queue",
    "compares other launchers with this one",
)
ALLOWED = frozenset((*_ACCOUNT, *_PROGRAMS, *_SITUATION))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip that nobody has allowed into a failure."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        _, _, said = report.longrepr
        reason = re.sub(r"^Skipped: ", "", said)
        if reason not in ALLOWED:
            report.outcome = "failed"
            report.longrepr = f"Skipped where CI is set, which export_pipeline_tests/skips.py does not allow: {reason}"
    return report
