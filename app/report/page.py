"""The page: sections one after the other, drawings included where somebody draws. It asks nobody for anything: no
script, no font, no address."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from app.report import built, found, layers, naming, optimizing, sections, speed, tables
from app.report import figures as as_data
from app.report.figures import Figure, Unreadable
from app.report.style import STYLE

log = logging.getLogger("enginesmith.report")
MOST_FIGURES = 40
# draw(figure, name) → <svg>; colours and marks of its key are the drawing's.
Draw = Callable[[Figure, str], str]
Key = Callable[[Figure], str]


def page(given: Mapping[str, Any], draw: Draw | None = None, key: Key | None = None, excuse: str = "") -> str:
    """given: {"job", "source"?, "made"?, "chain"?, "lineage"?, "recipe"?} as the API tells them. Without `draw` the
    figures are there as tables, with `excuse`."""
    job = _in_words(given["job"])
    made, source = given.get("made"), given.get("source")
    result = job.get("result") or {}
    report = result.get("report") or {}
    races = optimizing.is_one(report)
    own = report.get("figures")
    drawn = [*(own if isinstance(own, list) else []), *found.figures(job, made)]
    title = f"{job.get('kind')} {job.get('model') or (job.get('spec') or {}).get('name') or ''}".strip()
    parts = [
        f"<h1>{escape(title)}</h1>",
        sections.facts(job),
        _section("Verdict" if sections.word(job) else "Accuracy", sections.verdict(job)),
        _section("Error", sections.error(job)),
        _section("What to know", sections.notes(job)),
        _section("The answer", optimizing.answer(report) if races else ""),
        _section("Speed", speed.section(report)),
        _section("Before and after", sections.changes(job, source, made)),
        _section("Figures", _figures(drawn, draw, key, excuse)),
        _section("Judged on the test split", optimizing.judged(report) if races else ""),
        _section("Everything that was tried", optimizing.tried(report) if races else ""),
        _section("Settings tried", optimizing.settings(report) if races else ""),
        _section("Layers of the answer", layers.section(report) if races else ""),
        _section("How it was built", built.section(report)),
        _section("Details", sections.found(job)),
        _section("History", sections.history(job)),
        _section("Lineage", sections.lineage(given.get("lineage") or [], job, given.get("chain") or [])),
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


def _in_words(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The job with what an optimize job has raced called by its design."""
    result = job.get("result")
    report = result.get("report") if isinstance(result, Mapping) else None
    names = naming.contestants(report) if isinstance(report, Mapping) else {}
    return {**job, "result": {**result, "report": naming.renamed(report, names)}} if result and names else job


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
    title = figure.title[:1].upper() + figure.title[1:]
    heading = f"<figcaption><h3>{escape(title)}</h3></figcaption>" if title else ""
    return f"<figure>{heading}{drawing}{fault}{legend}{note}{numbers}</figure>"
