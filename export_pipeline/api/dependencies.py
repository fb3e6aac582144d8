"""What routes ask for: the installation, who calls, and whether they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Path, Request

from export_pipeline import identity
from export_pipeline.api.authentication import authenticate
from export_pipeline.db.listing import Listed, Listing
from export_pipeline.errors import FileGone, NotAllowed, RequestNotFound, WrongStatus
from export_pipeline.identity import Principal, Scope
from export_pipeline.models import REQUEST_ID_PATTERN, Actor, RequestStatus
from export_pipeline.wiring import Services

_MAX_USER_AGENT = 255
_GONE = frozenset({RequestStatus.EXPIRED, RequestStatus.DELETED})
_NOT_FOUND = "There is no export request with this id."
RequestIdPath = Annotated[
    str, Path(description="The id of the request.", examples=["5d7f0f66-3f1c-4f9e-9f0b-6f4e3f0f8a51"])
]


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls, what for, and from where.

    Attributes:
        principal: Who.
        scope: What the route does.
        actor: The same person for the trail.
    """

    principal: Principal
    scope: Scope
    actor: Actor

    def may(self, user_id: str | None) -> bool:
        """Whether it may be done to this person's data; None is everybody's."""
        return identity.allowed(self.principal, self.scope, user_id=user_id)

    @property
    def sees_only(self) -> str | None:
        """Whose requests there are for them at all; None is everybody's."""
        return None if identity.allowed(self.principal, Scope.READ) else self.principal.id

    def require(self, user_id: str | None) -> None:
        """Refuse what may not be done.

        Raises:
            NotAllowed: To this person's data it may not; the same whether or not there is such a person.
        """
        if not self.may(user_id):
            raise NotAllowed("Your roles do not allow this.", hint=f"It needs the scope {self.scope.value}.")


async def services(request: Request) -> Services:
    """The installation."""
    found: Services = request.app.state.services
    return found


PrincipalDep = Annotated[Principal, Depends(authenticate)]


def require(scope: Scope, *, everybody: bool = False) -> Callable[..., Awaitable[Caller]]:
    """Make the dependency of a route: who calls may do this at least to somebody, be it themselves.

    Args:
        scope: What the route does.
        everybody: Whether the route is about no person, or about all of them.
    """

    async def caller(request: Request, principal: PrincipalDep) -> Caller:
        found = Caller(principal=principal, scope=scope, actor=replace(address_of(request), id=principal.id))
        if not found.may(None) and (everybody or not found.may(principal.id)):
            found.require(None)
        return found

    # For the documentation.
    caller.scope = scope  # type: ignore[attr-defined]
    return caller


@dataclass(frozen=True, kw_only=True)
class Target:
    """An export request that the caller may do the route's work to."""

    caller: Caller
    listed: Listed
    services: Services

    @property
    def request_id(self) -> str:
        """Its id."""
        return self.listed.request.request_id

    def require_file(self) -> None:
        """Make sure that the request has a file.

        Raises:
            FileGone: It had one.
            WrongStatus: It has none yet.
        """
        status = self.listed.request.status
        if status in _GONE:
            raise FileGone(f"The file was removed: the request is {status.value}.", hint="Request the export again.")
        if self.listed.over:
            raise FileGone("There is no file to download: it has expired.", hint="Request the export again.")
        if not self.listed.has_file:
            raise WrongStatus(f"There is no file: the request is {status.value.replace('_', ' ')}.")

    def again(self) -> Listed:
        """Read it anew, after a change."""
        return Listing(self.services.database).get(self.request_id)


def export(scope: Scope) -> Callable[..., Target]:
    """Make the dependency of a route about one export request.

    A request that the caller may not see answers like one that does not exist: the same words after the same work,
    because the database does not find it either. What they may see and not do this to is refused.
    """
    caller_dependency = Depends(require(scope))

    def target(request_id: RequestIdPath, services: ServicesDep, caller: Caller = caller_dependency) -> Target:
        if not REQUEST_ID_PATTERN.fullmatch(request_id):
            raise RequestNotFound(_NOT_FOUND)
        found = Listing(services.database).get(request_id, user_id=caller.sees_only)
        caller.require(found.request.user_id)
        return Target(caller=caller, listed=found, services=services)

    return target


def address_of(request: Request) -> Actor:
    """From where a call comes and by which program; who it is is for others to say."""
    agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:_MAX_USER_AGENT]
    return Actor(id="", ip_address=request.client.host if request.client else None, user_agent=agent or None)


ServicesDep = Annotated[Services, Depends(services)]
