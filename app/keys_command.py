"""`enginesmith keys`: makes, lists and revokes API keys in the artifact store, whether or not the service runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from app.api.key_text import parse_scopes
from app.domain.keys import SCOPES, Key, Limits, digest_of, make
from app.embedded import url_of
from app.errors import NotFound, Unprocessable
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.keys import is_absent, put_key, read_keys, revoke_key, tell_of_change


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="make, list and revoke API keys")
    what = keys.add_subparsers(dest="what", required=True)
    create = what.add_parser("create", help="make a key; it is told this once")
    create.add_argument("--name", default="")
    create.add_argument("--scopes", default="predict", help=f"of {', '.join(SCOPES)}; with a plus sign between them")
    create.add_argument("--requests-per-second", type=float)
    create.add_argument("--jobs", type=int, help="that may not have ended at once")
    create.add_argument("--bytes", type=int, help="of all that is made with it and still there")
    ensure = what.add_parser("ensure", help="make a key and write it into a file, unless one that is valid is there")
    ensure.add_argument("file", type=Path)
    ensure.add_argument("--name", default="")
    ensure.add_argument("--scopes", default="predict", help="as of create")
    ensure.add_argument("--for-others", action="store_true", help="other users of the machine may read the file")
    revoke = what.add_parser("revoke", help="take a key back")
    revoke.add_argument("key", help="its id, or its name")
    for command in (create, ensure, what.add_parser("list", help="all keys, without themselves"), revoke):
        command.add_argument("--data", type=Path)
        command.add_argument("--json", action="store_true")


def run(settings: Settings, given: argparse.Namespace) -> int:
    """Raises Problem."""
    is_new = is_absent(settings)
    if is_new and given.what not in ("create", "ensure"):
        raise NotFound(
            f"there is no store at {settings.artifacts_url}",
            code="no_store",
            hint="is it the one that the service uses? --data or ENGINESMITH_STORE_URL says which",
        )
    artifacts = Artifacts(settings.artifacts_url, patience_s=10)
    if given.what == "list":
        return _list(read_keys(artifacts).keys, given.json)
    if given.what == "ensure":
        return _ensure(settings, artifacts, given)
    if given.what == "create":
        try:
            limits = Limits(requests_per_second=given.requests_per_second, jobs=given.jobs, bytes=given.bytes)
        except ValueError:
            raise Unprocessable(
                "a limit is a number above 0 (--jobs, --bytes: 0 or more)", hint="leave it away for no limit"
            ) from None
        key, token = make(given.name, parse_scopes(given.scopes, "--scopes"), limits)
        put_key(artifacts, key)
        told = {"key": token} | _told(key)
    else:
        key, token = revoke_key(artifacts, given.key), ""
        told = _told(key)
    at_once = tell_of_change(settings.redis_url or url_of(settings.data))
    if given.json:
        _say(json.dumps(told))
    elif token:
        _say(token)
        _remark(f"key {key.id} may {', '.join(key.scopes)}; it is told this once, and kept as its hash alone")
    else:
        _say(f"key {key.id} is revoked")
    if is_new:
        _remark(f"no service has run yet on {settings.artifacts_url}: the key is for one that will")
    elif not at_once:
        _remark("Redis does not answer: a service that runs without it sees this within half a minute")
    return 0


def _ensure(settings: Settings, artifacts: Artifacts, given: argparse.Namespace) -> int:
    """The file comes first: where this ends in between it holds a key of nobody, and is written anew."""
    held = given.file.read_text("utf-8").strip() if given.file.exists() else ""
    if any(key.digest == digest_of(held) and key.revoked_at is None for key in read_keys(artifacts).keys):
        _remark(f"{given.file} has a key that is valid")
        return 0
    key, token = make(given.name, parse_scopes(given.scopes, "--scopes"), Limits())
    part = given.file.with_name(f"{given.file.name}.{os.getpid()}.part")
    try:
        opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(opened, "w") as file:
            os.fchmod(opened, 0o644 if given.for_others else 0o600)
            file.write(token)
        part.replace(given.file)
    finally:
        part.unlink(missing_ok=True)
    put_key(artifacts, key)
    tell_of_change(settings.redis_url or url_of(settings.data))
    _remark(f"key {key.id} may {', '.join(key.scopes)}, and lies in {given.file}")
    return 0


def _list(keys: list[Key], as_json: bool) -> int:
    if as_json:
        _say(json.dumps([_told(key) for key in keys]))
        return 0
    rows = [("id", "name", "scopes", "made", "revoked", "limits")]
    for key in keys:
        limits = ", ".join(f"{name} {value:.15g}" for name, value in key.limits.model_dump(exclude_none=True).items())
        row = (key.id, key.name, "+".join(key.scopes), key.created_at, key.revoked_at, limits)
        rows.append(tuple(value or "-" for value in row))  # type: ignore[arg-type]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _told(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"digest"})


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _remark(text: str) -> None:
    sys.stderr.write(text + "\n")
