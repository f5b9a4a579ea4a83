"""What a job has found: as JSON, or as a page with a curve that a browser shows without anything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from app.api.body import Json, finite
from app.api.examples import problems
from app.api.told import job_json
from app.deps import TheCatalog
from app.domain.records import Job
from app.serving.accept import weighted

router = APIRouter(tags=["jobs"])
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 }
td, th { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left }
th { background: #f4f4f4; font-weight: 600 } td.n { text-align: right; font-variant-numeric: tabular-nums }
.failed, .rejected { color: #b00020 } .succeeded, .accepted { color: #1b6e20 } figure { margin: 1rem 0 }
"""
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
_WIDTH, _HEIGHT, _EDGE = 640, 220, 40


@router.get(
    "/v1/jobs/{id}/report",
    summary="What a job has found",
    responses={
        200: {"description": "JSON, or HTML by Accept", "content": {"application/json": {}, "text/html": {}}},
        **problems(404),
    },
)
def report(id: str, request: Request, catalog: TheCatalog) -> Response:
    job = catalog.job(id)
    if prefers_html(request.headers.get("accept", "")):
        return HTMLResponse(page(job), headers=_SECURITY)
    told = job_json(job)
    fields = (
        "id",
        "kind",
        "spec",
        "model",
        "dataset",
        "status",
        "metrics",
        "history",
        "error",
        "started_at",
        "finished_at",
    )
    result = told["result"] or {}
    return Json(
        {name: told[name] for name in fields}
        | {"result": told["result"], "verdict": result.get("verdict"), "report": result.get("report") or {}},
        headers={"Vary": "Accept"},
    )


def prefers_html(accept: str) -> bool:
    """Whether text/html is wanted more than JSON."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for kind, weight in weighted(accept):
        if kind in weights:
            weights[kind] = max(weights[kind], weight)
    return weights["text/html"] > weights["application/json"]


def page(job: Job) -> str:
    """The report as one self-contained page."""
    title = f"{job.kind} {job.id[:8]}"
    found = job.result
    facts: dict[str, Any] = {
        "status": job.status,
        "model": job.model,
        "data set": job.dataset,
        "made": found.model if found else None,
        "verdict": found.verdict if found else None,
        "attempt": job.attempt,
        "started": job.started_at,
        "finished": job.finished_at,
    }
    parts = [f"<h1>{escape(title)}</h1>", _table({k: v for k, v in facts.items() if v is not None})]
    if job.error:
        parts += ["<h2>Error</h2>", _value(job.error)]
    if found and found.report:
        parts += ["<h2>Report</h2>", _value(found.report)]
    if job.history:
        parts += ["<h2>History</h2>", *curves(job.history), _rows(job.history)]
    if job.metrics:
        parts += ["<h2>Metrics</h2>", _value(job.metrics)]
    parts += ["<h2>Asked for</h2>", _value(job.spec)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def curves(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """One drawing for losses, one for accuracies, one for each other figure that changes."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for i, row in enumerate(history):
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if name in ("epoch", "epochs", "step") or len(groups) > 12:
                continue
            group = next((g for g in ("loss", "accuracy") if g in name), name)
            groups.setdefault(group, {}).setdefault(name, []).append((i, float(value)))
    return [_drawing(lines) for lines in groups.values() if max(map(len, lines.values())) > 1]


def _drawing(lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    points = [p for line in lines.values() for p in line]
    last = max(x for x, _ in points) or 1
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0

    def at(x: int, y: float) -> str:
        left = _EDGE + (_WIDTH - 2 * _EDGE) * x / last
        return f"{left:.1f},{_HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (y - low) / span:.1f}"

    drawn, legend = [], []
    for i, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(at(x, y) for x, y in line)
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        where = _EDGE + i * 140
        legend.append(f'<text x="{where}" y="16" fill="{colour}" font-size="13">{escape(name)}</text>')
    marks = (
        f'<text x="2" y="{_EDGE + 4}" font-size="11">{high:.4g}</text>'
        f'<text x="2" y="{_HEIGHT - _EDGE + 4}" font-size="11">{low:.4g}</text>'
        f'<line x1="{_EDGE}" y1="{_HEIGHT - _EDGE}" x2="{_WIDTH - _EDGE}" y2="{_HEIGHT - _EDGE}" stroke="#999"/>'
    )
    names = escape(", ".join(lines))
    return (
        f'<figure><svg role="img" aria-label="{names}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}">{marks}{"".join(drawn)}{"".join(legend)}</svg></figure>'
    )


def _value(value: Any, depth: int = 0) -> str:
    if isinstance(value, Mapping) and depth < 6:
        return _table(value, depth)
    if isinstance(value, list | tuple) and value and depth < 6:
        if all(isinstance(v, Mapping) for v in value):
            return _rows(value)
        if any(isinstance(v, Mapping | list) for v in value):
            return "".join(f"<div>{_value(v, depth + 1)}</div>" for v in value[:200])
        return escape(", ".join(_told(v) for v in value[:200]))
    return escape(_told(value))


def _table(rows: Mapping[str, Any], depth: int = 0) -> str:
    body = "".join(
        f'<tr><th>{escape(str(k))}</th><td class="{escape(v) if isinstance(v, str) and v.isalpha() else ""}">'
        f"{_value(v, depth + 1)}</td></tr>"
        for k, v in rows.items()
    )
    return f"<table>{body}</table>"


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))[:40]
    head = "".join(f"<th>{escape(str(n))}</th>" for n in names)
    body = "".join(
        "<tr>" + "".join(f'<td class="n">{_value(row.get(n, ""), 5)}</td>' for n in names) + "</tr>"
        for row in rows[:2000]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _told(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "–"
    return str(finite(value))
