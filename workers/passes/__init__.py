"""The passes: what is done to a model. A module in this folder with `run` is the work of one kind on the menu."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from app.domain.specs import MENU, Spec
from workers.context import Context

# `import` is a keyword of Python: the only kind whose module has another name.
MODULES = {"import": "ingest"}


@dataclass(frozen=True)
class Outcome:
    """What a pass yields. folder: the files of the new version; None: there is none.

    draft: the fields of its Version beyond those that publishing fills in. evaluation: stored beside the version.
    model, verdict, cache_hit: of the job's result, where no version is to be published for it (any more).
    """

    folder: Path | None
    draft: dict[str, Any]
    report: dict[str, Any]
    evaluation: dict[str, Any] | None = None
    model: str | None = None
    verdict: Literal["accepted", "rejected", "unproven"] | None = None
    cache_hit: bool = False


@dataclass(frozen=True)
class Waits:
    """What a step of a search or an optimize job yields while it is not over: the job lets its worker go, and its next
    step runs when one of its trials has ended. trials: specs of kind `trial` to start now, by a name unique in the job.

    A step that is repeated, because its worker died, asks for the same names: those that there are already stay as
    they are.
    """

    trials: dict[str, dict[str, Any]]
    report: dict[str, Any] = field(default_factory=dict)


def apply(spec: Spec, ctx: Context) -> Outcome | Waits:
    """Runs the pass of the spec's kind. Raises Problem."""
    kind = next(kind for kind, menu in MENU.items() if isinstance(spec, menu))
    return cast("Outcome | Waits", importlib.import_module(module_of(kind)).run(spec, ctx))


def module_of(kind: str) -> str:
    """The module that does the work of a kind."""
    return f"{__name__}.{MODULES.get(kind, kind)}"
