"""trial: not built yet."""

from __future__ import annotations

from app.domain.specs import TrialSpec
from app.errors import Internal
from workers.context import Context
from workers.passes import Outcome


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    raise Internal("trial is not built yet")
