"""What a page is made of: each section is a heading and HTML, or nothing where the job has nothing to say to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from app.domain.specs import MENU, Training
from app.report import built, layers, naming, optimizing, speed, tables, words

Told = Mapping[str, Any]
# Fields of a report that sections of their own show, or figures.
_ELSEWHERE = frozenset(
    (
        "figures", "notes", "verdict", "told", "difference", "max_accuracy_drop", "samples_needed", "quality_change",
        "recipe", "training", "best_so_far",
    )
)  # fmt: skip
_SPOKEN = ("Accepted: ", "Rejected: ", "Unproven: ")
MOST_NODES, OPEN_NODES, MOST_OPEN = 300, 12, 30


def facts(job: Told) -> str:
    result = job.get("result") or {}
    rows = {
        "status": job.get("status"), "model": job.get("model"), "data set": job.get("dataset"),
        "made": result.get("model") if result.get("model") != job.get("model") else None,
        "took": _took(job),
        # Each step of a search or an optimize job is an attempt, and no second try.
        "attempt": None if job.get("kind") in ("search", "optimize") or job.get("attempt") == 1 else job.get("attempt"),
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
    if verdict(job):  # which says the same at length
        told = [note for note in told if not str(note).startswith(_SPOKEN)]
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
        if (before is not None or after is not None) and not before == after == 0:
            ratio = after / before if _number(before) and _number(after) and before else None
            named = {"before": tables.measured(name, before), "after": tables.measured(name, after)}
            rows.append({"": naming.heading(name), **named, "after ÷ before": ratio})
    return tables.table(rows, caption="before and after") if rows else ""


def found(job: Told) -> str:
    """The rest of the report, as it is."""
    report = (job.get("result") or {}).get("report") or {}
    shown = _ELSEWHERE | (optimizing.FIELDS if optimizing.is_one(report) else frozenset())
    shown |= speed.FIELDS if speed.section(report) else frozenset()
    shown |= built.FIELDS if built.section(report) else frozenset()
    # A search tells its history twice: as the job's own rows, too.
    shown |= {"history"} if job.get("history") else frozenset()
    rest = {k: v for k, v in report.items() if k not in shown and not _is_pair(v) and not _is_half(k, report)}
    rest = {k: _told(v) for k, v in rest.items() if not _says_nothing(v)}
    if _number(rest.get("samples")) and _number(rest.get("of")):
        rest["samples"] = f"{words.figure(rest['samples'])} of {words.figure(rest.pop('of'))}"
    parts = []
    flat = {k: v for k, v in rest.items() if not isinstance(v, Mapping | list)}
    if flat:
        parts.append(tables.named(flat, caption="report"))
    for name, held in rest.items():
        if name not in flat:
            title = naming.heading(name)
            title = escape(title[:1].upper() + title[1:])
            inside = layers.sensitivity(held) if name == "sensitivity" else ""
            inside = inside or tables.value(held, of=name)
            folded = f"<details><summary>{title} ({len(held)})</summary>{inside}</details>"
            parts.append(folded if len(held) > MOST_OPEN else f"<h3>{title}</h3>{inside}")
    return "".join(parts)


def _told(held: Any) -> Any:
    """What is said in one line is: a quality with its interval, a pattern."""
    if isinstance(held, Mapping) and {"n", "m", "layers"} == held.keys():
        return f"{held['n']}:{held['m']} in {', '.join(map(str, held['layers'] or ['no layer']))}"
    return (words.quality(held) or held) if isinstance(held, Mapping) else held


def _says_nothing(held: Any) -> bool:
    return held is None or held in ([], {}) or (isinstance(held, Mapping) and all(v is None for v in held.values()))


def history(job: Told) -> str:
    rows = job.get("history") or []
    if not rows:
        return ""
    summary = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
    opened = " open" if len(rows) <= 12 else ""
    return f"<details{opened}><summary>{summary}</summary>{tables.table(rows, caption='history')}</details>"


def lineage(tree: Sequence[Told], job: Told, chain: Sequence[Told] = ()) -> str:
    """From the upload to the version, with what each step changed; then all of the model's versions, where those that
    the job worked on or made stand out."""
    result = job.get("result") or {}
    here = {ref for ref in (job.get("model"), result.get("model")) if ref}
    steps = "".join(f"<li>{_change(step, step.get('ref') in here)}</li>" for step in chain)
    shown = f'<ol class="steps">{steps}</ol>' if steps else ""
    if not tree:
        return shown
    left = [MOST_NODES]

    def node(at: Told) -> str:
        if left[0] <= 0:
            return ""
        left[0] -= 1
        mine = at.get("ref") in here or at.get("job") == job.get("id")
        inside = "".join(node(child) for child in at.get("children") or ())
        mark = ' class="here"' if mine else ""
        return f"<li><span{mark}>{_node(at)}</span>{f'<ul>{inside}</ul>' if inside else ''}</li>"

    whole = f'<ul class="tree">{"".join(node(root) for root in tree)}</ul>'
    whole += '<p class="note">More versions are not shown.</p>' if left[0] <= 0 else ""
    if not shown:
        return whole
    count = MOST_NODES - left[0]
    opened = " open" if count <= OPEN_NODES else ""
    return f"{shown}<details{opened}><summary>All versions of the model ({count})</summary>{whole}</details>"


def _change(step: Told, mine: bool) -> str:
    """One version of a chain: what made it, and what it changed."""
    made = step.get("made_by") or {}
    changes = step.get("changes") or {}
    told = [
        f"{naming.heading(name)} {tables.measured(name, pair.get('before'))} → "
        f"{tables.measured(name, pair.get('after'))}"
        for name, pair in changes.items()
        if isinstance(pair, Mapping)
    ]
    mark = ' class="here"' if mine else ""
    verdict = f" {tables.value(step['verdict'])}" if step.get("verdict") else ""
    named = f"<strong{mark}>{escape(str(step.get('ref')))}</strong>{verdict}"
    return f"{named} {escape(str(made.get('kind') or ''))} <small>{escape(' · '.join(told))}</small>"


def _node(at: Told) -> str:
    what = " ".join(str(part) for part in (at.get("kind"), at.get("format"), at.get("precision")) if part)
    quality, latency = at.get("quality") or {}, at.get("latency") or []
    told = [what]
    if _number(quality.get("value")):
        span = f" [{quality['low']:.4f}, {quality['high']:.4f}]" if _number(quality.get("low")) else ""
        told.append(f"{quality.get('name', 'quality')} {quality['value']:.4f}{span}")
    told += [f"{t['p50_ms']:.3g} ms at batch {t['batch']}" for t in latency[:1] if _number(t.get("p50_ms"))]
    if _number(at.get("bytes")):
        told.append(words.size(at["bytes"]))
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
    root = given.get("root")
    if root == given.get("model"):  # an estimator: there was no upload
        return f'<ol class="steps">{steps}</ol>'
    again = f"<pre>enginesmith replay {escape(made)} --on OTHER</pre>" if made and given.get("complete", True) else ""
    return f'<p>From <strong>{escape(str(root))}</strong>:</p><ol class="steps">{steps}</ol>{again}'


def _fields(spec: Told) -> str:
    return "  ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in _unusual(spec).items() if k != "kind")


def _unusual(spec: Told) -> dict[str, Any]:
    """Without what is as it is when nobody says anything."""
    menu = MENU.get(str(spec.get("kind")))
    usual = {name: field.default for name, field in menu.model_fields.items()} if menu else {}
    told = {k: v for k, v in spec.items() if v is not None and (k == "kind" or v != usual.get(k))}
    if isinstance(trained := told.get("finetune"), Mapping):
        fields = Training.model_fields
        told["finetune"] = {k: v for k, v in trained.items() if k not in fields or v != fields[k].default}
    return told


def spec(job: Told) -> str:
    """First what was asked otherwise than usual; the rest is folded."""
    given = {k: v for k, v in (job.get("spec") or {}).items() if v is not None}
    first = _unusual(given)
    whole = tables.named(given, caption="asked for, defaults included") if first != given else ""
    more = f"<details><summary>Defaults included</summary>{whole}</details>" if whole else ""
    return (tables.named(first, caption="asked for") if first else "") + more


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
