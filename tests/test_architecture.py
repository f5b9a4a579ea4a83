"""The rules of DESIGN that no type checker sees."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from app import runtimes
from app.domain.specs import MENU
from app.queue import WORK
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for place in ("app", "workers", "client") for p in (ROOT / place).rglob("*.py"))


def imported_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import app.main; app.main.create_app(app.main.Settings())", {"torch", "transformers", "nncf", "workers"}),
        # What only some requests need, or nobody who serves: each would be megabytes in every app.
        (
            "import app.http, app.main; app.main.create_app(app.main.Settings())",
            {"PIL", "google", "httpcore", "httpx", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas"}
            | {"pyarrow", "requests", "scipy"},
        ),
        ("import workers.main, workers.listen", {"torch", "transformers", "fastapi"}),
        ("import workers.run", {"torch", "transformers", "fastapi"}),
        ("import enginesmith, enginesmith.cli", {"torch", "app", "workers"}),
        ("import app.errors", {"pydantic", "numpy"}),
    ],
)
def test_what_a_process_never_imports(statement: str, never: set[str]) -> None:
    assert imported_by(statement) & never == set()


def test_the_dotted_string_names_the_work() -> None:
    module, _, function = WORK.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_runtime_is_whole() -> None:
    for name in runtimes.names():
        runtime = runtimes.get(name)
        assert isinstance(runtime.SUFFIX, str)
        assert all(callable(getattr(runtime, part)) for part in ("available", "build", "load"))


def test_every_kind_on_the_menu_says_what_it_does() -> None:
    assert [kind for kind, spec in MENU.items() if not spec.__doc__] == []


def test_every_file_says_what_it_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for p in SOURCES if p.read_text().strip() and not _docstring(p)]
    assert silent == []


def test_only_the_settings_read_the_environment() -> None:
    reads = re.compile(r"os\.environ|os\.getenv|environ\.get")
    allowed = {
        "app/settings.py",
        "app/runtimes/_libraries.py",  # sets, and does not read
        "app/runtimes/echo.py",  # which GPU it plays, as the driver tells the others which there is
        "app/confinement/child.py",  # the little that a child may see
        "client/enginesmith/client.py",
        "client/enginesmith/cli_serve.py",
    }
    found = {str(p.relative_to(ROOT)) for p in SOURCES if reads.search(p.read_text())}
    assert found <= allowed


def test_no_file_outgrows_its_purpose() -> None:
    assert {str(p.relative_to(ROOT)) for p in SOURCES if len(p.read_text().splitlines()) > 400} == set()


def _docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text()))


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("app", "workers")
        for path in (ROOT / top).rglob("*.py")
    }
    assert found | {"enginesmith"} == set(listed)


def test_every_setting_is_told() -> None:
    told = (ROOT / "docs" / "settings.md").read_text()
    found = re.findall(r"^\| `ENGINESMITH_(\w+)` \|", told, re.MULTILINE)
    assert [name.lower() for name in found] == list(Settings.model_fields)
