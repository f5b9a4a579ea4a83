"""The interval of a difference between two paired proportions: Tango's score interval."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from scipy.optimize import brentq

_EDGE = 1e-12


def interval(won: float, lost: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Of (won - lost) ÷ n, where of n rows `won` were right with the one alone and `lost` with the other alone.

    T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998) 891-908. It keeps its level with few rows and few disagreements; with none at all
    it is ± z² ÷ (n + z²), and never empty. Counts need not be whole. 0 rows: (-1, 1).
    """
    if n <= 0:
        return -1.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    found = (won - lost) / n

    def low(delta: float) -> float:
        return _score(won, lost, n, delta) - z

    def high(delta: float) -> float:
        return _score(won, lost, n, delta) + z

    at_low = brentq(low, -1 + _EDGE, found, xtol=1e-13) if low(-1 + _EDGE) > 0 > low(found) else -1.0
    at_high = brentq(high, found, 1 - _EDGE, xtol=1e-13) if high(1 - _EDGE) < 0 < high(found) else 1.0
    return float(at_low), float(at_high)


def _score(won: float, lost: float, n: float, delta: float) -> float:
    """The score statistic for a true difference of `delta`: falls as delta grows, 0 at what was found."""
    a = 2 * n
    b = -won - lost + (2 * n - won + lost) * delta
    c = -lost * delta * (1 - delta)
    q = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # the likeliest share of `lost`, were delta true
    variance = n * (2 * q + delta * (1 - delta))
    distance = won - lost - n * delta
    return distance / sqrt(variance) if variance > 0 else (0.0 if distance == 0 else distance * 1e12)
