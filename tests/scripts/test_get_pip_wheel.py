"""Finding pip for a Python that has none: the index that pip would use, the newest release, its hash."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "get_pip_wheel.py"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("get_pip_wheel", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package index, which pip's settings name."""
    page = tmp_path / "simple" / "pip"
    page.mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    yield page
    server.shutdown()
    thread.join()
    server.server_close()


def offer(page: Path, **wheels: str) -> None:
    links = []
    for name, sha256 in wheels.items():
        (page / name).write_bytes(name.encode())
        links.append(f'<a href="./{name}#sha256={sha256 or hashlib.sha256(name.encode()).hexdigest()}">{name}</a>')
    (page / "index.html").write_text("<html><body>" + "\n".join(links))


def test_the_newest_release_is_taken(script: ModuleType, index: Path, tmp_path: Path) -> None:
    names = ["pip-9.0-py3-none-any.whl", "pip-26.10-py3-none-any.whl", "pip-26.9-py3-none-any.whl"]
    offer(index, **dict.fromkeys([*names, "pip-27.0b1-py3-none-any.whl", "pip-99.tar.gz"], ""))
    said: list[str] = []
    found = script.download(tmp_path, said.append)
    assert found.name == names[1]
    assert found.read_bytes() == names[1].encode()
    assert "/simple/pip/" in said[0]


def test_a_damaged_wheel_is_refused(script: ModuleType, index: Path, tmp_path: Path) -> None:
    offer(index, **{"pip-26.9-py3-none-any.whl": "0" * 64})
    with pytest.raises(OSError, match="damaged"):
        script.download(tmp_path, print)


def test_an_index_without_pip(script: ModuleType, index: Path, tmp_path: Path) -> None:
    offer(index)
    with pytest.raises(LookupError, match="names no wheel of pip"):
        script.download(tmp_path, print)


def test_settings_are_those_of_pip(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://user:word@index.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert script.setting("index-url") == "https://user:word@index.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert script.setting("index-url") == "https://other.example/simple"
    assert script._without_password("https://user:word@index.example/simple") == "https://index.example/simple"
