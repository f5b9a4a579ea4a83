"""Fetches pip's own wheel from the index that pip would use, for a Python that has no pip at all."""

from __future__ import annotations

import base64
import configparser
import hashlib
import html.parser
import json
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

DEFAULT_INDEX = "https://pypi.org/simple"
WHEEL = re.compile(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl")


def download(folder: Path, say: Callable[[str], None]) -> Path:
    """The newest released wheel of pip, in `folder`, its SHA-256 checked. Raises LookupError, OSError."""
    for place in (p for p in setting("find-links").split() if Path(p).is_dir()):
        if found := max(
            ((version(w.name), w) for w in Path(place).glob("pip-*.whl") if WHEEL.fullmatch(w.name)), default=None
        ):
            say(f"pip from {found[1]}")
            return _write(folder, found[1].name, found[1].read_bytes())
    index = (setting("index-url") or DEFAULT_INDEX).rstrip("/")
    page = f"{index}/pip/"
    say(f"pip from {_without_password(page)}")
    body, kind = fetch(page, "application/vnd.pypi.simple.v1+json, text/html;q=0.5")
    links = dict(_from_json(body) if "json" in kind else _from_html(body))
    wheels = {name: link for name, link in links.items() if WHEEL.fullmatch(name)}
    if not wheels:
        raise LookupError(f"{_without_password(page)} names no wheel of pip")
    name = max(wheels, key=version)
    url, sha256 = wheels[name]
    data, _ = fetch(urllib.parse.urljoin(page, url), "*/*")
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise OSError(f"{name} arrived damaged: its SHA-256 is not {sha256}")
    return _write(folder, name, data)


def setting(name: str) -> str:
    """What pip would use: PIP_INDEX_URL and the like, else its configuration files, the user's before the machine's."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_environment:
        return from_environment
    home = Path.home()
    xdg = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # how pip is told to read no file at all
        return ""
    files = [Path(named)] if named else []
    for file in [
        *files,
        xdg / "pip/pip.conf",
        home / ".pip/pip.conf",
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
    ]:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("install", "global"):
            if parser.has_option(section, name):
                return parser.get(section, name)
    return ""


def fetch(url: str, accept: str) -> tuple[bytes, str]:
    """(body, content type). Uses the certificates that pip was told of; a password in the URL becomes a header."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Accept": accept, "User-Agent": "enginesmith-setup"}
    if parts.username:
        both = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(both.encode()).decode()
        url = _without_password(url)
    certificates = setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None
    context = ssl.create_default_context(cafile=certificates) if parts.scheme == "https" else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=60, context=context
        ) as answer:
            return answer.read(), answer.headers.get_content_type()
    except urllib.error.URLError as error:
        raise OSError(f"cannot fetch {_without_password(url)}: {error.reason}") from error


def version(name: str) -> tuple[int, ...]:
    found = WHEEL.fullmatch(name)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def _from_json(body: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    for file in json.loads(body)["files"]:
        if not file.get("yanked"):
            yield file["filename"], (file["url"], file.get("hashes", {}).get("sha256", ""))


def _from_html(body: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    links: list[str] = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag == "a" and given.get("href") and "data-yanked" not in given:
                links.append(str(given["href"]))

    Links().feed(body.decode("utf-8", "replace"))
    for link in links:
        url, _, fragment = link.partition("#")
        name = urllib.parse.unquote(url.rsplit("/", 1)[-1])
        yield name, (url, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else "")


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
