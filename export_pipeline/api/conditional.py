"""Answers that say what version they are, so that who has it already need not get it again."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Header, Response
from pydantic import BaseModel

from export_pipeline.api.openapi import Responses

IfNoneMatch = Annotated[
    str | None, Header(description="ETag of the answer that the caller has.", max_length=1000, examples=['"0"'])
]
#: For the documentation of routes that answer by `conditional`.
NOT_MODIFIED: Responses = {304: {"description": "What the caller has is current."}}


def conditional(answer: BaseModel, if_none_match: str | None, *, personal: bool = True) -> Response:
    """Answer with a body and its ETag, or with 304.

    Args:
        answer: The body.
        if_none_match: What the caller has.
        personal: Whether it is about a person: then no browser may keep it on a disk. A program that remembers the
            answer by itself can use the ETag all the same.
    """
    body = answer.model_dump_json().encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-store" if personal else "private, no-cache"}
    if if_none_match is not None and _matches(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _matches(tag: str, wanted: str) -> bool:
    return any(one.strip().removeprefix("W/") in {tag, "*"} for one in wanted.split(","))
