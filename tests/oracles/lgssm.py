"""Independent float64 references: the textbook recursions, and the dense joint Gaussian of all states and emissions."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from fastscan import ParamsLGSSM, ParamsLGSSMDynamics, ParamsLGSSMEmissions, ParamsLGSSMInitial

SMOOTHER_KERNELS = {
    "decorrelate",
    "first_observation",
    "indefinite",
    "kalman_filter_summarise",
    "kalman_filter_summaries_summarise",
    "kalman_filter_summaries_sweep",
    "kalman_filter_hindsight_sweep",
    "kalman_filter_sweep",
    "rts_smoother_begin",
    "rts_smoother_sweep",
}
"""What a smoother of more than one chunk runs on a GPU."""


class Moments(NamedTuple):
    """All in float64; ``loglik`` per step (T,)."""

    loglik: np.ndarray
    filtered_means: np.ndarray
    filtered_covariances: np.ndarray
    smoothed_means: np.ndarray
    smoothed_covariances: np.ndarray
    cross: np.ndarray


def random_params(seed: int, D: int, m: int, dtype="float64") -> ParamsLGSSM:
    """A stable, static, fully parametrised model without inputs."""
    r = np.random.default_rng(seed)
    rotation = np.linalg.qr(r.normal(size=(D, D)))[0]

    def spd(n):
        a = r.normal(size=(n, n)) * 0.4
        return a @ a.T + 0.3 * np.eye(n)

    arrays = (
        ParamsLGSSMInitial(r.normal(size=D), spd(D)),
        ParamsLGSSMDynamics(0.95 * rotation, r.normal(size=D) * 0.2, None, spd(D)),
        ParamsLGSSMEmissions(r.normal(size=(m, D)), r.normal(size=m) * 0.2, None, spd(m)),
    )
    return cast(ParamsLGSSM(*arrays), dtype)


def tracking_params(dtype="float64") -> ParamsLGSSM:
    """Särkkä (2013), example 3.6: position and velocity in the plane, positions observed."""
    dt = 0.1
    return cast(
        ParamsLGSSM(
            ParamsLGSSMInitial(np.array([0.0, 0.0, 1.0, -1.0]), np.eye(4)),
            ParamsLGSSMDynamics(
                np.eye(4) + dt * np.eye(4, k=2),
                None,
                None,
                np.kron(np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), np.eye(2)),
            ),
            ParamsLGSSMEmissions(np.eye(2, 4), None, None, 0.25 * np.eye(2)),
        ),
        dtype,
    )


@functools.partial(jax.jit, static_argnums=0)
def initial(model, key) -> Any:
    """Parameters of a dynamax model, in one program: by itself it compiles every operation."""
    return model.initialize(key)[0]


def one_axis(params) -> ParamsLGSSM:
    """Of a tracking model in the plane."""
    return jax.tree.map(lambda x: x[(slice(None, None, 2),) * x.ndim], params)


def cast(params, dtype) -> ParamsLGSSM:
    def one(part):
        return type(part)(*(None if x is None else np.asarray(x, dtype) for x in part))

    return ParamsLGSSM(*(one(part) for part in params))


def at(x, t: int, ndim: int, default):
    """A parameter's entry at t, in float64."""
    if x is None:
        return default
    if callable(x):
        return np.asarray(x(t), np.float64)
    x = np.asarray(x, np.float64)
    return x[t] if x.ndim > ndim else x


def step_params(params, t: int, D: int, m: int, inputs):
    U = 0 if inputs is None else inputs.shape[-1]
    u = np.zeros(0) if inputs is None else np.asarray(inputs[t], np.float64)
    dyn, emi = params.dynamics, params.emissions
    F, Q = at(dyn.weights, t, 2, None), at(dyn.cov, t, 2, None)
    b = at(dyn.bias, t, 1, np.zeros(D)) + at(dyn.input_weights, t, 2, np.zeros((D, U))) @ u
    H = at(emi.weights, t, 2, None)
    d = at(emi.bias, t, 1, np.zeros(m)) + at(emi.input_weights, t, 2, np.zeros((m, U))) @ u
    R = np.asarray(emi.cov, np.float64)
    if R.ndim == 3 or (R.ndim == 2 and R.shape != (m, m)):
        R = R[t]
    return F, b, Q, H, d, np.diag(R) if R.ndim == 1 else R


def simulate(params, T: int, seed: int, inputs=None) -> np.ndarray:
    """Emissions (T, m) in float64."""
    r = np.random.default_rng(seed)
    D, m = np.shape(params.initial.mean)[0], np.shape(params.emissions.weights)[-2]
    z = draw(r, np.asarray(params.initial.mean, float), params.initial.cov)
    ys = []
    for t in range(T):
        F, b, Q, H, d, R = step_params(params, t, D, m, inputs)
        if t:
            z = draw(r, F @ z + b, Q)
        ys.append(draw(r, H @ z + d, R))
    return np.array(ys)


def draw(r, mean, cov):
    """What NumPy's `multivariate_normal` draws, without its checks, which take most of its time."""
    u, s, _ = np.linalg.svd(np.asarray(cov, float))
    return mean + u * np.sqrt(s) @ r.standard_normal(len(mean))


def textbook(params, emissions, inputs=None) -> Moments:
    """Kalman filter and RTS smoother as in Särkkä (2013), missing entries dropped from the observation."""
    y = np.asarray(emissions, np.float64)
    T, m = y.shape
    D = np.shape(params.initial.mean)[0]
    mean, cov = np.asarray(params.initial.mean, np.float64), np.asarray(params.initial.cov, np.float64)
    loglik, fm, fP, pm, pP, Fs = [], [], [], [], [], []
    for t in range(T):
        F, b, Q, H, d, R = step_params(params, t, D, m, inputs)
        if t:
            mean, cov = F @ mean + b, F @ cov @ F.T + Q
        pm.append(mean), pP.append(cov), Fs.append(F)
        seen = ~np.isnan(y[t])
        H, R, v = H[seen], R[np.ix_(seen, seen)], (y[t] - d)[seen] - H[seen] @ mean
        S = H @ cov @ H.T + R
        K = np.linalg.solve(S, H @ cov).T
        loglik.append(-0.5 * (v @ np.linalg.solve(S, v) + np.linalg.slogdet(S)[1] + len(v) * np.log(2 * np.pi)))
        IKH = np.eye(D) - K @ H
        mean, cov = mean + K @ v, IKH @ cov @ IKH.T + K @ R @ K.T
        fm.append(mean), fP.append(cov)
    sm, sP, cross = [fm[-1]], [fP[-1]], []
    for t in range(T - 2, -1, -1):
        G = np.linalg.lstsq(pP[t + 1], Fs[t + 1] @ fP[t], rcond=1e-13)[0].T
        cross.append(G @ sP[-1] + np.outer(fm[t] + G @ (sm[-1] - pm[t + 1]), sm[-1]))
        E = np.eye(D) - G @ Fs[t + 1]
        Q = pP[t + 1] - Fs[t + 1] @ fP[t] @ Fs[t + 1].T
        sP.append(E @ fP[t] @ E.T + G @ (Q + sP[-1]) @ G.T)
        sm.append(fm[t] + G @ (sm[-1] - pm[t + 1]))
    cross = np.array(cross[::-1]).reshape(T - 1, D, D)
    return Moments(*map(np.array, (loglik, fm, fP, sm[::-1], sP[::-1])), cross)


def dense(params, emissions, inputs=None) -> tuple[float, np.ndarray, np.ndarray]:
    """Log-likelihood, posterior mean (T, D) and covariance (T, D, T, D) from the joint Gaussian, for small T."""
    y = np.asarray(emissions, np.float64)
    T, m = y.shape
    D = np.shape(params.initial.mean)[0]
    # z = M w + c with w the initial state's deviation and all noises, stacked
    M, c = np.zeros((T, D, T, D)), np.zeros((T, D))
    W, Hs, ds, Rs = [np.asarray(params.initial.cov, float)], [], [], []
    for t in range(T):
        F, b, Q, H, d, R = step_params(params, t, D, m, inputs)
        if t:
            M[t], c[t] = np.einsum("ij,jtk->itk", F, M[t - 1]), F @ c[t - 1] + b
            W.append(Q)
        else:
            c[0] = params.initial.mean
        M[t, :, t] += np.eye(D)
        Hs.append(H), ds.append(d), Rs.append(R)
    M = M.reshape(T * D, T * D)
    P = M @ block_diagonal(W) @ M.T
    H, R, d = block_diagonal(Hs), block_diagonal(Rs), np.concatenate(ds)
    seen = ~np.isnan(y.ravel())
    H, R, v = H[seen], R[np.ix_(seen, seen)], (y.ravel() - d - H @ c.ravel())[seen]
    S = H @ P @ H.T + R
    K = np.linalg.solve(S, H @ P).T
    loglik = -0.5 * (v @ np.linalg.solve(S, v) + np.linalg.slogdet(S)[1] + len(v) * np.log(2 * np.pi))
    mean, cov = c.ravel() + K @ v, P - K @ H @ P
    return loglik, mean.reshape(T, D), cov.reshape(T, D, T, D)


def block_diagonal(blocks) -> np.ndarray:
    rows, columns = sum(b.shape[0] for b in blocks), sum(b.shape[1] for b in blocks)
    out, i, j = np.zeros((rows, columns)), 0, 0
    for b in blocks:
        out[i : i + b.shape[0], j : j + b.shape[1]] = b
        i, j = i + b.shape[0], j + b.shape[1]
    return out


TOLERANCE = {
    # relative to the largest entry of each quantity
    "float64": {"moments": 1e-9, "loglik": 1e-9},
    "float32": {"moments": 2e-4, "loglik": 2e-5},
}


def assert_moments(posterior, reference: Moments, dtype: str, scale: float = 1.0) -> None:
    """Every field of a smoother's (or filter's) result against the reference."""
    table = TOLERANCE[str(dtype)]
    close(posterior.marginal_loglik, reference.loglik.sum(), table["loglik"] * scale, "loglik")
    names = ("filtered_means", "filtered_covariances")
    if hasattr(posterior, "smoothed_means"):
        names += ("smoothed_means", "smoothed_covariances")
        close(posterior.smoothed_cross_covariances, reference.cross, table["moments"] * scale, "cross")
    for name in names:
        close(getattr(posterior, name), getattr(reference, name), table["moments"] * scale, name)


def close(given, wanted, tolerance: float, name: str = "") -> None:
    given, wanted = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    assert given.shape == wanted.shape, (name, given.shape, wanted.shape)
    if wanted.size:
        error = np.max(np.abs(given - wanted)) / max(np.max(np.abs(wanted)), 1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.2e}, allowed {tolerance:.1e}"
