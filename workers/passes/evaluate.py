"""evaluate: accuracy with its confidence interval and latency, together; against a baseline, the paired difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.domain.records import Latency, Version
from app.domain.specs import EvaluateSpec
from workers.context import Context
from workers.net import load
from workers.nn.data import Data, Rows
from workers.nn.draft import BATCHES, eager_latency
from workers.nn.loaded import load_engine, runtime_of
from workers.nn.measure import latency
from workers.nn.predict import chosen, eager, sensible_batch
from workers.nn.predict import engine as asking
from workers.nn.quality import Answers, Predict, answers, paired, quality
from workers.nn.verdict import judge, reported
from workers.passes import Outcome
from workers.passes._source import open_source
from workers.trials.speed import race

SEED = 0


@dataclass(frozen=True)
class Subject:
    """A version ready to be asked. timed: measures its latency; close: gives its memory back."""

    predict: Predict
    timed: Callable[[], tuple[Latency, ...]]
    close: Callable[[], None]


def run(spec: EvaluateSpec, ctx: Context) -> Outcome:
    """Raises BadDataset where the data do not fit the version or the baseline, Unavailable without its runtime."""
    ctx.progress(0, None, phase="loading")
    version, folder = ctx.source()
    data = ctx.dataset()
    other = ctx.source(spec.baseline) if spec.baseline is not None else None
    # Latency in the sandbox, with a process around it, would say nothing: then each is measured by itself.
    in_turns = other is not None and "torchscript" not in (version.format, other[0].format)
    found, alone, rows = _ask(version, folder, data, spec, ctx, timed=not in_turns)
    measured = quality(found, data.ref, confidence=spec.confidence)
    evaluation: dict[str, Any] = {
        "model": version.ref,
        "dataset": data.ref,
        "baseline": None,
        "quality": measured.model_dump(mode="json"),
        "latency": _told(alone),
        "samples": len(rows),
        "of": len(data.test),
    }
    judged: dict[str, Any] | None = None
    if other is not None:
        theirs, they_alone, _ = _ask(*other, data, spec, ctx, timed=not in_turns)
        evaluation |= {
            "baseline": other[0].ref,
            "baseline_quality": quality(theirs, data.ref, confidence=spec.confidence).model_dump(mode="json"),
            "baseline_latency": _told(they_alone),
            "difference": (difference := paired(found, theirs, spec.confidence)),
            "speedup": {},
        }
        if in_turns:
            evaluation |= _raced((version, folder), other, ctx)
        verdict = judge(difference, spec.max_accuracy_drop)
        judged = reported(verdict.told_whole(), other[0].ref, "test")
        evaluation |= {
            "verdict": verdict.verdict,
            "max_accuracy_drop": spec.max_accuracy_drop,
            "samples_needed": verdict.samples_needed,
            "notes": [verdict.told],
        }
    report = evaluation | {"verdict": judged}
    return Outcome(None, {}, report, evaluation, verdict=evaluation.get("verdict"))


def _ask(
    version: Version, folder: Path, data: Data, spec: EvaluateSpec, ctx: Context, *, timed: bool
) -> tuple[Answers, tuple[Latency, ...], Rows]:
    fitted = data.fit_to(version.signature)
    rows = fitted.test if spec.samples is None else fitted.test.sample(spec.samples, SEED)
    subject = _open(version, folder, fitted, ctx)
    try:
        ctx.progress(0, None, phase=f"measuring accuracy of {version.ref}")
        found = answers(subject.predict, rows, sensible_batch(rows.x.shape[1:]))
        if not timed:
            return found, (), rows
        ctx.progress(0, None, phase=f"measuring latency of {version.ref}")
        return found, subject.timed(), rows
    finally:
        subject.close()


def _open(version: Version, folder: Path, data: Data, ctx: Context) -> Subject:
    if version.format == "torch":
        net = load(folder, version)
        return Subject(eager(net.module, ctx.device), lambda: eager_latency(net, ctx), lambda: None)
    if version.format == "torchscript":
        return _torchscript(version, folder, data, ctx)
    return _engine(version, folder, data, ctx)


def _engine(version: Version, folder: Path, data: Data, ctx: Context) -> Subject:
    name = runtime_of(version)
    engine, max_batch = load_engine(version, folder, ctx.threads, BATCHES[-1])

    def timed() -> tuple[Latency, ...]:
        found = []
        for batch in dict.fromkeys((1, max_batch)):
            x, _ = data.test.take(_first(batch, len(data.test)))
            request = {version.signature.inputs[0].name: np.ascontiguousarray(x.numpy())}
            device = "cuda" if name.startswith("tensorrt") else "cpu"
            found.append(
                latency(partial(engine.infer, request), runtime=name, batch=batch, threads=ctx.threads, device=device)
            )
        return tuple(found)

    return Subject(asking(engine, version.signature, max_batch), timed, engine.close)


def _torchscript(version: Version, folder: Path, data: Data, ctx: Context) -> Subject:
    """Asked in the sandbox; its latency there, with a process around it, would say nothing."""
    name = version.signature.inputs[0].name
    row = (1, *data.test.x.shape[1:])
    source = open_source(version, folder, ctx, None, {name: row}, SEED, export=False)

    def predict(x: Any) -> Any:
        rows = np.ascontiguousarray(x.numpy())
        parts = [rows] if version.signature.batched else [rows[i : i + 1] for i in range(len(rows))]
        return np.concatenate([a[chosen(version.signature)] for a in source.answer([{name: p} for p in parts])])

    return Subject(predict, lambda: (), lambda: None)


def _first(n: int, rows: int) -> Any:
    """n row numbers, round and round where there are fewer rows."""
    import torch

    return torch.arange(n) % rows


def _told(timed: Sequence[Latency]) -> list[dict[str, Any]]:
    return [at.model_dump(mode="json") for at in timed]


def _raced(ours: tuple[Version, Path], theirs: tuple[Version, Path], ctx: Context) -> dict[str, Any]:
    """Latencies of both, measured in turns. speedup: how many times faster than the baseline, by batch; speedup_spread:
    the middle half of its rounds."""
    versions = [ours[0], theirs[0]]
    most = min(int(version.details.get("max_batch", BATCHES[-1])) for version in versions)
    batches = sorted({1, most} if all(version.signature.batched for version in versions) else {1})
    timed = list(race({"model": ours, "baseline": theirs}, "baseline", batches, ctx))
    ratios = {str(at.latencies["model"].batch): at.ratios["model"] for at in timed}
    return {
        "latency": _told([at.latencies["model"] for at in timed]),
        "baseline_latency": _told([at.latencies["baseline"] for at in timed]),
        "speedup": {batch: ratio.ratio for batch, ratio in ratios.items()},
        "speedup_spread": {batch: asdict(ratio) for batch, ratio in ratios.items()},
    }
