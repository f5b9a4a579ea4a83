"""The state of an optimize job, read off its trials: what was found, what may start, and what is still to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from app import runtimes
from app.domain.records import Job, Version
from app.domain.specs import OptimizeSpec
from app.errors import Unavailable
from workers.optimizing.designs import Design, chain, training_of
from workers.optimizing.front import Candidate
from workers.optimizing.proposals import Room, Tried, propose

USUAL_BATCH = {"latency": 1, "throughput": 32, "size": 1}


@dataclass(frozen=True)
class Race:
    """Who takes part: plain engines at every precision, the same of the original fine-tuned, and designs to explore."""

    spec: OptimizeSpec
    model: str
    dataset: str
    plain: dict[str, Design]
    tuned: dict[str, Design]
    room: Room
    training: dict[str, Any]
    trials: Mapping[str, Job]
    # Whether a run takes several rows; else all speed is that of one.
    batched: bool = True

    @property
    def base(self) -> str:
        """The plain engine of the first target in full precision: what every gain is over."""
        return next(iter(self.plain))

    @property
    def tuned_base(self) -> str | None:
        return next(iter(self.tuned), None)

    @property
    def batch(self) -> int:
        return (self.spec.batch or min(USUAL_BATCH[self.spec.objective], self.spec.max_batch)) if self.batched else 1

    def report(self, name: str) -> dict[str, Any] | None:
        """What a trial found; None while it has not, or where it failed."""
        job = self.trials.get(name)
        return job.result.report if job is not None and job.status == "succeeded" and job.result else None

    def ended(self, name: str) -> bool:
        job = self.trials.get(name)
        return job is not None and job.ended

    def quality(self, name: str) -> float | None:
        return _value(self.report(name), "quality")

    def gain(self, name: str) -> float | None:
        """How many times better than the base in what the objective is about."""
        report = self.report(name)
        if self.spec.objective == "size":
            ours, base = _value(report, "bytes"), _value(self.report(self.base), "bytes")
            return base / ours if base and ours else None
        return 1.0 if report is not None and name == self.base else _value(report, "speedup")

    @property
    def explored(self) -> list[str]:
        return [name for name in self.trials if name.startswith("design-")]

    @property
    def least(self) -> float:
        """The quality on the validation split that is asked for: that of the better baseline, less the drop."""
        known = [q for name in (self.base, self.tuned_base) if name and (q := self.quality(name)) is not None]
        return max(known) - self.spec.max_accuracy_drop

    def candidates(self) -> list[Candidate]:
        """Every trial that gave a version, with what it gained. A plain engine and the fine-tuned one of its precision
        are one graph: both gain what the slower of the two was measured to gain, or noise would choose between them."""
        gains = self._whole_gains() | {name: self.gain(name) for name in self.explored}
        found = []
        for name, gain in gains.items():
            report, quality = self.report(name), self.quality(name)
            if report and report.get("kept") and quality is not None and gain is not None:
                found.append(Candidate(name, quality, gain, _value(report, "bytes") or 0.0))
        return found

    def _whole_gains(self) -> dict[str, float | None]:
        """What the plain engines and the fine-tuned ones gain; of a pair that is one graph, both the lesser."""
        gains = {name: self.gain(name) for name in (*self.plain, *self.tuned)}
        for plain, tuned in zip(self.plain, self.tuned, strict=False):
            both = [gain for gain in (gains[plain], gains[tuned]) if gain is not None]
            gains |= {name: min(both) for name in (plain, tuned) if gains[name] is not None}
        return gains

    def next_trials(self) -> dict[str, dict[str, Any]]:
        """What may start now: as many as `parallel` lets; empty when everything has ended or may not begin any more."""
        running = sum(1 for job in self.trials.values() if not job.ended)
        free = self.spec.parallel - running
        found: dict[str, dict[str, Any]] = {}
        if free <= 0:
            return found
        if not self.ended(self.base):
            return {self.base: self._trial(self.plain[self.base], 0)} if self.base not in self.trials else {}
        first = [*self.plain, *([self.tuned_base] if self.tuned_base else [])]
        waiting = {name: self._design(name) for name in first if name not in self.trials}
        if self.tuned_base is None or self.ended(self.tuned_base):
            waiting |= {name: design for name, design in self.tuned.items() if name not in self.trials}
        for name, design in list(waiting.items())[:free]:
            found[name] = self._trial(design, len(self.trials) + len(found))
        # What a design gains is told against the plain engines. The original's own fine-tuning takes as long as a
        # design's, and none of them waits for it.
        if not all(self.ended(name) for name in self.plain):
            return found
        past = [self._tried(name) for name in self.explored]
        whole = self._whole_gains()
        gains = {f"{d.target}:{d.precision}": g for n, d in self.plain.items() if (g := whole[n]) is not None}
        room = replace(self.room, gains=gains)
        while len(found) < free and len(past) < self.spec.trials and not self.is_late:
            proposed = propose(self.spec, room, past, len(past), self.least)
            if proposed is None:
                break
            found[f"design-{len(past)}"] = self._trial(proposed, len(self.trials) + len(found), self._worth_while())
            past.append(Tried(dict(proposed.params), None, None, runs=True))
        return found

    @property
    def is_over(self) -> bool:
        """Whether everybody has run."""
        return bool(self.trials) and not self.next_trials() and all(job.ended for job in self.trials.values())

    @property
    def expected(self) -> int:
        """How many trials there will be, with the judge and the settings, unless time or ideas run out."""
        return len(self.plain) + len(self.tuned) + (0 if self.room.is_empty else self.spec.trials) + 2

    @property
    def is_late(self) -> bool:
        """Whether no more designs are to be begun."""
        return self.spec.time_limit_s is not None and worked_s(self.trials.values()) > self.spec.time_limit_s

    def design_told(self, name: str) -> str:
        """In words, as the trial was asked."""
        return str(self.trials[name].spec.get("told") or name)

    def _design(self, name: str) -> Design:
        return self.plain[name] if name in self.plain else self.tuned[name]

    def _worth_while(self) -> float | None:
        """The gain of the best engine that loses nothing: a design that is no faster need not be trained.

        Of the original and the fine-tuned in one precision, which are one graph, the lesser gain counts, and of both
        the lower quartile of its rounds: one lucky measurement must not end all designs.
        """
        if self.spec.objective == "size":
            return None
        gains: dict[str, list[float]] = {}
        for name in (*self.plain, *self.tuned):
            low = ((self.report(name) or {}).get("speed") or {}).get("speedup_low")
            if low is not None and (self.quality(name) or 0.0) >= self.least:
                gains.setdefault(name.partition("-")[2], []).append(float(low))
        return max((min(found) for found in gains.values()), default=None)

    def _tried(self, name: str) -> Tried:
        params = dict(self.trials[name].spec.get("params") or {})
        return Tried(params, self.quality(name), self.gain(name), runs=not self.ended(name))

    def _trial(self, design: Design, number: int, at_least: float | None = None) -> dict[str, Any]:
        """The spec of its trial."""
        base = self.report(self.base)
        measure = {"batch": self.batch, "against": base["kept"] if base else None, "at_least": at_least}
        return {
            "kind": "trial", "role": "chain", "model": self.model, "dataset": self.dataset, "number": number,
            "seed": self.spec.seed, "chain": chain(design, self.spec, self.training), "measure": measure,
            "told": design.told(), "params": dict(design.params),
        }  # fmt: skip


def race_of(spec: OptimizeSpec, version: Version, dataset: str, trials: Mapping[str, Job]) -> Race:
    """Raises Unavailable for a target that this worker cannot build."""
    precisions = {target: _precisions(target, spec) for target in spec.targets}
    engines = [(target, precision) for target in spec.targets for precision in precisions[target]]
    plain = {f"plain-{t}-{p}": Design(t, p) for t, p in engines}
    tuned = {f"tuned-{t}-{p}": Design(t, p, tuned=True) for t, p in engines} if version.trainable else {}
    compress = [kind for kind in ("prune", "share") if kind in spec.passes] if version.trainable else []
    both = ("prune+share",) if len(compress) == 2 else ()
    room = Room(tuple(f"{t}:{p}" for t, p in engines), (*compress, *both))
    training = training_of(spec, version.macs)
    return Race(spec, version.ref, dataset, plain, tuned, room, training, trials, version.signature.batched)


def worked_s(trials: Iterable[Job]) -> float:
    """Seconds in which at least one of the trials ran: not those in which all of them waited for a worker, nor those in
    which everything was down. An attempt that was lost does not count."""
    now = datetime.now(UTC)
    spans = sorted(
        (datetime.fromisoformat(job.started_at), datetime.fromisoformat(job.finished_at) if job.finished_at else now)
        for job in trials
        if job.started_at and (job.finished_at or job.status in ("running", "cancelling"))
    )
    total, until = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in spans:
        total += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return total


def _precisions(target: str, spec: OptimizeSpec) -> list[str]:
    """fp32 first; int8 where quantizing is one of the passes."""
    found = runtimes.get(target).available()
    if not found.ok:
        raise Unavailable(
            f"this worker cannot build {target} engines: {found.reason}", code="runtime_unavailable", retryable=False
        )
    order = ("fp32", "tf32", "fp16", "bf16")
    known = [precision for precision in order if precision in found.precisions]
    return known + (["int8"] if "quantize" in spec.passes else [])


def _value(report: Mapping[str, Any] | None, name: str) -> float | None:
    value = (report or {}).get("values", {}).get(name)
    return float(value) if value is not None else None
