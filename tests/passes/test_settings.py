"""Which settings are tried for an engine, and which of them are recommended."""

from __future__ import annotations

from typing import Any

import pytest

from workers.trials.settings import Plan, SettingsTrial, plans_for, told, within


def row(instances: int, threads: int, batch: int, rows_per_s: float, ms: float) -> dict[str, Any]:
    return Plan(instances, threads, batch)._asdict() | {"rows_per_s": rows_per_s, "p50_ms": ms}


def asked(objective: Any, batch: int) -> SettingsTrial:
    return SettingsTrial(candidate="key", objective=objective, batch=batch)


@pytest.mark.parametrize("cores", [1, 2, 3, 16, 96])
def test_no_setting_takes_more_threads_than_there_are_cores(cores: int) -> None:
    plans = plans_for(cores, 1, 64, on_gpu=False)
    assert len(set(plans)) == len(plans)
    assert {plan.threads for plan in plans} == {min(cores, 2**n) for n in range(8)}
    assert all(plan.instances == 1 or (plan.threads == cores and plan.instances <= cores) for plan in plans)
    assert {plan.batch for plan in plans} == {1, 8, 32, 64}


def test_a_model_that_is_not_batched_has_one_row() -> None:
    assert {plan.batch for plan in plans_for(2, 1, 1, on_gpu=False)} == {1}


def test_on_a_gpu_runs_at_once_are_tried_and_threads_are_not() -> None:
    assert {plan[:2] for plan in plans_for(16, 1, 8, on_gpu=True)} == {(1, 1), (2, 1)}


def test_for_latency_the_shortest_run_of_the_batch_that_is_asked_about() -> None:
    rows = [row(1, 1, 1, 900, 1.1), row(1, 2, 1, 1300, 0.7), row(2, 2, 1, 1800, 0.6), row(1, 2, 8, 9000, 0.5)]
    assert told(rows, asked("latency", 1))["recommended"] == {"instances": 1, "threads": 2}


def test_of_an_engine_that_takes_fewer_rows_than_were_asked_about_the_most_that_it_takes() -> None:
    about = within(asked("latency", 32), 16)
    assert {plan.batch for plan in plans_for(2, about.batch, 16, on_gpu=False)} == {1, 8, 16}
    rows = [row(1, 1, 1, 900, 1.1), row(1, 1, 16, 9000, 9.0), row(1, 2, 16, 16000, 6.0), row(1, 2, 1, 1300, 0.7)]
    found = told(rows, about)
    assert found["recommended"] == {"instances": 1, "threads": 2}
    assert "a run of 16 takes 6.000 ms" in found["told"]


def test_for_throughput_the_most_rows_and_of_equals_the_simpler() -> None:
    rows = [row(1, 2, 32, 4900, 6.5), row(2, 2, 32, 5000, 12.0), row(1, 2, 1, 1300, 0.7)]
    found = told(rows, asked("throughput", 32))
    assert found["recommended"] == {"instances": 1, "threads": 2, "max_batch": 32}
    assert "4,900 rows a second" in found["told"]
    assert "of 3 settings" in found["told"]
