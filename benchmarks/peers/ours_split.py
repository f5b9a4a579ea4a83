"""Ours with an instance of the engine on each core, instead of one on all: the same threads in all. ResNet only."""

from __future__ import annotations

from benchmarks.peers import Ask, Options, Sample, ours
from benchmarks.peers.ours import PACKAGES, answer, command

__all__ = ["MODELS", "PACKAGES", "answer", "ask", "command", "prepare"]
MODELS = ("resnet",)


def ask(workload: str, sample: Sample) -> Ask | None:
    return ours.ask(workload, sample) if workload.startswith(MODELS) else None


def prepare(python: str, given: Options) -> list[str]:
    return given.command(python, "benchmarks.peers.ours_version_split")
