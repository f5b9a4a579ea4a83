"""The version that a job has made, before and after: accuracy, parameters, size, latency; and what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .cli_state import State
from .cli_words import SPREAD, allowed, busy, change, difference, latency, measured_on, quality, size, speedup
from .errors import EnginesmithError
from .records import Job, Record, Version

ENGINES = ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx")
FORCED = {
    "rejected": "its loss is beyond what was allowed",
    "unproven": "the samples are too few to show that its loss is within what was allowed",
}


def made(told: State, job: Job) -> Version | None:
    """The version on stdout; beside it what it is like, against the version that it was made from."""
    result = job.result or Record()
    ref, report = str(result.get("model")), result.get("report") or {}
    version, source = fetched(told, ref), fetched(told, str(job.get("model") or ""))
    told.say(ref)
    for title, line in lines(job, report, version, source):
        if line:
            told.tell(f"  {title:<14}{line}")
    timed = report.get("latency") or _metrics(version).get("latency")
    if remark := busy(timed, told.cores):
        told.tell(f"note: {remark}")
    return version


def lines(
    job: Mapping[str, Any], report: Mapping[str, Any], version: Version | None, source: Version | None
) -> Iterator[tuple[str, str]]:
    """What there is to say, each with its title."""
    metrics = _metrics(version)
    after = metrics.get("quality") or report.get("quality")
    changed = report.get("quality_change")
    if after:
        was_so = _before(after, report, source)
        told = f"{was_so} → " if was_so else ""
        split = f" on {after['n']:,} {after['split']} rows" if after.get("n") and after.get("split") else ""
        yield str(after.get("name") or "quality"), f"{told}{quality(after, named=False)}{split}"
    if changed:
        yield "difference", f"{difference(changed)}, on the same rows"
    if verdict := _judged(job, report, source):
        yield "verdict", verdict
    if version is None:
        return
    was: Mapping[str, Any] = source or Record()
    for name, title in (("parameters", "parameters"), ("macs", "multiply-adds")):
        if version.get(name) is not None:
            yield title, change(was.get(name), version[name])
    if version.get("sparsity"):
        yield "zeros", f"{version['sparsity']:.1%} of the weights"
    pair = report.get("bytes") if job.get("kind") == "quantize" else None
    pair = pair if isinstance(pair, Mapping) else {"before": was.get("bytes"), "after": version.get("bytes")}
    packed = (report.get("packed") or {}).get("bytes")
    yield "size", change(pair.get("before"), pair.get("after"), size) + (f"; packed {size(packed)}" if packed else "")
    eager = report.get("eager_speed")
    if isinstance(eager, Mapping) and eager.get("ratio") is not None:
        yield "speed-up", speedup({str(eager.get("batch")): eager}, None) + f" in torch eager; {SPREAD}"
    timed = report.get("latency") or metrics.get("latency")
    if timed:
        yield "median ms", f"{latency(timed)} ({measured_on(timed)})"
        before = [t for t in _metrics(source).get("latency") or [] if t.get("runtime") == "torch"]
        if before and job.get("kind") == "convert":
            yield "", f"{latency(before)} ({measured_on(before)}, when {was['ref']} was made)"


def _metrics(version: Version | None) -> Mapping[str, Any]:
    return (version or Record()).get("metrics") or {}


def _before(after: Mapping[str, Any], report: Mapping[str, Any], source: Version | None) -> str:
    """The same figure of the version before: with its interval where it was measured on the same rows."""
    known = [_metrics(source).get("quality"), report.get("parent_quality")]
    known += [e.get("quality") for e in (source or Record()).get("evaluations") or () if isinstance(e, Mapping)]
    for found in known:
        if found and all(found.get(k) == after.get(k) for k in ("name", "split", "dataset", "n", "confidence")):
            return quality(found, named=False)
    value = report.get("quality_before")
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _judged(job: Mapping[str, Any], report: Mapping[str, Any], source: Version | None) -> str | None:
    """Accepted, rejected or unproven: against which version, on which rows, and with which bound."""
    verdict, converted = (job.get("result") or {}).get("verdict"), job.get("kind") == "convert"
    found = next((v for k in ("verdict", "guard") if isinstance(v := report.get(k), Mapping)), None) or {}
    quantized = report.get("quantized")
    bound = found.get("max_accuracy_drop")
    if bound is None and isinstance(quantized, Mapping):
        bound = quantized.get("max_accuracy_drop")
    change = found.get("difference") or report.get("quality_change")
    rows = f" on the {found['split']} split" if found.get("split") else ""
    lost = f"; {allowed(bound, change)} may be lost" if bound is not None else ""
    if verdict is None:  # a bound that was held, on too few rows or the wrong ones to prove anything
        return f"none;{rows} {difference(change)}{lost}" if found and bound is not None else None
    against = found.get("against") or ((source or Record()).get("parent") if converted else job.get("model"))
    who = str(against or "what it was made from")
    if against and converted and against != job.get("model"):
        who += f", which {job.get('model')} was quantized from"
    return f"{found.get('told') or f'{verdict}{lost}.'} Compared with {who}{rows}"


def fetched(told: State, ref: str) -> Version | None:
    """A version; None where there is none (any more), or nobody answers: what the job made is known all the same."""
    if "@" not in ref:
        return None
    try:
        return told.client.models.version(ref)
    except (EnginesmithError, ValueError):
        return None


def following(told: State, job: Job, version: Version | None) -> None:
    """The commands that come next."""
    if version is not None:
        told.tell(f"next: {_step(job, version)}")
    name = str((job.result or Record()).get("model") or "").partition("@")[0]
    told.tell(f"all versions: enginesmith models {name}")


def _step(job: Mapping[str, Any], version: Version) -> str:
    ref, name = version["ref"], version["name"]
    if version["format"] in ENGINES:
        return f"enginesmith deploy {name} {ref}" + forced(version.get("verdict"))
    quantized = (version.get("details") or {}).get("quantized") or {}
    data = f" --dataset {job['dataset']}" if job.get("dataset") else ""
    if quantized:
        return f"enginesmith convert {ref}{data} --target {quantized.get('target')} --precision int8"
    target = "onnxruntime" if (job.get("spec") or {}).get("estimator") else "openvino"
    return f"enginesmith convert {ref}{data} --target {target}"


def forced(verdict: Any) -> str:
    """--force and why, where a version deploys only with it."""
    return f" --force   ({verdict}: {FORCED[verdict]})" if verdict in FORCED else ""
