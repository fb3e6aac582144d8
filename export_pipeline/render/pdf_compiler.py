"""Starts the compiler of one volume and reads the PDF back, by pipes only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from export_pipeline.errors import ExportPipelineError
from export_pipeline.render.pdf_fonts import FAMILIES, font_folders
from export_pipeline.render.pdf_text import spelled_out

_WORKER = Path(__file__).with_name("pdf_worker.py")
#: A volume takes about two seconds; this much means that something hangs.
_PATIENCE_S = 300
#: What the child needs to find Python and its packages. Passwords of ours stay with us.
_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "SYSTEMROOT",
)
_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")


def compile_pdf(data: dict[str, Any], made: datetime) -> bytes:
    """Compile a volume.

    Args:
        data: What the template prints.
        made: The moment that the file names as its creation.

    Returns:
        A tagged PDF (PDF/UA-1).

    Raises:
        ExportPipelineError: The compiler failed. Its own message is kept back: it quotes the data.
        ConfigurationError: A font package is not installed.
    """
    status, pdf = _run(data, made)
    if status > 0:
        status, pdf = _run(spelled_out(data), made)
    if status:
        raise ExportPipelineError(
            f"The PDF compiler failed with status {status}.",
            hint="Export as CSV or JSON, and report this: any data must give a PDF.",
        )
    return pdf


def _run(data: dict[str, Any], made: datetime) -> tuple[int, bytes]:
    """Exit status of the compiler and what it wrote."""
    order = {"fonts": font_folders(), "families": FAMILIES, "timestamp": int(made.timestamp())}
    job = json.dumps(order).encode() + b"\n" + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    try:
        done = subprocess.run(
            # -P: the worker's folder holds modules that must not stand in for others of the same name.
            [sys.executable, "-P", str(_WORKER)],
            input=job,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One thread: more of them cost CPU and memory, and gain nothing on a single document.
            env=environment | {"RAYON_NUM_THREADS": "1"},
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportPipelineError(f"The PDF compiler took longer than {_PATIENCE_S} seconds.") from None
    return done.returncode, done.stdout


def page_count(pdf: bytes) -> int:
    """Pages of a PDF that `compile_pdf` made."""
    return len(_PAGE.findall(pdf))
