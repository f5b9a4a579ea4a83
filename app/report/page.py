"""The page: sections one after the other, drawings included where somebody draws. It asks nobody for anything: no
script, no font, no address."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from app.report import figures as as_data
from app.report import found, sections, tables
from app.report.figures import Figure, Unreadable
from app.report.style import STYLE

log = logging.getLogger("enginesmith.report")
MOST_FIGURES = 40
# draw(figure, name) → <svg>; colours and marks of its key are the drawing's.
Draw = Callable[[Figure, str], str]
Key = Callable[[Figure], str]


def page(given: Mapping[str, Any], draw: Draw | None = None, key: Key | None = None, excuse: str = "") -> str:
    """given: {"job", "source"?, "made"?, "lineage"?, "recipe"?} as the API tells them. Without `draw` the figures are
    there as tables, with `excuse`."""
    job = given["job"]
    made, source = given.get("made"), given.get("source")
    result = job.get("result") or {}
    report = result.get("report") or {}
    own = report.get("figures")
    drawn = [*(own if isinstance(own, list) else []), *found.figures(job, made)]
    title = f"{job.get('kind')} {job.get('model') or (job.get('spec') or {}).get('name') or ''}".strip()
    parts = [
        f"<h1>{escape(title)}</h1>",
        sections.facts(job),
        _section("Verdict" if sections.word(job) else "Accuracy", sections.verdict(job)),
        _section("Error", sections.error(job)),
        _section("What to know", sections.notes(job)),
        _section("Before and after", sections.changes(job, source, made)),
        _section("Figures", _figures(drawn, draw, key, excuse)),
        _section("Found", sections.found(job)),
        _section("History", sections.history(job)),
        _section("Lineage", sections.lineage(given.get("lineage") or [], job)),
        _section("Recipe", sections.recipe(given.get("recipe"), result.get("model"))),
        _section("Asked for", sections.spec(job)),
        f'<p class="note">Job {escape(str(job.get("id")))}, made by Enginesmith.</p>',
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    body = f"<main>{''.join(parts)}</main>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _section(title: str, inside: str) -> str:
    if not inside:
        return ""
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{inside}</section>'


def _figures(given: Sequence[Any], draw: Draw | None, key: Key | None, excuse: str) -> str:
    shown = []
    for i, raw in enumerate(given[:MOST_FIGURES]):
        try:
            figure = as_data.read(raw)
        except Unreadable as why:
            title = raw.get("title") if isinstance(raw, Mapping) else None
            shown.append(
                f'<p class="note">{escape(str(title or "A figure")[:200])} cannot be drawn: {escape(str(why))}.</p>'
            )
            continue
        shown.append(_figure(figure, f"f{i + 1}", draw, key))
    if not shown:
        return ""
    told = f'<p class="note">{escape(excuse)}</p>' if excuse else ""
    if len(given) > MOST_FIGURES:
        told += f'<p class="note">{len(given) - MOST_FIGURES} more figures are in the JSON report.</p>'
    return f'{told}<div class="figures">{"".join(shown)}</div>'


def _figure(figure: Figure, name: str, draw: Draw | None, key: Key | None) -> str:
    drawing, fault = "", ""
    if draw is not None:
        try:
            drawing = draw(figure, name)
        except Exception as error:
            log.warning("a figure could not be drawn: %s", error)
            fault = '<p class="note">This figure could not be drawn.</p>'
    note = f'<p class="note">{escape(figure.note)}</p>' if figure.note else ""
    rows = tables.table(as_data.table(figure), caption=f"{figure.title}, in numbers")
    opened = "" if drawing else " open"
    numbers = f"<details{opened}><summary>In numbers</summary>{rows}</details>"
    legend = key(figure) if drawing and key is not None else ""
    heading = f"<figcaption><h3>{escape(figure.title)}</h3></figcaption>" if figure.title else ""
    return f"<figure>{heading}{drawing}{fault}{legend}{note}{numbers}</figure>"
