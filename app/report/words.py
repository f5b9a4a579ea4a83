"""Figures and verdicts in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_OPENING = {
    "accepted": "Accepted. It is proven to keep its accuracy within the bound.",
    "rejected": "Rejected. It loses more accuracy than was allowed.",
    "unproven": "Unproven. It may keep its accuracy; the samples are too few to say so.",
}
_FORCE = 'It can be deployed only with "force": true.'


def figure(value: Any) -> str:
    """A number to four digits, as people write it; "–" for what is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**18 else f"{value:.4g}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        if value == int(value) and 1000 <= abs(value) < 1e15:
            return f"{int(value):,}"
        if 10_000 <= abs(value) < 1e15:
            return f"{value:,.0f}"
        return f"{value:.4g}"
    return str(value)


def seconds(value: float) -> str:
    """A duration: 0.4 s, 2 min 5 s, 1 h 20 min."""
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def brief(record: Mapping[str, Any]) -> str | None:
    """A figure with its interval, a ratio with its spread, a latency: in one line. None for what is none of these."""
    low, high = record.get("low"), record.get("high")
    if _number(low) and _number(high):
        if _number(record.get("value")):
            name = f"{record['name']} " if isinstance(record.get("name"), str) else ""
            return f"{name}{record['value']:.4f} [{low:.4f}, {high:.4f}]"
        if _number(record.get("difference")):
            in_points = record.get("name", "accuracy") == "accuracy"
            scale, digits, unit = (100, ".2f", " points") if in_points else (1, ".3g", "")
            middle, least, most = (f"{scale * float(record[k]):+{digits}}" for k in ("difference", "low", "high"))
            return f"{middle} [{least}, {most}]{unit}"
        if _number(record.get("ratio")):
            return f"{record['ratio']:.2f}× [{low:.2f}, {high:.2f}]"
    if _number(record.get("p50_ms")) and "batch" in record and "runtime" in record:
        return f"{figure(record['p50_ms'])} ms at batch {record['batch']}"
    return None


def quality(record: Mapping[str, Any]) -> str | None:
    """An accuracy or r2 with its interval, and what it was measured on. None for what is none."""
    if not isinstance(record.get("name"), str) or not _number(record.get("value")):
        return None
    told = brief(record) or f"{record['name']} {figure(record['value'])}"
    rows = f" on {figure(record['n'])} samples" if _number(record.get("n")) else ""
    split = f" of the {record['split']} split" if record.get("split") else ""
    dataset = f" of {record['dataset']}" if record.get("dataset") else ""
    confidence = record.get("confidence")
    sure = f"; {100 * confidence:g} % interval" if isinstance(confidence, float) and brief(record) else ""
    return f"{told}{rows}{split}{dataset}{sure}"


def verdict(report: Mapping[str, Any], said: str | None, model: str | None, baseline: str | None = None) -> list[str]:
    """The verdict as sentences, with the figures it rests on; nothing where there is neither. baseline: what `model`
    was made from, for reports that do not say what they compare with."""
    found = {"baseline": baseline} | judged(report)
    word = said or found.get("verdict")
    told = [_OPENING[word]] if word in _OPENING else []
    difference = found.get("difference")
    if isinstance(difference, Mapping) and _number(difference.get("difference")):
        told += _difference(found, difference, model)
    if word in ("rejected", "unproven"):
        needed = found.get("samples_needed")
        if word == "unproven":
            told.append(
                f"About {figure(needed)} samples would decide it, were the models to go on disagreeing as they do."
                if _number(needed)
                else "No number of samples would decide it as it stands."
            )
        told.append(_FORCE)
    return told


def judged(report: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a verdict, wherever in a report they lie: beside the others, together under `verdict` or `guard`,
    or as the bare change of quality that a pass has measured."""
    found = dict(report)
    for name in ("guard", "verdict"):
        if isinstance(nested := report.get(name), Mapping):
            found |= nested
    if not isinstance(found.get("difference"), Mapping):
        found["difference"] = report.get("quality_change")
    if not isinstance(found.get("verdict"), str):
        found["verdict"] = None
    return found


def _difference(found: Mapping[str, Any], difference: Mapping[str, Any], model: str | None) -> list[str]:
    in_points = difference.get("name", "accuracy") == "accuracy"
    baseline = found.get("against") or found.get("baseline")
    if isinstance(baseline, Mapping):
        baseline = baseline.get("model") or baseline.get("name")
    other = str(baseline or "its baseline")
    other = f"“{other}”" if " " in other and baseline else other  # what was raced is called by its design
    n = difference.get("n")
    split = f" of the {found['split']} split" if isinstance(found.get("split"), str) else ""
    rows = f" on the same {figure(n)} samples{split}" if _number(n) else ""
    value = float(difference["difference"])
    told = [f"{model or found.get('model') or 'It'} is {_change(value, in_points)} than {other}{rows}."]
    if value == 0:
        told = [f"{model or found.get('model') or 'It'} is exactly as accurate as {other}{rows}."]
    low, high = difference.get("low"), difference.get("high")
    if _number(low) and _number(high):
        confidence = difference.get("confidence")
        sure = f"With {100 * confidence:g} % confidence" if isinstance(confidence, float) else "Its interval says:"
        told.append(f"{sure} the true difference lies between {signed(low, in_points)} and {signed(high, in_points)}.")
        bound = found.get("max_accuracy_drop")
        if _number(bound):
            told.append(f"{amount(bound, in_points).capitalize()} may be lost; {_where(low, value, bound)}.")
    if difference.get("method"):
        told.append(f"Method: {difference['method']}.")
    return told


def _where(low: Any, value: float, bound: Any) -> str:
    if low >= -bound:
        return "the whole interval lies within that"
    return "the loss itself is beyond that" if value < -bound else "the interval reaches beyond that"


def amount(value: Any, in_points: bool) -> str:
    """A share as points: 0.01 → "1 point"."""
    if not in_points:
        return f"{value:.3g}"
    points = round(100 * value, 2)
    return f"{points:g} point" if points == 1 else f"{points:g} points"


def signed(value: Any, in_points: bool) -> str:
    """-0.0031 → "-0.31 points"."""
    return f"{100 * value:+.2f} points" if in_points else f"{value:+.3g}"


def _change(value: float, in_points: bool) -> str:
    return f"{amount(abs(value), in_points)} {'more' if value > 0 else 'less'} accurate"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
