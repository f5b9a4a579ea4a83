"""The interval of a paired difference against the definition it comes from, and the verdicts that follow."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from app.api.checking import optimizing
from workers.nn.tango import interval
from workers.nn.verdict import fewest_rows, judge, samples_needed

Z = NormalDist().inv_cdf(0.975)


def difference(won: int, lost: int, n: int, confidence: float = 0.95) -> dict[str, object]:
    low, high = interval(won, lost, n, confidence)
    return {
        "name": "accuracy", "difference": (won - lost) / n, "low": low, "high": high, "n": n, "confidence": confidence,
        "only_model_right": won, "only_baseline_right": lost,
    }  # fmt: skip


def statistic(won: int, lost: int, n: int, delta: float) -> float:
    """Tango's, from its definition: the likeliest share of `lost` under `delta` is searched for, not solved."""
    both = n - won - lost

    def unlikeliness(q: float) -> float:
        shares = np.clip([q + delta, q, 1 - 2 * q - delta], 1e-300, 1)
        return float(-(won * np.log(shares[0]) + lost * np.log(shares[1]) + both * np.log(shares[2])))

    top = (1 - delta) / 2
    q = minimize_scalar(unlikeliness, bounds=(max(0.0, -delta), top), method="bounded", options={"xatol": 1e-13}).x
    return float((won - lost - n * delta) / np.sqrt(n * (2 * q + delta * (1 - delta))))


@pytest.mark.parametrize(("won", "lost", "n"), [(12, 2, 50), (3, 9, 200), (40, 25, 1000), (1, 30, 400)])
def test_the_ends_are_where_the_score_test_begins_to_reject(won: int, lost: int, n: int) -> None:
    low, high = interval(won, lost, n)
    assert statistic(won, lost, n, low) == pytest.approx(Z, abs=1e-3)
    assert statistic(won, lost, n, high) == pytest.approx(-Z, abs=1e-3)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400), st.sampled_from([0.8, 0.95, 0.99]))
def test_an_interval_is_one(won: int, lost: int, rest: int, confidence: float) -> None:
    n = won + lost + rest
    low, high = interval(won, lost, n, confidence)
    assert -1 <= low <= high <= 1
    if n:
        assert low <= (won - lost) / n <= high
    assert interval(lost, won, n, confidence) == pytest.approx((-high, -low), abs=1e-9)


def test_no_disagreement_is_no_certainty() -> None:
    assert interval(0, 0, 360) == pytest.approx((-0.010558, 0.010558), abs=1e-6)
    assert judge(difference(0, 0, 360), 0.01).verdict == "unproven"
    assert judge(difference(0, 0, 381), 0.01).verdict == "accepted"


@pytest.mark.parametrize("drop", [0.003, 0.01, 0.03, 0.25])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_app_and_the_workers_know_the_same_least_number_of_rows(drop: float, confidence: float) -> None:
    assert fewest_rows(drop, confidence) == optimizing.fewest_rows(drop, confidence)


def test_verdicts() -> None:
    assert judge(difference(10, 12, 10_000), 0.01).verdict == "accepted"
    assert judge(difference(10, 250, 10_000), 0.01).verdict == "rejected"
    unproven = judge(difference(30, 36, 1_000), 0.01)
    assert unproven.verdict == "unproven"
    needed = unproven.samples_needed
    assert needed is not None
    scale = needed / 1_000
    assert interval(30 * scale, 36 * scale, needed)[0] >= -0.01
    assert interval(30 * (scale - 0.01), 36 * (scale - 0.01), needed - 10)[0] < -0.01
    assert f"{needed} rows" in unproven.told


def test_what_no_number_of_rows_decides() -> None:
    assert samples_needed(difference(0, 10, 1_000), 0.01) is None  # exactly the loss that is allowed
    assert judge(difference(0, 0, 100), 0.0).samples_needed is None
    assert fewest_rows(0, 0.95) is None


def test_a_regression_is_judged_by_its_bootstrap() -> None:
    found = {"name": "r2", "difference": -0.005, "low": -0.02, "high": 0.01, "n": 100, "confidence": 0.95}
    verdict = judge(found, 0.01)
    assert verdict.verdict == "unproven"
    assert verdict.samples_needed == 900  # three times as narrow
    assert judge(found | {"low": -0.009}, 0.01).verdict == "accepted"
    fine = judge(found | {"difference": -0.0007, "low": -0.0009, "high": -0.0005}, 0.002)
    assert "-0.0007 of r2 [-0.0009, -0.0005]" in fine.told
    assert "a loss of up to 0.002 is allowed" in fine.told
    assert judge(found | {"difference": -0.011}, 0.01).verdict == "rejected"
