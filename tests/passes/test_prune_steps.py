"""prune in steps: how much goes when, epochs split between them, and an attempt that goes on where another ended."""

from dataclasses import replace

import channel_networks as nets
import pytest
import torch

from app.domain import specs
from workers import passes
from workers.context import Context
from workers.net import WEIGHTS, read_weights
from workers.nn.stepwise import shares, split

CHANNELS = {"kind": "prune", "model": "m@1", "dataset": "stripes@1", "method": "channel", "amount": 0.5}


@pytest.fixture
def ready(bench, stripes):
    torch.manual_seed(0)
    make = bench.context
    bench.context = lambda *args, **more: replace(make(*args, **more), times=False)  # no latency is measured
    bench.dataset("stripes", **{split: (x[:128], y[:128]) for split, (x, y) in stripes.items()})
    bench.model("m", nets.SimpleCNN(), (1, 28, 28))
    return bench


class Gone(Exception):
    """What ends an attempt in these tests."""


def ending(ctx, *, at_row):
    """A context whose attempt ends with that row of its history, before the checkpoint of its epoch."""
    rows, say = [], ctx.report.metrics

    def metrics(row):
        say(row)
        rows.append(row)
        if len(rows) == at_row:
            raise Gone

    ctx.report.metrics = metrics
    return ctx


def test_schedules_end_at_the_amount() -> None:
    assert shares(0.5, 4, "one_shot") == [0.5]
    assert shares(0.5, 1, "gradual") == [0.5]
    assert shares(0.75, 2, "iterative") == [0.5, 0.75]
    assert shares(0.8, 4, "gradual") == pytest.approx([0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)])
    for schedule in ("iterative", "gradual"):
        found = shares(0.9, 7, schedule)
        assert found == sorted(found)
        assert (found[-1], len(found)) == (0.9, 7)
    assert split(10, 4) == [2, 2, 3, 3]
    assert split(2, 3) == [0, 1, 1]


@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
def test_channels_go_step_by_step_until_the_amount_of_the_original_is_gone(ready, schedule) -> None:
    version, report = ready.run(**CHANNELS, steps=4, schedule=schedule, round_to=1, finetune={"epochs": 5, "alpha": 0})
    once, alone = ready.run(**CHANNELS)
    assert report["channels"] == alone["channels"]
    assert version.parameters == once.parameters
    assert [step["epochs"] for step in report["steps"]] == [1, 1, 1, 2]
    assert [step["amount"] for step in report["steps"]] == shares(0.5, 4, schedule)
    assert all(0 <= step["val_accuracy_pruned"] <= 1 and "val_accuracy_tuned" in step for step in report["steps"])
    assert report["finetune"]["epochs"] == 5
    assert report["finetune"]["epochs_per_step"] == [1, 1, 1, 2]
    assert any("5 epochs" in note and "1, 1, 1, 2" in note for note in report["notes"])
    titles = [figure["title"] for figure in report["figures"]]
    assert titles == ["Channels of each layer", "Step by step"]
    assert [len(series["x"]) for series in report["figures"][1]["series"]] == [4, 4]


def test_layers_that_compete_lose_as_many_in_steps_as_at_once(ready) -> None:
    spec = {"kind": "prune", "model": "m@1", "method": "channel", "amount": 0.4, "scope": "global"}
    once, steps = (ready.apply(**spec, steps=steps).report["channels"] for steps in (1, 3))
    assert sum(c["after"] for c in steps.values()) == sum(c["after"] for c in once.values())
    _, rounded = ready.run(**spec | {"scope": "layer"}, steps=3, round_to=4)
    assert rounded["channels"]["conv2"]["after"] == 12


def test_the_history_counts_epochs_on_over_the_steps(ready) -> None:
    spec = CHANNELS | {"steps": 2, "finetune": {"epochs": 3, "alpha": 0}}
    ctx = ready.context(spec, id="counted")
    passes.apply(specs.parse(spec), ctx)
    ctx.report.close()
    rows = ready.catalog.job("counted").history
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 1), (2, 2), (3, 2)]
    assert [row["pruned"] for row in rows] == pytest.approx([1 - 0.5**0.5, 0.5, 0.5], abs=1e-6)


def test_zeros_add_up_to_the_amount(ready) -> None:
    version, report = ready.run(
        kind="prune", model="m@1", dataset="stripes@1", method="l1_unstructured", amount=0.6, steps=3, scope="global",
        schedule="gradual", finetune={"epochs": 3, "alpha": 0},
    )  # fmt: skip
    assert len(report["steps"]) == 3
    assert version.sparsity == pytest.approx(0.6, abs=0.001)


def test_one_shot_and_too_few_epochs_are_said(ready) -> None:
    _, report = ready.run(**CHANNELS, steps=3, schedule="one_shot", finetune={"epochs": 1, "alpha": 0})
    assert "steps" not in report
    assert any("one_shot" in note for note in report["notes"])
    _, report = ready.run(**CHANNELS, steps=3, finetune={"epochs": 1, "alpha": 0})
    assert [step["epochs"] for step in report["steps"]] == [0, 0, 1]


def test_it_learns_from_the_version_it_came_from_unless_told_otherwise(ready) -> None:
    _, report = ready.run(**CHANNELS, steps=2, finetune={"epochs": 2})
    assert report["finetune"]["teacher"] == "m@1"
    assert any("answers of m@1" in note for note in report["notes"])
    _, report = ready.run(**CHANNELS, finetune={"epochs": 1, "alpha": 0})
    assert report["finetune"]["teacher"] is None


@pytest.mark.parametrize(
    ("method", "at_row", "resumed"),
    [("channel", 1, None), ("channel", 2, 1), ("channel", 3, None), ("channel", 4, 3), ("l1_unstructured", 4, 3)],
)
def test_a_later_attempt_goes_on_and_ends_the_same(ready, method, at_row, resumed) -> None:
    spec = CHANNELS | {"method": method, "steps": 2, "importance": "taylor", "finetune": {"epochs": 4, "alpha": 0}}
    wanted = ready.context(spec, id="wanted")
    whole = passes.apply(specs.parse(spec), wanted)
    first = ending(ready.context(spec, id="again"), at_row=at_row)
    with pytest.raises(Gone):
        passes.apply(specs.parse(spec), first)
    first.report.close()
    second = ready.context(spec, id="again", attempt=2)
    found = passes.apply(specs.parse(spec), second)
    for ctx in (wanted, second):
        ctx.report.close()
    assert found.report["finetune"]["resumed_at_epoch"] == resumed
    assert found.report["steps"] == whole.report["steps"]
    weights = [read_weights(made.folder / WEIGHTS) for made in (whole, found)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    rows, wanted_rows = (ready.catalog.job(id).history for id in ("again", "wanted"))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == [row["lr"] for row in wanted_rows]


def test_a_torn_network_of_an_earlier_attempt_begins_anew(ready) -> None:
    spec = CHANNELS | {"steps": 2, "finetune": {"epochs": 2, "alpha": 0}}
    ctx = ready.context(spec, id="torn", attempt=2)
    Context.staged(ctx, "pruned").checkpoint(b"no such thing", 1)
    found = passes.apply(specs.parse(spec), ctx)
    ctx.report.close()
    assert [step["step"] for step in found.report["steps"]] == [1, 2]
    assert found.report["channels"]["conv2"] == {"before": 20, "after": 10}
