"""What to try next: a bisection for the amount that can go, then Optuna's samplers, from what was found so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from app.domain.specs import OptimizeSpec
from workers.optimizing.designs import Design


@dataclass(frozen=True)
class Tried:
    """A design that was tried. quality: on the validation split; None: a quick look at its speed was enough. gain: how
    many times better than the plain fp32 engine in what counts (latency, throughput, size). Both None: it failed, or,
    where `runs`, nothing is known of it yet."""

    params: dict[str, Any]
    quality: float | None
    gain: float | None
    runs: bool = False


@dataclass(frozen=True)
class Room:
    """What can be varied. engines: `target:precision`. compress: `prune`, `share`, `prune+share`. gains: by engine, how
    many times better than the base the whole network is there; an engine that failed has none."""

    engines: tuple[str, ...]
    compress: tuple[str, ...]
    gains: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.compress or not self.engines


AMOUNTS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
ROUND_TO = (1, 4, 8, 16)
GROUPS = (2, 4)
# The first designs, at least so many, or half of all, look for the amount that can go, by bisection; then the sampler
# has something to go by.
OPENERS, FIRST, MOST = 4, 0.35, 0.9
# An engine this near to the best is as good as it, for all that one measurement says.
NEAR = 0.95


def propose(spec: OptimizeSpec, room: Room, past: Sequence[Tried], number: int, least: float) -> Design | None:
    """The design of trial `number`; None where there is nothing new to try. least: the quality that is asked for on the
    validation split. The same arguments give the same design: a step that is repeated proposes what it did before."""
    if room.is_empty:
        return None
    known = [dict(tried.params) for tried in past]
    if number < max(OPENERS, spec.trials // 2):
        for params in _openers(room, past, least):
            if params not in known:
                return design_of(params)
    study = _study(spec, room, past, number, least)
    for _ in range(30):
        trial = study.ask()
        params = _suggest(trial, room)
        if params not in known:
            return design_of(params)
    return None


def design_of(params: dict[str, Any]) -> Design:
    """The design that parameters stand for."""
    target, _, precision = str(params["engine"]).partition(":")
    compress = str(params["compress"]).split("+")
    prune = None
    if "prune" in compress:
        prune = {
            "method": "channel", "amount": params["amount"], "scope": params["scope"], "round_to": params["round_to"],
        }  # fmt: skip
    share = {"method": "grouped_conv", "groups": params["groups"]} if "share" in compress else None
    return Design(target, precision, prune=prune, share=share, params=params)


def _openers(room: Room, past: Sequence[Tried], least: float) -> list[dict[str, Any]]:
    """The best engine with the next amount of a bisection, and the simplest of sharing."""
    engine = _engine(room)
    if "prune" not in room.compress:
        return [{"engine": engine, "compress": "share", "groups": groups} for groups in GROUPS]
    fields = {"engine": engine, "compress": "prune", "scope": "layer", "round_to": 4}
    alike = [tried for tried in past if all(tried.params.get(name) == value for name, value in fields.items())]
    amount = _bisected(alike, least)
    found = [] if amount is None else [{**fields, "amount": amount}]
    if "share" in room.compress and past:
        found.append({"engine": engine, "compress": "share", "groups": GROUPS[0]})
    return found


def _engine(room: Room) -> str:
    """The narrowest precision of the engines that are best for the whole network. Narrow alone is not fast: attention,
    and much else on onnxruntime, is slower in int8 than in fp32, and one runtime may be twice as fast as another."""
    order = {"int8": 0, "fp16": 1, "bf16": 2, "tf32": 3, "fp32": 4}
    least = NEAR * max(room.gains.values(), default=0.0)
    best = [engine for engine in room.engines if room.gains.get(engine, 0.0) >= least]
    return min(best, key=lambda engine: (order.get(engine.partition(":")[2], 9), room.engines.index(engine)))


def _bisected(alike: Sequence[Tried], least: float) -> float | None:
    """The amount that says most about where the bound is: more than what was held, less than what was not, and, where
    others still run, in the middle of the widest gap between them. None: it is known to a step."""
    low, high = 0.0, MOST
    for tried in alike:
        if tried.gain is not None:
            amount = float(tried.params["amount"])
            bears_more = tried.quality is None or tried.quality >= least  # None: it was not even fast enough
            low, high = (max(low, amount), high) if bears_more else (low, min(high, amount))
    known = {float(tried.params["amount"]) for tried in alike}
    if not known:
        return FIRST
    left = [amount for amount in AMOUNTS if low < amount < high and amount not in known]
    if not left:
        return None
    between = [
        low,
        *sorted(float(t.params["amount"]) for t in alike if t.runs and low < t.params["amount"] < high),
        high,
    ]
    middle = max(((b - a, (a + b) / 2) for a, b in pairwise(between)))[1]
    return min(left, key=lambda amount: abs(amount - middle))


def _choices(room: Room) -> dict[str, list[Any]]:
    return {
        "engine": list(room.engines), "compress": list(room.compress), "scope": ["layer", "global"],
        "round_to": list(ROUND_TO), "groups": list(GROUPS),
    }  # fmt: skip


def _suggest(trial: Any, room: Room) -> dict[str, Any]:
    choices = _choices(room)
    params: dict[str, Any] = {name: trial.suggest_categorical(name, choices[name]) for name in ("engine", "compress")}
    compress = params["compress"].split("+")
    if "prune" in compress:
        params["amount"] = AMOUNTS[trial.suggest_int("amount", 0, len(AMOUNTS) - 1)]
        params |= {name: trial.suggest_categorical(name, choices[name]) for name in ("scope", "round_to")}
    if "share" in compress:
        params["groups"] = trial.suggest_categorical("groups", choices["groups"])
    return params


def _study(spec: OptimizeSpec, room: Room, past: Sequence[Tried], number: int, least: float) -> Any:
    """A study in memory, made anew from what was found: maximise quality and gain, within the bound."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = spec.seed * 100_003 + number

    samplers: dict[str, Any] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=8),
    }
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=samplers[spec.sampler]())
    for tried in past:
        if tried.quality is None or tried.gain is None or not math.isfinite(tried.quality + tried.gain):
            continue
        study.add_trial(_finished(optuna, room, tried, least))
    return study


def _finished(optuna: Any, room: Room, tried: Tried, least: float) -> Any:
    assert tried.quality is not None
    distributions, params = {}, {}
    for name, value in tried.params.items():
        if name == "amount":
            distributions[name] = optuna.distributions.IntDistribution(0, len(AMOUNTS) - 1)
            params[name] = AMOUNTS.index(value)
        else:
            distributions[name] = optuna.distributions.CategoricalDistribution(_choices(room)[name])
            params[name] = value
    return optuna.trial.create_trial(
        params=params,
        distributions=distributions,
        values=[tried.quality, tried.gain],
        constraints={"loss": least - tried.quality},
    )
