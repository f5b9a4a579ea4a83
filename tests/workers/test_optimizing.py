"""How the closed loop chooses: the front, the sequence of verdicts, what is proposed next."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.domain.records import Job, Made, Metrics, Result, Signature, Tensor, Version, now
from app.domain.specs import OptimizeSpec
from workers.optimizing import anatomy, verdicts
from workers.optimizing.designs import Design
from workers.optimizing.front import Candidate, pareto, proven, sequence, undominated
from workers.optimizing.proposals import AMOUNTS, Room, Tried, propose
from workers.optimizing.race import Race, worked_s
from workers.optimizing.told import _notes

SPEC = OptimizeSpec(model="net@1", dataset="data@1")
ROOM = Room(("openvino:fp32", "openvino:int8"), ("prune", "share", "prune+share"))


def candidates(*pairs: tuple[float, float]) -> list[Candidate]:
    return [Candidate(f"c{n}", quality, gain) for n, (quality, gain) in enumerate(pairs)]


def test_the_front_is_what_nothing_beats() -> None:
    found = pareto(candidates((0.9, 1.0), (0.8, 2.0), (0.85, 1.5), (0.7, 1.9), (0.9, 0.9), (0.5, 4.0)))
    assert [c.name for c in found] == ["c0", "c2", "c1", "c5"]


def test_what_another_equals_or_beats_in_all_is_dominated() -> None:
    figures = {
        "a": (0.9, 1.0, -10),
        "b": (0.9, 2.0, -10),
        "c": (0.8, 3.0, -10),
        "d": (0.8, 1.0, -5),
        "e": (0.9, 2.0, -10),
    }
    assert undominated(figures) == ["b", "c", "d", "e"]


@pytest.mark.parametrize(("qualities", "chosen"), [((0.9, 0.9), "plain-x-int8"), ((0.9, 0.91), "tuned-x-int8")])
def test_between_two_engines_of_one_graph_speed_does_not_choose(qualities: tuple[float, ...], chosen: str) -> None:
    names = ("plain-x-fp32", "plain-x-int8", "tuned-x-fp32", "tuned-x-int8")
    plain, tuned = ({n: Design("x", n[-4:]) for n in names if n.startswith(kind)} for kind in ("plain", "tuned"))
    measured = dict(zip(names, ((0.9, None), (qualities[0], 2.0), (0.9, 1.1), (qualities[1], 2.3)), strict=True))
    trials = {
        name: Job(
            id=name, kind="trial", spec={}, status="succeeded", created_at=now(),
            result=Result(report={"kept": "k", "values": {"quality": quality, "bytes": 9.0}
                                  | ({"speedup": speedup} if speedup else {})}),
        )
        for name, (quality, speedup) in measured.items()
    }  # fmt: skip
    found = {c.name: c for c in Race(SPEC, "net@1", "data@1", plain, tuned, ROOM, {}, trials).candidates()}
    assert found["plain-x-int8"].gain == found["tuned-x-int8"].gain == 2.0
    assert chosen in [c.name for c in pareto(list(found.values()))]
    assert len({"plain-x-int8", "tuned-x-int8"} & {c.name for c in pareto(list(found.values()))}) == 1


def test_what_the_whole_network_gained_says_where_the_first_design_begins() -> None:
    plain = {f"plain-openvino-{p}": Design("openvino", p) for p in ("fp32", "int8")}
    trials = {
        name: Job(
            id=name, kind="trial", spec={}, status="succeeded", created_at=now(),
            result=Result(report={"kept": "k", "values": {"quality": 0.9, "bytes": 9.0, "speedup": speedup}}),
        )
        for name, speedup in zip(plain, (1.0, 0.8), strict=True)
    }  # fmt: skip
    (found,) = Race(SPEC, "net@1", "data@1", plain, {}, ROOM, {}, trials).next_trials().values()
    assert found["params"]["engine"] == "openvino:fp32"


def test_designs_do_not_wait_for_the_original_to_be_fine_tuned() -> None:
    plain, tuned = (
        {f"{kind}-openvino-{p}": Design("openvino", p, tuned=kind == "tuned") for p in ("fp32", "int8")}
        for kind in ("plain", "tuned")
    )
    ended = Job(
        id="t", kind="trial", spec={}, status="succeeded", created_at=now(),
        result=Result(report={"kept": "k", "values": {"quality": 0.9, "bytes": 9.0, "speedup": 2.0}}),
    )  # fmt: skip
    spec, trials = SPEC.model_copy(update={"parallel": 2}), dict.fromkeys(plain, ended)

    def started(*more: tuple[str, Job]) -> list[str]:
        return list(Race(spec, "net@1", "data@1", plain, tuned, ROOM, {}, trials | dict(more)).next_trials())

    running = ended.but(status="running", result=None)
    assert started() == ["tuned-openvino-fp32", "design-0"]
    assert started(("tuned-openvino-fp32", running)) == ["design-0"]
    assert started(("tuned-openvino-fp32", running), ("design-0", running)) == []
    assert started(("tuned-openvino-fp32", ended), ("design-0", running)) == ["tuned-openvino-int8"]
    assert started(("plain-openvino-int8", running)) == ["tuned-openvino-fp32"]


def test_verdicts_are_asked_for_in_the_order_of_accuracy() -> None:
    front = pareto(candidates((0.90, 1.0), (0.89, 2.0), (0.885, 2.1), (0.88, 3.0), (0.6, 9.0)))
    # What gains nothing needs no verdict; of two that gain alike the faster one is asked for.
    assert [c.gain for c in sequence(front, 0.88)] == [2.1, 3.0]


@pytest.mark.parametrize(
    ("verdicts", "found"),
    [
        (["accepted", "accepted", "accepted"], ["a", "b", "c"]),
        (["accepted", "unproven", "accepted"], ["a"]),  # what comes after a failure proves nothing
        (["rejected", "accepted", "accepted"], []),
    ],
)
def test_only_what_comes_before_the_first_failure_is_proven(verdicts: list[str], found: list[str]) -> None:
    assert proven("abc", dict(zip("abc", verdicts, strict=True))) == found


def test_the_first_designs_look_for_the_amount_by_halves() -> None:
    past: list[Tried] = []
    amounts = []
    for number in range(4):
        design = propose(SPEC, ROOM, past, number, least=0.9)
        assert design is not None
        assert (design.precision, design.share) == ("int8", None)
        amounts.append(design.params["amount"])
        past.append(Tried(dict(design.params), 0.95 if amounts[-1] <= 0.45 else 0.5, 2.0))
    assert amounts == [0.35, 0.6, 0.45, 0.5]


@pytest.mark.parametrize(
    ("gains", "engine"),
    [
        ({"openvino:fp32": 1.0, "openvino:int8": 2.5}, "openvino:int8"),
        ({"openvino:fp32": 1.0, "openvino:int8": 0.98}, "openvino:int8"),  # as good, and pruning may tell
        ({"openvino:fp32": 1.0, "openvino:int8": 0.86}, "openvino:fp32"),  # attention in int8
        ({"openvino:fp32": 1.0}, "openvino:fp32"),  # int8 failed
        ({"openvino:fp32": 1.0, "openvino:int8": 1.0, "onnxruntime:fp32": 1.9}, "onnxruntime:fp32"),
    ],
)
def test_the_first_designs_are_of_the_engine_that_is_best_for_the_whole_network(
    gains: dict[str, float], engine: str
) -> None:
    design = propose(SPEC, Room((*ROOM.engines, "onnxruntime:fp32"), ("prune",), gains), [], 0, least=0.9)
    assert design is not None
    assert f"{design.target}:{design.precision}" == engine


def test_two_at_a_time_look_for_the_amount_on_both_sides() -> None:
    """What still runs divides what is left to look at: a second worker must not draw lots meanwhile."""
    past: list[Tried] = []
    found: list[list[float]] = []
    for _ in range(2):
        for number in (len(past), len(past) + 1):
            design = propose(SPEC, ROOM, past, number, least=0.9)
            assert design is not None
            past.append(Tried(dict(design.params), None, None, runs=True))
        found.append([tried.params["amount"] for tried in past[-2:]])
        past = [Tried(t.params, 0.95 if t.params["amount"] <= 0.45 else 0.5, 2.0) for t in past]
    assert found == [[0.35, 0.6], [0.45, 0.5]]


def test_what_is_too_slow_has_more_taken_out_next() -> None:
    first = propose(SPEC, ROOM, [], 0, least=0.9)
    assert first is not None
    second = propose(SPEC, ROOM, [Tried(dict(first.params), None, 1.1)], 1, least=0.9)
    assert second is not None
    assert second.params["amount"] > first.params["amount"]


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_nothing_is_proposed_twice_and_the_same_past_gives_the_same(sampler: str) -> None:
    spec = SPEC.model_copy(update={"sampler": sampler})
    past: list[Tried] = []
    for number in range(12):
        design = propose(spec, ROOM, past, number, least=0.9)
        assert design is not None
        assert design == propose(spec, ROOM, past, number, least=0.9)
        assert dict(design.params) not in [tried.params for tried in past]
        assert design.prune is None or design.prune["amount"] in AMOUNTS
        # Some fail, some are given up after a quick look.
        quality, gain = [(0.8 + number / 100, 1.5), (None, 1.1), (None, None)][number % 3]
        past.append(Tried(dict(design.params), quality, gain))


def test_where_there_is_nothing_left_to_try_it_ends() -> None:
    room = Room(("openvino:fp32",), ("share",))
    past: list[Tried] = []
    for number in range(3):
        design = propose(SPEC, room, past, number, least=0.9)
        if design is None:
            break
        past.append(Tried(dict(design.params), 0.9, 1.2))
    assert len(past) == 2  # two numbers of groups
    assert propose(SPEC, Room(("openvino:fp32",), ()), [], 0, least=0.9) is None


@pytest.mark.parametrize(("ratio", "winner"), [(1.4, "tuned"), (0.99, "plain")])
def test_what_is_no_faster_when_it_is_judged_does_not_win(ratio: float, winner: str) -> None:
    """A trial measures alone, and may have been lucky."""
    race = Race(
        SPEC, "net@1", "data@1", {"plain": Design("openvino", "fp32")}, {"tuned": Design("openvino", "fp32", True)},
        ROOM, {}, {},
    )  # fmt: skip
    rows = {
        name: {"verdict": "accepted", "speedup": {"1": {"ratio": measured}}}
        for name, measured in (("plain", 1.0), ("tuned", ratio))
    }
    judged = {"candidates": rows, "better_baseline": "plain"}
    assert verdicts.winner(race, verdicts.Choice(("tuned",), ("plain",)), judged) == winner


def at(second: float) -> str:
    return (datetime(2026, 1, 5, tzinfo=UTC) + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")


def trial(start: float | None, end: float | None, status: Any = "succeeded") -> Job:
    times = {"started_at": None if start is None else at(start), "finished_at": None if end is None else at(end)}
    return Job(id="t", kind="trial", spec={}, status=status, created_at=at(0), **times)


def test_what_counts_against_the_time_limit_is_time_in_which_a_trial_ran() -> None:
    apart = [trial(10, 20), trial(15, 25), trial(1000, 1010)]  # nothing ran in between: all was down, or it queued
    assert worked_s(apart) == 25
    # One that waits, or whose process was lost and that waits again, does nothing.
    assert worked_s([*apart, trial(None, None, "queued"), trial(30, None, "queued")]) == 25
    began = (datetime.now(UTC) - timedelta(seconds=7)).isoformat().replace("+00:00", "Z")
    running = trial(0, None, "running").but(started_at=began)
    assert 7 <= worked_s([running]) < 60
    spec = SPEC.model_copy(update={"time_limit_s": 24})
    assert Race(spec, "net@1", "data@1", {}, {}, ROOM, {}, dict(enumerate(apart))).is_late  # type: ignore[arg-type]
    assert not Race(spec, "net@1", "data@1", {}, {}, ROOM, {}, {"a": apart[0]}).is_late


@pytest.mark.parametrize(
    ("fields", "batched", "batch"),
    [
        ({"objective": "throughput"}, True, 32),
        ({"objective": "throughput", "max_batch": 16}, True, 16),
        ({"batch": 8}, True, 8),
        ({"batch": 8}, False, 1),
        ({"objective": "throughput"}, False, 1),
    ],
)
def test_speed_is_measured_with_rows_that_an_engine_takes(fields: dict[str, Any], batched: bool, batch: int) -> None:
    spec = OptimizeSpec.model_validate(SPEC.model_dump() | fields)
    race = Race(spec, "net@1", "data@1", {"plain": Design("openvino", "fp32")}, {}, ROOM, {}, {}, batched)
    assert race.batch == batch
    batches = verdicts.judge_spec(race, verdicts.Choice((), ("plain",)))["batches"]
    assert batches == sorted({1, batch, min(32, spec.max_batch)} if batched else {1})


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_floor_is_told_of_its_own_runtime_alone(runtime: str) -> None:
    """An engine of the plain engine's runtime that does nothing may well be slower than a whole network in another."""
    plain = {"plain": Design("openvino", "fp32"), "other": Design(runtime, "fp16")}
    race = Race(SPEC, "net@1", "data@1", plain, {}, ROOM, {}, {})
    won = {"latency": [{"runtime": runtime, "batch": 1, "p50_ms": 0.013}]}
    judged = {"candidates": {"other": won}, "floor_ms": {"1": 0.018}}
    notes = _notes(race, verdicts.Choice((), ("plain",)), judged, "other")
    assert any("dispatch is the floor" in note for note in notes) == (runtime == "openvino")


def test_what_became_of_each_layer_and_how_it_was_trained() -> None:
    made = Version(
        name="net", version=2, format="openvino", folder="f", files={}, bytes=1, created_at=now(),
        signature=Signature(inputs=(Tensor(name="x", shape=(-1, 4)),)), made_by=Made(job="j", spec={}),
        metrics=Metrics(layer_sparsity={"conv": 0.5, "head": 0.0}), details={"precision": "int8"},
    )  # fmt: skip
    links = [
        {"kind": "prune", "channels": {"conv": {"before": 8, "after": 4}}, "history": [{"epoch": 1, "loss": 0.5}]},
        {"kind": "share", "layers": {"conv": {"groups": 2, "kept_norm": 0.7}}},
        {"kind": "quantize", "layers": {"conv": {"precision": "int8"}, "head": {"precision": "fp32"}}},
        {"kind": "convert", "layers": {"node_1": "int8"}},
    ]
    assert anatomy.layers(links, made) == {
        "conv": {"channels": {"before": 8, "after": 4}, "groups": 2, "precision": "int8", "sparsity_after": 0.5},
        "head": {"precision": "fp32", "sparsity_after": 0.0},
    }
    whole = made.but(details={"precision": "bf16"})
    assert anatomy.layers([], whole)["head"] == {"precision": "bf16", "sparsity_after": 0.0}
    assert anatomy.training(links) == [{"epoch": 1, "loss": 0.5}]
    qat = {"kind": "quantize", "history": [{"epoch": 1, "loss": 0.4}]}
    assert [row["phase"] for row in anatomy.training([*links, qat])] == ["prune", "quantize"]
