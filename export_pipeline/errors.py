"""Every error that a person may meet.

    ExportPipelineError
    ├── ConfigurationError        a setting, a key file or a data type configuration is wrong
    │   └── DataTypeUnusable      a data type's row, written by SQL, is not what a file could have said
    ├── InvalidRequest            what was asked cannot be exported: unknown type, bad format, unknown user
    ├── RequestNotFound           no export request has this id
    │   └── LinkNotFound          no download link has this id
    ├── WrongStatus               the request exists, but its status does not allow the action
    │   └── FileGone              it had a file, which was deleted or has expired
    ├── RateLimited               too many requests in the last 24 hours
    │   ├── TooManyCodes          the same for codes of the additional verification
    │   └── TooManyRetries        the same for one's own request that is put back again and again
    ├── NotAuthenticated          nobody knows yet who asks
    ├── IdentityProviderUnavailable   (retryable)
    ├── NotAllowed                the person may not do this
    │   ├── VerificationRequired  not before they have shown once more who they are
    │   └── LinkRefused           a download link that is not ours
    ├── LinkEnded                 a download link of ours that opens nothing any more
    ├── RunNotEntitled            another run, or a newer attempt, owns the request
    ├── DatabaseError             our own tables
    │   ├── DatabaseUnavailable   (retryable)
    │   └── NotMigrated
    ├── SourceError               where users' data lives
    │   ├── SourceUnavailable     (retryable)
    │   └── SourceRefused         permission, timeout, an object that changed under the run
    ├── MailUnavailable           (retryable)
    ├── VaultError                bytes at rest
    │   ├── KeyUnusable
    │   │   └── KeyServiceUnavailable   (retryable)
    │   ├── SealBroken            truncated, altered or not sealed for our keys
    │   └── StorageUnavailable    (retryable)
    ├── FileNotVerified           a delivered file does not agree with its manifest
    └── TrailBroken               the audit trail is not what it was

A message is one sentence for the person who can act on it; ``hint`` says how to mend it. Neither ever holds
personal data: errors travel into Dagster's event log and into ``export_requests.error_message``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class ExportPipelineError(Exception):
    """The root: everything that this package raises on purpose.

    Args:
        message: One sentence, free of personal data.
        hint: What to do about it, or empty.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ConfigurationError(ExportPipelineError):
    """A setting, a key file or a data type configuration is wrong."""


class DataTypeUnusable(ConfigurationError):
    """A data type's row says what nothing can be exported by: somebody wrote it by SQL."""


class InvalidRequest(ExportPipelineError):
    """What was asked cannot be exported."""


class RequestNotFound(ExportPipelineError):
    """No export request has this id."""


class LinkNotFound(RequestNotFound):
    """No download link has this id."""


class WrongStatus(ExportPipelineError):
    """The request exists, but its status does not allow the action."""


class FileGone(WrongStatus):
    """The request had a file, which was deleted or has expired."""


class RateLimited(ExportPipelineError):
    """Too many requests in the last 24 hours.

    Args:
        limit: How many are allowed.
        retry_after_s: Seconds until the next one is.
    """

    def __init__(self, *, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"The limit of {limit} export requests in 24 hours is reached.",
            hint=f"The next one is possible in {retry_after_s // 60 + 1} minutes.",
        )
        self.limit = limit
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return partial(type(self), limit=self.limit, retry_after_s=self.retry_after_s), ()


class TooManyCodes(RateLimited):
    """Too many codes for the additional verification in the last hour.

    Args:
        limit: How many are allowed.
        retry_after_s: Seconds until the next one is.
    """

    def __init__(self, *, limit: int, retry_after_s: int) -> None:
        super().__init__(limit=limit, retry_after_s=retry_after_s)
        self.message = f"The limit of {limit} codes in an hour is reached."


class TooManyRetries(RateLimited):
    """A person put a request about themselves back too often in the last 24 hours.

    Args:
        limit: How often it may be.
        retry_after_s: Seconds until it may be again.
    """

    def __init__(self, *, limit: int, retry_after_s: int) -> None:
        super().__init__(limit=limit, retry_after_s=retry_after_s)
        self.message = f"The limit of {limit} retries of a request in 24 hours is reached."


class NotAuthenticated(ExportPipelineError):
    """Nobody knows yet who asks: no token, or one that does not count.

    Args:
        message: One sentence, without anything of what was shown.
        hint: What to do about it, or empty.
        reason: A word for the trail; empty when nothing was shown at all.
    """

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason

    @property
    def challenge(self) -> str:
        """The header `WWW-Authenticate`."""
        realm = 'Bearer realm="export-pipeline"'
        return f'{realm}, error="invalid_token", error_description="{self.message}"' if self.reason else realm


class IdentityProviderUnavailable(ExportPipelineError):
    """Who asks cannot be told now, because the identity provider does not answer."""

    retryable = True


class NotAllowed(ExportPipelineError):
    """The person may not do this."""


class VerificationRequired(NotAllowed):
    """The person may do this, but must show once more who they are."""


class LinkRefused(NotAllowed):
    """The download link is not one of ours, or it was altered."""


class LinkEnded(ExportPipelineError):
    """The download link has expired, was revoked, or its file is gone."""


class RunNotEntitled(ExportPipelineError):
    """Another run, or a newer attempt, owns the request: this run must end without touching it."""


class DatabaseError(ExportPipelineError):
    """Something is wrong with our own tables."""


class DatabaseUnavailable(DatabaseError):
    """Our database cannot be reached now."""

    retryable = True


class NotMigrated(DatabaseError):
    """Our tables are absent, or of another version."""


class SourceError(ExportPipelineError):
    """Something is wrong with the database where users' data lives."""


class SourceUnavailable(SourceError):
    """The source cannot be reached now."""

    retryable = True


class SourceRefused(SourceError):
    """The source answered no: permission, timeout, or an object that changed under the run."""


class VaultError(ExportPipelineError):
    """Something is wrong with the bytes at rest."""


class KeyUnusable(VaultError):
    """No usable key: nothing is written without one."""


class KeyServiceUnavailable(KeyUnusable):
    """The key service cannot be asked now."""

    retryable = True


class SealBroken(VaultError):
    """Truncated, altered, or not sealed for any of our keys."""


class StorageUnavailable(VaultError):
    """The store cannot be reached, or refuses, now."""

    retryable = True


class MailUnavailable(ExportPipelineError):
    """The mail server is away, or refuses."""

    retryable = True


class FileNotVerified(ExportPipelineError):
    """A delivered file does not agree with its manifest."""


class TrailBroken(ExportPipelineError):
    """Rows of the audit trail were changed, removed, inserted or put into another order."""
