"""Inputs that a network takes, found by trying."""

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import Unprocessable
from workers.nn.requests import Request, plan

ROWS = Signature(inputs=(Tensor(name="a", shape=(-1, 3)),))


def test_a_logarithm_is_asked_for_positive_numbers() -> None:
    def ask(request: Request) -> Request:
        with np.errstate(invalid="ignore"):
            return {"b": np.log(request["a"])}

    found = plan(ROWS, None, ask)
    assert (found.draw(np.random.default_rng(1), 64)["a"] > 0).all()


def test_answers_that_are_never_finite_are_called_so() -> None:
    with pytest.raises(Unprocessable, match="NaN or infinity") as refused:
        plan(ROWS, None, lambda request: {"b": np.full((1, 3), np.nan)})
    assert refused.value.code == "not_finite"


def test_a_model_that_runs_on_nothing_asks_for_shapes() -> None:
    def ask(request: Request) -> Request:
        raise ValueError("the sizes do not fit")

    with pytest.raises(Unprocessable, match="the sizes do not fit") as refused:
        plan(ROWS, None, ask)
    assert refused.value.code == "shapes_needed"
