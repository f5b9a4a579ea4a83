"""The trial that makes a candidate by a chain: what it reports, what it keeps, what it computes only once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from networks import SimpleCNN

from app.domain import specs
from app.domain.records import Made
from app.errors import Unprocessable
from workers.passes import apply
from workers.trials import kept

if TYPE_CHECKING:
    from passes.conftest import Bench

Splits = dict[str, tuple[np.ndarray, np.ndarray]]
PRUNE = {"kind": "prune", "method": "channel", "amount": 0.5, "finetune": {"epochs": 1, "batch_size": 128}}
CONVERT = {"kind": "convert", "target": "onnxruntime", "max_batch": 8}


def trial(bench: Bench, chain: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    outcome = bench.apply(kind="trial", role="chain", model="net@1", dataset="stripes@1", chain=chain, **more)
    assert outcome.folder is None
    return outcome.report


def test_a_chain_is_judged_on_val_kept_and_computed_once(bench: Bench, stripes: Splits) -> None:
    source = bench.model("net", SimpleCNN(), (1, 28, 28))
    bench.dataset("stripes", **stripes)
    first = trial(bench, [PRUNE, CONVERT], wants=["latency_ms"])
    assert (first["quality"]["split"], first["quality"]["n"]) == ("val", 128)
    assert first["values"]["parameters"] < source.parameters if source.parameters else True
    assert first["values"]["latency_ms"] > 0
    assert [link["kind"] for link in first["links"]] == ["prune", "convert"]
    assert not first["cache_hit"]
    assert bench.catalog.versions("net") == [source]  # nothing is published

    again = trial(bench, [PRUNE, CONVERT], wants=["latency_ms"])
    assert again["cache_hit"]
    assert again["values"] == first["values"]

    # Another end of the same beginning: the pruning is not done again.
    other = trial(bench, [PRUNE, {**CONVERT, "max_batch": 4}], measure={"batch": 2, "against": first["kept"]})
    assert (other["cache_hit"], other["cached_links"]) == (False, 1)
    assert other["speed"]["speedup_low"] <= other["values"]["speedup"] <= other["speed"]["speedup_high"]

    made = Made(job="winner", spec={"kind": "search"})
    version = kept.publish(
        bench.artifacts, bench.catalog, first["kept"], name="net", parent="net@1", made_by=made, verdict="accepted"
    )
    assert (version.ref, version.format, version.parent, version.verdict) == (
        "net@2", "onnxruntime", "net@1", "accepted"
    )  # fmt: skip
    assert bench.artifacts.size(f"{version.folder}/{next(iter(version.files))}") > 0
    repeated = kept.publish(
        bench.artifacts, bench.catalog, first["kept"], name="net", parent="net@1", made_by=made, verdict="accepted"
    )
    assert repeated == version


def test_what_was_swept_away_is_made_again(bench: Bench, stripes: Splits) -> None:
    """Figures without the files that they are of would fail whoever wants to publish them, again and again."""
    bench.model("net", SimpleCNN(), (1, 28, 28))
    bench.dataset("stripes", **stripes)
    chain = [{"kind": "prune", "method": "channel", "amount": 0.5}]
    first = trial(bench, chain)
    assert trial(bench, chain)["cache_hit"]
    bench.artifacts.delete_all(f"trials/{first['kept']}")
    again = trial(bench, chain)
    assert (again["cache_hit"], again["kept"]) == (False, first["kept"])
    assert kept.find(bench.artifacts, first["kept"]) is not None


def test_other_data_are_another_key(bench: Bench, stripes: Splits) -> None:
    bench.model("net", SimpleCNN(), (1, 28, 28))
    bench.dataset("stripes", **stripes)
    first = trial(bench, [CONVERT])
    x, y = stripes["val"]
    bench.dataset("other", **(stripes | {"val": (x[:64], y[:64])}))
    outcome = bench.apply(kind="trial", role="chain", model="net@1", dataset="other@1", chain=[CONVERT])
    assert not outcome.report["cache_hit"]
    assert outcome.report["kept"] != first["kept"]


def test_what_is_too_slow_is_not_trained(bench: Bench, stripes: Splits) -> None:
    bench.model("net", SimpleCNN(), (1, 28, 28))
    bench.dataset("stripes", **stripes)
    base = trial(bench, [CONVERT])
    report = trial(bench, [PRUNE, CONVERT], measure={"batch": 1, "against": base["kept"], "at_least": 1000.0})
    assert "quick look" in report["skipped"]
    assert "quality" not in report["values"]
    assert report["kept"] is None


def test_a_pruner_counts_the_epochs_of_links_that_were_computed_before(bench: Bench, stripes: Splits) -> None:
    """Else a trial that finds its first link kept is compared, after an epoch of its second, with others' first."""
    bench.model("net", SimpleCNN(), (1, 28, 28))
    bench.dataset("stripes", **stripes)
    told: list[list[tuple[int, int]]] = []
    for amount in (0.3, 0.5):
        chain = [{"kind": "train", "epochs": 2, "batch_size": 256}, PRUNE | {"amount": amount}]
        spec = {"kind": "trial", "role": "chain", "model": "net@1", "dataset": "stripes@1", "chain": chain}
        ctx, rows = bench.context(spec), list[dict[str, Any]]()
        ctx.watch = rows.append
        apply(specs.parse(spec), ctx)
        ctx.report.close()
        told.append([(row["epochs_before"], row["epoch"]) for row in rows])
    assert told == [[(0, 1), (0, 2), (2, 1)], [(2, 1)]]


@pytest.mark.parametrize(
    "chain",
    [
        [{"kind": "evaluate"}],
        [{"kind": "nothing"}],
        [{"kind": "prune", "method": "channel", "amount": 7}],
    ],
)
def test_a_chain_that_makes_nothing_is_told(bench: Bench, stripes: Splits, chain: list[dict[str, Any]]) -> None:
    bench.model("net", SimpleCNN(), (1, 28, 28))
    bench.dataset("stripes", **stripes)
    with pytest.raises(Unprocessable, match="link 0 of the chain"):
        trial(bench, chain)
