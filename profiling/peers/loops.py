"""The loop that one would write oneself: NumPy's linear algebra, compiled by Numba, which has to be installed."""

from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, ...]


def _smooth(F, Q, H, R, mean, cov, y):
    """Filters and smooths by the textbook's formulas; F and Q are (T, D, D), or (1, D, D) for all steps."""
    T, D = len(y), len(mean)
    means, covs = np.empty((T, D), y.dtype), np.empty((T, D, D), y.dtype)
    predicted, spread = np.empty((T, D), y.dtype), np.empty((T, D, D), y.dtype)
    cross = np.empty((T - 1, D, D), y.dtype)
    loglik = 0.0
    for t in range(T):
        if t:
            k = t if len(F) > 1 else 0
            mean, cov = F[k] @ mean, F[k] @ cov @ F[k].T + Q[k]
        predicted[t], spread[t] = mean, cov
        HP = H @ cov
        L = np.linalg.cholesky(HP @ H.T + R)
        e = np.linalg.solve(L, y[t] - H @ mean)
        W = np.linalg.solve(L, HP)
        mean, cov = mean + W.T @ e, cov - W.T @ W
        loglik -= 0.5 * (e @ e) + np.log(np.diag(L)).sum()
        means[t], covs[t] = mean, cov
    smoothed, smoothed_covs = means.copy(), covs.copy()
    for t in range(T - 2, -1, -1):
        k = t + 1 if len(F) > 1 else 0
        G = np.linalg.solve(spread[t + 1], F[k] @ covs[t]).T
        smoothed[t] += G @ (smoothed[t + 1] - predicted[t + 1])
        cross[t] = G @ smoothed_covs[t + 1]
        smoothed_covs[t] += G @ (smoothed_covs[t + 1] - spread[t + 1]) @ G.T
        cross[t] += np.outer(smoothed[t], smoothed[t + 1])
    return loglik, means, covs, smoothed, smoothed_covs, cross


def numba_smoother() -> Callable[..., Any] | None:
    """Returns the loop, compiled when it is first called; None without Numba."""
    try:
        import numba  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return numba.njit(_smooth)
