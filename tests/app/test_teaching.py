"""Teachers at submission: exact refs wherever one is named, and a refusal of those whose records do not fit."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from asking import problem, push_dataset

from app.api.checking import teaching
from app.domain import specs
from app.domain.records import Signature, Tensor
from app.errors import NotFound, Unprocessable
from app.storage.catalog import Catalog

X = Tensor(name="x", shape=(-1, 1, 28, 28))
TRAIN = {"kind": "train", "model": "net@1", "dataset": "set"}
PRUNE = {"kind": "prune", "model": "net@1", "dataset": "set", "method": "channel"}


@pytest.fixture
async def school(client: httpx.AsyncClient, make_version: Any) -> httpx.AsyncClient:
    """Students `net` and `named`; many who offer themselves as teachers."""
    labels = tuple("abcdefghij")

    def version(name: str, *outputs: Tensor, x: Tensor = X, **more: Any) -> None:
        make_version(name, signature=Signature(inputs=(x,), outputs=outputs).model_dump(), **more)

    make_version()
    make_version(format="openvino", trainable=False)
    make_version("named", labels=labels)
    make_version("turned", labels=labels[::-1])
    make_version("other", labels=(*labels[:9], "k"))
    version("fine", Tensor(name="scores", shape=(-1, 10)))
    version(
        "fine", Tensor(name="scores", shape=(1, 10), batch_axis=None), x=X.but(shape=(1, 1, 28, 28), batch_axis=None)
    )
    version("nine", Tensor(name="logits", shape=(-1, 9)))
    version("dense", Tensor(name="logits", shape=(-1, 10, 7, 7)))
    version("two", Tensor(name="a", shape=(-1, 10)), Tensor(name="b", shape=(-1, 4)))
    version("small", Tensor(name="logits", shape=(-1, 10)), x=X.but(shape=(-1, 1, 14, 14)))
    version("classes", Tensor(name="label", dtype="int64", shape=(-1, 10)), format="onnx", trainable=False)
    signature = Signature(inputs=(X, X.but(name="z")), outputs=(Tensor(name="logits", shape=(-1, 10)),))
    make_version("pair", signature=signature.model_dump())
    await push_dataset(client)
    return client


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ("nine", r"gives \[9\] per row, not \[10\]"),
        ("dense", r"gives \[10, 7, 7\]"),
        ("two", "2 outputs, not 1"),
        ("small", r"\[1, 14, 14\], not \[1, 28, 28\]"),
        ("pair", "takes 2 inputs"),
        ("classes", "int64"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
async def test_a_teacher_of_other_outputs_is_refused(
    school: httpx.AsyncClient, catalog: Catalog, teacher: str, told: str, nested: bool
) -> None:
    spec = PRUNE | {"finetune": {"teacher": teacher}} if nested else TRAIN | {"teacher": teacher}
    body = problem(await school.post("/v1/jobs", json=spec), 422, "teacher_mismatch")
    assert re.search(told, body["detail"])
    assert f"{teacher}@1" in body["detail"]
    assert body["hint"]
    assert body["errors"][0]["loc"] == (["finetune", "teacher"] if nested else ["teacher"])
    assert catalog.jobs()[0] == []


@pytest.mark.parametrize(("teacher", "told"), [("turned", "in another order"), ("other", "labels are others")])
async def test_a_teacher_of_other_labels_is_refused(school: httpx.AsyncClient, teacher: str, told: str) -> None:
    spec = TRAIN | {"model": "named@1", "teacher": teacher}
    assert told in problem(await school.post("/v1/jobs", json=spec), 422, "teacher_mismatch")["detail"]


async def test_a_teacher_that_there_is_not(school: httpx.AsyncClient) -> None:
    body = problem(await school.post("/v1/jobs", json=TRAIN | {"teacher": "nobody"}), 404, "model_not_found")
    assert body["detail"] == "the teacher 'nobody' is not here: no model 'nobody'"
    assert body["errors"][0]["loc"] == ["teacher"]
    problem(await school.post("/v1/jobs", json=TRAIN | {"teacher": "net@9"}), 404, "version_not_found")
    problem(await school.post("/v1/jobs", json=TRAIN | {"teacher": "no name"}), 422, "invalid")


async def test_teachers_become_exact_refs_and_one_without_a_say_is_warned_of(
    school: httpx.AsyncClient, catalog: Catalog
) -> None:
    answer = await school.post("/v1/jobs", json=TRAIN | {"teacher": "net"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["spec"]["teacher"] == "net@2"  # an engine teaches too
    nested = await school.post("/v1/jobs", json=PRUNE | {"finetune": {"teacher": "fine", "alpha": 0}})
    assert nested.status_code == 202, nested.text
    assert nested.json()["spec"]["finetune"]["teacher"] == "fine@2"
    assert "teaches nothing" in catalog_warnings(nested.json(), catalog)
    without = await school.post("/v1/jobs", json=TRAIN)
    assert without.json()["spec"]["teacher"] is None


def catalog_warnings(job: dict[str, Any], catalog: Catalog) -> str:
    return " ".join(catalog.job(job["id"]).warnings)


@pytest.mark.parametrize("fields", [{"temperature": 3}, {"alpha": 0.9}])
async def test_what_only_a_teacher_gives_a_part_is_warned_of(
    school: httpx.AsyncClient, catalog: Catalog, fields: dict[str, float]
) -> None:
    alone = await school.post("/v1/jobs", json=TRAIN | fields)
    (warned,) = catalog.job(alone.json()["id"]).warnings
    assert warned == f"`{next(iter(fields))}` plays no part without a `teacher`"
    taught = await school.post("/v1/jobs", json=TRAIN | fields | {"teacher": "net"})
    assert catalog.job(taught.json()["id"]).warnings == ()


async def test_teachers_of_a_search_are_found_in_its_chain_and_space(
    school: httpx.AsyncClient, catalog: Catalog
) -> None:
    chain = [{"kind": "prune", "finetune": {"teacher": "fine"}}, {"kind": "train", "teacher": "net@1"}]
    stored = {"kind": "search", "chain": chain, "space": {"1.train.teacher": ["net", "fine@1"], "prune.amount": [0.5]}}
    found = teaching.exact(stored, catalog)
    assert found["chain"][0]["finetune"]["teacher"] == "fine@2"
    assert found["space"] == {"1.train.teacher": ["net@2", "fine@1"], "prune.amount": [0.5]}
    assert stored["space"]["1.train.teacher"] == ["net", "fine@1"]
    with pytest.raises(NotFound):
        teaching.exact({"space": {"train.teacher": ["nobody"]}}, catalog)
    with pytest.raises(Unprocessable, match="no reference"):
        teaching.exact({"chain": [{"kind": "train", "teacher": "no name"}]}, catalog)
    spec = specs.parse(found | {"model": "net@1", "dataset": "set", "space": {"1.train.teacher": ["nine"]}})
    with pytest.raises(Unprocessable, match=r"nine@1 does not fit net@1") as refused:
        teaching.check(spec, catalog.version("net", 1), None, catalog)
    assert refused.value.code == "teacher_mismatch"
    assert refused.value.errors[0]["loc"] == ["space", "1.train.teacher", 0]


def test_teachers_within_the_choices_of_a_space_are_found(school: httpx.AsyncClient, catalog: Catalog) -> None:
    chain = [{"kind": "prune", "method": "channel"}]
    stored: dict[str, Any] = {"kind": "search", "model": "net@1", "dataset": "set", "chain": chain}
    space = {"prune.finetune": [{"epochs": 1, "teacher": "fine"}, None]}
    assert teaching.exact(stored | {"space": space}, catalog)["space"]["prune.finetune"][0]["teacher"] == "fine@2"
    wrong = specs.parse(stored | {"space": {"prune.finetune": [None, {"teacher": "nine"}]}})
    with pytest.raises(Unprocessable, match=r"nine@1 does not fit net@1") as refused:
        teaching.check(wrong, catalog.version("net", 1), None, catalog)
    assert refused.value.errors[0]["loc"] == ["space", "prune.finetune", 1, "teacher"]
