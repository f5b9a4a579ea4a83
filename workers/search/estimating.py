"""A search over an estimator of scikit-learn: one step of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from app.domain.records import Job, parse_ref
from app.domain.specs import SearchSpec
from app.errors import Problem, Unprocessable
from workers.context import Context
from workers.passes import Outcome, Waits
from workers.search import estimators, halving, telling, winning
from workers.search import study as studies
from workers.search.study import Plan

WINNER = "winner"
Params = dict[str, Any]


def step(spec: SearchSpec, ctx: Context) -> Outcome | Waits:
    """Starts trials, waits for them, or gives the answer. Raises Unprocessable for what scikit-learn refuses, and where
    every candidate failed."""
    spec = spec.model_copy(update={"dataset": ctx.job.dataset})
    plan = Plan.of(spec)
    jobs = ctx.trials()
    if not jobs:
        estimators.check(spec, ctx.catalog.dataset(*parse_ref(str(ctx.job.dataset))))
    if spec.pruner == "halving":
        found = _halve(plan, jobs, ctx)
    elif plan.points is not None:
        found = _in_portions(plan.points, "g", None, jobs, plan, ctx)
    else:
        found = _drawn(plan, jobs, ctx)
    return found if isinstance(found, Waits) else _answer(plan, found, jobs, ctx)


def _in_portions(
    candidates: list[Params], prefix: str, rows: int | None, jobs: Mapping[str, Job], plan: Plan, ctx: Context
) -> Waits | list[estimators.Result]:
    """Results of all candidates, in their order; or what to wait for. Names and portions are the same in every step."""
    mine = {name: job for name, job in jobs.items() if name.startswith(prefix) and name[len(prefix) :].isdecimal()}
    portions = _portions(candidates, mine, ctx)
    names = [f"{prefix}{n:04d}" for n in range(len(portions))]
    ended = [name for name in names if name in mine and mine[name].ended]
    seen = sum(
        len(jobs[name].spec["candidates"]) for name in jobs if "candidates" in jobs[name].spec and jobs[name].ended
    )
    ctx.progress(seen, max(plan.total, seen), "candidates", "waiting for trials")
    _tell_rows(jobs, ctx)
    if len(ended) == len(names):
        reports = [_report(mine[name]) for name in names]
        return estimators.results(reports, [mine[name].spec for name in names], [_why(mine[name]) for name in names])
    busy = len(mine) - len(ended)
    waiting = [n for n, name in enumerate(names) if name not in mine]
    # The long ones first: no worker is then left with one of them when the others have nothing more to do.
    waiting.sort(key=lambda n: -estimators.effort(portions[n]))
    new = waiting[: max(0, plan.spec.parallel - busy)]
    size = {"portion": len(portions[0])}
    return Waits({names[n]: estimators.trial_spec(plan.spec, portions[n], rows=rows, number=n) | size for n in new})


def _portions(candidates: list[Params], mine: Mapping[str, Job], ctx: Context) -> list[list[Params]]:
    """As the first step made them: how many workers there are may have changed since. The last one may be smaller, and
    begin first."""
    if mine:
        size = max(int(job.spec.get("portion") or len(job.spec["candidates"])) for job in mine.values())
        return [candidates[at : at + size] for at in range(0, len(candidates), size)]
    workers = sum(int(worker.get("count", 1)) for worker in ctx.catalog.live_workers())
    return estimators.portions(candidates, workers)


def _halve(plan: Plan, jobs: Mapping[str, Job], ctx: Context) -> Waits | list[estimators.Result]:
    """Round after round; the results of all rounds, since the last one alone may have few candidates."""
    dataset = ctx.catalog.dataset(*parse_ref(str(ctx.job.dataset)))
    candidates = plan.points if plan.points is not None else _random(plan)
    rounds = halving.rounds(len(candidates), dataset.splits["train"].rows, plan.spec.cv, dataset.classes)
    every: list[estimators.Result] = []
    for number, round in enumerate(rounds):
        found = _in_portions(candidates, f"r{number}-", round.rows, jobs, plan, ctx)
        if isinstance(found, Waits):
            return found
        every += found
        if number + 1 < len(rounds):
            scores = [row["mean_test_score"] for row in estimators.table(found)]
            candidates = [candidates[n] for n in halving.survivors(scores, rounds[number + 1].candidates)]
    return every


def _random(plan: Plan) -> list[Params]:
    """All candidates at once, each drawn as the sampler random would."""
    study = optuna.create_study(sampler=studies.sampler_of(plan, 0))
    found: list[Params] = []
    for number in range(plan.total):
        study.sampler = studies.sampler_of(plan, number)
        params = plan.params(_frozen(study, study.ask(plan.distributions()).number))
        if params not in found:
            found.append(params)
    return found


def _frozen(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _drawn(plan: Plan, jobs: Mapping[str, Job], ctx: Context) -> Waits | list[estimators.Result]:
    """One candidate a trial, drawn from what the others gave. A point drawn twice is tried once."""
    study = studies.open_study(plan, ctx.catalog.redis, ctx.job.id, lambda failed: _tried_again(failed, jobs))
    while True:
        trials = study.get_trials(deepcopy=False)
        owners = studies.owners(plan, trials)
        running = [t for t in trials if t.state == TrialState.RUNNING]
        for trial in running:
            job = jobs.get(f"c{owners[trial.number]:04d}")
            if job is not None and job.ended:
                score = _score(job)
                state = TrialState.FAIL if score is None else TrialState.COMPLETE
                study.tell(trial.number, None if score is None else [score], state, skip_if_finished=True)
        trials = study.get_trials(deepcopy=False)
        open = [t for t in trials if t.state == TrialState.RUNNING and owners[t.number] == t.number]
        if len(owners) >= plan.total or len(open) >= plan.spec.parallel:
            break
        studies.ask(study, plan, len(owners))
    _tell_rows(jobs, ctx)
    done = sum(t.state.is_finished() for t in trials)
    ctx.progress(done, plan.total, "trials", "waiting for trials")
    if open:
        names = {f"c{t.number:04d}": t for t in open if f"c{t.number:04d}" not in jobs}
        return Waits(
            {name: estimators.trial_spec(plan.spec, plan.params(t), number=t.number) for name, t in names.items()}
        )
    tried = [jobs[f"c{number:04d}"] for number in sorted(set(owners.values()))]
    return estimators.results(
        [_report(job) for job in tried], [job.spec for job in tried], [_why(job) for job in tried]
    )


def _tried_again(failed: set[int], jobs: Mapping[str, Job]) -> set[int]:
    found = {number: jobs.get(f"c{number:04d}") for number in failed}
    return {n for n, job in found.items() if job is not None and (not job.ended or _score(job) is not None)}


def _tell_rows(jobs: Mapping[str, Job], ctx: Context) -> None:
    """A row of the history for each trial that has ended since the step before."""
    told = {row.get("job") for row in ctx.catalog.job(ctx.job.id).history}
    best: float | None = None
    for job in jobs.values():
        score = _score(job) if job.ended and "candidates" in job.spec else None
        best = score if best is None or (score is not None and score > best) else best
    for name, job in jobs.items():
        if job.ended and job.id not in told and "candidates" in job.spec:
            results = (_report(job) or {}).get("results", ())
            more = {"params": results[0]["params"]} if len(results) == 1 else {}
            more |= {"cache_hit": True} if (_report(job) or {}).get("cache_hit") else {}
            row: dict[str, Any] = {
                "trial": name, "job": job.id, "status": job.status, "candidates": len(job.spec["candidates"]),
                "values": {"quality": _score(job)}, "best": {"values": {"quality": best}},
            }  # fmt: skip
            ctx.metrics(row | more)


def _report(job: Job) -> dict[str, Any] | None:
    return job.result.report if job.status == "succeeded" and job.result is not None else None


def _why(job: Job) -> str | None:
    """Why a trial gave nothing."""
    return "it was cancelled" if job.status == "cancelled" else str(job.error["detail"]) if job.error else None


def _score(job: Job) -> float | None:
    """Of the best candidate of a trial."""
    report = _report(job)
    rows = estimators.table(report["results"]) if report else []
    return max((row["mean_test_score"] for row in rows if row["mean_test_score"] is not None), default=None)


def _answer(plan: Plan, found: Sequence[estimators.Result], jobs: Mapping[str, Job], ctx: Context) -> Outcome | Waits:
    spec = plan.spec
    place = estimators.best(found)
    winner = jobs.get(WINNER)
    ctx.progress(plan.total, plan.total, "candidates", "fitting the winner")
    if winner is None:
        return Waits({WINNER: estimators.winner_spec(spec, dict(found[place]["params"]))})
    if not winner.ended:
        return Waits({})
    made = _report(winner)
    if made is None:
        error = winner.error or {}
        raise Unprocessable(
            f"the best candidate ({found[place]['params']}) could not be made a version: "
            f"{error.get('detail') or 'it was cancelled'}",
            code=str(error.get("code") or "not_published"),
            hint=str(error.get("hint") or "look at the trial's own job"),
        )
    try:
        version = winning.publish_estimator(ctx, str(made["kept"]), telling.name_of_winner(plan, str(ctx.job.dataset)))
    except Problem as problem:
        raise Unprocessable(f"the winner could not be published: {problem.detail}", code="not_published") from problem
    dataset = ctx.catalog.dataset(*parse_ref(str(ctx.job.dataset)))
    scoring = "accuracy" if dataset.y_dtype == "int64" else "r2"
    summary = estimators.summary(found, scoring)
    report = telling.common(plan, _as_trials(plan, found), _history(found), ctx) | summary
    report["figures"] = [*report["figures"], *estimators.figures(spec, found)]
    report["best"] = {
        "number": place, "params": summary["best_params"], "values": {"quality": summary["best_score"]},
        "test": made.get("quality"), "job": winner.id,
    }  # fmt: skip
    report |= {"quality": made.get("quality"), "winner": {k: v for k, v in made.items() if k not in ("kept", "values")}}
    report["notes"] = [*summary["notes"], *_cached(report["history"]), *made.get("notes", ())]
    hits = [r for job in jobs.values() if (r := _report(job)) is not None]
    return Outcome(None, {}, report, model=version.ref, cache_hit=all(r.get("cache_hit") for r in hits))


def _cached(history: Sequence[Mapping[str, Any]]) -> list[str]:
    if not (hits := sum(bool(row.get("cache_hit")) for row in history)):
        return []
    of = f"{hits} of {len(history)} candidates were" if len(history) > 1 else "The candidate was"
    return [f"{of} scored before, with the same data, folds and seed: scores and times are those of then."]


def _history(found: Sequence[estimators.Result]) -> list[dict[str, Any]]:
    return [
        {
            "trial": n, "params": row["params"], "values": {"quality": row["mean_test_score"]},
            "status": "complete" if row["mean_test_score"] is not None else "failed",
            "error": row.get("error"), "rows": row.get("rows"), "cache_hit": row.get("cache_hit"),
            "seconds": _sum(row["mean_fit_time"], row["mean_score_time"]),
        }
        for n, row in enumerate(estimators.table(found))
    ]  # fmt: skip


def _sum(*seconds: float | None) -> float | None:
    """Of one fold, on average."""
    return None if None in seconds else round(sum(s for s in seconds if s is not None), 4)


def _as_trials(plan: Plan, found: Sequence[estimators.Result]) -> list[FrozenTrial]:
    """The candidates as Optuna's trials, for what is told of every search. Rounds of halving on fewer rows are none."""
    rows = estimators.table(found)
    most = max((row["rows"] for row in rows if row.get("rows")), default=None)
    made: list[FrozenTrial] = []
    for row in rows:
        score = row["mean_test_score"]
        able = score is not None and (most is None or row["rows"] == most)
        trial = create_trial(
            state=TrialState.COMPLETE if able else TrialState.FAIL,
            value=score if able else None,
            params={key: dim.asked(row["params"][key]) for key, dim in plan.dimensions.items()},
            distributions=plan.distributions(),
        )
        trial.number = len(made)
        made.append(trial)
    return made
