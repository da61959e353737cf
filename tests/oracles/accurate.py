"""Moments to more digits than float64 has, without a division by anything but an innovation's variance; and measures of error.

The smoother is Bryson and Frazier's: states without noise, covariances of any rank and models of any condition are no cases of
their own. Arithmetic is `np.longdouble`'s, 64 bits of mantissa on x86, or mpmath's where a test asks whether that is enough.
"""

from typing import Any, NamedTuple

import numpy as np

from oracles.lgssm import step_params

KNOWN = 1e-13
"""An innovation whose variance is such a part of what its terms would add up to is zero: the observation was known before."""
UNITS = 4
"""Of rounding, that anyone may be off."""
GOOD = 1e-4
"""An error that nobody has to fall below, of the posterior's standard deviation, variance, or of the log-likelihood."""


class Truth(NamedTuple):
    """In float64, but found with more. Covariances are central, ``cross`` of z_t and z_{t+1}.

    A rounding of the variances (T, D) ``scale`` is what a filter may be off, and a smoother: see `truth`.
    """

    loglik: np.ndarray
    scale: np.ndarray
    filtered_means: np.ndarray
    filtered_covariances: np.ndarray
    smoothed_means: np.ndarray
    smoothed_covariances: np.ndarray
    cross: np.ndarray


def steps(params, T: int, m: int, convert) -> list[tuple[Any, ...]]:
    """F, b, Q, H, d, R of every step; of what is static, one array for all."""
    D, cache = len(params.initial.mean), {}
    varying = any(np.ndim(x) > n for x, n in zip(_arrays(params), (2, 1, 2, 2, 1, 2), strict=True) if x is not None)
    for t in range(T if varying else 1):
        cache[t] = tuple(convert(x) for x in step_params(params, t, D, m, None))
    return [cache[t if varying else 0] for t in range(T)]


def _arrays(params):
    (F, b, _, Q), (H, d, _, R) = params.dynamics, params.emissions
    return F, b, Q, H, d, R


def news(H, P, R, v):
    """Rows of H whose observation is not known already, their innovations, and of their covariance the inverse and log det.

    By Gauss and Jordan, an observation after the other: a pivot is the variance of what this one says beyond those before.
    """
    S = H @ P @ H.T + R
    size = np.abs(H) @ np.abs(P) @ np.abs(H).T + np.abs(R)
    work, kept, logdet = S.copy(), [], 0 * P[0, 0]
    for i in range(len(S)):
        pivot = work[i, i]
        if pivot <= KNOWN * size[i, i]:
            continue
        kept.append(i)
        logdet = logdet + _log(pivot)
        column = work[:, i].copy()
        work = work - np.outer(column, column) / pivot
    S = S[np.ix_(kept, kept)]
    return H[kept], R[np.ix_(kept, kept)], v[kept], inverse(S), logdet


def _log(x):
    return np.log(x) if isinstance(x, np.floating) else x.context.log(x)


def inverse(S):
    """Of a positive definite matrix, by Gauss and Jordan, in whatever numbers it has."""
    n = len(S)
    work = np.concatenate([S, np.eye(n, dtype=int) + 0 * S], 1)
    for i in range(n):
        work[i] = work[i] / work[i, i]
        for j in range(n):
            if j != i:
                work[j] = work[j] - work[j, i] * work[i]
    return work[:, n:]


def truth(params, emissions, convert=np.longdouble) -> Truth:
    """The moments for exactly these parameters and emissions, whatever their dtype.

    The scale of rounding is the predicted variance, once before and once after it is conditioned, and what roundings of earlier
    steps have become: a lag that is known exactly has no variance any more, but it had one when it was observed.

    Args:
        params: as `lgssm_smoother` takes them, of NumPy arrays.
        emissions: (T, m).
        convert: from an array of float64 to one of the numbers to compute with.
    """
    y = np.asarray(emissions, np.float64)
    (T, m), D = y.shape, len(params.initial.mean)
    two_pi = 2 * convert(np.array([np.pi]))[0]
    a, P = (convert(np.asarray(x, np.float64)) for x in params.initial)
    eye, saved, loglik, filtered, scale, U = convert(np.eye(D)), [], [], [], [], np.zeros((D, D))
    rows = steps(params, T, m, convert)
    for t, (F, b, Q, H, d, R) in enumerate(rows):
        if t:
            a, P = F @ a + b, F @ P @ F.T + Q
        rounded, A = np.diag(np.abs(np.diagonal(P).astype(float))), F.astype(float)
        U = A @ U @ A.T + rounded
        seen = ~np.isnan(y[t])
        v = (convert(np.nan_to_num(y[t])) - d)[seen] - H[seen] @ a
        H, R, v, inv, logdet = news(H[seen], P, R[np.ix_(seen, seen)], v)
        K = P @ H.T @ inv
        L = eye - K @ H
        saved.append((a, P, H.T @ (inv @ v), H.T @ inv @ H, L))
        loglik.append(-0.5 * float(v @ inv @ v + logdet + len(v) * _log(two_pi)))
        scale.append(np.diagonal(U))
        A = L.astype(float)
        U = A @ U @ A.T + rounded
        a, P = a + K @ v, L @ P @ L.T + K @ R @ K.T
        filtered.append((a, P))
    r, N = 0 * a, 0 * P
    smoothed, cross = [], []
    for t in range(T - 1, -1, -1):
        a, P, u, J, L = saved[t]
        if t < T - 1:
            L = rows[t + 1][0] @ L
            after = saved[t + 1][1]
            cross.append(P @ L.T @ (eye - N @ after))
        r, N = u + L.T @ r, J + L.T @ N @ L
        smoothed.append((a + P @ r, P - P @ N @ P))

    def array(x, *shape):
        return np.array([np.asarray(one, np.float64) for one in x]).reshape(-1, *shape)

    fm, fP = zip(*filtered, strict=True)
    sm, sP = zip(*smoothed[::-1], strict=True)
    return Truth(
        np.array(loglik), array(scale, D), array(fm, D), array(fP, D, D), array(sm, D), array(sP, D, D),
        array(cross[::-1], D, D),
    )  # fmt: skip


def mpmath_numbers(digits: int):
    """A `convert` to mpmath's numbers."""
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    return lambda x: np.vectorize(context.mpf, otypes=[object])(x) if np.size(x) else np.zeros(np.shape(x), object)


def solve(A, B):
    """A^-1 B; where A is exactly singular, by least squares, in units of A's own."""
    try:
        return np.linalg.solve(A, B)
    except np.linalg.LinAlgError:
        d = np.sqrt(np.maximum(np.diagonal(A), 0))
        d = np.where(d > 0, d, 1)
        units = d[(..., *[None] * (B.ndim - 1))]
        return np.linalg.lstsq(A / np.outer(d, d), B / units, rcond=None)[0] / units


def textbook(params, emissions) -> Truth | None:
    """The plain forms in NumPy, in the dtype of what is given: P - K S K', and Rauch, Tung and Striebel's gain by a solve.

    None where least squares do not converge, which is for numbers that are not finite.
    """
    y = np.asarray(emissions)
    dtype, (T, m) = y.dtype, y.shape
    rows = steps(params, T, m, lambda x: x.astype(dtype))
    a, P = (np.asarray(x, dtype) for x in params.initial)
    out, before = [], []
    try:
        with np.errstate(all="ignore"):
            for t, (F, b, Q, H, d, R) in enumerate(rows):
                if t:
                    a, P = F @ a + b, F @ P @ F.T + Q
                before.append((a, P))
                seen = ~np.isnan(y[t])
                v, H = (y[t] - d - H @ a)[seen], H[seen]
                S = H @ P @ H.T + R[np.ix_(seen, seen)]
                K = solve(S, H @ P).T
                ll = -0.5 * (v @ solve(S, v) + np.linalg.slogdet(S)[1] + len(v) * np.log(2 * np.pi))
                a, P = a + K @ v, P - K @ S @ K.T
                out.append((ll, a, P))
            smoothed, cross = [(a, P)], []
            for t in range(T - 2, -1, -1):
                (_, a, P), F, (b, after) = out[t], rows[t + 1][0], before[t + 1]
                G = solve(after, F @ P).T
                mean, cov = smoothed[-1]
                cross.append(G @ cov)
                smoothed.append((a + G @ (mean - b), P + G @ (cov - after) @ G.T))
    except np.linalg.LinAlgError:
        return None
    (ll, fm, fP), (sm, sP) = zip(*out, strict=True), zip(*smoothed[::-1], strict=True)
    D = len(a)
    unknown = np.full((T, D), np.nan)
    return Truth(*map(np.array, (ll, unknown, fm, fP, sm, sP)), np.array(cross[::-1]).reshape(-1, D, D))


def as_covariances(params):
    """The same model, in float64, with Q and the initial covariance positive semi-definite; None if they were so already.

    Rounding leaves a singular covariance an eigenvalue a rounding below zero, and who infers may take it for zero.
    """
    Q, P = np.asarray(params.dynamics.cov, np.float64), np.asarray(params.initial.cov, np.float64)
    new_Q, new_P = nearest(Q), nearest(P)
    if new_Q is Q and new_P is P:
        return None
    return params._replace(initial=params.initial._replace(cov=new_P), dynamics=params.dynamics._replace(cov=new_Q))


def nearest(cov: np.ndarray) -> np.ndarray:
    """Negative eigenvalues raised to zero, of what the covariance is in units of the standard deviations."""
    sd = np.sqrt(np.maximum(np.diagonal(cov, axis1=-2, axis2=-1), 0))
    units = np.where(sd > 0, sd, 1)
    units = units[..., :, None] * units[..., None, :]
    values, vectors = np.linalg.eigh(cov / units)
    if np.min(values) >= 0:
        return cov
    return (vectors * np.maximum(values, 0)[..., None, :]) @ vectors.mT * units


def errors(given: dict[str, np.ndarray], wanted: Truth, eps: float) -> dict[str, float]:
    """Of everything that is given, by `Truth`'s names, the largest error; infinite where something is no number.

    Of means in standard deviations, of covariances in the geometric mean of the two variances, of the log-likelihood in nats or
    relative to itself. Where a standard deviation is so small that rounding of the mean, or of the covariance before,
    exceeds it, `UNITS` of rounding count as `GOOD`.
    """
    out = {}
    for name, x in given.items():
        if x is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            error = _error(name, np.asarray(x, np.float64), wanted, eps)
        out[name] = float(error) if np.isfinite(error) else np.inf
    return out


def _error(name, x, wanted, eps):
    right = getattr(wanted, name)
    if name == "loglik":
        return abs(x - right.sum()) / max(1.0, abs(right.sum()))
    if not name.endswith("means"):
        return np.max(_covariance_error(x, right, name, wanted, eps), initial=0.0)
    var = np.diagonal(getattr(wanted, name.replace("means", "covariances")), axis1=1, axis2=2)
    rounding = UNITS * eps * (np.abs(right) + np.sqrt(wanted.scale))
    unit = np.sqrt(np.maximum(var, 0)) + rounding / GOOD
    return np.max(np.abs(x - right) / np.maximum(unit, np.finfo(float).tiny))


def _covariance_error(x, right, name, wanted, eps):
    variances = wanted.filtered_covariances if name == "filtered_covariances" else wanted.smoothed_covariances
    var, rounding = np.diagonal(variances, axis1=1, axis2=2), UNITS * eps * wanted.scale
    unit, lost = np.maximum(var, rounding), var < rounding

    def pairs(a, combine):
        left, other = (a[:-1], a[1:]) if name == "cross" else (a, a)
        return combine(left[:, :, None], other[:, None, :])

    chance = np.where(pairs(lost, np.logical_or), np.sqrt(pairs(rounding, np.multiply)), 0)
    return np.maximum(np.abs(x - right) - chance, 0) / np.maximum(np.sqrt(pairs(unit, np.multiply)), np.finfo(float).tiny)


def least_variance(cov: np.ndarray, wanted: Truth) -> float:
    """The smallest variance, in units of the scale of rounding: what is below zero by more than a few of these is wrong."""
    var = np.diagonal(np.asarray(cov, np.float64), axis1=-2, axis2=-1)
    tiny = np.finfo(np.float32).tiny
    return float(np.min(np.where(np.isnan(var), -np.inf, var) / np.maximum(wanted.scale, tiny)))
