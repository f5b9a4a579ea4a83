"""API keys as settings and files say them."""

from __future__ import annotations

import re
from pathlib import Path

from app.domain.keys import SCOPES, Key, Scope, digest_of
from app.errors import Unprocessable

SHORT = 16
_HASHED = re.compile(r"^sha256:([0-9a-f]{64})$")


def parse_keys(text: str | None, where: str = "ENGINESMITH_API_KEYS") -> tuple[Key, ...]:
    """ "KEY" (all scopes) or "KEY=predict+write", several with commas; KEY may be `sha256:` and its digest in hex.
    Raises Unprocessable for an unknown scope."""
    parts = filter(None, (part.strip() for part in (text or "").split(",")))
    return tuple(_parse(part, f"key {number} of {where}") for number, part in enumerate(parts, 1))


def guessable(text: str | None) -> int:
    """How many keys, of those that stand in `text` themselves, are so short that somebody may try them all."""
    parts = filter(None, (part.strip() for part in (text or "").split(",")))
    keys = (part.rpartition("=")[0] or part for part in parts)
    return sum(len(key) < SHORT for key in keys if not _HASHED.match(key))


def parse_file(path: Path) -> tuple[Key, ...]:
    """One key a line, as in `parse_keys`, but with its digest in the place of the key; what follows a # is a remark.
    Raises OSError; Unprocessable for a key that is there itself, or what is no text."""
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise Unprocessable(
            "ENGINESMITH_API_KEYS_FILE is no text", code="bad_keys", hint="one key a line: sha256:DIGEST=predict+write"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not _HASHED.match(line.rpartition("=")[0] or line):
            raise Unprocessable(
                f"line {number} of ENGINESMITH_API_KEYS_FILE is no hashed key",
                code="bad_keys",
                hint='a line is sha256:DIGEST=predict+write; DIGEST is what `printf %s "$KEY" | sha256sum` says',
            )
        found.append(_parse(line, f"line {number} of ENGINESMITH_API_KEYS_FILE"))
    return tuple(found)


def parse_scopes(text: str, where: str) -> tuple[Scope, ...]:
    """ "predict+write", or with commas. Raises Unprocessable for an unknown one."""
    named = re.split(r"[+,]", text)
    if unknown := sorted(set(named) - set(SCOPES)):
        raise Unprocessable(
            f"{where} names unknown scopes: {unknown}", code="bad_keys", hint=f"scopes are {', '.join(sorted(SCOPES))}"
        )
    return tuple(scope for scope in SCOPES if scope in named)


def _parse(part: str, where: str) -> Key:
    key, equals, scopes = part.rpartition("=")
    if not equals or not scopes:  # a key that ends in "=", as base64 does, has no scopes behind it
        key, scopes = part, "+".join(SCOPES)
    if key in SCOPES:  # "KEY=predict,write" would make a key of the word "write", with every scope
        raise Unprocessable(
            f"{where} has the key {key!r}, which is the name of a scope",
            code="bad_keys",
            hint="commas part keys, and plus signs scopes: KEY=predict+write",
        )
    hashed = _HASHED.match(key)
    if set(re.split(r"[+,]", scopes)) - set(SCOPES):  # perhaps a part of the key, and not to be repeated
        raise Unprocessable(
            f"{where} names unknown scopes behind its last equals sign",
            code="bad_keys",
            hint=f"scopes are {', '.join(sorted(SCOPES))}, with plus signs between them",
        )
    return Key(digest=hashed[1] if hashed else digest_of(key), scopes=parse_scopes(scopes, where))
