"""Dagster's folder inside the state folder: its configuration, and how its processes find our code."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from export_pipeline.errors import ConfigurationError
from export_pipeline.settings import Settings

MODULE = "export_pipeline.definitions"
#: The number of warm workers limits runs, and the sensor claims no more requests than they can soon begin: Dagster's
#: own queue would only add its polling.
_WARM = {
    "run_launcher": {"module": "export_pipeline.defs.launcher", "class": "WarmRunLauncher", "config": {}},
    "run_coordinator": {"module": "export_pipeline.defs.coordinator", "class": "WarmRunCoordinator", "config": {}},
}
#: Runs wait for warm workers as queued, for as long as it takes. One that is starting was taken by a worker, or is
#: taken over by another when that one dies; which are lost the sensor `reconcile_export_requests` knows, not the time
#: alone.
_WARM_START_TIMEOUT_S = 30 * 24 * 3600
#: A run that is launched and not begun for so long counts as lost. It may wait at the broker while a worker is away.
_CELERY_START_TIMEOUT_S = 900
#: The kernel's limit for the path of a Unix socket, on Linux and macOS.
_SOCKET_PATH_MAX = 103


@dataclass(frozen=True, kw_only=True)
class CodeServer:
    """How to start the process that loads our definitions, and how the others find it.

    Attributes:
        command: Its arguments.
        socket: Where it listens.
        workspace: The file that tells the daemon and the web server.
    """

    command: list[str]
    socket: Path
    workspace: Path


def folder(settings: Settings) -> Path:
    """DAGSTER_HOME of this installation."""
    return settings.home / "dagster"


def environment(settings: Settings) -> dict[str, str]:
    """What Dagster's processes need to know beside what they inherit: our settings, whoever gave them to us."""
    return {
        **{f"EXPORT_PIPELINE_{name.upper()}": _text(getattr(settings, name)) for name in settings.model_fields_set},
        "DAGSTER_HOME": str(folder(settings)),
        "EXPORT_PIPELINE_HOME": str(settings.home),
        # Their notices about new and renamed parameters are for those who write definitions.
        "PYTHONWARNINGS": "ignore",
    }


def write(settings: Settings) -> CodeServer:
    """Write Dagster's configuration for this installation; holds no secret.

    Raises:
        ConfigurationError: The folder of a socket that does not fit into the state folder is somebody else's.
    """
    home = folder(settings)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    shipped = resources.files("export_pipeline") / "defs" / "dagster.yaml"
    instance = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    _launch_by(settings, instance)
    _write(home / "dagster.yaml", yaml.safe_dump(instance, sort_keys=False))
    socket = _socket(home)
    location = {"grpc_server": {"socket": str(socket), "location_name": "export_pipeline"}}
    _write(home / "workspace.yaml", yaml.safe_dump({"load_from": [location]}))
    command = [sys.executable, "-m", "dagster", "api", "grpc", "--socket", str(socket), "--module-name", MODULE]
    command += ["--use-python-environment-entry-point", "--location-name", "export_pipeline"]
    return CodeServer(command=command, socket=socket, workspace=home / "workspace.yaml")


def _launch_by(settings: Settings, instance: dict[str, Any]) -> None:
    limit = {"max_concurrent_runs": settings.max_concurrent_runs}
    if settings.launcher == "default":
        instance["concurrency"]["runs"] |= limit
        return
    del instance["concurrency"]
    if settings.launcher == "warm":
        instance |= _WARM
        instance["run_monitoring"]["start_timeout_seconds"] = _WARM_START_TIMEOUT_S
        return
    instance["run_launcher"] = {"module": "export_pipeline.defs.celery_launcher", "class": "BrokerRunLauncher"}
    # Dagster's own queue: only what a worker can soon begin goes to the broker.
    instance["run_coordinator"] = {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 1, **limit},
    }
    instance["run_monitoring"]["start_timeout_seconds"] = _CELERY_START_TIMEOUT_S


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _socket(home: Path) -> Path:
    socket = home / "code-server.sock"
    if len(os.fsencode(socket)) > _SOCKET_PATH_MAX:
        # The same for the same state folder.
        name = f"export-pipeline-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
        socket = Path(tempfile.gettempdir()) / name / "code-server.sock"
        _make_private(socket.parent)
    socket.unlink(missing_ok=True)
    return socket


def _make_private(folder: Path) -> None:
    """Make a folder for us only, or check that what is there is ours: whoever could put a socket of their own into it
    would be asked for the code that our processes run.

    Raises:
        ConfigurationError: It is a link, or somebody else's.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"The folder {folder} for the socket of Dagster's code server belongs to somebody else.",
            hint="Remove it, or set TMPDIR or EXPORT_PIPELINE_HOME to another folder.",
        )
    folder.chmod(0o700)


def _write(file: Path, text: str) -> None:
    """Replace the file in one step: another process may be reading it."""
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
