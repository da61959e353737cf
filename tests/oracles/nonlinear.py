"""Infer in nonlinear models with Gaussian noise, in plain float64 NumPy: textbook recursions, and dense solves for whole paths.

z_0 ~ N(m0, P0);  z_t = f(z_{t-1}, u_t) + N(0, Q_t);  y_t = h(z_t, u_t) + N(0, R_t). Entry t of Q belongs to the transition from
t - 1 to t, and entry 0 is never read. An entry of y that is NaN is missing: its rows of h, H and R are dropped. Every function
takes emissions ``ys`` (T, m) and inputs ``us`` (T, U), or None for inputs, where the model's functions are given None for u.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

LOG_2PI = math.log(2 * math.pi)
HALVINGS = 40
"""How often a step of `laplace` is halved before none is taken."""
ROUNDING = 1e-13
"""What part of an objective may be rounding."""


class Model(NamedTuple):
    """Hold a model: m0 (D,), P0 (D, D), Q (T, D, D), R (T, m, m), functions of z and u, and their Jacobians F and H.

    `laplace` reads neither h nor H nor R.
    """

    m0: np.ndarray
    P0: np.ndarray
    f: Callable
    F: Callable
    Q: np.ndarray
    h: Any = None
    H: Any = None
    R: Any = None


class Emissions(NamedTuple):
    """Hold what `laplace` takes: minus a log density of (y, z, u), its gradient (D,) and its Hessian (D, D) in z."""

    loss: Callable
    gradient: Callable
    curvature: Callable


def extended_filter(model: Model, ys, us=None, iterations=1):
    """Run the extended Kalman filter, or the iterated one: log-likelihood, means (T, D), covariances (T, D, D).

    Every iteration linearises h anew at the mean that the last one found, and conditions the prediction. The log-likelihood is
    that of the first linearisation.
    """

    def update(t, mean, cov, y, u):
        point, first = mean, None
        for _ in range(iterations):
            H = _at(model.H, point, u)
            expected = _at(model.h, point, u) + H @ (mean - point)
            loglik, point, posterior = _condition(mean, cov, y, expected, H @ cov @ H.T + model.R[t], cov @ H.T)
            first = loglik if first is None else first
        return first, point, posterior

    return _filter(model, ys, us, _extended_prediction(model), update)


def extended_smoother(model: Model, ys, us=None, iterations=1):
    """Run the extended filter and an RTS smoother, with f linearised at filtered means.

    Returns:
        Log-likelihood; filtered means and covariances; smoothed ones; E[z_t z_{t+1}'] (T - 1, D, D).
    """
    return _smoother(us, _extended_prediction(model), extended_filter(model, ys, us, iterations))


def unscented_filter(model: Model, ys, us=None, alpha=3**0.5, beta=2.0, kappa=1.0):
    """Run the additive unscented filter of Särkkä (2013): log-likelihood, means (T, D), covariances (T, D, D)."""

    def update(t, mean, cov, y, u):
        expected, S, cross = _transform(model.h, mean, cov, u, alpha, beta, kappa)
        return _condition(mean, cov, y, expected, S + model.R[t], cross)

    return _filter(model, ys, us, _unscented_prediction(model, alpha, beta, kappa), update)


def unscented_smoother(model: Model, ys, us=None, alpha=3**0.5, beta=2.0, kappa=1.0):
    """Run the unscented filter and the unscented RTS smoother, which return what `extended_smoother` returns."""
    filtered = unscented_filter(model, ys, us, alpha, beta, kappa)
    return _smoother(us, _unscented_prediction(model, alpha, beta, kappa), filtered)


def _filter(model, ys, us, predict, update):
    """Run predictions and updates."""
    us, (mean, cov) = _inputs(us, len(ys)), (np.asarray(x, np.float64) for x in (model.m0, model.P0))
    loglik, means, covs = 0.0, [], []
    for t, y in enumerate(np.asarray(ys, np.float64)):
        if t:
            mean, cov, _ = predict(t, mean, cov, us[t])
        gained, mean, cov = update(t, mean, cov, y, us[t])
        loglik = loglik + gained
        means.append(mean), covs.append(cov)
    return loglik, np.array(means), np.array(covs)


def _smoother(us, predict, filtered):
    """Run the RTS recursion backwards over filtered moments."""
    loglik, means, covs = filtered
    T, D = means.shape
    us, smoothed, P, cross = _inputs(us, T), means.copy(), covs.copy(), np.zeros((T - 1, D, D))
    for t in range(T - 2, -1, -1):
        predicted, S, C = predict(t + 1, means[t], covs[t], us[t + 1])
        G = np.linalg.solve(S, C.T).T
        smoothed[t] = means[t] + G @ (smoothed[t + 1] - predicted)
        P[t] = _symmetric(covs[t] + G @ (P[t + 1] - S) @ G.T)
        cross[t] = G @ P[t + 1] + np.outer(smoothed[t], smoothed[t + 1])
    return loglik, means, covs, smoothed, P, cross


def _extended_prediction(model):
    """Make a function that predicts a mean, a covariance and the covariance of a state with the next."""

    def predict(t, mean, cov, u):
        F = _at(model.F, mean, u)
        return _at(model.f, mean, u), F @ cov @ F.T + model.Q[t], cov @ F.T

    return predict


def _unscented_prediction(model, *scaling):
    """Make the same by sigma points."""

    def predict(t, mean, cov, u):
        expected, S, cross = _transform(model.f, mean, cov, u, *scaling)
        return expected, S + model.Q[t], cross

    return predict


def _condition(mean, cov, y, expected, S, cross):
    """Condition a Gaussian on the entries of y that are seen: their log density, and the posterior's mean and covariance.

    Emissions are ``expected``, have the covariance S, and ``cross`` is that of the state with them.
    """
    seen = ~np.isnan(y)
    v, S, cross = (y - expected)[seen], S[np.ix_(seen, seen)], cross[:, seen]
    K = np.linalg.solve(S, cross.T).T
    return _log_density(v, S), mean + K @ v, _symmetric(cov - K @ S @ K.T)


def _transform(function, mean, cov, u, alpha, beta, kappa):
    """Push a Gaussian through a function by sigma points: mean, covariance, and the covariance of what goes in with it."""
    n = len(mean)
    total = alpha**2 * (n + kappa)  # n + lambda
    weights = np.full(2 * n + 1, 1 / (2 * total))
    weights[0] = (total - n) / total
    central = weights.copy()
    central[0] += 1 - alpha**2 + beta
    spread = np.sqrt(total) * np.linalg.cholesky(cov).T
    points = np.concatenate([mean[None], mean + spread, mean - spread])
    values = np.array([_at(function, point, u) for point in points])
    expected = weights @ values
    off = values - expected
    return expected, (central * off.T) @ off, (central * (points - mean).T) @ off


def objective(model: Model, ys, us, path) -> float:
    """Return minus log p(path, y), all constants included."""
    return -sum(_log_density(r, cov) for r, cov, _ in _terms(model, ys, us, np.asarray(path, np.float64)))


def gauss_newton(model: Model, ys, us, start, iterations):
    """Find the most likely path by undamped Gauss-Newton steps, each a least-squares problem of all whitened residuals.

    Returns:
        The mode (T, D); the inverse (T D, T D) of J'J there; Laplace's approximation of the log-likelihood.
    """
    path = np.array(start, np.float64)
    for _ in range(iterations):
        r, J = _whitened(_terms(model, ys, us, path), path.shape)
        path = path - np.linalg.lstsq(J, r, rcond=None)[0].reshape(path.shape)
    J = _whitened(_terms(model, ys, us, path), path.shape)[1]
    return path, *_laplace(J.T @ J, objective(model, ys, us, path))


def laplace(model: Model, ys, us, start, iterations, loss, gradient, curvature):
    """Find the most likely path under any emissions: exact Newton steps in these, Gauss-Newton steps in the dynamics.

    A step is halved until the objective falls. Emissions are `Emissions`' three functions; only whole rows may be missing.

    Returns:
        What `gauss_newton` returns, with the Hessian of which a step is made in place of J'J.
    """
    path, ys = np.array(start, np.float64), np.asarray(ys, np.float64)
    (T, D), us = path.shape, _inputs(us, len(ys))
    seen = [t for t in range(T) if not np.isnan(ys[t]).any()]
    assert all(np.isnan(ys[t]).all() for t in range(T) if t not in seen), "only whole rows may be missing"

    def value(path):
        dynamics = -sum(_log_density(r, cov) for r, cov, _ in _dynamics_terms(model, us, path))
        return dynamics + sum(float(loss(ys[t], path[t], us[t])) for t in seen)

    def derivatives(path):
        r, J = _whitened(_dynamics_terms(model, us, path), path.shape)
        slope, hessian = (J.T @ r).reshape(T, D), (J.T @ J).reshape(T, D, T, D)
        for t in seen:
            slope[t] += np.asarray(gradient(ys[t], path[t], us[t]), np.float64)
            hessian[t, :, t] += np.asarray(curvature(ys[t], path[t], us[t]), np.float64)
        return slope.reshape(T * D), hessian.reshape(T * D, T * D)

    for _ in range(iterations):
        slope, hessian = derivatives(path)
        step, before = np.linalg.solve(hessian, slope).reshape(T, D), value(path)
        for halvings in range(HALVINGS):
            tried = path - step / 2**halvings
            if value(tried) <= before + ROUNDING * (1 + abs(before)):
                path = tried
                break
    return path, *_laplace(derivatives(path)[1], value(path))


def poisson(C, d) -> Emissions:
    """Return loss, gradient and curvature of counts whose log rates are C z + d."""

    def loss(y, z, _):
        return np.sum(np.exp(C @ z + d) - y * (C @ z + d)) + sum(math.lgamma(k + 1) for k in y)

    def gradient(y, z, _):
        return C.T @ (np.exp(C @ z + d) - y)

    return Emissions(loss, gradient, lambda _, z, __: C.T @ (np.exp(C @ z + d)[:, None] * C))


def posterior_linearization(model: Model, ys, us, means, covs, alpha, beta, kappa, iterations):
    """Run the iterated posterior linearisation smoother by joint Gaussians of all states and emissions.

    Each iteration linearises f and h at the last moments by statistical linear regression, and conditions the joint Gaussian of
    this affine model. One more follows after all iterations: moments and log-likelihood are of the same last joint Gaussian.

    Returns:
        Means (T, D), covariances (T, D, D), and the log density of the emissions.
    """
    means, covs, loglik = np.asarray(means, np.float64), np.asarray(covs, np.float64), None
    for _ in range(iterations + 1):
        means, covs, loglik = _linearised(model, ys, us, means, covs, (alpha, beta, kappa))
    return means, covs, loglik


def _linearised(model, ys, us, means, covs, scaling):
    """Linearise at these moments and condition: marginal means and covariances, log density of the emissions."""
    (T, D), us = means.shape, _inputs(us, len(ys))
    # path = M (noises) + c
    M, c, noises, Hs, ds, Rs = np.eye(T * D).reshape(T, D, T, D), np.zeros((T, D)), [model.P0], [], [], []
    c[0] = model.m0
    for t in range(T):
        if t:
            A, b, extra = _regression(model.f, means[t - 1], covs[t - 1], us[t], scaling)
            M[t] += np.einsum("ij,jsk->isk", A, M[t - 1])
            c[t] = A @ c[t - 1] + b
            noises.append(model.Q[t] + extra)
        H, d, extra = _regression(model.h, means[t], covs[t], us[t], scaling)
        Hs.append(H), ds.append(d), Rs.append(model.R[t] + extra)
    M, c, H = M.reshape(T * D, T * D), c.ravel(), _diagonal(Hs)
    P = M @ _diagonal(noises) @ M.T
    y = np.asarray(ys, np.float64).ravel()
    loglik, mean, cov = _condition(c, P, y, H @ c + np.concatenate(ds), H @ P @ H.T + _diagonal(Rs), P @ H.T)
    every = np.arange(T)
    return mean.reshape(T, D), cov.reshape(T, D, T, D)[every, :, every], loglik


def _regression(function, mean, cov, u, scaling):
    """Regress a function on a Gaussian state: slope, intercept, and the covariance of what is left."""
    expected, Phi, Psi = _transform(function, mean, cov, u, *scaling)
    A = np.linalg.solve(cov, Psi).T
    return A, expected - A @ mean, Phi - A @ cov @ A.T


def _terms(model, ys, us, path) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]]:
    """Yield all residuals, their covariances, and their Jacobians in the states at some times."""
    us = _inputs(us, len(ys))
    yield from _dynamics_terms(model, us, path)
    for t, y in enumerate(np.asarray(ys, np.float64)):
        seen = ~np.isnan(y)
        r, H = y - _at(model.h, path[t], us[t]), _at(model.H, path[t], us[t])
        yield r[seen], model.R[t][np.ix_(seen, seen)], {t: -H[seen]}


def _dynamics_terms(model, us, path):
    """Yield those of the initial state and of the transitions."""
    eye = np.eye(path.shape[1])
    yield path[0] - model.m0, model.P0, {0: eye}
    for t in range(1, len(path)):
        r, F = path[t] - _at(model.f, path[t - 1], us[t]), _at(model.F, path[t - 1], us[t])
        yield r, model.Q[t], {t - 1: -F, t: eye}


def _whitened(terms, shape):
    """Stack whitened residuals and their Jacobian in the whole path."""
    residuals, rows = [], []
    for r, cov, blocks in terms:
        J = np.zeros((len(r), *shape))
        for t, block in blocks.items():
            J[:, t] = block
        factor = np.linalg.cholesky(np.asarray(cov, np.float64))
        residuals.append(np.linalg.solve(factor, r))
        rows.append(np.linalg.solve(factor, J.reshape(len(r), math.prod(shape))))
    return np.concatenate(residuals), np.concatenate(rows)


def _laplace(hessian, minimum):
    """Return a covariance, and the log of the integral of a Gaussian with the Hessian and minimum of minus its log."""
    return np.linalg.inv(hessian), 0.5 * (len(hessian) * LOG_2PI - np.linalg.slogdet(hessian)[1]) - minimum


def _log_density(v, cov) -> float:
    """Return the log density of N(0, cov)."""
    cov = np.asarray(cov, np.float64)
    return -0.5 * (v @ np.linalg.solve(cov, v) + np.linalg.slogdet(cov)[1] + len(v) * LOG_2PI)


def _diagonal(blocks) -> np.ndarray:
    """Put T blocks of one shape on a diagonal."""
    blocks = np.array(blocks)
    T, n, m = blocks.shape
    out, every = np.zeros((T, n, T, m)), np.arange(T)
    out[every, :, every] = blocks
    return out.reshape(T * n, T * m)


def _symmetric(P):
    return (P + P.T) / 2


def _at(function, z, u) -> np.ndarray:
    return np.asarray(function(z, u), np.float64)


def _inputs(us, T):
    return [None] * T if us is None else us
