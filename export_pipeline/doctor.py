"""Checks of an installation: each says what it found and, when something is wrong, how to mend it."""

from __future__ import annotations

import importlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial

from export_pipeline import wiring
from export_pipeline.collect import catalogue
from export_pipeline.collect.source import Snapshot
from export_pipeline.errors import ConfigurationError, ExportPipelineError, VaultError
from export_pipeline.models import DataTypeConfig
from export_pipeline.plan import plan_type
from export_pipeline.settings import Settings, unknown_variables
from export_pipeline.vault import link_tokens, pseudonyms, signing, token_keys

_CLOCK_TOLERANCE_S = 5.0
_LITTLE_ROOM_BYTES = 2 * 1024**3
_PATIENCE_S = 5.0


class Verdict(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        verdict: How it ended.
        message: What was found.
        hint: How to mend it; empty when all is well.
    """

    check: str
    verdict: Verdict
    message: str
    hint: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Run every check that can run; one that fails does not hide the next."""
    yield from _variables()
    yield from _examined("state folder", lambda: _room(settings))
    try:
        services = wiring.connect(settings)
    except ExportPipelineError as error:
        yield Finding(check="database", verdict=Verdict.BAD, message=error.message, hint=error.hint)
    else:
        yield from _with_database(services)
    for name, require in _keys(settings).items():
        yield from _examined(name, lambda name=name, require=require: _usable(name, require))  # type: ignore[misc]
    if settings.smtp_url is not None:
        yield from _examined("mail server", lambda: _mail_server(settings))
    if settings.launcher == "celery":
        yield from _examined("broker", lambda: _broker(settings))


def _with_database(services: wiring.Services) -> Iterator[Finding]:
    with services:
        yield from _examined("database", lambda: _database(services))
        yield from _examined("clock", lambda: _clock(services))
        yield from _examined("sign-in", lambda: _sign_in(services))
        yield from _examined("key and store", lambda: _vault(services))
        yield from _examined("stored files", lambda: _stored(services))
        yield from _source(services)


def _examined(check: str, examination: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield examination()
    except ExportPipelineError as error:
        yield Finding(check=check, verdict=Verdict.BAD, message=error.message, hint=error.hint)


def _variables() -> Iterator[Finding]:
    for name, nearest in unknown_variables().items():
        hint = f"Is {nearest} meant?" if nearest else "docs/settings.md has every name."
        yield Finding(check="settings", verdict=Verdict.WARNING, message=f"{name} sets nothing", hint=hint)


def _keys(settings: Settings) -> dict[str, Callable[[], object]]:
    """Those that neither the store nor signing in has looked at."""
    return {
        "signing key": signing.Signer(wiring.signing_key_file(settings)).require,
        "pseudonym key": partial(pseudonyms.derive, wiring.pseudonym_key_file(settings), ""),
        "link key": partial(link_tokens.require, wiring.link_key_file(settings)),
    }


def _usable(name: str, require: Callable[[], object]) -> Finding:
    require()
    return Finding(check=name, verdict=Verdict.GOOD, message="is here, for its owner only")


def _mail_server(settings: Settings) -> Finding:
    wiring.mailer(settings).require()
    return Finding(check="mail server", verdict=Verdict.GOOD, message="lets us in")


def _broker(settings: Settings) -> Finding:
    try:
        kombu = importlib.import_module("kombu")  # comes with the extra only
    except ImportError:
        raise ConfigurationError(
            "Celery is not installed.", hint="Install the extra: pip install '.[celery]'."
        ) from None
    patience = {"socket_connect_timeout": _PATIENCE_S, "socket_timeout": _PATIENCE_S}
    url = settings.broker_url.get_secret_value() if settings.broker_url else ""
    try:
        with kombu.Connection(url, transport_options=patience) as connection:
            connection.channel()
    except Exception as error:  # of whichever library: its words may hold the URL, and so the password
        raise ConfigurationError(
            f"The broker cannot be used now ({type(error).__name__}).",
            hint="Is it running? Check EXPORT_PIPELINE_BROKER_URL.",
        ) from None
    return Finding(check="broker", verdict=Verdict.GOOD, message="lets us in")


def _sign_in(services: wiring.Services) -> Finding:
    token_keys.read(wiring.token_key_file(services.settings))
    services.gatekeeper.require_provider()
    ways = ["tokens of an identity provider"] if services.settings.oidc_issuer else []
    ways += ["sign-ins there by browser"] if services.gatekeeper.by_browser else []
    ways += ["our own tokens and links"] if services.settings.local_sign_in else []
    return Finding(
        check="sign-in",
        verdict=Verdict.GOOD if ways else Verdict.WARNING,
        message=" and ".join(ways) or "nobody can sign in to the API and the Dagster UI",
        hint="" if ways else "Set EXPORT_PIPELINE_OIDC_ISSUER, or EXPORT_PIPELINE_LOCAL_TOKENS=true.",
    )


def _room(settings: Settings) -> Finding:
    # Before the first start it is not there, and perhaps neither is the folder above it.
    folder = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return Finding(
        check="state folder",
        verdict=Verdict.GOOD if free > _LITTLE_ROOM_BYTES else Verdict.WARNING,
        message=f"{settings.home}, {free / 1024**3:.1f} GiB free",
        hint="" if free > _LITTLE_ROOM_BYTES else "Large exports need room for their parts: make some.",
    )


def _database(services: wiring.Services) -> Finding:
    with services.database.connect() as connection:
        version = connection.info.server_version
    kind = "embedded" if services.settings.embedded else "your own"
    return Finding(
        check="database",
        verdict=Verdict.GOOD,
        message=f"{kind}, PostgreSQL {version // 10000}.{version % 10000}, tables are current",
    )


def _clock(services: wiring.Services) -> Finding:
    with services.database.connect() as connection:
        row = connection.execute("SELECT clock_timestamp(), current_setting('TimeZone')").fetchone()
    server, zone = row if row else (datetime.now(UTC), "unknown")
    apart = abs((server - datetime.now(UTC)).total_seconds())
    good = apart < _CLOCK_TOLERANCE_S
    return Finding(
        check="clock",
        verdict=Verdict.GOOD if good else Verdict.WARNING,
        message=f"database and this machine are {apart:.1f} s apart; the database's time zone is {zone}",
        hint="" if good else "Let both follow the same time server: limits and expiry depend on it.",
    )


def _vault(services: wiring.Services) -> Finding:
    """Seal, store, read back and remove a probe: permissions, keys and store in one look."""
    vault, prefix, probe = services.vault(), f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(1000)
    vault.store(f"{prefix}/probe", [probe])
    try:
        if b"".join(vault.open(f"{prefix}/probe")) != probe:
            raise VaultError("The store does not give back what was stored.", hint="Check EXPORT_PIPELINE_STORAGE_URL.")
    finally:
        vault.delete_below(prefix)
    return Finding(
        check="key and store", verdict=Verdict.GOOD, message=f"{wiring.storage_url(services.settings)} is sealed by age"
    )


def _stored(services: wiring.Services) -> Finding:
    wiring.require_kept_key(services.settings, services.files)
    counts, known = services.files.by_key(), {fact.public_key for fact in wiring.public_keys(services.settings)}
    lost = sum(files for key, files in counts.items() if key and key not in known)
    if lost:
        return Finding(
            check="stored files",
            verdict=Verdict.BAD,
            message=f"{lost} are sealed for a key that is not here: nobody can open them",
            hint="Put the key back from the backup, below the others in its file; or request these exports again.",
        )
    return Finding(check="stored files", verdict=Verdict.GOOD, message=f"{sum(counts.values())}, all keys are here")


def _source(services: wiring.Services) -> Iterator[Finding]:
    try:
        with services.source().snapshot() as snapshot:
            version = snapshot.connection.info.server_version
            yield Finding(check="source", verdict=Verdict.GOOD, message=f"PostgreSQL {version // 10000}, read-only")
            for config in services.data_types.all():
                yield from _examined(config.data_type, lambda config=config: _data_type(snapshot, config))  # type: ignore[misc]
    except ExportPipelineError as error:
        yield Finding(check="source", verdict=Verdict.BAD, message=error.message, hint=error.hint)


def _data_type(snapshot: Snapshot, config: DataTypeConfig) -> Finding:
    table = catalogue.describe(snapshot, config)
    planned = plan_type(config, table, matchable=True)
    for profile in config.anonymization:
        plan_type(config, table, matchable=True, profile=profile)
    extract = planned.extract
    return Finding(
        check=config.data_type,
        verdict=Verdict.WARNING if planned.note else Verdict.GOOD,
        message=f"{extract.schema}.{extract.table}, {len(extract.columns)} columns"
        + (f"; {planned.note}" * bool(planned.note)),
        hint=f"Create an index on {config.user_id_column}: every export reads the whole table." if planned.note else "",
    )
