"""A client for a Redis URL: of one server, or of whoever is master among servers that Sentinels watch.

redis://user:password@host:6379/0        rediss:// over TLS (?ssl_ca_certs=FILE, ssl_certfile, ssl_keyfile)
unix:///path/of/socket
redis+sentinel://user:password@one:26379,two:26379/mymaster/0?sentinel_password=…    rediss+sentinel:// over TLS
"""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
Kind = TypeVar("Kind", bound=redis.Redis)
PORT = 26379
SENTINEL_TIMEOUT_S = 1.0  # for each that is asked: one that hangs must not use up the patience of whoever asks
_OF_SENTINELS = ("sentinel_username", "sentinel_password")


def dial(url: str, kind: type[Kind], **options: Any) -> Kind:
    """Opens no connection yet. options: those of redis.Redis; what the URL says goes before. Raises ValueError for a
    URL of no kind that there is; it repeats nothing of it, for there may be a password in that."""
    try:
        return _dial(url, kind, options)
    except ValueError as error:
        told = _QUOTED.sub("…", str(error)).replace("unix://)", "unix://, redis+sentinel://, rediss+sentinel://)")
        raise ValueError(told) from None


def _dial(url: str, kind: type[Kind], options: dict[str, Any]) -> Kind:
    scheme, _, _ = url.partition("://")
    if not scheme.endswith("+sentinel"):
        return kind.from_url(url, **options)  # type: ignore[return-value]
    sentinels, name, plain, of_sentinels = _read(url)
    chosen: dict[str, Any] = options | dict(parse_url(plain))  # type: ignore[no-untyped-call]
    is_tls = chosen.pop("connection_class", None) is SSLConnection
    chosen = {k: v for k, v in chosen.items() if k not in ("host", "port")}
    tls = {"ssl": True} | {k: v for k, v in chosen.items() if k.startswith("ssl_")} if is_tls else {}
    asked: dict[str, Any] = {
        "socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),  # there are others
    }  # fmt: skip
    watching = Sentinel(sentinels, sentinel_kwargs=asked | of_sentinels | tls, **(chosen | tls))  # type: ignore[no-untyped-call]
    return watching.master_for(name, redis_class=kind)  # type: ignore[no-any-return, no-untyped-call]


def _read(url: str) -> tuple[list[tuple[str, int]], str, str, dict[str, str]]:
    """(Sentinels, name of the master, the URL that a single server would have, how Sentinels are spoken to)."""
    parts = urlsplit(url)
    who, _, hosts = parts.netloc.rpartition("@")
    path = [part for part in parts.path.split("/") if part]
    if not hosts or not 1 <= len(path) <= 2 or (len(path) == 2 and not path[1].isdecimal()):
        raise ValueError("a URL of Sentinels is redis+sentinel://one:26379,two:26379/NAME/0, with the master's NAME")
    said = parse_qsl(parts.query)
    of_sentinels = {key.removeprefix("sentinel_"): value for key, value in said if key in _OF_SENTINELS}
    query = urlencode([(key, value) for key, value in said if key not in _OF_SENTINELS])
    netloc = f"{who}@host" if who else "host"
    plain = urlunsplit((parts.scheme.removesuffix("+sentinel"), netloc, "/".join(path[1:]), query, ""))
    return [_place(host) for host in hosts.split(",")], path[0], plain, of_sentinels


def _place(text: str) -> tuple[str, int]:
    found = urlsplit(f"//{text}")
    if not found.hostname:
        raise ValueError(f"{text!r} is no host of a Sentinel")
    return found.hostname, found.port or PORT
