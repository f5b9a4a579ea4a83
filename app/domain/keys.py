"""API keys: what a key may do, and how it is known without being kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal

from pydantic import Field

from app.domain.records import Record, now

Scope = Literal["predict", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("predict", "write", "admin")
_MADE = re.compile(r"^es_([0-9a-f]{12})_[A-Za-z0-9_-]{43}$")


class Limits(Record):
    """What one key may take. None: no limit."""

    requests_per_second: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    jobs: int | None = Field(None, ge=0)  # that have not ended
    bytes: int | None = Field(None, ge=0)  # of the versions and data sets that were made with it


class Key(Record):
    """A key without itself: its SHA-256 in hex. A fast hash is enough: keys that are made here are 256 random bits.

    id: of one that `make` made; None where a setting or a file names the key. `admin` may do everything.
    """

    id: str | None = None
    name: str | None = None
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    limits: Limits = Limits()
    created_at: str | None = None
    revoked_at: str | None = None

    def may(self, scope: str) -> bool:
        """scope: one of SCOPES, or "any"."""
        return scope == "any" or scope in self.scopes or "admin" in self.scopes

    @property
    def owner(self) -> str:
        """What jobs and logs call whoever holds it; never the key."""
        return self.id or f"sha256:{self.digest[:12]}"


def make(name: str, scopes: tuple[Scope, ...], limits: Limits) -> tuple[Key, str]:
    """A new key, and what its holder sends: told this once, and kept nowhere."""
    id = secrets.token_hex(6)
    token = f"es_{id}_{secrets.token_urlsafe(32)}"
    return Key(id=id, name=name, digest=digest_of(token), scopes=scopes, limits=limits, created_at=now()), token


def id_of(token: str) -> str | None:
    """The id in a key that `make` made."""
    found = _MADE.match(token)
    return found[1] if found else None


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
