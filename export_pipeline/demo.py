"""The main job on a machine with nothing but this package: sample data, one request per format, real runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from export_pipeline import sample_source
from export_pipeline.db.watch import follow
from export_pipeline.delivery import deliver, save
from export_pipeline.errors import ExportPipelineError
from export_pipeline.models import Actor, ExportFormat, ExportMetadata, ExportRequest, RequestStatus
from export_pipeline.verify import verify
from export_pipeline.wiring import Services

_ACTOR = Actor(id="demo")
_PATIENCE_S = 150.0


@dataclass(frozen=True, kw_only=True)
class DemoFile:
    """One delivered file of the demo.

    Attributes:
        request: The finished request.
        metadata: What its file holds.
        path: The decrypted copy.
    """

    request: ExportRequest
    metadata: ExportMetadata
    path: Path


def install_sample(services: Services) -> None:
    """Make the sample source, unless users' data lives in a database of their own: that is only ever read.

    Raises:
        ConfigurationError: Tables of the same names are there and are not ours.
    """
    if services.settings.source_url is None:
        with psycopg.connect(services.source_url) as connection:
            sample_source.install(connection)


def request_all(services: Services, user_id: str) -> list[ExportRequest]:
    """Ask for everything about one user, once in every format."""
    return [
        services.intake.request(user_id=user_id, data_types=[], actor=_ACTOR, format=form, kind="gdpr")
        for form in ExportFormat
    ]


def wait(
    services: Services, requests: list[ExportRequest], changed: Callable[[ExportRequest], None]
) -> list[ExportRequest]:
    """Wait until every request has a file.

    Args:
        services: The installation.
        requests: Which requests.
        changed: Told of every change, for a progress display.

    Raises:
        ExportPipelineError: One failed, or it takes too long.
    """
    latest = {request.request_id: request for request in requests}
    for request in follow(services.database, list(latest), timeout=_PATIENCE_S):
        latest[request.request_id] = request
        changed(request)
    for request in latest.values():
        if request.status is not RequestStatus.COMPLETED:
            reason = request.error_message or "it takes too long"
            raise ExportPipelineError(
                f"The {request.format} export is {request.status.value}: {reason}",
                hint="The logs are in the state folder under logs/.",
            )
    return list(latest.values())


def fetch(services: Services, request: ExportRequest, folder: Path) -> DemoFile:
    """Write the decrypted file of a finished request and check it against its own manifest.

    Raises:
        ExportPipelineError: The file is not what was completed.
    """
    delivery = deliver(services.database, services.vault(), request.request_id, _ACTOR)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"export-{request.format}{Path(delivery.file_name).suffix}"
    save(delivery, path)
    verify(path)
    return DemoFile(request=request, metadata=delivery.metadata, path=path)
