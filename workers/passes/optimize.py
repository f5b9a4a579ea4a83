"""optimize: the closed loop. Each step looks at the trials that have ended, starts others, or gives the answer."""

from __future__ import annotations

from app.domain.records import Job
from app.domain.specs import OptimizeSpec
from app.errors import Conflict, Problem
from workers.context import Context
from workers.optimizing import verdicts
from workers.optimizing.race import Race, race_of
from workers.optimizing.told import told, told_so_far
from workers.passes import Outcome, Waits

JUDGE, SETTINGS = "judge", "settings"


def run(spec: OptimizeSpec, ctx: Context) -> Outcome | Waits:
    """Raises Unavailable for a target that is not here, Conflict where not even the plain engine can be made."""
    version = ctx.version()
    if spec.dry_run:
        from workers.optimizing.dry_run import dry_run

        return dry_run(spec, version, ctx)
    trials = ctx.trials()
    raced = {name: job for name, job in trials.items() if name not in (JUDGE, SETTINGS)}
    race = race_of(spec, version, str(ctx.job.dataset), raced)
    if race.ended(race.base) and race.report(race.base) is None:
        raise _failed(race.trials[race.base].error, "the plain engine")
    if (starting := race.next_trials()) or not race.is_over:
        ctx.progress(sum(job.ended for job in trials.values()), race.expected, "trials", "waiting for trials")
        return Waits(starting, told_so_far(race))
    return _answer(race, trials.get(JUDGE), trials.get(SETTINGS), ctx)


def _answer(race: Race, judge: Job | None, settings: Job | None, ctx: Context) -> Outcome | Waits:
    """Asks for the verdict, then for the settings of the winner; publishes when both are there."""
    begun = [job for job in (*race.trials.values(), judge, settings) if job is not None]
    ctx.progress(sum(job.ended for job in begun), len(race.trials) + 2, "trials", "waiting for trials")
    choice = verdicts.choose(race)
    if judge is None:
        return Waits({JUDGE: verdicts.judge_spec(race, choice)}, told_so_far(race))
    if not judge.ended:
        return Waits({}, told_so_far(race))
    if judge.status != "succeeded" or judge.result is None:
        raise _failed(judge.error, "the judging on the test split")
    judged = judge.result.report
    best = verdicts.winner(race, choice, judged)
    if settings is None:
        return Waits({SETTINGS: verdicts.settings_spec(race, best)}, told_so_far(race))
    if not settings.ended:
        return Waits({}, told_so_far(race))
    names = [*dict.fromkeys((*choice.names, best))]
    versions = {name: verdicts.publish(race, name, judged, ctx) for name in names}
    return Outcome(
        None,
        {},
        told(race, choice, judged, best, versions, settings),
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
