"""The additional verification: who asks for sensitive data of their own proves once more that it is them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from export_pipeline.api.dependencies import Caller
from export_pipeline.api.schemas import RequestExport
from export_pipeline.plan import requested_types
from export_pipeline.wiring import Services

VerificationCode = Annotated[
    str | None,
    Header(
        alias="Verification-Code",
        min_length=1,
        max_length=64,
        pattern="^[!-~]+$",
        description="The one-time code, where a sensitive data type needs it.",
        examples=["48291537"],
    ),
]


def require_verified(services: Services, caller: Caller, asked: RequestExport, code: str | None) -> None:
    """Let a person ask for sensitive data types of their own only right after they have shown who they are.

    Raises:
        InvalidRequest: A data type is not known; no code was used up.
        VerificationRequired: They have not shown it; says how to go on.
    """
    if asked.user_id != caller.principal.id:
        return
    chosen = requested_types(asked.request_type, asked.data_types, services.data_types.all())
    if any(config.is_sensitive for config in chosen):
        services.verification.require_verified(caller.principal, code, caller.actor)
