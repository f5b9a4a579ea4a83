"""A search over a chain: what each sampler tries, what failed trials and repeated points come to, and what is told."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
from optuna.trial import create_trial
from search.conftest import CHAIN, Field, Values, formula

from app.domain import specs
from app.domain.records import Job
from app.domain.specs import TrialSpec
from app.errors import Unprocessable
from app.trials import resume_trials, try_again
from workers.search import study as studies
from workers.search import telling
from workers.search.study import Plan

LR = {"low": 1e-4, "high": 1.0, "log": True}
AMOUNT = {"low": 0.1, "high": 0.9}
GRID = {"train.lr": [0.001, 0.01, 0.1], "prune.amount": [0.3, 0.6]}


def report(job: Job) -> dict[str, Any]:
    assert job.status == "succeeded", job.error
    assert job.result is not None
    return job.result.report


def test_a_grid_tries_every_point_once(field: Field) -> None:
    job = field.run(space=GRID, sampler="grid", trials=50, parallel=3)
    found = report(job)
    points = [(row["amount"], row["lr"]) for row in field.tried]
    assert points == [(a, lr) for a in (0.3, 0.6) for lr in (0.001, 0.01, 0.1)]  # ParameterGrid's order
    assert max(field.open) <= 3
    assert (job.progress.done, job.progress.total, job.progress.unit) == (6, 6, "trials")
    assert len(job.history) == len(found["history"]) == 6
    assert found["best"]["params"] == {"train.lr": 0.01, "prune.amount": 0.3}
    assert found["best"]["values"] == {"quality": 1.0}
    assert found["best_so_far"] == sorted(found["best_so_far"])
    assert found["quality"]["split"] == "test"
    assert set(found["importances"]["quality"]) == {"train.lr", "prune.amount"}
    assert math.isclose(sum(found["importances"]["quality"].values()), 1, abs_tol=0.01)
    assert found["figures"][0]["title"].startswith("quality of every trial")
    assert job.result is not None
    version = field.parts.catalog.version("net", 2)
    assert job.result.model == version.ref
    assert version.parent == "net@1"
    assert version.metrics.quality is not None
    assert version.metrics.quality.value == 0.8
    recipe = version.details["recipe"]
    assert [link["kind"] for link in recipe] == ["train", "prune"]
    assert (recipe[0]["lr"], recipe[1]["amount"], recipe[1]["dataset"]) == (0.01, 0.3, "data@1")


def test_importances_of_many_choices_take_no_longer_than_of_few() -> None:
    """fANOVA takes choices one by one, and needs twice as long for each more: 40 of them would not end in this life."""
    lrs, tunings = [0.01 * n for n in range(1, 41)], [{"epochs": n} for n in range(1, 41)]
    space = {"train.lr": lrs, "prune.finetune": tunings, "prune.amount": {"low": 0.1, "high": 0.9}}
    spec = specs.parse({"kind": "search", "model": "net@1", "chain": CHAIN, "space": space})
    assert isinstance(spec, specs.SearchSpec)
    plan = Plan.of(spec)
    trials = []
    for number in range(80):
        drawn = {"train.lr": lrs[number % 40], "prune.finetune": tunings[7 * number % 40], "prune.amount": 0.5}
        params = {key: plan.dimensions[key].asked(value) for key, value in drawn.items()}
        trials.append(create_trial(params=params, distributions=plan.distributions(), value=drawn["train.lr"]))
    found = telling.importances(plan, trials, 0)
    assert found is not None
    assert found["train.lr"] > 0.8
    assert set(found) == set(space)


def test_a_part_of_a_grid_is_drawn_with_the_seed(field: Field) -> None:
    report(field.run(space=GRID, sampler="grid", trials=4))
    first = [tuple(row.values()) for row in field.tried]
    assert len(set(first)) == 4
    field.tried.clear()
    report(field.run("s2", space=GRID, sampler="grid", trials=4))
    assert [tuple(row.values()) for row in field.tried] == first


def test_a_grid_over_ranges_with_steps(field: Field) -> None:
    space = {"prune.amount": {"low": 0.1, "high": 0.35, "step": 0.1}, "train.epochs": {"low": 1, "high": 3}}
    found = report(field.run(space=space, sampler="grid"))
    assert [row["params"]["prune.amount"] for row in found["history"]] == [0.1] * 3 + [0.2] * 3 + [0.3] * 3
    assert [row["params"]["train.epochs"] for row in found["history"]] == [1, 2, 3] * 3


@pytest.mark.parametrize("sampler", ["random", "tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2"])
def test_a_sampler_draws_as_many_as_were_asked(field: Field, sampler: str) -> None:
    space = {"train.lr": LR, "prune.amount": AMOUNT, "train.optimizer": ["sgd", "adam"]}
    found = report(field.run(space=space, sampler=sampler, trials=14, parallel=2, seed=3))
    assert found["trials"]["complete"] == 14
    drawn = {tuple(row.values()) for row in field.tried}
    assert len(drawn) == len(field.tried) == 14 - found["trials"]["repeated"]
    assert len(drawn) >= 10  # steps are processes: a sampler must not draw the same again
    assert all(1e-4 <= row["lr"] <= 1 and 0.1 <= row["amount"] <= 0.9 for row in field.tried)
    assert max(field.open) <= 2
    tried = [row["lr"] for row in field.tried]
    field.tried.clear()
    report(field.run("s2", space=space, sampler=sampler, trials=14, parallel=1, seed=3))
    if sampler == "random":
        assert [row["lr"] for row in field.tried] == tried


def test_tpe_beats_chance(field: Field) -> None:
    space = {"train.lr": LR, "prune.amount": AMOUNT}
    tpe = report(field.run("s1", space=space, sampler="tpe", trials=24, parallel=1))
    chance = report(field.run("s2", space=space, sampler="random", trials=24, parallel=1))
    regret = chance["regret"]
    assert regret["budget"] == 24
    assert set(regret["samplers"]) == {"tpe", "random"}
    assert regret["samplers"]["tpe"]["regret"] <= regret["samplers"]["random"]["regret"]
    assert tpe["regret"] is None  # nobody else had tried that
    assert any(f["title"].startswith("Regret") for f in chance["figures"])


def test_a_point_that_was_tried_is_not_tried_again(field: Field) -> None:
    found = report(field.run(space={"train.lr": [0.01, 0.1]}, sampler="random", trials=12))
    assert len(field.tried) <= 2
    assert found["trials"]["complete"] == 12
    assert found["trials"]["repeated"] >= 10


def test_several_objectives_give_a_front(field: Field) -> None:
    space = {"prune.amount": [0.1, 0.2, 0.3, 0.5, 0.7], "train.lr": [0.01, 0.1]}
    found = report(
        field.run(
            space=space, sampler="grid", objectives=["quality", {"metric": "parameters", "direction": "minimize"}]
        )
    )
    front = {p["number"]: p["values"] for p in found["pareto"]}
    assert sorted(round(v["parameters"]) for v in front.values()) == [300, 500, 700]  # 0.1 and 0.2 are worse in both
    assert found["best"]["params"]["prune.amount"] == 0.3
    assert any("against" in f["title"] for f in found["figures"])


def test_the_other_direction(field: Field) -> None:
    found = report(field.run(space=GRID, sampler="grid", objectives=[{"metric": "quality", "direction": "minimize"}]))
    assert found["best"]["values"]["quality"] == min(found["best_so_far"])


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_a_trial_without_a_figure_has_failed(field: Field, broken: float | None) -> None:
    def values(chain: list[dict[str, Any]]) -> Values:
        return formula(chain) if chain[0]["lr"] < 0.1 else {"quality": broken, "loss": 1.0}

    field.values = values
    found = report(field.run(space=GRID, sampler="grid"))
    assert found["trials"] == {"asked": 6, "complete": 4, "pruned": 0, "failed": 2, "repeated": 0, "cache_hits": 0}
    failed = [row for row in found["history"] if row["status"] == "failed"]
    assert all("quality" in row["error"] for row in failed)
    assert "2 of 6 trials failed" in found["notes"][0]


def test_where_every_trial_fails_the_search_does(field: Field) -> None:
    def fail(spec: TrialSpec) -> None:
        raise Unprocessable("such a network cannot be pruned")

    field.before = fail
    job = field.run(space=GRID, sampler="tpe", trials=5)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "all_failed"
    assert "such a network cannot be pruned" in job.error["detail"]
    assert field.parts.catalog.open_jobs() == []


def test_what_a_trial_measured_is_in_the_version(field: Field) -> None:
    latency = {
        "runtime": "openvino", "batch": 1, "p50_ms": 0.5, "p95_ms": 0.6, "p99_ms": 0.7, "runs": 100, "threads": 1,
        "load_1m": 0.1, "device": "cpu", "throughput_rps": 2000.0,
    }  # fmt: skip
    field.more = {"speed": {"latency": {"candidate": latency}}, "cache_hit": True}
    job = field.run(space={"train.lr": [0.1, 0.01]}, sampler="grid")
    report(job)
    assert job.cache_hit  # as every trial was
    (told,) = field.parts.catalog.version("net", 2).metrics.latency
    assert (told.batch, told.p50_ms) == (1, 0.5)


def test_a_retried_search_tries_again_what_had_failed(field: Field) -> None:
    def fail(spec: TrialSpec) -> None:
        raise Unprocessable("the disk is full")

    field.before = fail
    job = field.run(space={"train.lr": LR}, sampler="tpe", trials=6, parallel=2)
    assert job.status == "failed"
    catalog = field.parts.catalog
    asked = {name: trial.spec["chain"] for name, trial in catalog.trials.of("s1").items()}
    field.before = lambda spec: None
    try_again(catalog, job)
    again = catalog.moved("s1", was={"failed"}, to="queued", next_attempt=job.attempt + 1, allowed_attempts=99)
    field.parts.queue.enqueue(again)
    found = report(field.finish())
    assert found["trials"] == {"asked": 6, "complete": 6, "pruned": 0, "failed": 0, "repeated": 0, "cache_hits": 0}
    jobs = catalog.trials.of("s1")
    assert {name: jobs[name].spec["chain"] for name in asked} == asked


def test_a_retry_whose_first_step_died_goes_on_with_what_its_trials_found_meanwhile(field: Field) -> None:
    def fail(spec: TrialSpec) -> None:
        raise Unprocessable("the disk is full")

    field.before = fail
    job = field.run(space={"train.lr": [0.1, 0.01]}, sampler="grid")
    assert job.status == "failed"
    field.before = lambda spec: None
    catalog, queue = field.parts.catalog, field.parts.queue
    try_again(catalog, job)
    again = catalog.moved("s1", was={"failed"}, to="queued", next_attempt=job.attempt + 1, allowed_attempts=99)
    resume_trials(catalog, queue, "s1", 2)  # and here its process died
    field.finish()
    assert {trial.status for trial in catalog.trials.of("s1").values()} == {"succeeded"}
    queue.enqueue(again)
    found = report(field.finish())
    assert found["trials"]["complete"] == len(field.tried) == 2


def test_a_search_whose_data_set_is_deleted_ends_at_once(field: Field) -> None:
    def delete(spec: TrialSpec) -> None:
        if spec.number == 2:
            field.parts.catalog.drop_dataset("data", 1)

    field.before = delete
    job = field.run(space={"train.lr": LR}, sampler="random", trials=40, parallel=1)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "deleted_meanwhile"
    assert "data@1" in job.error["detail"]
    assert len(field.tried) == 3


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_a_pruner_ends_what_lags_behind(field: Field, pruner: str) -> None:
    def epochs(chain: list[dict[str, Any]]) -> list[float]:
        return [formula(chain)["quality"] * (0.5 + 0.1 * n) for n in range(9)]

    field.epochs = epochs
    space = {"train.lr": [0.01, 0.02, 0.015, 0.03, *(0.1 * n for n in range(1, 10))]}
    chain = [{"kind": "train", "epochs": 9}, {"kind": "prune", "method": "channel"}]
    found = report(field.run(space=space, chain=chain, sampler="grid", pruner=pruner, parallel=1))
    assert found["trials"]["pruned"] >= 2
    assert found["trials"]["complete"] >= 1
    pruned = [row for row in found["history"] if row["status"] == "pruned"]
    assert all(row["pruned_after"] < 9 for row in pruned)
    assert found["best"]["params"]["train.lr"] == 0.01
    jobs = field.parts.catalog.trials.of("s1")
    assert {jobs[f"{row['trial']:04d}"].status for row in pruned} == {"succeeded"}


def test_a_pruner_compares_equal_epochs_where_a_trial_was_resumed(field: Field) -> None:
    """What was trained before its process died is not told again."""
    field.epochs = lambda chain: [0.9, 0.8, 0.7, 0.6]
    chain = [{"kind": "train", "epochs": 4}, {"kind": "prune", "method": "channel"}]
    field.begun = lambda spec: 2 if spec.number == 3 else 0
    space = {"train.lr": [0.01, 0.02, 0.03, 0.04]}
    report(field.run(space=space, chain=chain, sampler="grid", pruner="median", parallel=1))
    spec = specs.parse(field.parts.catalog.job("s1").spec)
    assert isinstance(spec, specs.SearchSpec)
    last = studies.open_study(Plan.of(spec), field.parts.catalog.redis, "s1").get_trials()[3]
    assert last.intermediate_values == {3: 0.7, 4: 0.6}


def test_a_step_that_died_after_asking_goes_on_with_what_it_asked(field: Field) -> None:
    id = field.submit(space={"train.lr": LR}, sampler="random", trials=5, parallel=2)
    spec = specs.parse(field.parts.catalog.job(id).spec)
    assert isinstance(spec, specs.SearchSpec)
    plan = Plan.of(spec)
    study = studies.open_study(plan, field.parts.catalog.redis, id)
    asked = [plan.params(studies.ask(study, plan, n))["train.lr"] for n in range(2)]  # and here its process died
    found = report(field.finish())
    assert found["trials"]["complete"] == 5
    assert {row["lr"] for row in field.tried} >= set(asked)
    assert len(field.tried) == 5


def test_a_cancelled_search_goes_on_where_it_was(field: Field) -> None:
    def cancel(spec: TrialSpec) -> None:
        if spec.number == 2:
            catalog = field.parts.catalog
            catalog.moved("s1", was={"running"}, to="cancelled")
            raise Unprocessable("ended")

    from app.trials import stop_trials

    field.before = cancel
    job = field.run(space={"train.lr": LR}, sampler="random", trials=6, parallel=2)
    assert job.status == "cancelled"
    stop_trials(field.parts.catalog, field.parts.queue, "s1")
    field.before = lambda spec: None
    again = field.parts.catalog.moved(
        "s1", was={"cancelled"}, to="queued", next_attempt=job.attempt + 1, allowed_attempts=99
    )
    field.parts.queue.enqueue(again)
    found = report(field.finish())
    assert found["trials"]["complete"] == 5  # and the one that failed
    assert len({row["trial"] for row in found["history"]}) == 6


def test_choices_that_are_no_scalars(field: Field) -> None:
    space: dict[str, Any] = {"prune.layers": [["conv1"], ["conv1", "conv2"], None], "train.lr": [0.01]}
    found = report(field.run(space=space, sampler="grid"))
    assert [row["params"]["prune.layers"] for row in found["history"]] == [["conv1"], ["conv1", "conv2"], None]


def test_nested_keys_reach_what_is_nested(field: Field) -> None:
    chain = [*CHAIN[:1], {"kind": "prune", "method": "channel"}]
    field.run(space={"1.prune.finetune.lr": [0.01, 0.02]}, chain=chain, sampler="grid")
    jobs = field.parts.catalog.trials.of("s1")
    assert [jobs[f"{n:04d}"].spec["chain"][1]["finetune"] for n in range(2)] == [{"lr": 0.01}, {"lr": 0.02}]


def test_a_judge_that_fails_costs_the_figure_and_not_the_search(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = field.apply

    def apply(spec: Any, ctx: Any) -> Any:
        if isinstance(spec, TrialSpec) and spec.role == "judge":
            raise Unprocessable("no such rows")
        return whole(spec, ctx)

    from dataclasses import replace

    field.parts = replace(field.parts, apply=apply)
    found = report(field.run(space=GRID, sampler="grid", trials=2))
    assert found["quality"] is None
    assert "no such rows" in found["notes"][0]


def test_nothing_of_it_imports_torch_but_gp(field: Field) -> None:
    import subprocess
    import sys

    code = (
        "import sys, workers.run, workers.passes.search, workers.search.chains, workers.search.estimating;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
