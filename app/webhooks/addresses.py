"""Whom a webhook may reach: no address of this machine or of a private network, unless a setting allows it.

What counts is the address that a name stands for at the moment, never the name: see `reachable`, whose answer is what a
connection is then made to.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from app.errors import Unprocessable

Address = IPv4Address | IPv6Address
# A host and a port to addresses. Raises OSError where there are none.
Resolve = Callable[[str, int], Awaitable[list[str]]]
LONGEST_URL = 2048
RESOLVE_S = 5.0
_HOST = re.compile(r"^(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*$")
_PRINTABLE = re.compile(r"^[\x21-\x7e]+$")
_GLOBAL_V6 = IPv6Network("2000::/3")  # all that is given out
# What the standard library of this Python counts as public, and is not.
_NOT_PUBLIC = (
    IPv4Network("192.88.99.0/24"),
    IPv4Network("192.0.0.0/24"),
    IPv4Network("168.63.129.16/32"),  # of Azure's hosts, from within: public in name alone
    IPv6Network("2002::/16"),  # 6to4: where it ends is an IPv4 address, by way of whoever relays
    IPv6Network("3fff::/20"),
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


class Place(NamedTuple):
    """A URL in parts. host: without the brackets of an IPv6 address. target: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def header(self) -> str:
        """What the header Host says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


class Allowed(NamedTuple):
    """What may be reached though it is not public."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    hosts: frozenset[str] = frozenset()


def parse_allowed(text: str | None) -> Allowed:
    """`10.1.0.0/16, hooks.internal`. Raises Unprocessable."""
    networks: list[IPv4Network | IPv6Network] = []
    hosts = set()
    for part in filter(None, (p.strip().lower() for p in (text or "").split(","))):
        try:
            networks.append(ip_network(part, strict=False))
        except ValueError:
            if not _HOST.match(part.rstrip(".")) or not re.search("[a-z]", part):
                raise Unprocessable(
                    f"ENGINESMITH_WEBHOOKS_ALLOW has {part!r}, which is neither a network nor the name of a host",
                    code="bad_webhooks_allow",
                    hint="say 10.1.0.0/16, fd00::/8 or hooks.internal, several with commas",
                ) from None
            hosts.add(part.rstrip("."))
    return Allowed(tuple(networks), frozenset(hosts))


def parse_url(url: str) -> Place:
    """Raises Unprocessable."""
    if len(url) > LONGEST_URL or not _PRINTABLE.match(url) or "\\" in url:
        raise _bad(f"longer than {LONGEST_URL} characters, or with characters that a URL has not")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").rstrip(".")
    except ValueError as error:
        raise _bad(str(error)) from None
    if parts.scheme not in ("http", "https"):
        raise _bad("its scheme is neither https nor http")
    if "@" in parts.netloc:
        raise _bad("it has credentials in it", "receivers know who speaks by the signature")
    if "#" in url:
        raise _bad("it has a fragment")
    if port == 0 or not (_HOST.match(host) or _literal(host)):
        raise _bad("its host or port cannot be", "write a name of another alphabet as xn--…")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme], target)


async def reachable(place: Place, allowed: Allowed, resolve: Resolve) -> list[str]:
    """The addresses that may be connected to, of all that the host has now. Raises Unprocessable where there is none,
    or no such name."""
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await resolve(place.host, place.port)
    except (OSError, TimeoutError):
        found = []
    if not found:
        raise Unprocessable(
            f"{place.host} has no address", code="unknown_host", hint="mend the name, or try again if it is a new one"
        )
    addresses = [_plain(ip_address(text.partition("%")[0])) for text in found]
    fine = [str(a) for a in addresses if place.host in allowed.hosts or is_public(a) or _is_in(a, allowed.networks)]
    if not fine:
        raise Unprocessable(
            f"{place.host} is in a private or reserved network, or on this machine",
            code="refused_address",
            hint="use a public address, or have ENGINESMITH_WEBHOOKS_ALLOW name this one where the service is started",
        )
    return list(dict.fromkeys(fine))


def _plain(address: Address) -> Address:
    """An IPv4 address that is written as IPv6, as what it is."""
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet is meant to be able to reach it, and it leads to nobody else."""
    address = _plain(address)
    if isinstance(address, IPv6Address):
        last = IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _NAT64:
            return is_public(last)
        is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
        if address not in _GLOBAL_V6 or (is_isatap and not is_public(last)):
            return False
    refused = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not refused and not _is_in(address, _NOT_PUBLIC)


async def lookup(host: str, port: int) -> list[str]:
    """What the system's resolver says. In a thread of its own: the pool that Redis is asked from must not wait for a
    name server that hangs, nor the end of the process. Raises OSError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str], error: OSError | None) -> None:
        if not answer.done():
            answer.set_result(found) if error is None else answer.set_exception(error)

    def look() -> None:
        found, failed = [], None
        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            failed = error
        except UnicodeError:
            failed = OSError(f"{host} cannot be a name")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, found, failed)

    threading.Thread(target=look, name="webhook-lookup", daemon=True).start()
    return await answer


def _literal(host: str) -> bool:
    try:
        return not getattr(ip_address(host), "scope_id", None)
    except ValueError:
        return False


def _bad(why: str, hint: str = "say https://host/path") -> Unprocessable:
    return Unprocessable(
        f"this is no URL that can be called: {why}",
        code="bad_url",
        hint=hint,
        errors=[{"loc": ["url"], "msg": why}],
    )
