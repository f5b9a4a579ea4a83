"""How many singular values of a matrix matter: by their energy, or by variational Bayes."""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

Vector = npt.NDArray[np.float64]
LARGE = 200_000  # numbers, from which on single precision is enough


def singular_values(matrix: npt.NDArray[np.float64]) -> Vector:
    """In descending order, from the smaller of the two Gram matrices: accurate enough to choose a rank by."""
    rows, columns = matrix.shape
    if matrix.size > LARGE:
        matrix = matrix.astype(np.float32)
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return np.asarray(np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None)), np.float64)


def by_energy(values: Vector, share: float) -> int:
    """The smallest rank whose squared singular values make up that share of all; at least 1."""
    energy = np.cumsum(values**2)
    if energy[-1] <= 0:
        return 1
    return min(len(values), int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1)


def by_vbmf(values: Vector, rows: int, columns: int) -> int:
    """The rank that empirical variational Bayesian matrix factorization finds, 0 where all looks like noise.

    The analytic solution of Nakajima, Sugiyama, Babacan and Tomioka (2013, Global Analytic Solution of Fully-observed
    Variational Bayesian Matrix Factorization): the noise is estimated by minimising the free energy over its variance,
    and what exceeds the threshold that follows is signal. values: all singular values of the matrix.
    """
    short, long = sorted((rows, columns))
    alpha = short / long
    tau = 2.5129 * sqrt(alpha)  # an approximation of the smallest tau that is signal, given there
    edge = (1 + tau) * (1 + alpha / tau)
    squares = np.zeros(short)
    squares[: len(values)] = values[:short] ** 2
    scale = float(squares.mean())
    if scale <= 0:
        return 0
    squares /= scale  # so that the bounds below are of order 1
    most = max(0, min(ceil(short / (1 + alpha)) - 1, short) - 1)
    tail = squares[most + 1 :]
    low = max(squares[most + 1] / (long * edge), float(tail.mean()) / long) if len(tail) else 0.0
    high = float(squares.sum()) / (short * long)
    low = min(max(low, 1e-12 * high), high)

    def free_energy(log_variance: float) -> float:
        x = squares / (long * np.exp(log_variance))
        signal, noise = x[x > edge], np.clip(x[x <= edge], 1e-300, None)
        t = (signal - (1 + alpha) + np.sqrt((signal - (1 + alpha)) ** 2 - 4 * alpha)) / 2
        return float(
            (noise - np.log(noise)).sum()
            + (signal - t).sum()
            + np.log((t + 1) / signal).sum()
            + alpha * np.log(t / alpha + 1).sum()
        )

    if high > low * (1 + 1e-9):
        found = minimize_scalar(free_energy, bounds=(np.log(low), np.log(high)), method="bounded")
        variance = float(np.exp(found.x))
    else:
        variance = high
    return int((squares > long * variance * edge).sum())
