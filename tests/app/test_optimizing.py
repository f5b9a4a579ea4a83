"""optimize as it is submitted: what it becomes, what is warned of, what is refused; models of one row, or of eight."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from asking import problem, push_dataset

from app.domain.records import Signature, Tensor

OPTIMIZE: dict[str, Any] = {"kind": "optimize", "model": "net", "dataset": "set"}


def signature(x: tuple[int, ...], logits: tuple[int, ...]) -> dict[str, Any]:
    inputs = (Tensor(name="x", shape=x, batch_axis=0 if x[:1] == (-1,) else None),)
    outputs = (Tensor(name="logits", shape=logits, batch_axis=0 if logits[:1] == (-1,) else None),)
    return Signature(inputs=inputs, outputs=outputs).model_dump()


@pytest.fixture
async def ready(client: httpx.AsyncClient, make_version: Any) -> httpx.AsyncClient:
    make_version()
    make_version("one", signature=signature((1, 1, 28, 28), (1, 10)))
    make_version("eight", signature=signature((8, 1, 28, 28), (8, 10)))
    make_version("bare", signature=signature((1, 28, 28), (10,)))
    make_version("flat", signature=signature((1, 1, 28, 28), (10,)))
    make_version("wide", signature=signature((8, 28, 28, 3), (8, 10)))
    await push_dataset(client, rows=50)
    return client


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ({}, (None, 64)),
        ({"batch": 32}, (32, 64)),
        ({"batch": 128}, (128, 128)),
        ({"batch": 128, "max_batch": 256}, (128, 256)),
        ({"batch": 8, "max_batch": 8}, (8, 8)),
    ],
)
async def test_engines_take_the_batch_that_speed_is_measured_with(
    ready: httpx.AsyncClient, asked: Any, stored: tuple[int | None, int]
) -> None:
    job = (await ready.post("/v1/jobs", json=OPTIMIZE | asked)).json()
    assert (job["spec"]["batch"], job["spec"]["max_batch"]) == stored


async def test_a_batch_that_the_engines_would_not_take_is_refused(ready: httpx.AsyncClient) -> None:
    body = problem(await ready.post("/v1/jobs", json=OPTIMIZE | {"batch": 32, "max_batch": 8}), 422, "invalid")
    assert "`batch` is 32" in str(body)


async def test_bayesian_is_tpe(ready: httpx.AsyncClient) -> None:
    job = (await ready.post("/v1/jobs", json=OPTIMIZE | {"sampler": "bayesian"})).json()
    assert job["spec"]["sampler"] == "tpe"


async def test_a_model_of_one_row_at_a_time_is_measured_with_one(ready: httpx.AsyncClient) -> None:
    plain = await ready.post("/v1/jobs", json=OPTIMIZE | {"model": "one"})
    assert plain.status_code == 202, plain.text
    assert "one row at a time" not in str(plain.json()["warnings"])
    many = (await ready.post("/v1/jobs", json=OPTIMIZE | {"model": "one", "objective": "throughput"})).json()
    assert "one row at a time" in str(many["warnings"])


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("eight", "takes 8 rows a run"),
        ("bare", r"the input 'x' of bare@1 is [1, 28, 28], without an axis for rows"),
        ("flat", r"the output 'logits' of flat@1 is [10], without an axis for rows"),
        ("wide", "takes rows of shape"),
    ],
)
@pytest.mark.parametrize("kind", ["optimize", "evaluate"])
async def test_a_model_that_rows_cannot_be_fed_to_is_refused(
    ready: httpx.AsyncClient, model: str, told: str, kind: str
) -> None:
    spec = OPTIMIZE | {"kind": kind, "model": model}
    body = problem(await ready.post("/v1/jobs", json=spec), 422, "dataset_mismatch")
    assert told in body["detail"]
    if model != "wide":
        assert "any size" in body["hint"]
