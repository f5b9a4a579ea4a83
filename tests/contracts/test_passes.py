"""One suite over all passes: every kind on the menu has its work, every work its kind."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from app.domain import specs
from app.trials import WAITING_KINDS
from workers import passes


@pytest.mark.parametrize("kind", specs.MENU)
def test_every_kind_has_a_module_whose_run_takes_its_spec(kind: str) -> None:
    module = importlib.import_module(passes.module_of(kind))
    run = module.run
    parameters = list(inspect.signature(run).parameters.values())
    assert [p.name for p in parameters] == ["spec", "ctx"]
    assert inspect.get_annotations(run, eval_str=False)["spec"] == specs.MENU[kind].__name__
    returned = "Outcome | Waits" if kind in WAITING_KINDS else "Outcome"
    assert inspect.get_annotations(run, eval_str=False)["return"] == returned
    assert module.__doc__


def test_every_module_has_its_kind() -> None:
    modules = {m.name for m in pkgutil.iter_modules(passes.__path__) if not m.name.startswith("_")}
    assert modules == {passes.MODULES.get(kind, kind) for kind in specs.MENU}


@pytest.mark.parametrize("kind", specs.MENU)
def test_a_kind_says_itself_on_the_wire(kind: str) -> None:
    assert specs.MENU[kind].model_fields["kind"].default == kind
    assert specs.MENU[kind].__doc__


def test_passes_are_found_without_importing_torch() -> None:
    code = "import sys, workers.passes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=passes.__path__[0] + "/../..")
