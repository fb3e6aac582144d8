"""The composition root: settings become working parts here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path

import psycopg

from export_pipeline import embedded
from export_pipeline.collect.source import Source
from export_pipeline.db.data_types import DataTypeStore
from export_pipeline.db.files import FileStore
from export_pipeline.db.migrate import migrate, require_current
from export_pipeline.db.pool import Bounds, Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.db.sign_in import SignInStore
from export_pipeline.db.sign_outs import SignOutStore
from export_pipeline.db.tickets import TicketStore
from export_pipeline.db.verification_codes import VerificationCodeStore
from export_pipeline.errors import ConfigurationError, DatabaseUnavailable, KeyUnusable
from export_pipeline.export_run import ExportRun
from export_pipeline.identity import Role
from export_pipeline.intake import Intake, Limits
from export_pipeline.links import Links
from export_pipeline.mail import Mailer
from export_pipeline.retention import Retention
from export_pipeline.settings import CsvFormulas, Settings
from export_pipeline.sign_in.code_flow import Client, CodeFlow
from export_pipeline.sign_in.gatekeeper import Gatekeeper
from export_pipeline.sign_in.oidc import Provider, Verifier
from export_pipeline.sign_in.tokens import Issuer
from export_pipeline.vault import keys, link_tokens, pseudonyms, secret_file, signing, token_keys
from export_pipeline.vault.key_service import AwsKms
from export_pipeline.vault.keys import EnvironmentKeys, KeyFile, KeySource
from export_pipeline.vault.store import Vault
from export_pipeline.verification import Verification


@dataclass(kw_only=True)
class Services:
    """Everything that a process needs, made from one `Settings`; close it when done.

    Attributes:
        settings: What it was made from.
        database_url: Our database, embedded or not.
        database: A pool over it.
    """

    settings: Settings
    database_url: str = field(repr=False)
    database: Database
    _held: ExitStack = field(repr=False)

    @property
    def requests(self) -> RequestStore:
        """The life of requests."""
        return RequestStore(self.database)

    @property
    def retention(self) -> Retention:
        """What must go, and when."""
        return Retention(
            database=self.database, vault=self.vault(), work=self.work(), longest=self.settings.longest_retention
        )

    @property
    def files(self) -> FileStore:
        """Stored files as our tables know them."""
        return FileStore(self.database)

    @property
    def data_types(self) -> DataTypeStore:
        """Their configuration."""
        return DataTypeStore(self.database)

    @property
    def tickets(self) -> TicketStore:
        """What ops hand to each other."""
        return TicketStore(self.database)

    @property
    def intake(self) -> Intake:
        """The use cases around a request."""
        limits = Limits(for_oneself=self.settings.requests_per_day, for_others=self.settings.operator_requests_per_day)
        return Intake(self.database, limits=limits, clear=self.clear)

    @cached_property
    def gatekeeper(self) -> Gatekeeper:
        """Who asks."""
        issuer, provider = Issuer(token_key_file(self.settings)), identity_provider(self.settings)
        return Gatekeeper(
            issuer=issuer,
            store=SignInStore(self.database),
            sign_outs=SignOutStore(self.database),
            provider=provider,
            local=self.settings.local_sign_in,
            flow=code_flow(self.settings, provider, issuer),
        )

    @property
    def links(self) -> Links:
        """The use cases around download links."""
        lifetime = timedelta(minutes=self.settings.link_minutes)
        return Links(self.database, link_key_file(self.settings), lifetime=lifetime)

    @property
    def verification(self) -> Verification:
        """The additional verification of sensitive data types."""
        return Verification(
            store=VerificationCodeStore(self.database),
            mailer=mailer(self.settings),
            key=partial(pseudonyms.derive, pseudonym_key_file(self.settings)),
            max_age=timedelta(seconds=self.settings.verification_max_age_s),
        )

    @property
    def source_url(self) -> str:
        """Where users' data lives."""
        url = self.settings.source_url
        return url.get_secret_value() if url else self.database_url

    def source(self) -> Source:
        """The source, with its protection."""
        return Source(
            self.source_url,
            statement_timeout_s=self.settings.source_statement_timeout_s,
            lock_timeout_s=self.settings.source_lock_timeout_s,
        )

    @cached_property
    def keys(self) -> KeySource:
        """The installation's keys, read once until they change."""
        return key_source(self.settings)

    def vault(self) -> Vault:
        """The store of delivered files."""
        return Vault(storage_url(self.settings), self.keys)

    def work(self) -> Vault:
        """The store of parts, sealed like everything else."""
        return Vault((self.settings.home / "work").as_uri(), self.keys, lasting=False)

    def require_keys(self) -> None:
        """Make sure that every key is here that a run may need.

        Raises:
            KeyUnusable: One is absent, damaged, or readable by others.
        """
        self.vault().require_key()
        signing.Signer(signing_key_file(self.settings)).require()
        pseudonyms.derive(pseudonym_key_file(self.settings), "")

    def clear(self, request_id: str) -> None:
        """Remove what a request that has no file left behind.

        Raises:
            VaultError: A store cannot be used.
        """
        self.work().delete_below(request_id)
        self.vault().delete_below(request_id)

    def run(self, request_id: str, run_id: str, *, reopen: bool) -> ExportRun:
        """The work of one run."""
        return ExportRun(
            database=self.database,
            source=self.source(),
            vault=self.vault(),
            work=self.work(),
            pseudonym_key=partial(pseudonyms.derive, pseudonym_key_file(self.settings)),
            signer=signing.Signer(signing_key_file(self.settings)),
            retention=self.settings.retention,
            escape_formulas=self.settings.csv_formulas is CsvFormulas.ESCAPE,
            request_id=request_id,
            run_id=run_id,
            reopen=reopen,
        )

    def revive(self) -> None:
        """Start the embedded server again when it died under us.

        Raises:
            DatabaseUnavailable: It does not start.
        """
        if self.settings.embedded and not embedded.is_running(self.settings):
            self._held.enter_context(embedded.lease(self.settings))

    def close(self) -> None:
        """Give back connections and, when nobody else uses it, stop the embedded server."""
        self.database.close()
        self._held.close()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    settings: Settings,
    *,
    prepare: bool = True,
    connections: int = 4,
    patience_s: float = 10.0,
    bounds: Bounds | None = None,
) -> Services:
    """Connect to our database, starting the embedded one when it is the default and not running.

    Args:
        settings: The installation's settings.
        prepare: Whether an embedded database is brought to the newest version first. A database of your own is only
            changed by `export-pipeline migrate`.
        connections: To our database at the same time.
        patience_s: Longest wait for one of them.
        bounds: Of statements on them.

    Raises:
        NotMigrated: The tables of your own database are of another version.
        DatabaseUnavailable: The server does not answer.
    """
    held = ExitStack()
    try:
        url = _database_url(settings, held)
        if prepare:
            with _own(url) as connection:
                if settings.embedded:
                    migrate(connection)
                else:
                    require_current(connection)
        services = Services(
            settings=settings,
            database_url=url,
            database=Database(url, max_size=connections, patience_s=patience_s, bounds=bounds),
            _held=held,
        )
        held.callback(services.database.close)
        if prepare and settings.embedded:
            make_keys(settings, services.files)
        return services
    except BaseException:
        held.close()
        raise


def apply_migrations(settings: Settings) -> list[str]:
    """Bring our tables to the newest version, and make the first keys.

    Returns:
        Names of the migrations that were applied now.

    Raises:
        KeyUnusable: The key of stored files is lost. The tables are current nevertheless.
    """
    with ExitStack() as held:
        url = _database_url(settings, held)
        with _own(url) as connection:
            applied = migrate(connection)
        database = held.enter_context(closing(Database(url, max_size=1)))
        make_keys(settings, FileStore(database))
        require_kept_key(settings, FileStore(database))
    return [f"{migration.version:04d} {migration.name}" for migration in applied]


def make_keys(settings: Settings, files: FileStore | None = None) -> None:
    """Make the first keys where their files are ours to make. A lost key is never replaced behind anybody's back:
    with a database of your own only `export-pipeline migrate` comes here, and nobody makes an age key beside stored
    files that another one sealed.

    Args:
        settings: The installation's settings.
        files: Knows what is stored; None when there cannot be anything yet.

    Raises:
        ConfigurationError: The state folder cannot be made.
        KeyUnusable: A folder cannot be written to.
    """
    make_home(settings)
    if settings.key_file is None and settings.keys is None and not (files and orphans(settings, files)):
        keys.create(key_file(settings), key_service(settings))
    if settings.signing_key_file is None:
        signing.create(signing_key_file(settings))
    if settings.pseudonym_key_file is None:
        pseudonyms.create(pseudonym_key_file(settings))
    if settings.token_key_file is None:
        token_keys.create(token_key_file(settings))
    if settings.link_key_file is None:
        link_tokens.create(link_key_file(settings))


def require_kept_key(settings: Settings, files: FileStore) -> None:
    """Make sure that the key of what is stored was not lost.

    Raises:
        KeyUnusable: It was.
    """
    if lost := orphans(settings, files):
        raise KeyUnusable(
            f"The key file {key_file(settings)} is lost: {lost} stored files are sealed for its keys, and without them "
            "nobody can open these files.",
            hint="Put the file back from the backup. If there is none, `export-pipeline keys new` begins anew: the "
            "files stay closed, and their exports must be requested again.",
        )


def orphans(settings: Settings, files: FileStore) -> int:
    """Count the stored files that are left without any key, because the key file is gone."""
    gone = settings.keys is None and _is_absent(key_file(settings))
    return sum(files.by_key().values()) if gone else 0


def public_keys(settings: Settings) -> list[keys.KeyFact]:
    """Tell of each age key, the one that seals first. A key service is not asked.

    Raises:
        KeyUnusable: There is none, or the file is damaged or readable by others.
    """
    if settings.keys is None:
        return keys.facts(key_file(settings))
    return [keys.KeyFact(public_key=str(key.to_public())) for key in key_source(settings).ring().identities]


def make_home(settings: Settings) -> None:
    """Make the state folder, for its owner only.

    Raises:
        ConfigurationError: It cannot be made.
    """
    with home_explained(settings):
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def home_explained(settings: Settings) -> Iterator[None]:
    """Turn what the system refuses in the state folder into a sentence.

    Raises:
        ConfigurationError: It refuses something.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"The state folder {settings.home} cannot be used: {error.strerror or type(error).__name__}.",
            hint="Check its owner, its mode and the space on its disk, or set EXPORT_PIPELINE_HOME.",
        ) from None


def key_source(settings: Settings) -> KeySource:
    """Where the age identities come from: the environment, or a file that a key service may keep closed."""
    if settings.keys is not None:
        return EnvironmentKeys(settings.keys.get_secret_value())
    return KeyFile(key_file(settings), key_service(settings))


def key_service(settings: Settings) -> AwsKms | None:
    """What keeps the identities in the key file closed."""
    return AwsKms(settings.kms_key_id) if settings.kms_key_id else None


def key_file(settings: Settings) -> Path:
    """Where the age identities are."""
    return settings.key_file or settings.home / "keys" / "age.txt"


def signing_key_file(settings: Settings) -> Path:
    """Where the key that signs manifests is."""
    return settings.signing_key_file or settings.home / "keys" / "signing.txt"


def pseudonym_key_file(settings: Settings) -> Path:
    """Where the secret behind hashed columns is."""
    return settings.pseudonym_key_file or settings.home / "keys" / "pseudonyms.txt"


def token_key_file(settings: Settings) -> Path:
    """Where the keys of our own tokens and of sessions are."""
    return settings.token_key_file or settings.home / "keys" / "tokens.txt"


def identity_provider(settings: Settings) -> Verifier | None:
    """What checks the tokens of the provider, where there is one."""
    if settings.oidc_issuer is None:
        return None
    names = {theirs: Role(ours) for theirs, ours in settings.oidc_role_names.items()}
    return Verifier(
        Provider(
            issuer=settings.oidc_issuer,
            audience=settings.oidc_audience or "",
            user_claim=settings.oidc_user_claim,
            roles_claim=settings.oidc_roles_claim,
            role_names=names or {role.value: role for role in Role},
        )
    )


def code_flow(settings: Settings, provider: Verifier | None, issuer: Issuer) -> CodeFlow | None:
    """What signs browsers in at the provider, where it knows us."""
    if provider is None or settings.oidc_client_id is None:
        return None
    file = settings.oidc_client_secret_file
    client = Client(
        client_id=settings.oidc_client_id,
        secret=lambda: secret_file.first_line(file) if file else None,
        scopes=settings.oidc_scopes,
    )
    return CodeFlow(provider, issuer, client)


def mailer(settings: Settings) -> Mailer:
    """What sends mail, where there is a server."""
    return Mailer(settings.smtp_url.get_secret_value() if settings.smtp_url else None, settings.smtp_from)


def link_key_file(settings: Settings) -> Path:
    """Where the keys that sign download links are."""
    return settings.link_key_file or settings.home / "keys" / "links.txt"


def storage_url(settings: Settings) -> str:
    """Where delivered files go."""
    return settings.storage_url or (settings.home / "storage").as_uri()


def _database_url(settings: Settings, held: ExitStack) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return held.enter_context(embedded.lease(settings)).server.url


def _is_absent(file: Path) -> bool:
    try:
        file.stat()
    except FileNotFoundError:
        return True
    except OSError:  # who may not look does not know
        return False
    return False


def _own(url: str) -> psycopg.Connection:
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.OperationalError:
        raise DatabaseUnavailable(
            "Our database cannot be reached.",
            hint="Check EXPORT_PIPELINE_DATABASE_URL; is the server running?",
        ) from None
