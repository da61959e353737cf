"""Linear-Gaussian models that people have: of structural time series, trackers, Gaussian processes, ODE filters, econometrics.

A builder takes T and a generator and returns parameters in float64 and emissions, which the model itself has drawn where it is
stationary enough for that. `MODELS` names them, and `prepare` gives one to a test: in other units, in another order, with
gaps, rounded to a dtype.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastscan import ParamsLGSSM, ParamsLGSSMDynamics, ParamsLGSSMEmissions, ParamsLGSSMInitial
from oracles.lgssm import block_diagonal, cast, draw, random_params, step_params


class Drawn(NamedTuple):
    """A model and its data.

    Attributes:
        params: in float64.
        emissions: (T, m) in float64, NaN where the model itself is not observed.
        by_subtraction: Q is P - F P F', for the initial covariance P, in the arithmetic of the dtype under test.
    """

    params: ParamsLGSSM
    emissions: np.ndarray
    by_subtraction: bool = False


class Family(NamedTuple):
    """A builder, the sizes of its models, and the lengths that make sense for them.

    Attributes:
        build: from T and a generator.
        D: states.
        m: emissions.
        longest: the largest T at which numbers of float32 still say something of the model.
        varying: what has an axis of time; compiled programs differ by it.
        digits: that the truth is found with, where not `np.longdouble`'s.
        rescaled: emissions stay consistent in other units. Where two sensors say the same, rounding would make them differ.
    """

    build: Callable[[int, np.random.Generator], Drawn]
    D: int
    m: int
    longest: int = 5_000
    varying: str = ""
    digits: int = 0
    rescaled: bool = True

    @property
    def shapes(self) -> tuple[int, int, str]:
        """Models that agree in it run in the same compiled programs."""
        return self.D, self.m, self.varying


def lgssm(F, Q, H, R, m0, P0) -> ParamsLGSSM:
    F, Q, H, R, m0, P0 = (np.asarray(x, float) for x in (F, Q, H, R, m0, P0))
    return ParamsLGSSM(
        ParamsLGSSMInitial(m0, P0), ParamsLGSSMDynamics(F, None, None, Q), ParamsLGSSMEmissions(H, None, None, R)
    )


def drawn(params: ParamsLGSSM, T: int, r: np.random.Generator, by_subtraction: bool = False) -> Drawn:
    """With emissions of the model's own, drawn as `oracle.simulate` does it, but from one generator for all."""
    D, m = len(params.initial.mean), params.emissions.weights.shape[-2]
    z, ys = draw(r, params.initial.mean, params.initial.cov), []
    for t in range(T):
        F, b, Q, H, d, R = step_params(params, t, D, m, None)
        z = draw(r, F @ z + b, Q) if t else z
        ys.append(draw(r, H @ z + d, R))
    return Drawn(params, np.array(ys), by_subtraction)


def stationary(F: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """P = F P F' + Q."""
    D = len(F)
    P = np.linalg.solve(np.eye(D * D) - np.kron(F, F), Q.ravel()).reshape(D, D)
    return (P + P.T) / 2


def structural(period: int = 0, slope: bool = True, diffuse: float = 1e4):
    """Level, slope, and a seasonal pattern as dummies, of which one has noise: Q is singular."""

    def build(T, r):
        trend, season = (np.array([[1, 1], [0, 1]]) if slope else np.eye(1)), max(period - 1, 0)
        dummies = np.vstack([-np.ones(season), np.eye(season - 1, season)]) if season else np.zeros((0, 0))
        Q = np.diag([0.1, 0.001][: len(trend)] + [0.01][:season] + [0.0] * (season - 1))
        H = np.concatenate([np.eye(1, len(trend)), np.eye(1, season)], 1)
        D = len(trend) + season
        params = lgssm(block_diagonal([trend, dummies]), Q, H, [[0.5]], np.zeros(D), np.eye(D))
        y = drawn(params, T, r).emissions
        return Drawn(params._replace(initial=params.initial._replace(cov=diffuse * np.eye(D))), y)

    return build


def wiener(order: int, h: float, noise: float = 1e-6):
    """A Wiener process integrated `order` times, nearly exactly observed: an ODE filter's prior, a smoothing spline's.

    The data are a smooth function's. The process itself grows as T**order, until its rounding says more than the model.
    """

    def build(T, r):
        D, f = order + 1, math.factorial
        F = [[h ** (j - i) / f(j - i) if j >= i else 0.0 for j in range(D)] for i in range(D)]
        e = np.array([[2 * order + 1 - i - j for j in range(D)] for i in range(D)])
        Q = [[h ** e[i, j] / (e[i, j] * f(order - i) * f(order - j)) for j in range(D)] for i in range(D)]
        y = np.sin(h * np.arange(T) + r.uniform(0, 6))[:, None] + math.sqrt(noise) * r.normal(size=(T, 1))
        return Drawn(lgssm(F, Q, np.eye(1, D), [[noise]], np.zeros(D), np.eye(D)), y)

    return build


def constant_velocity(q: float = 0.1, everywhere: bool = False, exact: bool = False):
    """In the plane. Q is of rank two, from one acceleration an axis; or filterpy's, `q` in every entry, of rank one."""

    def build(T, r):
        h = 1.0
        one = q * np.outer([h**2 / 2, h], [h**2 / 2, h])
        F, Q = np.eye(4) + h * np.eye(4, k=2), np.full((4, 4), q) if everywhere else np.kron(one, np.eye(2))
        R = np.zeros((2, 2)) if exact else 7 * np.eye(2)
        return drawn(lgssm(F, Q, np.eye(2, 4), R, np.zeros(4), np.diag([500, 500, 0.1, 0.1])), T, r)

    return build


def constant_acceleration(T, r):
    """In the plane, with one jerk an axis: Q is of rank two."""
    h = 0.5
    F = np.eye(6) + h * np.eye(6, k=2) + h**2 / 2 * np.eye(6, k=4)
    jerk = np.array([h**2 / 2, h, 1.0])
    Q = np.kron(0.01 * np.outer(jerk, jerk), np.eye(2))
    return drawn(lgssm(F, Q, np.eye(2, 6), np.eye(2), np.zeros(6), np.diag([100, 100, 1, 1, 0.1, 0.1])), T, r)


def autoregression(p: int, noise: float):
    """In companion form, with stationary partial autocorrelations, by Durbin and Levinson; without noise, states are known."""

    def build(T, r):
        a = np.zeros(0)
        for k in r.uniform(-0.8, 0.8, p):
            a = np.append(a - k * a[::-1], k)
        F, Q = np.vstack([a, np.eye(p - 1, p)]), np.diag(np.eye(1, p)[0])
        return drawn(lgssm(F, Q, np.eye(1, p), [[noise]], np.zeros(p), stationary(F, Q)), T, r)

    return build


def matern(order: int, least: float = 1e-3):
    """A Gaussian process at irregular times. Users find Q_t as P - F P F', which may come out a rounding below zero.

    Of order 0, 1, 2 for the kernels 1/2, 3/2, 5/2; gaps from `least` to 1.
    """

    def build(T, r):
        D, rate = order + 1, math.sqrt(2 * order + 1)
        gaps = np.exp(r.uniform(math.log(least), 0, T))
        # the companion matrix of (s + rate)^D; expm of the nilpotent rest is a short sum
        A = np.diag(np.ones(order), 1)
        A[-1] = [-math.comb(D, i) * rate ** (D - i) for i in range(D)]
        N = A + rate * np.eye(D)
        powers = [np.linalg.matrix_power(N, k) / math.factorial(k) for k in range(D)]
        F = np.array([math.exp(-rate * h) * sum(h**k * x for k, x in enumerate(powers)) for h in gaps])
        unit = np.zeros((D, D))
        unit[-1, -1] = 1.0
        P = np.linalg.solve(np.kron(A, np.eye(D)) + np.kron(np.eye(D), A), -unit.ravel()).reshape(D, D)
        P /= P[0, 0]
        P[np.add.outer(np.arange(D), np.arange(D)) % 2 == 1] = 0.0
        params = lgssm(F, P - F @ P @ F.mT, np.eye(1, D), [[0.01]], np.zeros(D), (P + P.T) / 2)
        return drawn(params, T, r, by_subtraction=True)

    return build


def mixed_frequency(lags: int, series: int):
    """A vector autoregression, exactly observed, of which the last series is seen every third step only."""

    def build(T, r):
        D = lags * series
        blocks = [np.linalg.qr(r.normal(size=(series, series)))[0] * 0.8 / 2**k / lags for k in range(lags)]
        F = np.vstack([np.hstack(blocks), np.eye(D - series, D)])
        noise = r.normal(size=(series, series)) * 0.3 + np.eye(series)
        Q = block_diagonal([noise @ noise.T, np.zeros((D - series, D - series))])
        made = drawn(lgssm(F, Q, np.eye(series, D), np.zeros((series, series)), np.zeros(D), stationary(F, Q)), T, r)
        made.emissions[np.arange(T) % 3 != 2, -1] = np.nan
        return made

    return build


def regression(D: int, level: bool):
    """Coefficients that do not change, and a design that does; or these beside a level that wanders."""

    def build(T, r):
        t = np.arange(T)
        columns = [np.ones(T), np.linspace(-1, 1, T), np.sin(2 * np.pi * t / 12), np.cos(2 * np.pi * t / 12)]
        columns += [r.normal(size=T) for _ in range(D)]
        H = np.stack(columns[:D], -1)[:, None]
        Q = np.diag([0.1 * level] + [0.0] * (D - 1))
        return drawn(lgssm(np.eye(D), Q, H, [[0.3]], np.zeros(D), 100 * np.eye(D)), T, r)

    return build


def cycles(number: int, trend: bool):
    """Damped stochastic cycles, beside a level and a slope."""

    def build(T, r):
        F, Q = ([np.array([[1.0, 1], [0, 1]])], [0.01, 1e-4]) if trend else ([], [])
        for period in (10.0, 40.0)[:number]:
            c, s = np.cos(2 * np.pi / period), np.sin(2 * np.pi / period)
            F.append(0.97 * np.array([[c, s], [-s, c]]))
            Q += [0.2, 0.2]
        D = len(Q)
        return drawn(lgssm(block_diagonal(F), np.diag(Q), np.tile([[1.0, 0]], D // 2), [[0.1]], np.zeros(D), np.eye(D)), T, r)

    return build


def some_model(D: int, m: int):
    """Of no kind, with all parameters."""

    def build(T, r):
        return drawn(random_params(int(r.integers(1000)), D, m), T, r)

    return build


def sensor_twice(D: int):
    """Without noise, two sensors say the same: their innovations have a singular covariance."""

    def build(T, r):
        F, Q = (np.eye(1), np.eye(1)) if D == 1 else (np.array([[1, 0.3], [0, 0.9]]), np.array([[1, 0.2], [0.2, 0.5]]))
        H = np.repeat([[1.0], [0.3, 0.7]][D - 1 : D], 2, 0)
        return drawn(lgssm(F, Q, H, np.zeros((2, 2)), np.zeros(D), np.eye(D)), T, r)

    return build


def known_start(T, r):
    """All is known at first, and then seen without noise: the first innovation has a variance of zero."""
    return drawn(lgssm([[1, 1], [0, 1]], [[0.1, 0], [0, 0.01]], np.eye(1, 2), [[0.0]], np.zeros(2), np.zeros((2, 2))), T, r)


MODELS = {
    "level": Family(structural(slope=False), 1, 1),
    "slope": Family(structural(), 2, 1),
    "season4": Family(structural(4), 5, 1),
    "season7": Family(structural(7), 8, 1),
    "season12": Family(structural(12), 13, 1),
    **{
        f"wiener{order}-h{h}": Family(wiener(order, h), order + 1, 1, longest=120, digits=50)
        for order in range(2, 7)
        for h in (0.1, 0.3, 1.0)
    },
    "velocity": Family(constant_velocity(), 4, 2),
    "velocity-filterpy": Family(constant_velocity(everywhere=True), 4, 2),
    "velocity-exact": Family(constant_velocity(exact=True), 4, 2),
    "acceleration": Family(constant_acceleration, 6, 2, longest=500),
    **{f"ar{p}": Family(autoregression(p, 0.1), p, 1) for p in range(1, 6)},
    **{f"ar{p}-exact": Family(autoregression(p, 0.0), p, 1) for p in (1, 2, 3, 5)},
    **{f"matern{2 * k + 1}2": Family(matern(k), k + 1, 1, varying="F Q") for k in range(3)},
    "mixed-frequency": Family(mixed_frequency(2, 2), 4, 2),
    "mixed-frequency-of-three": Family(mixed_frequency(1, 3), 3, 3),
    "regression": Family(regression(5, level=False), 5, 1, varying="H"),
    "regression-level": Family(regression(5, level=True), 5, 1, varying="H"),
    "cycle": Family(cycles(1, trend=False), 2, 1),
    "cycle-trend": Family(cycles(1, trend=True), 4, 1),
    "cycles-trend": Family(cycles(2, trend=True), 6, 1),
    "random2": Family(some_model(2, 1), 2, 1, varying="b d"),
    "random3": Family(some_model(3, 2), 3, 2, varying="b d"),
    "random4": Family(some_model(4, 4), 4, 4, varying="b d"),
    "sensor-twice": Family(sensor_twice(1), 1, 2, rescaled=False),
    "sensor-twice-of-two": Family(sensor_twice(2), 2, 2, rescaled=False),
    "known-start": Family(known_start, 2, 1),
}

VARIANTS = ("plain", "permuted", "rescaled", "both")


def prepare(name: str, T: int, dtype: str, variant: str = "plain", gaps: bool = False, seed: int = 0):
    """Parameters and emissions of a model, in a dtype: what all who infer are given, and the reference too."""
    family, r = MODELS[name], np.random.default_rng([seed, T, *name.encode()])
    made = family.build(T, r)
    change = np.random.default_rng([seed + 1, *name.encode(), VARIANTS.index(variant)])
    y = with_gaps(made.emissions, change) if gaps else made.emissions
    params, y = altered(made.params, y, change, variant, family.rescaled)
    params = cast(params, dtype)
    if made.by_subtraction:
        F, P = params.dynamics.weights, params.initial.cov
        Q = P - F @ P @ F.mT
        params = params._replace(dynamics=params.dynamics._replace(cov=(Q + Q.mT) / np.asarray(2, dtype)))
    return params, y.astype(dtype)


def altered(params: ParamsLGSSM, y: np.ndarray, r: np.random.Generator, variant: str, rescaled: bool):
    """The same model with its states and emissions in another order and in other units, which are powers of ten."""
    D, m = len(params.initial.mean), y.shape[-1]
    A, B = np.eye(D), np.eye(m)
    if variant in ("permuted", "both"):
        A, B = A[r.permutation(D)], B[r.permutation(m)]
    if variant in ("rescaled", "both"):
        A = 10.0 ** r.integers(-3, 4, D)[:, None] * A
        B = 10.0 ** r.integers(-3, 4, m)[:, None] * B if rescaled else B
    back = np.linalg.inv(A)
    (m0, P0), (F, b, _, Q), (H, d, _, R) = params

    def both_sides(a, x):
        x = a @ x @ a.T
        return (x + x.mT) / 2

    return ParamsLGSSM(
        ParamsLGSSMInitial(A @ m0, both_sides(A, P0)),
        ParamsLGSSMDynamics(A @ F @ back, None if b is None else A @ b, None, both_sides(A, Q)),
        ParamsLGSSMEmissions(B @ H @ back, None if d is None else B @ d, None, both_sides(B, R)),
    ), _moved(y, B)


def _moved(y: np.ndarray, B: np.ndarray) -> np.ndarray:
    """B y, for a B with one entry a row, where entries of y are missing."""
    which = np.argmax(np.abs(B), 1)
    return y[:, which] * B[np.arange(len(B)), which]


def with_gaps(y: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """A fifth of all entries is missing, and for a tenth of the time all of them; half of the time the first step too."""
    T = len(y)
    y = np.where(r.uniform(size=y.shape) < 0.2, np.nan, y)
    start = r.integers(T)
    y[start : start + T // 10] = np.nan
    if r.uniform() < 0.5 and T > 1:
        y[0] = np.nan
    return y
