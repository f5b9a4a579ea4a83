"""The hand-written endpoint with batching, and on top of it what ours does to Python's garbage collector."""

from __future__ import annotations

from benchmarks.peers import Options
from benchmarks.peers.handwritten_batching import PACKAGES, answer, ask, main

__all__ = ["PACKAGES", "answer", "ask", "command"]


def command(python: str, given: Options) -> list[str]:
    return given.command(python, __name__)


if __name__ == "__main__":
    main(tuned=True)
