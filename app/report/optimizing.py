"""What the page of an optimize job shows beside the rest: who was judged, all that was tried, and settings."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.report import tables, words

Told = Mapping[str, Any]
# Fields of its report that are told here, or by other sections.
FIELDS = frozenset(
    (
        "objective", "batch", "targets", "winner", "verdict", "baselines", "better_baseline", "front", "beside",
        "sequence", "table", "settings", "splits", "layers", "training", "floor_ms", "confidence",
    )
)  # fmt: skip
_SPLITS = {"val": "validation"}


def is_one(report: Told) -> bool:
    return isinstance(report.get("table"), list) and "objective" in report


def answer(report: Told) -> str:
    """What won, in a sentence or two."""
    won = report.get("winner")
    if not isinstance(won, Mapping):
        return ""
    design, model = _text(won.get("design") or won.get("name")), _text(won.get("model"))
    told = f"<p><strong>{model}</strong>: {design}.</p>"
    splits = report.get("splits")
    if isinstance(splits, Mapping) and splits.get("chosen_on") and splits.get("judged_on"):
        told += (
            f'<p class="note">Chosen on the {_SPLITS.get(str(splits["chosen_on"]), _text(splits["chosen_on"]))} split, '
            f"judged on the {_text(splits['judged_on'])} split, which no choice has seen.</p>"
        )
    return told


def judged(report: Told) -> str:
    """Everybody that the test split has seen, in one table: the answer first."""
    won = report.get("winner")
    first = won.get("name") if isinstance(won, Mapping) else None
    rivals = report.get("baselines")
    better = report.get("better_baseline")
    rows: dict[str, dict[str, Any]] = {}
    for field, role in (("front", "on the front"), ("beside", "beside it")):
        for row in _records(report.get(field)):
            rows[str(row.get("name"))] = _line(row, "the answer" if row.get("name") == first else role)
    if isinstance(won, Mapping) and str(first) not in rows:
        rows[str(first)] = _line(won, "the answer")
    for name, row in rivals.items() if isinstance(rivals, Mapping) else ():
        role = "the better baseline" if name == better else "baseline"
        if name in rows:
            rows[name][""] = f"{rows[name]['']}, {role}"
        elif isinstance(row, Mapping):
            rows[name] = _line({"name": name, **row}, role)
    if not rows:
        return ""
    order = sorted(rows.values(), key=lambda row: not row[""].startswith("the answer"))
    note = "Times as fast as the original, converted as it is in full precision: the middle half of the rounds follows."
    return f'{tables.table(order, caption="judged on the test split")}<p class="note">{note}</p>'


def _line(row: Told, role: str) -> dict[str, Any]:
    timed = [at for at in _records(row.get("latency")) if "batch" in at]
    ratios = row.get("speedup")
    found: dict[str, Any] = {
        "": role,
        "what it is": row.get("design") or row.get("name"),
        "version": row.get("model"),
        "verdict": row.get("verdict"),
        "quality": row.get("quality"),
        "difference": row.get("difference"),
    }
    for batch, ratio in ratios.items() if isinstance(ratios, Mapping) else ():
        found[f"times as fast, {_rows(batch)}"] = ratio
    for at in timed:
        found[f"ms, {_rows(at['batch'])}"] = at.get("p50_ms")
    return found | {name: row.get(name) for name in ("bytes", "parameters", "macs", "samples_needed")}


def tried(report: Told) -> str:
    """Every trial, by its figures on the validation split."""
    by_speed = report.get("objective") != "size"
    rows = []
    for row in _records(report.get("table")):
        speed: Any = {"ratio": row.get("speedup"), "low": row.get("speedup_low"), "high": row.get("speedup_high")}
        line = {
            "what it is": row.get("design") or row.get("name"),
            "": row.get("status") if row.get("status") != "succeeded" else None,
            "quality (validation)": row.get("quality"),
            "times as fast": words.brief(speed) or row.get("speedup"),
            "times as small": None if by_speed else row.get("gain"),
        }
        line |= {name: row.get(name) for name in ("latency_ms", "bytes", "parameters", "macs", "seconds")}
        rows.append(line | {"cache_hit": True if row.get("cache_hit") else None, "why_not": row.get("why_not")})
    return tables.table(rows, caption="everything that was tried") if rows else ""


def settings(report: Told) -> str:
    """With which threads, runs at once and rows the answer was tried, and which are recommended."""
    given = report.get("settings")
    if not isinstance(given, Mapping):
        return ""
    best = given.get("recommended")
    best = best if isinstance(best, Mapping) else {}
    rows = [
        {
            "": "recommended" if _is_best(row, best, report) else None,
            "runs at once": row.get("instances"),
            "threads": row.get("threads"),
            "rows of a run": row.get("batch"),
            "rows per second": row.get("rows_per_s"),
            "ms (median)": row.get("p50_ms"),
        }
        for row in _records(given.get("tried"))
    ]
    options = " ".join(f"--{str(name).replace('_', '-')} {value}" for name, value in best.items())
    deploy = f"<p>To deploy it so: <code>{_text(options)}</code></p>" if options else ""
    return deploy + (tables.table(rows, caption="settings tried") if rows else "")


def _is_best(row: Told, best: Told, report: Told) -> bool:
    if not best or any(row.get(name) != best.get(name) for name in ("instances", "threads")):
        return False
    return bool(row.get("batch") == best.get("max_batch", report.get("batch")))


def _rows(batch: Any) -> str:
    return f"{batch} row{'' if str(batch) == '1' else 's'}"


def _text(value: Any) -> str:
    return escape(str(value))


def _records(given: Any) -> list[Told]:
    return [row for row in given if isinstance(row, Mapping)] if isinstance(given, list) else []
