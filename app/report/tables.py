"""Values as HTML: tables of rows, tables of names, and single values. Everything that is not a tag is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.report.words import brief, figure

MOST_ROWS, MOST_COLUMNS, DEEPEST = 1000, 40, 6
_VERDICTS = frozenset({"accepted", "rejected", "unproven", "succeeded", "failed", "cancelled"})


def value(given: Any, depth: int = 0) -> str:
    """Whatever a report holds."""
    if isinstance(given, Mapping):
        if not given:
            return "–"
        if depth and (told := brief(given)) is not None:
            return escape(told)
        return named(given, depth) if depth < DEEPEST else escape(str(given)[:500])
    if isinstance(given, list | tuple):
        return _sequence(given, depth)
    if isinstance(given, str):
        mark = f' class="{given}"' if given in _VERDICTS else ""
        return f"<span{mark}>{escape(given)}</span>" if mark else escape(given)
    return escape(figure(given))


def named(rows: Mapping[str, Any], depth: int = 0, caption: str = "") -> str:
    """A table of two columns; where every value is a record of the same few fields, one row for each."""
    records = [v for v in rows.values() if isinstance(v, Mapping) and v]
    if len(records) == len(rows) > 1 and _alike(records):
        return table([{"": name, **record} for name, record in rows.items()], depth, caption)
    body = "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th>{_cell(held, depth)}</tr>'
        for name, held in list(rows.items())[:MOST_ROWS]
    )
    return _wrapped(f"<tbody>{body}</tbody>", depth, caption)


def table(rows: Sequence[Mapping[str, Any]], depth: int = 0, caption: str = "") -> str:
    """One line per record, one column for each name that any of them has."""
    names = dict.fromkeys(str(name) for row in rows for name in row)
    columns = [n for n in names if any(row.get(n) not in (None, "", [], {}) for row in rows)][:MOST_COLUMNS]
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(_cell(row.get(name, ""), max(depth, DEEPEST - 2)) for name in columns) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f'<p class="note">{len(rows) - MOST_ROWS:,} more are not shown.</p>' if len(rows) > MOST_ROWS else ""
    return _wrapped(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", depth, caption) + more


def _sequence(given: Sequence[Any], depth: int) -> str:
    if not given:
        return "–"
    if depth and all(isinstance(v, Mapping) and brief(v) for v in given):
        return "<br>".join(value(v, depth) for v in given[:20])
    if all(isinstance(v, Mapping) for v in given) and depth < DEEPEST:
        return table(given, depth + 1)
    if any(isinstance(v, Mapping | list | tuple) for v in given) and depth < DEEPEST:
        return "".join(f"<div>{value(v, depth + 1)}</div>" for v in given[:200])
    if any(isinstance(v, str) and len(v) > 40 for v in given):
        return "".join(f"<div>{value(v, depth + 1)}</div>" for v in given[:200])
    shown = ", ".join(figure(v) for v in given[:200])
    return escape(shown + (f", … ({len(given)} in all)" if len(given) > 200 else ""))


def _cell(held: Any, depth: int) -> str:
    if isinstance(held, Mapping) and depth >= DEEPEST - 2 and 0 < len(held) <= 12:
        return f"<td>{escape(_inline(held))}</td>"
    number = isinstance(held, int | float) and not isinstance(held, bool)
    return f'<td class="n">{value(held)}</td>' if number else f"<td>{value(held, depth + 1)}</td>"


def _inline(record: Mapping[str, Any]) -> str:
    """A record in one cell: lr = 0.1, momentum = 0.9."""
    if (whole := brief(record)) is not None:
        return whole
    told = [brief(v) or f"({_inline(v)})" if isinstance(v, Mapping) else figure(v) for v in record.values()]
    return ", ".join(f"{name} = {text}" for name, text in zip(record, told, strict=True))


def _alike(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether they are worth columns: few fields, which most of them share."""
    columns = {name for record in records for name in record}
    flat = all(_is_flat(v) for record in records for v in record.values())
    return flat and len(columns) <= 12 and 2 * min(map(len, records)) >= len(columns)


def _is_flat(held: Any, depth: int = 0) -> bool:
    """Whether it fits a cell."""
    if isinstance(held, list):
        return all(isinstance(v, Mapping) and brief(v) is not None for v in held)
    if isinstance(held, Mapping) and brief(held) is None:
        return depth < 2 and all(_is_flat(v, depth + 1) for v in held.values())
    return True


def _wrapped(inside: str, depth: int, caption: str) -> str:
    if depth:
        return f"<table>{inside}</table>"
    # It can be moved sideways by whoever has no mouse, too.
    name = f' aria-label="{escape(caption)}"' if caption else ""
    return f'<div class="scroll" role="region" tabindex="0"{name}><table>{inside}</table></div>'
