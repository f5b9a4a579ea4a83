"""trial: one try of a search or an optimize job. What is tried is a module of workers.trials."""

from __future__ import annotations

import importlib
from typing import cast

from app.domain.specs import TrialSpec
from app.errors import Unprocessable
from workers import trials
from workers.context import Context
from workers.passes import Outcome


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    """Raises Unprocessable for a role that nobody plays, and whatever the role raises."""
    if spec.role not in trials.ROLES:
        raise Unprocessable(f"there is no trial of the role {spec.role!r}", code="unknown_role")
    return cast(Outcome, importlib.import_module(f"{trials.__name__}.{spec.role}").run(spec, ctx))
