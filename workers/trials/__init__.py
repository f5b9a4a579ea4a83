"""What a trial may be: a role is a module in this folder whose `run` takes a TrialSpec."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

from app.domain.estimators import KNOWN, named
from app.errors import Problem

ROLES = ("chain", "judge", "estimator", "estimator_winner", "settings")


def preload(spec: Mapping[str, Any]) -> None:
    """Imports what the trials of a search will need, while nothing else is to be done. What cannot be imported is for
    the trial itself to say."""
    estimator, chain = spec.get("estimator"), spec.get("chain") or ()
    wanted = [f"{__name__}.{'estimator' if estimator else 'chain'}"]
    wanted += [f"workers.passes.{link.get('kind')}" for link in chain if isinstance(link, Mapping)]
    with contextlib.suppress(Problem, ImportError):
        known = KNOWN[named(str(estimator))] if estimator else None
        paths = [path for path in (known.classifier, known.regressor) if path] if known else []
        for module in [*wanted, *(path.partition(":")[0] for path in paths)]:
            importlib.import_module(module)
