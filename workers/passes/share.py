"""share: not built yet."""

from __future__ import annotations

from app.domain.specs import ShareSpec
from app.errors import Internal
from workers.context import Context
from workers.passes import Outcome


def run(spec: ShareSpec, ctx: Context) -> Outcome:
    raise Internal("share is not built yet")
