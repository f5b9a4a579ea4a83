"""quantize: not built yet."""

from __future__ import annotations

from app.domain.specs import QuantizeSpec
from app.errors import Internal
from workers.context import Context
from workers.passes import Outcome


def run(spec: QuantizeSpec, ctx: Context) -> Outcome:
    raise Internal("quantize is not built yet")
