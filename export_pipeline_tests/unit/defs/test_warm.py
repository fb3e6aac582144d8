"""A worker steps aside for those who wait for an answer."""

from __future__ import annotations

import subprocess
import sys

from export_pipeline.defs import warm

_CODE = """
import os
from export_pipeline.defs import warm
warm.make_way()
print(os.nice(0), warm._SESSION_NICE.read_text().split()[-1] if warm._SESSION_NICE.exists() else 10)
"""


def test_it_steps_aside_as_process_and_as_session() -> None:
    command = [sys.executable, "-c", _CODE]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(warm._NICE)] * 2
