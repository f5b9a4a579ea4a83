"""The forecast of a dry run."""

from contextlib import nullcontext

import pytest
from listening import Listener

from workers.nn import forecast


@pytest.mark.parametrize(("waited", "asked"), [(0.0, [2, 2]), (3600.0, [2, 2, 8, 8, 16, 16])])
def test_a_forecast_that_has_to_wait_for_measurements_makes_do_with_a_few_rows(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, waited: float, asked: list[int]
) -> None:
    monkeypatch.setattr(forecast, "WAITED_S", waited)
    monkeypatch.setattr(forecast, "SECONDS", 3600.0)  # however busy the host is
    monkeypatch.setattr(forecast, "STEPS", 1)
    counts: list[int] = []
    assert forecast._seconds_a_row(counts.append, 16, listener, nullcontext()) >= 0
    assert counts == asked
