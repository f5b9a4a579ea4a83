"""optimize: the closed loop. Each step looks at the trials that have ended, starts others, or gives the answer."""

from __future__ import annotations

from app.domain.records import parse_ref
from app.domain.specs import OptimizeSpec
from app.errors import Conflict, Problem
from workers.context import Context
from workers.optimizing import verdicts
from workers.optimizing.race import Race, race_of
from workers.optimizing.told import told, told_so_far
from workers.passes import Outcome, Waits

JUDGE = "judge"


def run(spec: OptimizeSpec, ctx: Context) -> Outcome | Waits:
    """Raises Unavailable for a target that is not here, Conflict where not even the plain engine can be made."""
    name, number = parse_ref(str(ctx.job.model))
    version = ctx.catalog.version(name, number or 1)
    if spec.dry_run:
        from workers.optimizing.dry_run import dry_run

        return dry_run(spec, version, ctx)
    trials = ctx.trials()
    race = race_of(spec, version, str(ctx.job.dataset), {name: job for name, job in trials.items() if name != JUDGE})
    if race.ended(race.base) and race.report(race.base) is None:
        raise _failed(race.trials[race.base].error, "the plain engine")
    if (starting := race.next_trials()) or not race.is_over:
        ctx.progress(sum(job.ended for job in trials.values()), race.expected, "trials", "waiting for trials")
        return Waits(starting, told_so_far(race))
    return _answer(race, trials.get(JUDGE) is not None, ctx)


def _answer(race: Race, asked: bool, ctx: Context) -> Outcome | Waits:
    choice = verdicts.choose(race)
    if not asked:
        return Waits({JUDGE: verdicts.judge_spec(race, choice)}, told_so_far(race))
    job = ctx.trials()[JUDGE]
    if not job.ended:
        return Waits({}, told_so_far(race))
    if job.status != "succeeded" or job.result is None:
        raise _failed(job.error, "the judging on the test split")
    judged = job.result.report
    best = verdicts.winner(race, choice, judged)
    names = [*dict.fromkeys((*choice.names, best))]
    versions = {name: verdicts.publish(race, name, judged, ctx) for name in names}
    return Outcome(
        None,
        {},
        told(race, choice, judged, best, versions),
        model=versions[best].ref,
        verdict=versions[best].verdict,
        cache_hit=all(report.get("cache_hit") for name in race.trials if (report := race.report(name))),
    )


def _failed(error: dict[str, object] | None, what: str) -> Problem:
    detail = str((error or {}).get("detail") or "it was cancelled")
    return Conflict(
        f"{what} could not be made: {detail}",
        code=str((error or {}).get("code") or "trial_failed"),
        hint=str((error or {}).get("hint") or "look at the trial's own job"),
    )
