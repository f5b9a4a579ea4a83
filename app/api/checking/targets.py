"""Before it is queued: whether any worker that is alive builds engines of that kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.errors import Conflict

Workers = Iterable[dict[str, Any]]


def check_target(target: str, workers: Workers, precisions: Iterable[str] = ()) -> None:
    """Raises Conflict for a target, or a precision of it, that no live worker can build; with no worker alive nobody
    knows."""
    told = [w["targets"][target] for w in workers if target in w.get("targets", {})]
    if not told:
        return
    able = [t for t in told if t.get("ok")]
    if not able:
        raise Conflict(
            f"no worker here can build for {target}: {told[0].get('reason') or 'it is not installed'}",
            code="target_unavailable",
            hint="GET /v1/jobs/kinds says which targets can be built, and why others cannot",
        )
    known = sorted({p for t in able for p in t.get("precisions") or ()})
    for precision in precisions:
        if known and precision not in known:
            raise Conflict(
                f"no worker here can build {target} in {precision}",
                code="target_unavailable",
                hint=f"it can do {', '.join(known)}",
            )
