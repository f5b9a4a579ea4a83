"""Without keys whoever reaches this machine's loopback address may do everything, and so may a browser here, which
pages of strangers drive. So those are refused: by the name in Host, which leads here though it is theirs (DNS
rebinding), and by Origin, where they change something. With keys there is no need: a page has none."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from app.errors import Forbidden, Unprocessable
from app.settings import Settings

READING = frozenset({"GET", "HEAD", "OPTIONS"})
_REMEMBERED = 256


class Pages:
    """Raises Unprocessable for settings that name what is no origin."""

    def __init__(self, settings: Settings) -> None:
        self._origins = {origin.encode().lower() for origin in origins(settings.cors_origins or "")}
        named = (urlsplit(origin.decode()).hostname for origin in self._origins if origin != b"*")
        self._names = {name.lower() for name in (*named, settings.host, settings.manage_host) if name}
        self._fine: set[bytes] = {b""}

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises Forbidden."""
        if b"*" in self._origins:
            return
        host = headers.get(b"host", b"")
        if host not in self._fine:
            self._remember(host)
        origin = headers.get(b"origin")
        if origin is None or method in READING or origin.lower() in self._origins:
            return
        if origin.lower().partition(b"://")[2] != host.lower():
            raise Forbidden(
                "a page of another origin may not do this",
                code="foreign_page",
                hint="ENGINESMITH_CORS_ORIGINS names the origins that may, where the service is started",
            )

    def _remember(self, host: bytes) -> None:
        """Raises Forbidden for a name that is none of this machine's."""
        name = _name(host)
        if "." in name and name not in self._names and not name.endswith(".localhost") and not _is_address(name):
            raise Forbidden(
                f"this service has no key, and is not asked as {name[:100]!r}",
                code="foreign_host",
                hint="ask it at 127.0.0.1, or make a key: enginesmith keys create --scopes admin",
            )
        if len(self._fine) < _REMEMBERED:
            self._fine.add(host)


def _name(host: bytes) -> str:
    text = host.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def origins(text: str) -> list[str]:
    """`https://one.example, https://two.example:8443`, or `*`. Raises Unprocessable."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    for origin in found:
        scheme, parted, rest = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not parted or not rest or "/" in rest):
            raise Unprocessable(
                f"ENGINESMITH_CORS_ORIGINS has {origin!r}, which is no origin",
                code="bad_origins",
                hint="say https://host or https://host:port, several with commas, or *",
            )
    return found
