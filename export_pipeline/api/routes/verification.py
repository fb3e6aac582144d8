"""The additional verification: send a code."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from export_pipeline.api.dependencies import Caller, ServicesDep, require
from export_pipeline.api.openapi import documented
from export_pipeline.identity import Scope

router = APIRouter(prefix="/api", tags=["exports"])
_Requester = Annotated[Caller, Depends(require(Scope.REQUEST))]


class CodeSent(BaseModel):
    """A code is on its way."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"expires_at": "2026-11-24T07:10:00Z"}]})

    expires_at: datetime = Field(description="Until when it counts, once.")


@router.post(
    "/verification", operation_id="send_verification_code", status_code=202, responses=documented(400, 413, 429)
)
def send_verification_code(
    services: ServicesDep, caller: Annotated[Caller, Depends(require(Scope.REQUEST))]
) -> CodeSent:
    """Send a one-time code to the caller's e-mail address; `Verification-Code` of the next request takes it."""
    return CodeSent(expires_at=services.verification.send(caller.principal))
