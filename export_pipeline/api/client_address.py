"""Whose address a call comes from. A header is believed only when a proxy wrote it that the operator named."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]
_Address: TypeAlias = IPv4Address | IPv6Address


class ClientAddress:
    """Puts the caller's own address, and how they came, where everything behind looks for it.

    Args:
        app: The application.
        trusted: Networks of the proxies before us.
    """

    def __init__(self, app: ASGIApp, *, trusted: Networks) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        peer = _parse(scope["client"][0]) if scope.get("client") else None
        if scope["type"] == "http" and peer is not None:
            headers = Headers(scope=scope)
            if _within(peer, self._trusted) and headers.get("x-forwarded-proto") in {"http", "https"}:
                scope["scheme"] = headers["x-forwarded-proto"]
            scope["client"] = (str(_caller(peer, headers, self._trusted)), scope["client"][1])
        await self._app(scope, receive, send)


def _caller(peer: _Address, headers: Headers, trusted: Networks) -> _Address:
    """Each trusted proxy appended to X-Forwarded-For whom it heard from: read from the right, the first address that is
    no trusted proxy is the caller. What stands further left anybody could have written.
    """
    for hop in reversed(",".join(headers.getlist("x-forwarded-for")).split(",")):
        if not _within(peer, trusted) or (before := _parse(hop.strip())) is None:
            break
        peer = before
    return peer


def _within(address: _Address, networks: Networks) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> _Address | None:
    try:
        # The zone of a link-local address is a word of any length, and means something on one machine only.
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket that listens for both kinds gives IPv4 callers in this form.
    return getattr(address, "ipv4_mapped", None) or address
