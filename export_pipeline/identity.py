"""Who may do what: the roles, the things that can be done, and the one table that joins them.

The table has two columns because most things are done to one person's data: to one's own, or to somebody else's. What
concerns the whole installation has the same roles in both. `docs/identity.md` is printed from it, and a test walks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from export_pipeline.errors import NotAllowed
from export_pipeline.models import Actor


class Role(StrEnum):
    """What a person is to this installation; somebody may have several."""

    SUBJECT = "subject"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"
    ADMIN = "admin"


class Scope(StrEnum):
    """One thing that can be done."""

    REQUEST = "request"
    READ = "read"
    DOWNLOAD = "download"
    REVOKE = "revoke"
    CANCEL = "cancel"
    RETRY = "retry"
    DELETE = "delete"
    EXTEND = "extend"
    APPROVE = "approve"
    READ_AUDIT = "read_audit"
    READ_DATA_TYPES = "read_data_types"
    ADMINISTER_DATA_TYPES = "administer_data_types"
    READ_METRICS = "read_metrics"
    READ_DAGSTER = "read_dagster"
    LAUNCH_DAGSTER = "launch_dagster"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Somebody who has proven who they are.

    Attributes:
        id: The user id: of the person's own data, and in the audit trail.
        roles: What they are here.
        auth_time: When they last signed in with their own hands, if that is known.
        email: Where a code for the additional verification can go.
        token_id: The id of the session or token of ours that proved it.
        came_after: The number of their last sign-out everywhere, when that was made; None when nothing of ours says it.
    """

    id: str = field(repr=False)
    roles: frozenset[Role]
    auth_time: datetime | None = None
    email: str | None = field(default=None, repr=False)
    token_id: str | None = None
    came_after: int | None = None

    def actor(self, ip_address: str | None = None, user_agent: str | None = None) -> Actor:
        """This person, as the audit trail names them."""
        return Actor(id=self.id, ip_address=ip_address, user_agent=user_agent)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Who may do one thing.

    Attributes:
        own: Roles that may do it to their own data.
        others: Roles that may do it to anybody else's, and to everybody's at once.
        meaning: What it is, for the docs.
    """

    own: frozenset[Role]
    others: frozenset[Role]
    meaning: str


def _grant(meaning: str, *, own: tuple[Role, ...] = (), others: tuple[Role, ...]) -> Grant:
    return Grant(own=frozenset(own), others=frozenset(others), meaning=meaning)


def _installation(meaning: str, *roles: Role) -> Grant:
    return _grant(meaning, own=roles, others=roles)


_SUBJECT, _OPERATOR, _APPROVER, _AUDITOR, _ADMIN = Role
_STAFF = (_OPERATOR, _APPROVER, _AUDITOR, _ADMIN)

#: The one table. An admin runs the machine and reads no files; whoever shall do both gets both roles.
SCOPES: MappingProxyType[Scope, Grant] = MappingProxyType(
    {
        Scope.REQUEST: _grant("Ask for an export.", own=(_SUBJECT, _OPERATOR), others=(_OPERATOR,)),
        Scope.READ: _grant(
            "See requests: status, history, manifest, live changes, links.", own=(_SUBJECT, *_STAFF), others=_STAFF
        ),
        Scope.DOWNLOAD: _grant(
            "Get the decrypted file, or a link to it; in the trail under one's own name.",
            own=(_SUBJECT, _OPERATOR),
            others=(_OPERATOR,),
        ),
        Scope.REVOKE: _grant("End download links.", own=(_SUBJECT, _OPERATOR, _ADMIN), others=(_OPERATOR, _ADMIN)),
        Scope.CANCEL: _grant(
            "End a request that has no file yet.", own=(_SUBJECT, _OPERATOR, _ADMIN), others=(_OPERATOR, _ADMIN)
        ),
        Scope.RETRY: _grant(
            "Put a failed or cancelled request back.", own=(_SUBJECT, _OPERATOR, _ADMIN), others=(_OPERATOR, _ADMIN)
        ),
        Scope.DELETE: _grant("Remove a file for good.", own=(_SUBJECT, _OPERATOR, _ADMIN), others=(_OPERATOR, _ADMIN)),
        Scope.EXTEND: _grant("Move a due date once.", others=(_OPERATOR, _APPROVER)),
        # Nobody decides about their own data; the database also refuses whoever made the request.
        Scope.APPROVE: _grant("Approve or reject a request that waits for it.", others=(_APPROVER,)),
        Scope.READ_AUDIT: _installation("Read the audit trail, with actors and addresses.", _AUDITOR, _ADMIN),
        Scope.READ_DATA_TYPES: _installation("See which data types can be asked for.", *Role),
        Scope.ADMINISTER_DATA_TYPES: _installation("Change the data type configuration.", _ADMIN),
        Scope.READ_METRICS: _installation("Read metrics and the state of the queue.", _OPERATOR, _AUDITOR, _ADMIN),
        Scope.READ_DAGSTER: _installation("Open the Dagster UI, to look.", _OPERATOR, _AUDITOR, _ADMIN),
        Scope.LAUNCH_DAGSTER: _installation("Launch, terminate and switch in the Dagster UI.", _ADMIN),
    }
)


def allowed(principal: Principal, scope: Scope, *, user_id: str | None = None) -> bool:
    """Tell whether somebody may do something.

    Args:
        principal: Who.
        scope: What.
        user_id: Whose data it is done to; None is everybody's, or the installation's.
    """
    grant = SCOPES[scope]
    return bool(principal.roles & (grant.own if user_id == principal.id else grant.others))


def require(principal: Principal, scope: Scope, *, user_id: str | None = None) -> None:
    """Refuse what somebody may not do; see `allowed`.

    Raises:
        NotAllowed: They may not.
    """
    if not allowed(principal, scope, user_id=user_id):
        raise NotAllowed(
            "Your roles do not allow this.", hint=f"It needs the scope {scope.value}; docs/identity.md has the table."
        )
