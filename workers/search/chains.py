"""A search over a chain of specs: one step of it. Every step begins from the journal and the trials as they are now."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from app.domain import searching
from app.domain.records import Job, Version
from app.domain.specs import SearchSpec
from app.errors import Problem, Unprocessable
from workers.context import Context
from workers.passes import Outcome, Waits
from workers.search import study as studies
from workers.search import telling, winning
from workers.search.study import Plan

JUDGE = "judge"


def step(spec: SearchSpec, ctx: Context) -> Outcome | Waits:
    """Tells the study what has ended, asks it for more, or gives the answer. Raises Unprocessable where every trial
    failed."""
    plan = Plan.of(spec)
    study = studies.open_study(plan, ctx.catalog.redis, ctx.job.id, lambda failed: _tried_again(plan, failed, ctx))
    _tell_ended(plan, study, ctx)
    asked = _ask_more(plan, study, ctx)
    trials = study.get_trials(deepcopy=False)
    done = sum(trial.state.is_finished() for trial in trials)
    if asked or any(trial.state == TrialState.RUNNING for trial in trials):
        ctx.progress(done, plan.total, "trials", "waiting for trials")
        return Waits(asked)
    ctx.progress(done, plan.total, "trials", "judging the winner")
    jobs = ctx.trials()
    told = telling.Told(plan, trials, jobs)
    best = _best(told)
    judge = jobs.get(JUDGE)
    if judge is None:
        kept = told.report(best.number).get("kept")
        spec_of = {"role": JUDGE, "model": ctx.job.model, "dataset": ctx.job.dataset, "candidates": {"winner": kept}}
        return Waits({JUDGE: spec_of})
    if not judge.ended:
        return Waits({})
    version, found = _publish(told, best, judge, ctx)
    report = telling.report(told, study, best, found, ctx)
    hit = all(row.get("cache_hit") for row in report["history"])
    return Outcome(None, {}, report, model=version.ref, cache_hit=hit)


def name_of(number: int) -> str:
    """A trial's name in its search."""
    return f"{number:04d}"


def _tried_again(plan: Plan, failed: set[int], ctx: Context) -> set[int]:
    jobs = ctx.trials(map(name_of, failed))
    return {n for n in failed if name_of(n) in jobs and _is_open_again(plan, jobs[name_of(n)])}


def _is_open_again(plan: Plan, job: Job) -> bool:
    return not job.ended or (job.status == "succeeded" and _outcome(plan, job)[0] != TrialState.FAIL)


def _outcome(plan: Plan, job: Job) -> tuple[TrialState, list[float] | None, str | None]:
    """What an ended trial comes to, its figures, and why it has none."""
    if job.status != "succeeded" or job.result is None:
        return TrialState.FAIL, None, None
    if job.result.report.get("pruned"):
        return TrialState.PRUNED, None, None
    try:
        return TrialState.COMPLETE, studies.values_of(plan, job.result.report), None
    except Unprocessable as problem:
        return TrialState.FAIL, None, problem.detail


def _tell_ended(plan: Plan, study: optuna.Study, ctx: Context) -> None:
    """What has ended since the step before; a point that was tried before has its first trial's figures."""
    trials = study.get_trials(deepcopy=False)
    owners = studies.owners(plan, trials)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    jobs = ctx.trials({name_of(owners[trial.number]) for trial in running})
    for trial in running:
        job = jobs.get(name_of(owners[trial.number]))
        if job is not None and job.ended:
            _tell(plan, study, trial, job, ctx)


def _tell(plan: Plan, study: optuna.Study, trial: FrozenTrial, job: Job, ctx: Context) -> None:
    state, values, why = _outcome(plan, job)
    if why is not None:
        ctx.log(f"trial {trial.number}: {why}", "warning")
    study.tell(trial.number, values, state, skip_if_finished=True)
    told = study.get_trials(deepcopy=False)[trial.number]
    row = telling.row(plan, told, job)
    if best := telling.best_of(plan, study.get_trials(deepcopy=False)):
        row["best"] = {"number": best.number, "values": telling.named(plan, best.values)}
    ctx.metrics({k: v for k, v in row.items() if v is not None})


def _ask_more(plan: Plan, study: optuna.Study, ctx: Context) -> dict[str, dict[str, Any]]:
    """Specs of the trials to start, at most `parallel` being open. A point that is being tried, or was, starts none."""
    found: dict[str, dict[str, Any]] = {}
    trials = study.get_trials(deepcopy=False)
    owners = studies.owners(plan, trials)
    open = [t for t in trials if t.state == TrialState.RUNNING and owners[t.number] == t.number]
    there = ctx.trials(name_of(trial.number) for trial in open)
    for trial in open:
        if name_of(trial.number) not in there:  # a step asked for it, and died
            found[name_of(trial.number)] = _spec(plan, trial, ctx)
    count, busy = len(owners), len(open)
    while count < plan.total and busy < plan.spec.parallel:
        trial = studies.ask(study, plan, count)
        count += 1
        trials = study.get_trials(deepcopy=False)
        first = studies.owners(plan, trials)[trial.number]
        job = ctx.trials([name_of(first)]).get(name_of(first))
        if job is not None and job.ended:  # of a point tried before, or tried again by a step that died
            _tell(plan, study, trial, job, ctx)
        elif first == trial.number:
            found[name_of(trial.number)] = _spec(plan, trial, ctx)
            busy += 1
    return found


def _spec(plan: Plan, trial: FrozenTrial, ctx: Context) -> dict[str, Any]:
    spec = plan.spec
    assert spec.chain is not None
    chain = searching.filled(spec.chain, plan.params(trial))
    made: dict[str, Any] = {
        "role": "chain", "number": trial.number, "chain": chain, "model": ctx.job.model, "dataset": ctx.job.dataset,
        "wants": sorted({o.metric for o in plan.objectives} & searching.MEASURED),
    }  # fmt: skip
    if spec.pruner != "none":
        made["watch"] = {
            "search": ctx.job.id, "number": trial.number, "pruner": spec.pruner, "metric": plan.objectives[0].metric,
            "epochs": sum(_epochs(link) for link in chain),
        }  # fmt: skip
    return made


def _epochs(link: dict[str, Any]) -> int:
    training = link if link.get("kind") == "train" else link.get("finetune")
    return int(training.get("epochs", 10)) if isinstance(training, dict) else 0


def _best(told: telling.Told) -> FrozenTrial:
    """By the first objective. Raises Unprocessable where no trial came to an end."""
    best = telling.best_of(told.plan, told.trials)
    if best is None:
        reasons = dict.fromkeys(told.why(trial.number) or "it was pruned" for trial in told.trials)
        raise Unprocessable(
            f"none of the {len(told.trials)} trials came to an end: {'; '.join(list(reasons)[:3])[:800]}",
            code="all_failed",
            hint="GET /v1/jobs?parent= this job lists the trials, each with its error; mend the chain or the space",
        )
    return best


def _publish(told: telling.Told, best: FrozenTrial, judge: Job, ctx: Context) -> tuple[Version, dict[str, Any]]:
    """The winner as a version, and what the test split says of it: by that alone, nothing was chosen."""
    row: dict[str, Any] = {}
    if judge.status == "succeeded" and judge.result is not None:
        row = judge.result.report["candidates"]["winner"]
    else:
        why = (judge.error or {}).get("detail") or "it was cancelled"
        row = {"note": f"The winner could not be measured on the test split: {why}"}
    chain = told.jobs[name_of(told.owner(best.number))].spec["chain"]
    if speed := told.report(best.number).get("speed"):  # a search for speed has measured it
        row = row | {"latency": [speed["latency"]["candidate"]]}
    try:
        version = winning.publish(ctx, str(told.report(best.number)["kept"]), chain, row)
    except Problem as problem:
        raise Unprocessable(
            f"the winner, trial {best.number}, could not be published: {problem.detail}",
            code="not_published",
            hint="submit the search again: what was swept away is computed anew, what is still kept is not",
        ) from problem
    return version, row
