"""What is in a delivered file: counts, hashes, the moment that it shows, and what is missing and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from export_pipeline.collect.parts import Part
from export_pipeline.collect.source import SnapshotInfo
from export_pipeline.models import ExportFormat, ExportRequest
from export_pipeline.plan import ExportPlan

#: Of the layout that docs/FORMAT.md describes.
FORMAT_VERSION = 1


def build(
    request: ExportRequest,
    plan: ExportPlan,
    parts: Sequence[Part],
    not_exported: Mapping[str, str],
    snapshot: SnapshotInfo,
    export_date: datetime,
) -> dict[str, Any]:
    """State what the file holds.

    Args:
        request: Whose request it answers.
        plan: What was to be exported.
        parts: What was collected.
        not_exported: Data type → reason, for what was asked and is not in the file.
        snapshot: The moment that the data shows.
        export_date: When the file was made.

    Returns:
        JSON-ready; everything but the user's id, which only the file itself repeats.
    """
    stated = {
        "format_version": FORMAT_VERSION,
        "request_id": request.request_id,
        "request_type": request.request_type,
        "format": plan.format.value,
        "anonymize": request.anonymize,
        "requested_at": request.requested_at.isoformat(),
        "export_date": export_date.isoformat(),
        "snapshot": {"id": snapshot.id, "taken_at": snapshot.taken_at.isoformat(), "lsn": snapshot.lsn},
        "total_records": sum(part.rows for part in parts),
        "data_types": [part.data_type for part in parts],
        "parts": [_part(plan, part) for part in parts],
        "not_exported": [{"data_type": name, "reason": reason} for name, reason in not_exported.items()],
    }
    if plan.format is ExportFormat.CSV:
        # Who reads the file must know whether a leading quote is to be taken away.
        escaped = any(planned.extract.escape_formulas for planned in plan.types)
        stated["csv_formulas"] = "escape" if escaped else "raw"
    return stated


def _part(plan: ExportPlan, part: Part) -> dict[str, Any]:
    planned = next(planned for planned in plan.types if planned.data_type == part.data_type)
    extract = planned.extract
    return {
        "data_type": part.data_type,
        "title": planned.title,
        "table": f"{extract.schema}.{extract.table}",
        "columns": list(extract.columns),
        "column_types": list(planned.types),
        "order_by": list(extract.order_by),
        "altered": [policy.stated() for policy in extract.policies],
        "rows_in_snapshot": part.rows_in_snapshot,
        "rows": part.rows,
        "bytes": part.size,
        "sha256": part.sha256,
    }
