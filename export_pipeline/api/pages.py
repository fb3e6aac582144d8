"""The cursor of a page: where it ended, in a form that nobody should take apart."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime

from export_pipeline.db.listing import Place
from export_pipeline.errors import InvalidRequest
from export_pipeline.models import REQUEST_ID_PATTERN


def cursor(place: Place) -> str:
    """Write a place down; it holds a time and the id of a request."""
    text = json.dumps([place.requested_at.isoformat(), place.request_id])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place(cursor: str) -> Place:
    """Read it again.

    Raises:
        InvalidRequest: We did not write this.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        moment, request_id = json.loads(text)
        requested_at = datetime.fromisoformat(moment)
        usable = REQUEST_ID_PATTERN.fullmatch(request_id) and requested_at.tzinfo
    except (ValueError, TypeError, binascii.Error, RecursionError):
        usable = None
    if not usable:
        raise InvalidRequest("The cursor is not one of ours.", hint="Take next_cursor of a page, unaltered.")
    return Place(requested_at=requested_at, request_id=request_id)
