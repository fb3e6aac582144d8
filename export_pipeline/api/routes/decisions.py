"""What people decide about requests of others."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from export_pipeline.api.dependencies import Target, export
from export_pipeline.api.openapi import documented
from export_pipeline.api.schemas import Export, OptionalReason, Reason
from export_pipeline.identity import Scope

router = APIRouter(prefix="/api/exports", tags=["decisions"])
_RESPONSES = documented(400, 404, 409, 413)
_Decidable = Annotated[Target, Depends(export(Scope.APPROVE))]


@router.post("/{request_id}/approve", operation_id="approve_export", responses=_RESPONSES)
def approve_export(target: _Decidable, why: OptionalReason | None = None) -> Export:
    """Let a request into the queue. Whoever asked for it, or whose data it is, can't."""
    reason = why.reason if why else ""
    target.services.intake.approve(target.request_id, target.caller.actor, reason)
    return Export.of(target.again(), target.services.settings)


@router.post("/{request_id}/reject", operation_id="reject_export", responses=_RESPONSES)
def reject_export(target: _Decidable, why: Reason) -> Export:
    """End a request that waits for approval, with a reason."""
    target.services.intake.reject(target.request_id, target.caller.actor, why.reason)
    return Export.of(target.again(), target.services.settings)


@router.post("/{request_id}/extend", operation_id="extend_export", responses=_RESPONSES)
def extend_export(target: Annotated[Target, Depends(export(Scope.EXTEND))], why: Reason) -> Export:
    """Move the due date of a gdpr request by two months, once, with a reason."""
    target.services.intake.extend(target.request_id, target.caller.actor, why.reason)
    return Export.of(target.again(), target.services.settings)
