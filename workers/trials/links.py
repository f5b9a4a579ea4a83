"""A chain of specs applied in one process, each to what the one before gave, on versions that nobody publishes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from app import runtimes
from app.domain import specs
from app.domain.records import Made, Version, now, parse_ref
from app.errors import Problem, Unprocessable
from app.runtimes import _cpu
from workers.context import Context
from workers.passes import Outcome, apply
from workers.trials import kept

# Versions that are only steps on the way are numbered from here on.
UNPUBLISHED = 900_000_000
MOST_ROWS = 60  # of a training's history that are kept, evenly spread


@dataclass(frozen=True)
class End:
    """Where a chain ended. key: what it is kept under; None: nowhere. cached: links that were not computed."""

    version: Version
    folder: Path
    key: str | None
    reports: list[dict[str, Any]]
    cached: int


def keys_of(root: Version, links: Sequence[specs.Spec], ctx: Context, at_split: str) -> list[str]:
    """A key for every beginning of the chain: what it gives depends on nothing else."""
    data = kept.content_of(ctx.catalog.dataset(*parse_ref(ctx.job.dataset))) if ctx.job.dataset else None
    told = [_content(link, ctx) for link in links]
    return [
        kept.key_of(role="chain", model=kept.content_of(root), dataset=data, chain=told[: n + 1], split=at_split)
        for n in range(len(links))
    ]


def parse(links: Sequence[Mapping[str, Any]], model: str, dataset: str | None) -> list[specs.Spec]:
    """Typed specs, each with a model and a data set filled in. Raises Unprocessable."""
    found = []
    for number, link in enumerate(links):
        try:
            found.append(specs.parse({"model": model, **({"dataset": dataset} if dataset else {}), **link}))
        except (KeyError, ValueError) as error:
            raise Unprocessable(f"link {number} of the chain is no job: {error}", code="bad_chain") from None
    return found


def walk(links: Sequence[specs.Spec], ctx: Context, *, keeping: bool = True) -> End:
    """Applies the links, from the longest beginning that is kept already. ctx: its job names the root and the data.

    Raises whatever a pass raises.
    """
    version, folder = ctx.source()
    keys = keys_of(version, links, ctx, ctx.split) if keeping else []
    reports: list[dict[str, Any]] = []
    done = 0
    for n in range(len(keys), 0, -1):
        held = kept.find(ctx.artifacts, keys[n - 1])
        if held is not None and held.version is not None:
            version, folder = kept.fetch(held, (ctx.fetched or ctx.scratch) / "kept", ctx)
            version = version.but(name=_name(ctx), version=UNPUBLISHED + n)
            reports, done = held.report["links"], n
            ctx.log(f"{n} of {len(links)} links were computed before")
            break
    for n in range(done, len(links)):
        ctx.given(version, folder)
        rows: list[dict[str, Any]] = []
        try:
            outcome = _apply(links[n], version, ctx, n, sum(_epochs(link) for link in links[:n]), rows)
        except Problem as problem:
            _say_links(problem, links[:n], ctx)
            raise
        if outcome.folder is None:
            raise Unprocessable(f"link {n} of the chain ({_kind(links[n])}) makes no version", code="bad_chain")
        # Whoever finds the chain computed before has no history of the training but this.
        trained = {"history": rows[:: -ceil(len(rows) / MOST_ROWS)][::-1]} if rows else {}
        reports = [*reports, {"kind": _kind(links[n]), **outcome.report, **trained}]
        draft = _draft(outcome, version, ctx, links[n], n + 1)
        if keeping:
            by = f"{ctx.job.id}-{ctx.job.attempt}"
            held = kept.keep(ctx.artifacts, keys[n], by, outcome.folder, draft, {"links": reports})
            assert held.version is not None
            version = held.version.but(name=_name(ctx), version=UNPUBLISHED + n + 1)
        else:
            version = Version.model_validate({**draft, "folder": "none", "files": {}, "bytes": _size(outcome.folder)})
        folder = outcome.folder
    return End(version, folder, keys[-1] if keys else None, reports, done)


def host() -> dict[str, Any]:
    """What a latency, or an engine, depends on beside the graph."""
    versions = {}
    for name in runtimes.names():
        found = runtimes.get(name).available()
        versions[name] = found.version if found.ok else None
    gpus = {name: ties for name in runtimes.names() if (ties := runtimes.ties(name)) is not None}
    return {"cpu": _cpu.model(), "versions": versions} | ({"gpus": gpus} if gpus else {})


def _apply(
    link: specs.Spec, version: Version, ctx: Context, n: int, epochs_before: int, rows: list[dict[str, Any]]
) -> Outcome:
    """rows: gets what is said of every epoch."""
    spec = link.model_copy(update={"model": version.ref, "dataset": ctx.job.dataset})
    job = ctx.job.but(kind=_kind(link), spec=spec.model_dump(mode="json"), model=version.ref)
    seed, watch = int(getattr(spec, "seed", 0) or 0), ctx.watch

    def seen(row: dict[str, Any]) -> None:
        rows.append(row)
        if watch is not None:  # a pruner counts the epochs of the whole chain, those computed before included
            watch(row | {"epochs_before": epochs_before})

    inner = ctx.staged(str(n), job=job, seed=seed, device=_device(spec, ctx), watch=seen)
    outcome = apply(spec, inner)
    assert isinstance(outcome, Outcome)
    if outcome.folder is not None:  # the stage's folder may be made anew, when a chain is walked twice
        moved = ctx.folder(f"made-{n}")
        shutil.rmtree(moved)
        outcome.folder.rename(moved)
        outcome = Outcome(moved, outcome.draft, outcome.report, outcome.evaluation)
    return outcome


def _say_links(problem: Problem, before: Sequence[specs.Spec], ctx: Context) -> None:
    """Puts words in place of the refs of versions that nobody can look up."""
    for n, link in enumerate(before):
        ref, words = f"{_name(ctx)}@{UNPUBLISHED + n + 1}", f"what link {n} ({_kind(link)}) made"
        problem.detail, problem.hint = problem.detail.replace(ref, words), problem.hint.replace(ref, words)


def _draft(outcome: Outcome, version: Version, ctx: Context, link: specs.Spec, n: int) -> dict[str, Any]:
    fields = {
        "name": _name(ctx), "version": UNPUBLISHED + n, "parent": ctx.job.model, "created_at": now(),
        "made_by": Made(job=ctx.job.id, spec=told(link)),
    }  # fmt: skip
    draft = fields | outcome.draft
    draft["details"] = dict(outcome.draft.get("details") or {})
    return draft


def told(link: specs.Spec) -> dict[str, Any]:
    """The spec as a link of a recipe: without the model that it was applied to."""
    return link.model_dump(mode="json", exclude={"model"})


def _content(link: specs.Spec, ctx: Context) -> dict[str, Any]:
    """The spec with contents in place of names."""
    fields = link.model_dump(mode="json", exclude={"model", "dataset", "dry_run"})
    for ref in link.teachers():
        fields = _replaced(fields, ref, kept.content_of(ctx.version(ref)))
    if isinstance(link, specs.ConvertSpec):
        fields |= {"host": host(), "threads": ctx.threads}
    return fields


def _replaced(value: Any, ref: str, content: str) -> Any:
    if isinstance(value, dict):
        return {k: content if k == "teacher" and v == ref else _replaced(v, ref, content) for k, v in value.items()}
    return value


def _device(spec: specs.Spec, ctx: Context) -> str:
    if ctx.device == "cuda" or not spec.on_gpu:
        return ctx.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _epochs(link: specs.Spec) -> int:
    training = link if isinstance(link, specs.TrainSpec) else getattr(link, "finetune", None)
    return training.epochs if training is not None else 0


def _kind(spec: specs.Spec) -> str:
    return str(spec.model_dump(include={"kind"})["kind"])


def _name(ctx: Context) -> str:
    return (ctx.job.model or "").partition("@")[0]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
