"""Whose address a call comes from. A header is believed only when a proxy wrote it that the operator named."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from starlette.requests import HTTPConnection

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]


def of(connection: HTTPConnection, trusted: Networks) -> str | None:
    """The caller's address; None when it is not known (a unix socket, a test).

    Each trusted proxy appended to X-Forwarded-For whom it heard from: read from the right, the first address that is
    no trusted proxy is the caller. What stands further left anybody could have written.

    Args:
        connection: The call.
        trusted: Networks of the proxies before us.
    """
    peer = _parse(connection.client.host) if connection.client else None
    if peer is None:
        return None
    hops = ",".join(connection.headers.getlist("x-forwarded-for")).split(",")
    for hop in reversed(hops):
        if not _within(peer, trusted):
            break
        if (before := _parse(hop.strip())) is None:
            break
        peer = before
    return str(peer)


def _within(address: IPv4Address | IPv6Address, networks: Networks) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket that listens for both kinds gives IPv4 callers in this form.
    return getattr(address, "ipv4_mapped", None) or address
