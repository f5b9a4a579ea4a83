"""Values as HTML: tables of rows, tables of names, and single values. Everything that is not a tag is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.report.naming import DRAWN, DURATIONS, OF_NAMES, SIZES, heading
from app.report.words import brief, figure, seconds, size

MOST_ROWS, MOST_COLUMNS, DEEPEST = 1000, 40, 6
LONG = 30  # letters: what is longer is given room, what is not is not broken into lines
_VERDICTS = frozenset({"accepted", "rejected", "unproven", "succeeded", "failed", "cancelled"})


def value(given: Any, depth: int = 0, of: str = "", *, celled: bool = False) -> str:
    """Whatever a report holds. of: the field that holds it. celled: it stands in a cell of a table."""
    if isinstance(given, Mapping):
        if not given:
            return "–"
        if depth and (told := brief(given)) is not None:
            return escape(told)
        return named(given, depth, of=of, celled=celled) if depth < DEEPEST else escape(str(given)[:500])
    if isinstance(given, list | tuple):
        return _sequence(given, depth, of, celled)
    if isinstance(given, str):
        mark = f' class="{given}"' if given in _VERDICTS else ""
        return f"<span{mark}>{escape(given)}</span>" if mark else escape(given)
    return escape(measured(of, given))


def named(
    rows: Mapping[str, Any], depth: int = 0, caption: str = "", of: str = "", *, raw: bool = False, celled: bool = False
) -> str:
    """A table of two columns; where every value is a record of the same few fields, one row for each. raw: the names
    are somebody's own, and no words of ours."""
    raw = raw or of in OF_NAMES
    records = [v for v in rows.values() if isinstance(v, Mapping) and v]
    if len(records) == len(rows) > 1 and _alike(records):
        lines = [{"": name if raw else heading(name), **record} for name, record in rows.items()]
        return table(lines, depth, caption, celled=celled)
    body = "".join(
        f'<tr><th scope="row">{escape(str(name) if raw else heading(name))}</th>'
        f"{_cell(held, depth, of if of in SIZES else name)}</tr>"
        for name, held in list(rows.items())[:MOST_ROWS]
    )
    return _wrapped(f"<tbody>{body}</tbody>", caption, celled)


def table(rows: Sequence[Mapping[str, Any]], depth: int = 0, caption: str = "", *, celled: bool = False) -> str:
    """One line per record, one column for each name that any of them has."""
    names = dict.fromkeys(str(name) for row in rows for name in row if name not in DRAWN)
    columns = [n for n in names if any(row.get(n) not in (None, "", [], {}) for row in rows)][:MOST_COLUMNS]
    head = "".join(f'<th scope="col">{escape(heading(name))}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(_cell(row.get(name, ""), max(depth, DEEPEST - 2), name) for name in columns) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f'<p class="note">{len(rows) - MOST_ROWS:,} more are not shown.</p>' if len(rows) > MOST_ROWS else ""
    return _wrapped(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", caption, celled) + more


def _sequence(given: Sequence[Any], depth: int, of: str, celled: bool) -> str:
    if not given:
        return "–"
    if depth and all(isinstance(v, Mapping) and brief(v) for v in given):
        return "<br>".join(value(v, depth) for v in given[:20])
    if all(isinstance(v, Mapping) for v in given) and depth < DEEPEST:
        return table(given, depth + 1, celled=celled)
    if any(isinstance(v, Mapping | list | tuple) for v in given) and depth < DEEPEST:
        return "".join(f"<div>{value(v, depth + 1, of, celled=celled)}</div>" for v in given[:200])
    if any(isinstance(v, str) and len(v) > 40 for v in given):
        return "".join(f"<div>{value(v, depth + 1, celled=celled)}</div>" for v in given[:200])
    shown = ", ".join(figure(v) for v in given[:200])
    return escape(shown + (f", … ({len(given)} in all)" if len(given) > 200 else ""))


def _cell(held: Any, depth: int, of: str) -> str:
    if isinstance(held, Mapping) and depth >= DEEPEST - 2 and 0 < len(held) <= 12:
        shown = escape(_inline(held, of))
    else:
        shown = value(held, depth + 1, of, celled=True)
    if isinstance(held, int | float) and not isinstance(held, bool):
        return f'<td class="n">{shown}</td>'
    if "<" in shown:
        return f"<td>{shown}</td>"
    return f'<td class="t">{shown}</td>' if len(shown) > LONG else f'<td class="s">{shown}</td>'


def _inline(record: Mapping[str, Any], of: str = "") -> str:
    """A record in one cell: lr = 0.1, momentum = 0.9; what was and what is: 12 → 6."""
    if (whole := brief(record)) is not None:
        return whole
    if record.keys() == {"before", "after"}:
        return f"{measured(of, record['before'])} → {measured(of, record['after'])}"
    told = [brief(v) or f"({_inline(v, k)})" if isinstance(v, Mapping) else measured(k, v) for k, v in record.items()]
    raw = of in OF_NAMES
    return ", ".join(f"{n if raw else heading(n)} = {text}" for n, text in zip(record, told, strict=True))


def measured(of: str, held: Any) -> str:
    """A figure in the unit in which one reads its field."""
    if isinstance(held, int | float) and not isinstance(held, bool):
        if of in SIZES and held >= 0:
            return size(held)
        if of in DURATIONS and held >= 0:
            return seconds(held)
    return figure(held)


def _alike(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether they are worth columns: few fields, which most of them share."""
    columns = {name for record in records for name in record}
    flat = all(_is_flat(v) for record in records for v in record.values())
    return flat and len(columns) <= 12 and 2 * min(map(len, records)) >= len(columns)


def _is_flat(held: Any, depth: int = 0) -> bool:
    """Whether it fits a cell."""
    if isinstance(held, list):
        few = len(held) <= 8 and not any(isinstance(v, Mapping | list) for v in held)
        return few or all(isinstance(v, Mapping) and brief(v) is not None for v in held)
    if isinstance(held, Mapping) and brief(held) is None:
        return depth < 2 and all(_is_flat(v, depth + 1) for v in held.values())
    return True


def _wrapped(inside: str, caption: str, celled: bool) -> str:
    """In a box of its own, which alone is moved sideways where a phone is too narrow; in a cell the outer one is."""
    if celled:
        return f"<table>{inside}</table>"
    # It can be moved sideways by whoever has no mouse, too.
    name = f' aria-label="{escape(caption)}"' if caption else ""
    return f'<div class="scroll" role="region" tabindex="0"{name}><table>{inside}</table></div>'
