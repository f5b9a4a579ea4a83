"""search: not built yet."""

from __future__ import annotations

from app.domain.specs import SearchSpec
from app.errors import Internal
from workers.context import Context
from workers.passes import Outcome


def run(spec: SearchSpec, ctx: Context) -> Outcome:
    raise Internal("search is not built yet")
