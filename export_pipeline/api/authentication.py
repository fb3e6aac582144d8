"""Who asks: one dependency for every route."""

from __future__ import annotations

from fastapi import Request

from export_pipeline.identity import Principal
from export_pipeline.sign_in import web
from export_pipeline.sign_in.gatekeeper import Gatekeeper


async def authenticate(request: Request) -> Principal:
    """Tell who asks, by bearer token or by the cookie of a session.

    Raises:
        NotAuthenticated: Nobody that we know.
        IdentityProviderUnavailable: It cannot be told now.
    """
    gatekeeper: Gatekeeper = request.app.state.services.gatekeeper
    return await web.admit(gatekeeper, request)
