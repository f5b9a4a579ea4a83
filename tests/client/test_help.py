"""The help says what an option is unless something is said; the menu of the service is what it has to agree with."""

from __future__ import annotations

import pytest
import typer
from enginesmith import cli
from pydantic_core import PydanticUndefined

from app.domain.specs import MENU

KINDS = ("train", "prune", "share", "quantize", "convert", "evaluate", "search", "optimize")


@pytest.mark.parametrize("kind", KINDS)
def test_defaults(kind: str) -> None:
    command = typer.main.get_command(cli.app).commands[kind]  # type: ignore[attr-defined]
    fields, seen = MENU[kind].model_fields, 0
    for option in command.params:
        field = fields.get(option.name or "")
        usual = None if field is None else field.default
        if usual is None or usual is PydanticUndefined or isinstance(usual, bool | list | dict):
            continue
        said = f"{usual:g}" if isinstance(usual, float) else str(usual)
        assert str(getattr(option, "help", "")).endswith(f"({said})"), f"--{option.name}: {said}"
        seen += 1
    assert seen


def test_exit_codes_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "4 the job is done and its verdict is rejected, 5 unproven" in told
    assert cli.__doc__ is not None
    for code in "0123":
        assert f"{code} " in cli.__doc__
