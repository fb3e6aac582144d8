"""The trail of a request."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends

from export_pipeline.api.dependencies import Target, export
from export_pipeline.api.openapi import documented
from export_pipeline.api.schemas import AuditEntry, AuditTrail
from export_pipeline.identity import Scope

router = APIRouter(prefix="/api/exports", tags=["audit"])


@router.get("/{request_id}/audit", operation_id="get_audit_trail", responses=documented(404))
def get_audit_trail(target: Annotated[Target, Depends(export(Scope.READ_AUDIT))]) -> AuditTrail:
    """What happened to a request, with who did it and from where; oldest first."""
    rows = target.services.requests.trail(target.request_id)
    entries = [AuditEntry.model_validate(asdict(row)) for row in rows]
    return AuditTrail(request_id=target.request_id, entries=entries, count=len(entries))
