"""Everything that an operator can set, read once from ``EXPORT_PIPELINE_*`` variables or a ``.env`` file."""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from export_pipeline.errors import ConfigurationError

_PREFIX = "EXPORT_PIPELINE_"
#: Ours, and no setting: the command line reads it.
_DEBUG = "DEBUG"


class CsvFormulas(StrEnum):
    """What CSV does with texts that a spreadsheet would run as formulas."""

    ESCAPE = "escape"
    RAW = "raw"


class Settings(BaseSettings):
    """The installation's settings. An unset URL means the embedded default."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        # `NAME=` in an environment file means the default, not an empty path or port.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(Path(".export-pipeline"), description="State folder: embedded database, keys, files.")
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL for our tables and Dagster's storage; unset starts the embedded server."
    )
    source_url: SecretStr | None = Field(
        None, description="PostgreSQL where users' data lives; unset means the same database."
    )
    storage_url: str | None = Field(
        None, description="file:///folder or s3://bucket/prefix; unset means the folder `storage` in home."
    )
    key_file: Path | None = Field(
        None, description="age identity file; unset means `keys/age.txt` in home, made by `migrate` and `up`."
    )
    keys: SecretStr | None = Field(
        None,
        description="age identities themselves, instead of a file: the first seals, all open; separated by white space"
        " or commas.",
    )
    kms_key_id: str | None = Field(
        None,
        description="Key of AWS KMS (id, ARN or alias) that keeps the identities in the key file closed; needs the "
        "extra `kms`.",
    )
    signing_key_file: Path | None = Field(
        None,
        description="Key that signs manifests; unset means `keys/signing.txt` in home, made by `migrate` and `up`.",
    )
    pseudonym_key_file: Path | None = Field(
        None, description="Secret behind hashed columns; unset means `keys/pseudonyms.txt` in home, made when absent."
    )
    postgres_account: str | None = Field(
        None,
        description="Account that runs the embedded server when we are root; unset means postgres or nobody.",
    )
    token_key_file: Path | None = Field(
        None,
        description="Key of our own tokens and of sessions; unset means `keys/tokens.txt` in home, made by `migrate` "
        "and `up`. All machines that people sign in to need the same.",
    )
    local_tokens: bool | None = Field(
        None,
        description="Whether tokens of our own and sign-in links count; unset means yes with the embedded database and "
        "no with one of your own, where an identity provider should say who people are.",
    )
    oidc_issuer: str | None = Field(
        None, description="URL of the OpenID Connect provider whose tokens count, exactly as their `iss`."
    )
    oidc_audience: str | None = Field(None, validate_default=True, description="What `aud` of its tokens must hold.")
    oidc_client_id: str | None = Field(
        None,
        description="What this installation is called at the provider: set, people sign in there by their browser, and "
        "the provider must know the addresses `/sign-in/callback` of the API and of the Dagster UI.",
    )
    oidc_client_secret_file: Path | None = Field(
        None, description="File with the secret of that client; unset where it has none: PKCE is used in any case."
    )
    oidc_scopes: str = Field("openid email", description="Scopes that are asked for when somebody signs in by browser.")
    oidc_user_claim: str = Field("sub", description="Claim that is the user id in the exported tables.")
    oidc_roles_claim: str = Field(
        "roles", description="Claim with a person's roles; dots lead into objects, as in `realm_access.roles`."
    )
    oidc_roles: str = Field(
        "",
        description="The provider's names for our roles, as `export-staff=operator,export-admins=admin`; unset means "
        "that it uses ours.",
    )
    link_key_file: Path | None = Field(
        None, description="Key that signs download links; unset means `keys/links.txt` in home, made when absent."
    )
    link_minutes: int = Field(
        60, ge=1, le=525_600, description="Minutes that a download link works; never longer than its file is kept."
    )
    max_downloads: int = Field(
        50, ge=1, le=1000, description="Downloads at the same time; who comes then is asked to come again."
    )
    direct_downloads: bool = Field(
        False,
        description="Whether files that only the recipient can open are fetched from the S3 store itself, by a"
        " redirect; its address must then be one that recipients reach.",
    )
    public_url: str | None = Field(
        None,
        description="Address at which people reach the API, with the path where a proxy puts it below one: links and"
        " all addresses in answers begin with it. Unset means this machine's own.",
    )
    api_host: str = Field(
        "127.0.0.1", description="Address on which the API listens; a proxy with TLS belongs before it."
    )
    smtp_url: SecretStr | None = Field(
        None,
        description="Mail server, smtp://user:password@host:587 or smtps://host:465; unset means that no mail is sent.",
    )
    smtp_from: str | None = Field(
        None, validate_default=True, description="Address that mails come from, as `exports@example.org`."
    )
    api_port: int = Field(8080, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    api_trusted_proxies: str = Field(
        "",
        description="Networks of the proxies before the API, as `10.0.0.0/8,::1`: only what they write into "
        "X-Forwarded-For is believed.",
    )
    api_cors_origins: str = Field(
        "", description="Origins whose pages may call the API from a browser, as `https://example.org`; commas between."
    )
    api_hsts: bool = Field(False, description="Whether browsers are told to use TLS only; for an API behind TLS.")
    api_public_metrics: bool = Field(False, description="Whether `/metrics` needs no sign-in.")
    verification_max_age_s: int = Field(
        900,
        ge=0,
        le=31_536_000,
        description="Seconds after a sign-in during which a person may ask for sensitive data types of their own.",
    )
    ui_port: int = Field(3000, ge=0, le=65535, description="Port of the Dagster UI; 0 takes a free one.")
    launcher: Literal["warm", "default", "celery"] = Field(
        "warm",
        description="How runs get a process: `warm` workers that wait for them, `celery` workers that get them from a "
        "broker, or Dagster's `default`.",
    )
    broker_url: SecretStr | None = Field(
        None,
        validate_default=True,
        description="The broker between `celery` launcher and workers: redis:// or rediss://, with its password.",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="Runs at the same time on this machine, for `warm` and `celery`; unset means as many as runs may "
        "go on at all, 0 none.",
    )
    recycle_after: int = Field(
        200, ge=0, description="Runs after which a warm worker is started afresh; 1 gives each its own, 0 means never."
    )
    requests_per_day: int = Field(
        5, ge=1, description="Export requests that a person may make about themselves in 24 hours."
    )
    operator_requests_per_day: int = Field(
        1000, ge=1, description="Export requests that an operator may make in 24 hours."
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Runs that a request gets before it fails.")
    max_concurrent_runs: int = Field(
        2, ge=1, le=1000, description="Export runs at the same time, on all machines together."
    )
    keep_runs_days: int = Field(
        14,
        ge=1,
        le=36_500,
        description="Days after the end of a request in which Dagster keeps its runs and partition.",
    )
    keep_partitions: int = Field(
        2000, ge=1, description="Partitions that Dagster keeps, the newest; with more its UI becomes slow."
    )
    source_statement_timeout_s: Annotated[int, Field(ge=0, le=2_147_483)] = Field(
        3600, description="Longest single statement on the source, in seconds; 0 means no limit."
    )
    source_lock_timeout_s: Annotated[int, Field(ge=0, le=2_147_483)] = Field(
        10, description="Longest wait for a lock on the source, in seconds; 0 means no limit."
    )
    csv_formulas: CsvFormulas = Field(
        CsvFormulas.ESCAPE,
        description="What CSV does with texts that a spreadsheet would run as a formula: `escape` puts a single quote "
        "before them (and before a leading single quote, so that it can be undone), `raw` leaves them as they are.",
    )
    retention_days: int = Field(
        7, ge=1, le=36_500, description="Days from its completion that a delivered file can be fetched."
    )
    retention_days_gdpr: int | None = Field(None, ge=1, le=36_500, description="The same for gdpr requests.")
    retention_days_backup: int | None = Field(None, ge=1, le=36_500, description="The same for backup requests.")
    retention_days_audit: int | None = Field(None, ge=1, le=36_500, description="The same for audit requests.")
    retention_days_custom: int | None = Field(None, ge=1, le=36_500, description="The same for custom requests.")

    @field_validator(
        "home",
        "key_file",
        "signing_key_file",
        "pseudonym_key_file",
        "link_key_file",
        "token_key_file",
        "oidc_client_secret_file",
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Independent of the working folder, which differs between Dagster's processes."""
        try:
            return path and path.expanduser().absolute()
        except RuntimeError:
            raise ValueError("names an account whose home folder is unknown") from None

    @field_validator("database_url", "source_url")
    @classmethod
    def _postgres_only(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        from psycopg import Error, conninfo  # only here, so that `--help` stays quick

        try:
            conninfo.conninfo_to_dict(url.get_secret_value())
        except Error:
            # Its text quotes the URL, and so the password.
            raise ValueError("is not a URL that PostgreSQL understands; %-encode special characters") from None
        return url

    @field_validator("broker_url")
    @classmethod
    def _broker(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            if info.data.get("launcher") == "celery":
                raise ValueError("the launcher celery needs it")
            return None
        parts = _split(url.get_secret_value())
        if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
            raise ValueError("must be redis://host or rediss://host")
        return url

    @field_validator("storage_url")
    @classmethod
    def _known_store(cls, url: str | None) -> str | None:
        parts = _split(url or "")
        place = {"file": not parts.netloc and parts.path.strip("/"), "s3": parts.netloc}
        # What follows a ? or # would be left out of the place without a word.
        if url and (not place.get(parts.scheme) or parts.query or parts.fragment):
            raise ValueError("must be file:///folder or s3://bucket/prefix; %-encode special characters")
        return url or None

    @property
    def local_workers(self) -> int:
        """Runs at the same time on this machine."""
        return self.max_concurrent_runs if self.workers is None else self.workers

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Settings:
        if self.keys is not None and (self.key_file is not None or self.kms_key_id is not None):
            raise ValueError("EXPORT_PIPELINE_KEYS excludes EXPORT_PIPELINE_KEY_FILE and EXPORT_PIPELINE_KMS_KEY_ID")
        return self

    @field_validator("public_url")
    @classmethod
    def _web_address(cls, url: str | None) -> str | None:
        parts = _split(url or "")
        if url and (parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment):
            raise ValueError("must be https://host or http://host, with a path where a proxy puts the API below one")
        return url.rstrip("/") if url else None

    @property
    def api_url(self) -> str:
        """Address at which people reach the API, without a slash at its end."""
        return self.public_url or f"http://127.0.0.1:{self.api_port}"

    def address(self, path: str) -> str:
        """A path of the API as its answers give it: whole as soon as `public_url` says how people reach it."""
        return f"{self.public_url or ''}{path}"

    @field_validator("smtp_url")
    @classmethod
    def _mail_server(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        parts = _split(url.get_secret_value())
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
            raise ValueError("must be smtp://host or smtps://host")
        return url

    @field_validator("smtp_from")
    @classmethod
    def _sender(cls, address: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("smtp_url") and not address:
            raise ValueError("a mail server needs it")
        if address and ("@" not in address or not address.isprintable()):
            raise ValueError("must be an e-mail address")
        return address or None

    @field_validator("oidc_issuer")
    @classmethod
    def _secure_issuer(cls, url: str | None) -> str | None:
        parts = _split(url or "")
        local = parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}
        if url and not (parts.hostname and (parts.scheme == "https" or local)):
            raise ValueError("must be https://host, or http:// on this machine")
        return url or None

    @field_validator("oidc_audience")
    @classmethod
    def _whose_audience(cls, audience: str | None, info: ValidationInfo) -> str | None:
        """Without one, a token that somebody got for another service would count here."""
        if not audience and info.data.get("oidc_issuer"):
            raise ValueError("an identity provider needs it")
        return audience or None

    @field_validator("oidc_client_id")
    @classmethod
    def _whose_client(cls, client_id: str | None, info: ValidationInfo) -> str | None:
        if client_id and not info.data.get("oidc_issuer"):
            raise ValueError("needs EXPORT_PIPELINE_OIDC_ISSUER")
        return client_id or None

    @field_validator("oidc_roles")
    @classmethod
    def _pairs(cls, text: str) -> str:
        ours = {"subject", "operator", "approver", "auditor", "admin"}
        for pair in filter(None, text.split(",")):
            theirs, separator, role = pair.rpartition("=")
            if not (theirs.strip() and separator and role.strip() in ours):
                raise ValueError(f"must be pairs name=role, with roles {', '.join(sorted(ours))}")
        return text

    @property
    def local_sign_in(self) -> bool:
        """Whether our own tokens and sign-in links count."""
        return self.embedded if self.local_tokens is None else self.local_tokens

    @property
    def oidc_role_names(self) -> dict[str, str]:
        """The provider's names for roles → ours; empty when it uses ours."""
        pairs = (pair.rpartition("=") for pair in self.oidc_roles.split(",") if pair)
        return {theirs.strip(): ours.strip() for theirs, _, ours in pairs}

    def retention(self, kind: str) -> timedelta:
        """How long the file of a request of this type can be fetched."""
        of_kind = {
            "gdpr": self.retention_days_gdpr,
            "backup": self.retention_days_backup,
            "audit": self.retention_days_audit,
            "custom": self.retention_days_custom,
        }
        return timedelta(days=of_kind.get(kind) or self.retention_days)

    @property
    def longest_retention(self) -> timedelta:
        """Nothing in the store is wanted for longer."""
        return max(self.retention(kind) for kind in ("gdpr", "backup", "audit", "custom", ""))

    @field_validator("api_trusted_proxies")
    @classmethod
    def _networks(cls, text: str) -> str:
        try:
            networks(text)
        except ValueError:
            raise ValueError("must be networks as 10.0.0.0/8, with commas between") from None
        return text

    @field_validator("api_cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        for origin in words(text):
            parts = _split(origin)
            if (
                parts.scheme not in {"http", "https"}
                or not parts.hostname
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError("must be origins as https://example.org, with commas between; * is none")
        return text

    @property
    def embedded(self) -> bool:
        """Whether our tables live in the server that comes with the package."""
        return self.database_url is None


def _split(url: str) -> SplitResult:
    """Split a URL, its port included.

    Raises:
        ValueError: It is none. What the library says of it is kept back: it quotes parts, and so perhaps a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL; %-encode special characters") from None
    return parts


def words(text: str) -> tuple[str, ...]:
    """Split what stands between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Read networks with commas between.

    Raises:
        ValueError: One is none.
    """
    return tuple(ip_network(word) for word in words(text))


def load() -> Settings:
    """Read the environment.

    Raises:
        ConfigurationError: A variable has a value that cannot be used, or `.env` cannot be read; names it, never its
            value.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(
            ": ".join([*(f"EXPORT_PIPELINE_{part}".upper() for part in fault["loc"][:1]), fault["msg"]])
            for fault in error.errors(include_input=False, include_context=False)
        )
        raise ConfigurationError(f"Settings are wrong: {faults}.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"The file .env cannot be read ({type(error).__name__}).") from None


def unknown_variables() -> dict[str, str]:
    """Find variables that are named like ours and set nothing: misspelt ones, most likely.

    Returns:
        Each with the nearest name that there is, or with nothing.
    """
    known = [name.upper() for name in Settings.model_fields]
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    given = {name.upper() for source in sources for name in source.env_vars}
    ours = {name.removeprefix(_PREFIX) for name in given if name.startswith(_PREFIX)}
    return {
        f"{_PREFIX}{name}": "".join(f"{_PREFIX}{nearest}" for nearest in get_close_matches(name, known, n=1))
        for name in sorted(ours - {*known, _DEBUG})
    }
