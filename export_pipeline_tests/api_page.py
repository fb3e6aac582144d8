"""Makes `docs/api.md` from the API's own OpenAPI document and its table of problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export_pipeline.api import file_desk, problems
from export_pipeline.api.app import openapi_document
from export_pipeline.api.routes import events

_INTRODUCTION = """# The API

`export-pipeline up` serves it at `http://127.0.0.1:8080` (`EXPORT_PIPELINE_API_HOST`, `EXPORT_PIPELINE_API_PORT`).
Any other ASGI server serves it as well, with the same settings:

```sh
uvicorn --factory export_pipeline.api.app:application --no-access-log --no-proxy-headers --timeout-graceful-shutdown 5
```

`/api/openapi.json` is the document for programs, `/api/docs` a page to try it out; that page loads nothing from
elsewhere.

## A first export

With what `export-pipeline demo --keep` leaves running: its database and its sample data. With a database of your own,
put a person and data types of yours; there the command line makes tokens only with `EXPORT_PIPELINE_LOCAL_TOKENS=true`,
else your identity provider does. For `ID` and `DOWNLOAD_URL` put what the call before answered.

```sh
TOKEN=$(export-pipeline token --user user-0004)
API=http://127.0.0.1:8080
curl -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' "$API/api/exports/request" \\
  -d '{"user_id": "user-0004", "data_types": ["user_sessions", "user_clicks"], "format": "json"}'
curl -NH "Authorization: Bearer $TOKEN" "$API/api/exports/status/ID/events"   # until it has ended
curl -H "Authorization: Bearer $TOKEN" "$API/api/exports/download/ID"         # gives download_url
curl -fOJ "$API$DOWNLOAD_URL"                                                  # needs no token
```

## Operations

The scope says who may call: [who may do what](identity.md). An operation without one needs no sign-in.
"""

_RULES = """
## What holds for all of them

- **Names** are those of the specification, in snake_case. Times are ISO 8601 with their offset. A field that we do
  not know is refused, not ignored.
- **Who may not**: 401 is for whoever is not signed in, 403 for whoever may do this to nobody, or not to the person
  whom the call names. Ids of requests that the caller may not see get the same 404 as ids that do not exist, with the
  same body, after the same work; what the caller may see and not do this to is 403.
- **`requested_by`** is whoever calls. An operator acts for others and is recorded as themselves.
- **`Idempotency-Key`**, a header of the two POSTs that make a request: calls of one caller with the same key make one
  request; with another body they get 409. Without a key, an identical request that is still open is given back.
- **The GET of `/gdpr/{user_id}`** is kept for callers of old and takes bearer tokens only: a session's cookie does
  not do.
- **Sensitive data types of one's own** need a fresh verification: a sign-in within
  `EXPORT_PIPELINE_VERIFICATION_MAX_AGE_S`, or a one-time code in the header `Verification-Code`. Without, the
  answer is 403 `verification-required`, and its hint says how to go on. Operators have proven to their organisation
  who they are.
- **Limits**: 429 comes with `Retry-After` and, in the body, `limit`, `remaining` and `retry_after`. They are those of
  the API and the command line: a plain INSERT into `export_requests` knows none, because whoever may INSERT is trusted.
- **A call that a lock in our database holds up** gets 503 with `Retry-After` after two seconds, and its place is free
  for others.
- **Ids in paths** are percent-encoded. An id with a slash fits into no path: `GET /api/exports?user_id=` takes it, and
  `POST /request` with `request_type` gdpr.
- **Addresses in answers** (`status_url` and `Location`, `file_url`, `download_url`) begin with
  `EXPORT_PIPELINE_PUBLIC_URL` and its path, where a proxy puts the API below one. Without that setting they begin with
  `/api`.
- **Pages**: `next_cursor` of a page is the `cursor` of the next. A row is shown once, whatever is inserted meanwhile.
- **`ETag`** comes with status, manifest and data types; `If-None-Match` with it gets 304 as long as nothing changed.
- **Live changes** are server-sent events. Each event `status` has the whole status as its data; comments keep the
  connection; it ends when the request has ended, and after five minutes in any case, so that the token is looked at
  again.
- **Files** come whole or, with `Range`, in pieces, by a link as with a token: [what clients may rely
  on](links.md#the-download).
- **Bodies** have at most 64 KiB, headers 512 KiB, and a request must have come within a minute.
- **Browsers**: no page of another origin may call, unless `EXPORT_PIPELINE_API_CORS_ORIGINS` names it. Answers are
  not stored, not framed, and run nothing. `EXPORT_PIPELINE_API_HSTS` belongs behind TLS.
- **Proxies**: X-Forwarded-For and X-Forwarded-Proto count only when a proxy in
  `EXPORT_PIPELINE_API_TRUSTED_PROXIES` wrote them; name yours, or the trail has its address in the place of people's.
  A proxy must pass `Host` on, or no browser can change anything. TLS, and patience with slow callers, are its work.
- **Logs** hold no paths, because paths hold ids of people. `/metrics` counts by route; several processes count each
  for themselves.
- **Health**: `/health` says that the process lives, `/ready` that database, tables, key and store are there.

## Where it differs from the specification's sketch

Addresses and the names of fields are the specification's; there are more of both. These things are other than there:

| call | the sketch | here |
|---|---|---|
| `POST /request`, `/gdpr/{user_id}` | 200 | 202 with `Location`: the request is accepted, and nothing is made yet |
| `/gdpr/{user_id}` | GET | POST; GET is deprecated |
| `GET /download/{request_id}` without a file | 400 | 409; 410 when there was one |
| every error | `{"detail": …}` | a problem document, which has `detail` too |
| a body that is not valid | 422 | 400 |
| `DELETE /{request_id}` | the row is gone | the row stays as `deleted`; the answer names it |
| `user_id` of the body | anybody's, and the requester | oneself, or for operators anybody; the requester is who calls |

## Problems

Every error is a document `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail`, often a
`hint`, and with 400 `errors`, each with a `pointer` to what is wrong. Of what was sent, names may come back and nothing
else: those of fields, in `pointer`; of data types, where they have the form of one; and to administrators the names of
columns that they sent. `type` begins with `urn:export-pipeline:problem:` and ends with the name. Only what is no HTTP
gets something else: the web server itself answers it with 400 and `text/plain`, and closes the connection.

| status | name | title |
|---|---|---|
"""


def page(head: str) -> str:
    """`docs/api.md`."""
    rows = ["| call | scope | what it does | answers |", "|---|---|---|---|", *_operations()]
    return "\n".join([head, _INTRODUCTION, *rows]) + "\n" + _RULES + "\n".join(_problems()) + "\n"


def _operations() -> Iterator[str]:
    paths: dict[str, dict[str, Any]] = openapi_document()["paths"]  # type: ignore[assignment]
    for path, operations in paths.items():
        for method, operation in operations.items():
            yield _row(f"{method.upper()} {path}", operation)


def _row(call: str, operation: dict[str, Any]) -> str:
    scope = "".join(f"`{name}`" for need in operation["security"] for name in need["bearer"])
    text = " ".join(operation["description"].split()).replace("|", "\\|")
    text = f"Deprecated. {text}" if operation.get("deprecated") else text
    return f"| `{call}` | {scope} | {text} | {', '.join(sorted(operation['responses']))} |"


def _problems() -> list[str]:
    of_routes = [found for module in (events, file_desk) for found in vars(module).values()]
    kinds = {*problems.KINDS.values(), *problems.HTTP_KINDS.values()}
    kinds |= {found for found in of_routes if isinstance(found, problems.Kind)}
    rows = {(kind.status, kind.name): kind.title for kind in sorted(kinds, key=lambda kind: kind.title)}
    return [f"| {status} | `{name}` | {title} |" for (status, name), title in sorted(rows.items())]
