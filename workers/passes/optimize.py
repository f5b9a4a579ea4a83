"""optimize: not built yet."""

from __future__ import annotations

from app.domain.specs import OptimizeSpec
from app.errors import Internal
from workers.context import Context
from workers.passes import Outcome


def run(spec: OptimizeSpec, ctx: Context) -> Outcome:
    raise Internal("optimize is not built yet")
