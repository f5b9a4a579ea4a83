"""What a page is made of: each section is a heading and HTML, or nothing where the job has nothing to say to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from app.domain.specs import MENU
from app.report import tables, words

Told = Mapping[str, Any]
# Fields of a report that sections of their own show, or figures.
_ELSEWHERE = frozenset(
    (
        "figures",
        "notes",
        "verdict",
        "told",
        "difference",
        "max_accuracy_drop",
        "samples_needed",
        "quality_change",
        "recipe",
    )
)
MOST_NODES = 300
_TITLES = {
    "table": "Everything that was tried",
    "front": "The front, on the test split",
    "beside": "Judged beside it",
    "cv_results": "Candidates",
}


def facts(job: Told) -> str:
    result = job.get("result") or {}
    rows = {
        "status": job.get("status"), "model": job.get("model"), "data set": job.get("dataset"),
        "made": result.get("model") if result.get("model") != job.get("model") else None,
        "verdict": result.get("verdict"), "took": _took(job),
        # Each step of a search or an optimize job is an attempt, and no second try.
        "attempt": None if job.get("kind") in ("search", "optimize") else job.get("attempt"),
        "phase": None if job.get("finished_at") else job.get("phase"), "trial of": job.get("parent"),
        "from the cache": "yes" if job.get("cache_hit") else None,
        "started": _when(job.get("started_at")), "finished": _when(job.get("finished_at")),
    }  # fmt: skip
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{tables.value(held)}</dd></div>" for name, held in rows.items() if held is not None
    )
    return f"<dl>{shown}</dl>"


def word(job: Told) -> str | None:
    """accepted, rejected, unproven; None where nothing was judged."""
    result = job.get("result") or {}
    found = result.get("verdict") or words.judged(result.get("report") or {})["verdict"]
    return str(found) if found else None


def verdict(job: Told) -> str:
    result = job.get("result") or {}
    report = result.get("report") or {}
    said = word(job)
    model, source = result.get("model") or job.get("model"), job.get("model")
    told = words.verdict(report, said, model, source if source != model else None)
    if not told:
        return ""
    first, rest = told[0], told[1:]
    kind = said if said in ("accepted", "rejected", "unproven") else ""
    rest_told = "".join(f"<p>{escape(line)}</p>" for line in rest)
    return f'<div class="verdict {kind}"><strong>{escape(first)}</strong>{rest_told}</div>'


def error(job: Told) -> str:
    told = job.get("error")
    if not told:
        return ""
    hint = f"<p>{escape(str(told['hint']))}</p>" if told.get("hint") else ""
    rest = {k: v for k, v in told.items() if k not in ("detail", "hint", "type", "instance") and v not in (None, [])}
    lead = f"<strong>{escape(str(told.get('detail') or told.get('title')))}</strong>"
    return f'<div class="verdict rejected">{lead}{hint}</div>{tables.named(rest, caption="error")}'


def notes(job: Told) -> str:
    report = (job.get("result") or {}).get("report") or {}
    told = [*(job.get("warnings") or []), *(report.get("notes") or [] if isinstance(report.get("notes"), list) else [])]
    return "<ul>" + "".join(f"<li>{escape(str(note))}</li>" for note in told) + "</ul>" if told else ""


def changes(job: Told, source: Told | None, made: Told | None) -> str:
    """What came out smaller or larger, side by side."""
    report = (job.get("result") or {}).get("report") or {}
    pairs: dict[str, tuple[Any, Any]] = {}
    if source and made:
        for name in ("bytes", "parameters", "macs", "sparsity"):
            pairs[name] = (source.get(name), made.get(name))
    for name, held in report.items():
        if _is_pair(held):
            pairs[name] = (held["before"], held["after"])
    for name in report:
        if name.endswith("_before") and f"{name[:-7]}_after" in report:
            pairs[name[:-7]] = (report[name], report[f"{name[:-7]}_after"])
    rows = []
    for name, (before, after) in pairs.items():
        if before is not None or after is not None:
            ratio = after / before if _number(before) and _number(after) and before else None
            rows.append({"": name.replace("_", " "), "before": before, "after": after, "after ÷ before": ratio})
    return tables.table(rows, caption="before and after") if rows else ""


def found(job: Told) -> str:
    """The rest of the report, as it is."""
    report = (job.get("result") or {}).get("report") or {}
    rest = {k: v for k, v in report.items() if k not in _ELSEWHERE and not _is_pair(v) and not _is_half(k, report)}
    rest = {k: v for k, v in rest.items() if v is not None and v not in ([], {})}
    parts = []
    flat = {k: v for k, v in rest.items() if not isinstance(v, Mapping | list)}
    if flat:
        parts.append(tables.named(flat, caption="report"))
    for name, held in rest.items():
        if name not in flat:
            many = isinstance(held, Mapping | list) and len(held) > 30
            title = escape(_TITLES.get(name) or name.replace("_", " ").capitalize())
            shown = tables.value(held)
            folded = f"<details><summary>{title} ({len(held)})</summary>{shown}</details>"
            parts.append(folded if many else f"<h3>{title}</h3>{shown}")
    return "".join(parts)


def history(job: Told) -> str:
    rows = job.get("history") or []
    if not rows:
        return ""
    summary = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
    opened = " open" if len(rows) <= 12 else ""
    return f"<details{opened}><summary>{summary}</summary>{tables.table(rows, caption='history')}</details>"


def lineage(tree: Sequence[Told], job: Told) -> str:
    """The model's versions from upload to engines; those that the job worked on or made stand out."""
    if not tree:
        return ""
    result = job.get("result") or {}
    here = {ref for ref in (job.get("model"), result.get("model")) if ref}
    left = [MOST_NODES]

    def node(at: Told) -> str:
        if left[0] <= 0:
            return ""
        left[0] -= 1
        mine = at.get("ref") in here or at.get("job") == job.get("id")
        inside = "".join(node(child) for child in at.get("children") or ())
        mark = ' class="here"' if mine else ""
        return f"<li><span{mark}>{_node(at)}</span>{f'<ul>{inside}</ul>' if inside else ''}</li>"

    shown = f'<ul class="tree">{"".join(node(root) for root in tree)}</ul>'
    return shown + ('<p class="note">More versions are not shown.</p>' if left[0] <= 0 else "")


def _node(at: Told) -> str:
    what = " ".join(str(part) for part in (at.get("kind"), at.get("format"), at.get("precision")) if part)
    quality, latency = at.get("quality") or {}, at.get("latency") or []
    told = [what]
    if _number(quality.get("value")):
        span = f" [{quality['low']:.4f}, {quality['high']:.4f}]" if _number(quality.get("low")) else ""
        told.append(f"{quality.get('name', 'quality')} {quality['value']:.4f}{span}")
    told += [f"{t['p50_ms']:.3g} ms at batch {t['batch']}" for t in latency[:1] if _number(t.get("p50_ms"))]
    if _number(at.get("bytes")):
        told.append(size(at["bytes"]))
    verdict = f" {tables.value(at['verdict'])}" if at.get("verdict") else ""
    return f"<strong>{escape(str(at.get('ref')))}</strong>{verdict} <small>{escape(' · '.join(told))}</small>"


def recipe(given: Told | None, made: str | None) -> str:
    """The specs that made a version, one after the other, and how to do the same to another checkpoint."""
    if not given or not given.get("chain"):
        return ""
    steps = "".join(
        f"<li><strong>{escape(str(spec.get('kind')))}</strong> <code>{escape(_fields(spec))}</code></li>"
        for spec in given["chain"]
    )
    again = f"<pre>enginesmith replay {escape(made)} --on OTHER</pre>" if made and given.get("complete", True) else ""
    return f'<p>From <strong>{escape(str(given.get("root")))}</strong>:</p><ol class="steps">{steps}</ol>{again}'


def _fields(spec: Told) -> str:
    menu = MENU.get(str(spec.get("kind")))
    usual = {name: field.default for name, field in menu.model_fields.items()} if menu else {}
    told = {
        k: json.dumps(v, ensure_ascii=False)
        for k, v in spec.items()
        if k != "kind" and v is not None and v != usual.get(k)
    }
    return "  ".join(f"{k}={v}" for k, v in told.items())


def spec(job: Told) -> str:
    return tables.named({k: v for k, v in (job.get("spec") or {}).items() if v is not None}, caption="asked for")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _when(given: Any) -> str | None:
    """2026-01-05T09:00:00.210Z → 2026-01-05 09:00:00 UTC."""
    return f"{given[:19].replace('T', ' ')} UTC" if isinstance(given, str) else None


def _took(job: Told) -> str | None:
    started, finished = job.get("started_at"), job.get("finished_at")
    if not isinstance(started, str) or not isinstance(finished, str):
        return None
    begun, ended = (datetime.fromisoformat(t.replace("Z", "+00:00")) for t in (started, finished))
    return words.seconds(max(0.0, (ended - begun).total_seconds()))


def _is_half(name: str, report: Told) -> bool:
    """quality_before beside quality_after."""
    stem = name.removesuffix("_before").removesuffix("_after")
    return stem != name and f"{stem}_before" in report and f"{stem}_after" in report


def _is_pair(held: Any) -> bool:
    return isinstance(held, Mapping) and {"before", "after"} <= held.keys() and not isinstance(held["before"], Mapping)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
