"""The additional verification: who asks for sensitive data of their own proves once more that it is them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Header

from export_pipeline.api.dependencies import Caller
from export_pipeline.api.schemas import RequestExport
from export_pipeline.errors import VerificationRequired
from export_pipeline.models import RequestType
from export_pipeline.wiring import Services

VerificationCode = Annotated[
    str | None,
    Header(
        alias="Verification-Code",
        min_length=1,
        max_length=64,
        pattern="^[!-~]+$",
        description="The one-time code, where a sensitive data type needs it.",
        examples=["482915"],
    ),
]


def require_verified(services: Services, caller: Caller, asked: RequestExport, code: str | None) -> None:
    """Let a person ask for sensitive data types of their own only right after they have shown who they are.

    Raises:
        VerificationRequired: The sign-in is too long ago; says how to go on.
    """
    if asked.user_id != caller.principal.id or not _sensitive(services, asked):
        return
    since = caller.principal.auth_time
    fresh = timedelta(seconds=services.settings.verification_max_age_s)
    if since is None or datetime.now(UTC) - since > fresh:
        raise VerificationRequired(
            "A sensitive data type needs a fresh verification.", hint="Sign in again, then repeat the call."
        )


def _sensitive(services: Services, asked: RequestExport) -> bool:
    everything = asked.request_type is RequestType.GDPR
    return any(
        config.is_sensitive and (everything or config.data_type in asked.data_types)
        for config in services.data_types.all()
    )
