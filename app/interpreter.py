"""How Python itself is set in a process that serves: when its collector runs, and how soon its lock changes hands."""

from __future__ import annotations

import gc
import sys

# Requests make next to no cycles. Young objects are looked at every 10,000; older ones hardly ever.
_THRESHOLDS = (10_000, 20, 100)
_SWITCH_S = 1e-4


def settle() -> None:
    """Takes all that exists now out of the collector's sight, and has the lock (GIL) change hands sooner; to be called
    once, when a process has started.

    A full collection over the hundred thousand objects of a started app takes 80 ms with the GIL held, and came four
    times in 20,000 requests: a fifth of the CPU that they took, and most of their p99. Engines are loaded later, are
    few objects, and stay in sight, so that what they leave behind is found.

    An engine's thread comes back from a run and needs the GIL, to hand over answers and begin the next one. While the
    event loop is in Python it waits for up to Python's 5 ms, in which a tiny engine could have run fifty times: with
    ten times more requests than capacity four of five were refused while the engine was idle half the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_S)
