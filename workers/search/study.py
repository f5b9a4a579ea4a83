"""What Optuna is asked: the space as its distributions, its samplers and pruners, one point at a time. No torch."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from app.domain import searching
from app.domain.searching import USUAL_TRIALS, Objective
from app.domain.specs import Range, SearchSpec
from app.errors import Unprocessable
from app.storage.redis import PatientRedis
from app.storage.trials import study_of
from workers.search.journal import Draft, Journal

_SCALARS = (bool, int, float, str, type(None))
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Dimension:
    """One key of the space. choices: of a list; None for a range, whose `low` + `step`·n and `whole` say the rest."""

    key: str
    of: list[Any] | Range
    takes_float: bool

    @cached_property
    def choices(self) -> list[Any] | None:
        return None if isinstance(self.of, Range) else searching.unique(self.of)

    @cached_property
    def plain(self) -> bool:
        """Whether the choices go to Optuna as they are; others go as their JSON."""
        values = self.choices or []
        return all(isinstance(v, _SCALARS) for v in values) and len(set(values)) == len(values)

    def distribution(self) -> BaseDistribution:
        if self.choices is not None:
            return CategoricalDistribution(self.choices if self.plain else [json.dumps(c) for c in self.choices])
        of = self.of
        assert isinstance(of, Range)
        whole = searching.is_whole(of, self.takes_float)
        high = of.high
        if of.step is not None:  # what Optuna would warn of: the last step may lie below the bound
            high = float(f"{of.low + int((of.high - of.low) / of.step + 1e-9) * of.step:.12g}")
        if whole:
            return IntDistribution(int(of.low), int(high), log=of.log, step=int(of.step or 1))
        return FloatDistribution(of.low, high, log=of.log, step=of.step)

    def told(self, value: Any) -> Any:
        """The value of the spec for one of Optuna's."""
        if self.choices is not None:
            return value if self.plain else json.loads(value)
        return float(f"{value:.12g}") if isinstance(value, float) and getattr(self.of, "step", None) else value

    def asked(self, value: Any) -> Any:
        """The other way round."""
        return value if self.choices is None or self.plain else json.dumps(value)


@dataclass(frozen=True)
class Plan:
    """A search as it was asked. points: of a grid, those to try, in order; None where a sampler draws."""

    spec: SearchSpec
    objectives: list[Objective]
    dimensions: dict[str, Dimension]
    points: list[dict[str, Any]] | None

    @classmethod
    def of(cls, spec: SearchSpec) -> Plan:
        """Raises Unprocessable for a space or objectives that cannot be."""
        floats = {key: spec.chain is not None and searching.place_of(key, spec.chain).takes_float for key in spec.space}
        dimensions = {key: Dimension(key, of, floats[key]) for key, of in spec.space.items()}
        points: list[dict[str, Any]] | None = None
        if spec.sampler == "grid":
            lists = {key: searching.steps_of(key, of, floats[key]) for key, of in spec.space.items()}
            searching.grid_size(lists)
            points = list(searching.points(lists))
            if spec.trials is not None and spec.trials < len(points):
                chosen = sorted(random.Random(spec.seed).sample(range(len(points)), spec.trials))
                points = [points[n] for n in chosen]
        return cls(spec, searching.objectives(spec), dimensions, points)

    @property
    def total(self) -> int:
        return len(self.points) if self.points is not None else self.spec.trials or USUAL_TRIALS

    def params(self, trial: FrozenTrial) -> dict[str, Any]:
        """What a trial tries, by the keys of the space in their order."""
        return {key: dim.told(trial.params[key]) for key, dim in self.dimensions.items() if key in trial.params}

    def distributions(self) -> dict[str, BaseDistribution]:
        return {key: dimension.distribution() for key, dimension in self.dimensions.items()}


def open_study(
    plan: Plan, redis: PatientRedis, id: str, tried_again: Callable[[set[int]], set[int]] = lambda failed: set()
) -> optuna.Study:
    """The study of a job, from its journal; made where there is none.

    tried_again: which of the trials that had failed, by the numbers of their owners, were tried again since, because
    the search was retried: they are open again.
    """
    study = _study(plan, Journal(redis, study_of(id)), id)
    trials = study.get_trials(deepcopy=False)
    owner_of = owners(plan, trials)
    failed = {t.number: owner_of[t.number] for t in trials if t.state == TrialState.FAIL}
    back = tried_again(set(failed.values())) if failed else set()
    again = [number for number, owner in failed.items() if owner in back]
    return reopened(plan, redis, id, again) if again else study


def reopened(plan: Plan, redis: PatientRedis, id: str, numbers: Collection[int]) -> optuna.Study:
    """The study with these trials, which had failed, waiting to be asked for again: under their numbers, with their
    points. All others are as they were."""
    journal, old = Journal(redis, study_of(id)), open_study(plan, redis, id)
    while True:
        last, draft = journal.last(), Draft()
        new = _study(plan, draft, id)
        for trial in old.get_trials(deepcopy=False):
            if trial.number in numbers:
                new.enqueue_trial(trial.params)
            else:
                new.add_trial(trial)
        if journal.replace(draft.logs, last):
            return open_study(plan, redis, id)


def _study(plan: Plan, journal: BaseJournalBackend, id: str) -> optuna.Study:
    return optuna.create_study(
        storage=JournalStorage(journal),
        study_name=id,
        directions=[objective.direction for objective in plan.objectives],
        load_if_exists=True,
        sampler=sampler_of(plan, 0),
        pruner=optuna.pruners.NopPruner(),
    )


def sampler_of(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """For one trial: every step is a new process, and a sampler seeded alike would draw the same again."""
    seed = (plan.spec.seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match plan.spec.sampler:
            case "tpe":
                start = max(4, min(10, plan.total // 3))
                return optuna.samplers.TPESampler(seed=seed, n_startup_trials=start, multivariate=True)
            case "gp":
                start = max(4, min(10, plan.total // 3))
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=start)
            case "nsga2":
                population = max(4, min(50, plan.total // 4))
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
            case _:
                return optuna.samplers.RandomSampler(seed=seed)


def pruner_of(kind: str, epochs: int) -> optuna.pruners.BasePruner:
    """epochs: what a whole trial has, in figures that it tells."""
    match kind:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0, n_min_trials=3)
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max(1, epochs), reduction_factor=3)
        case _:
            return optuna.pruners.NopPruner()


def ask(study: optuna.Study, plan: Plan, number: int) -> FrozenTrial:
    """The next point. number: of trials that were asked before. One that a step asked and then died is given first."""
    study.sampler = sampler_of(plan, number)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if plan.points is not None and not waiting:
        point = plan.points[number]
        study.enqueue_trial({key: plan.dimensions[key].asked(value) for key, value in point.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask(plan.distributions())
    return study.get_trials(deepcopy=False)[trial.number]


def values_of(plan: Plan, report: Mapping[str, Any]) -> list[float]:
    """A trial's figures in the order of the objectives. Raises Unprocessable where one is missing, or no number."""
    given = report.get("values") or {}
    found = []
    for objective in plan.objectives:
        value = given.get(objective.metric)
        if value is None:
            told = f"it has {', '.join(sorted(given))}" if given else "it has none"
            raise Unprocessable(f"the trial told no figure `{objective.metric}`: {told}", code="no_figure")
        if not abs(float(value)) < float("inf"):
            raise Unprocessable(f"its figure `{objective.metric}` is {value}", code="no_figure")
        found.append(float(value))
    return found


def owners(plan: Plan, trials: list[FrozenTrial]) -> dict[int, int]:
    """number → the first trial of the same point, whose job stands for all of them."""
    first: dict[str, int] = {}
    return {
        trial.number: first.setdefault(json.dumps(plan.params(trial), sort_keys=True, default=str), trial.number)
        for trial in trials
        if trial.state != TrialState.WAITING
    }
