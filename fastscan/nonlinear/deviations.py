"""A nonlinear model around a path: linearised, as a linear model of deviations from the path; and how likely the path is.

Matrices have a lane for every step. Arrays of a `Given` are those of one sequence.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.algebra import ALGEBRAS, eliminate, eye
from fastscan.kernels.algebra.stages import add, hadamard, matmul, subtract
from fastscan.kernels.arrays import as_lanes, as_rows
from fastscan.kernels.lgssm.gaussian import Gaussian, smoothing_gain
from fastscan.lgssm import lgssm_filter, lgssm_smoother
from fastscan.nonlinear.check import Functions, reads_input, reads_state
from fastscan.nonlinear.filtering import follow_back
from fastscan.nonlinear.layout import Given, how_to_run
from fastscan.nonlinear.linearize import Affine, OfColumns, Rule, Rules, of_columns, square
from fastscan.transforms import transformable
from fastscan.types import (
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    ParamsLGSSMInitial,
    PosteriorGSSMSmoothed,
)


class Path(NamedTuple):
    """A path (T, D), and covariances (T, D, D) around it; None where functions are linearised at points."""

    mean: jax.Array
    cov: Any


class Linearised(NamedTuple):
    """A model of deviations from a path.

    Attributes:
        start: deviation of the first state's mean (D, 1), in one lane.
        dynamics: around the states before; values are less the states after, and there is one fewer than steps. Covariances are
            of all noise.
        emissions: values are what is observed less what is expected, zero where missing.
    """

    start: Any
    dynamics: Affine
    emissions: Affine


class Weight(NamedTuple):
    """The inverse of covariances (n, n): of ``change @ r`` the entries are independent, with precisions (n, 1)."""

    change: Any
    precision: Any

    @classmethod
    def of(cls, cov: Any, size: jax.Array) -> "Weight":
        """Factorises covariances. Where they leave no variance, up to the root of a rounding of their largest one, or where all
        are zero of that ``size``, they count as having that much.
        """
        _, d, change = eliminate(cov, eye(cov, cov.shape[0]))
        largest = jnp.max(cov.diagonal().array, initial=0)
        floor = float(np.sqrt(jnp.finfo(cov.dtype).eps)) * jnp.where(largest > 0, largest, jnp.where(size > 0, size, 1))
        return cls(change, type(d)(1 / jnp.maximum(d.array, floor)))

    def square(self, r: Any) -> jax.Array:
        """Computes the sum of r' C^-1 r over all lanes, of columns (n, 1)."""
        moved = matmul(self.change, r)
        return (moved * moved * self.precision).array.sum()


class Weights(NamedTuple):
    """The inverses of a model's covariances."""

    initial: Weight
    dynamics: Weight
    emissions: Weight


class Deviations:
    """A model's functions, and its data, as functions of a path.

    Attributes:
        rules: by which the functions are linearised.
        T, D: steps, and dimensions of a state.
    """

    def __init__(self, functions: Functions, given: Given, rule: Rule, missing: bool | None, implementation: str | None):
        self._functions, self._given, self._missing, self._implementation = functions, given, missing, implementation
        self.rules = Rules.of(functions, rule)
        self.T, self.D = given.y.shape[1], given.cov.shape[-1]
        self._kind = ALGEBRAS[how_to_run(functions, given, "sequential").plan.in_lanes.algebra]
        self._y, self._weight, self._mean, self._cov = map(self._matrix, (given.y, given.weight, given.mean, given.cov))

    def linearised(self, path: Path) -> Linearised:
        """Linearises the model around a path."""
        (of_f, before), (of_h, every) = self._around(path)
        f, F, rest = self.rules.f.linearize(of_f, before)
        h, H, spread = self.rules.h.linearize(of_h, every)
        F, H = (_one_lane(A) if _fixed(g) else A for g, A in ((self._functions.f, F), (self._functions.h, H)))
        Q, R = self._noise(path)
        Q, R = (x if more is None else add(x, more) for x, more in ((Q, rest), (R, spread)))
        first, after = (self._kind(every.mean.array[:, :, k]) for k in (slice(1), slice(1, None)))
        seen = hadamard(subtract(self._y, h), self._weight)
        return Linearised(subtract(self._mean, first), Affine(subtract(f, after), F, Q), Affine(seen, H, R))

    def smoothed(self, model: Linearised) -> PosteriorGSSMSmoothed:
        """Smooths deviations from a path."""
        return lgssm_smoother(*self._linear(model), implementation=self._implementation, missing=self._missing, central=True)

    def smoothed_path(self, model: Linearised) -> Path:
        """Smooths deviations from a path, and returns what iterations read: means, alone where no covariances are wanted."""
        if not self.rules.exact:
            posterior = self.smoothed(model)
            return Path(posterior.smoothed_means, posterior.smoothed_covariances)
        found: Any = lgssm_filter(*self._linear(model), implementation=self._implementation, missing=self._missing)
        means, covs = found.filtered_means[None, ..., None], found.filtered_covariances[None]
        (value, F, Q), mean = model.dynamics, self._matrix(means[:, :-1])
        G, _ = smoothing_gain(self._matrix(covs[:, :-1]), F, Q)
        g = subtract(mean, matmul(G, add(value, matmul(F, mean))))
        run = transformable(how_to_run(self._functions, self._given, self._implementation), follow_back)
        return Path(run(means[:, -1:], as_rows(G.array), as_rows(g.array))[0, ..., 0], None)

    def _linear(self, model: Linearised) -> tuple[ParamsLGSSM, jax.Array]:
        """Returns the parameters of a linear model, and its emissions."""
        f, F, Q = (_with_a_first_row(as_rows(x.array)[0]) for x in model.dynamics)
        e, H, R = (as_rows(x.array)[0] for x in model.emissions)
        H, R = (x[0] if len(x) == 1 else x for x in (H, R))
        if self._missing is not False:
            e = jnp.where(self._given.weight[0] > 0, e, jnp.nan)
        params = ParamsLGSSM(
            ParamsLGSSMInitial(model.start.array[:, 0, 0, 0], self._given.cov[0, 0]),
            ParamsLGSSMDynamics(F, f[..., 0], None, Q),
            ParamsLGSSMEmissions(H, None, None, R),
        )
        return params, e[..., 0]

    def weights(self, model: Linearised) -> Weights:
        """Returns the inverses of a linear model's covariances."""
        size = jnp.max(self._cov.diagonal().array)
        R = hadamard(model.emissions.cov, matmul(self._weight, self._weight.T))
        return Weights(Weight.of(self._cov, jnp.ones_like(size)), Weight.of(model.dynamics.cov, size), Weight.of(R, size))

    def objective(self, path: Path, weights: Weights) -> jax.Array:
        """Computes minus the log density of a path and the emissions, but for constants of covariances."""
        (of_f, before), (of_h, every) = self._around(path)
        f, h = self.rules.f.value(of_f, before), self.rules.h.value(of_h, every)
        first, after = (self._kind(every.mean.array[:, :, k]) for k in (slice(1), slice(1, None)))
        start = weights.initial.square(subtract(self._mean, first))
        moves = weights.dynamics.square(subtract(f, after))
        if self._functions.log_prob is None:
            return (start + moves + weights.emissions.square(hadamard(subtract(self._y, h), self._weight))) / 2
        return (start + moves) / 2 - self._log_probs(path, h).sum()

    def decrement(self, model: Linearised, weights: Weights, step: jax.Array) -> jax.Array:
        """Computes the square of a step (T, D), in posterior standard deviations, summed over all directions."""
        d = as_lanes(step[None, ..., None])
        first, before, after = (self._kind(d[:, :, k]) for k in (slice(1), slice(-1), slice(1, None)))
        moved = subtract(after, matmul(model.dynamics.A, before))
        seen = hadamard(matmul(model.emissions.A, self._kind(d)), self._weight)
        return weights.initial.square(first) + weights.dynamics.square(moved) + weights.emissions.square(seen)

    def moments(self, path: Path, model: Linearised, posterior: PosteriorGSSMSmoothed) -> tuple[jax.Array, ...]:
        """Returns the log-likelihood and all moments of the states, from those of deviations from a path."""
        mean = path.mean + posterior.smoothed_means
        loglik, central = posterior.marginal_loglik, posterior.smoothed_cross_covariances
        assert central is not None, "a smoother has them"
        cross = central + mean[:-1, :, None] * mean[1:, None, :]
        if self._functions.log_prob is not None:
            log_probs = self._log_probs(path, subtract(self._y, model.emissions.value))
            loglik += log_probs.sum() - self._gaussian(model)
        filtered = path.mean + posterior.filtered_means, posterior.filtered_covariances
        return loglik, *filtered, mean, posterior.smoothed_covariances, cross

    def _gaussian(self, model: Linearised) -> jax.Array:
        """Computes the log density that a linear model gives the emissions, on the path."""
        weight = self.weights(model).emissions
        logs = jnp.log(2 * np.pi / weight.precision.array) * jnp.ones_like(self._y.array)
        return -(weight.square(model.emissions.value) + jnp.where(self._weight.array > 0, logs, 0).sum()) / 2

    def _matrix(self, x: jax.Array) -> Any:
        """Takes an array (1, T or 1, rows, columns) into matrices."""
        return self._kind(as_lanes(x))

    def _noise(self, path: Path) -> tuple[Any, Any]:
        """Returns the covariances of the transitions' noise, and of the emissions'."""
        given = self._given
        Q = self._matrix(given.Q[:, 1:] if given.Q.shape[1] > 1 else given.Q)
        if self._functions.R is None:
            return Q, self._matrix(given.R)
        _, (_, every) = self._around(path)
        of_R = of_columns(self._functions.R, given.noise, self._inputs(slice(None)))
        return Q, square(self.rules.h.value(of_R, every), given.y.shape[2])

    def _log_probs(self, path: Path, expected: Any) -> jax.Array:
        """Computes log densities of all emissions (T,), or of every entry (T, m), zero where missing."""
        function = self._functions.log_prob
        assert function is not None, "of a Gaussian model they are not asked for"
        constants = tuple(x[0] for x in self._given.of_log_prob)
        R = as_rows(self._noise(path)[1].array)[0]
        if len(function.arguments[1][2].shape) == 1:
            R = jnp.diagonal(R, axis1=-2, axis2=-1)
        y, mean = (as_rows(x.array)[0, ..., 0] for x in (self._y, expected))
        values = jax.vmap(lambda y, mean, R: function(constants, y, mean, R))(y, mean, R)
        weight = jnp.broadcast_to(self._given.weight[0, ..., 0], y.shape)
        if values.ndim == 2:
            return jnp.where(weight > 0, values, 0)
        return jnp.where(weight.all(-1), values, jnp.where(weight.any(-1), jnp.nan, 0))

    def _around(self, path: Path) -> tuple[tuple[OfColumns, Gaussian], tuple[OfColumns, Gaussian]]:
        """Returns the dynamics and the states before, and the emissions' function and all states."""
        mean = as_lanes(path.mean[None, ..., None])
        cov = None if path.cov is None else as_lanes(path.cov[None])
        before, every = (
            Gaussian(self._kind(mean[:, :, k]), None if cov is None else self._kind(cov[:, :, k]))
            for k in (slice(-1), slice(None))
        )
        f = of_columns(self._functions.f, self._given.f, self._inputs(slice(1, None)))
        return (f, before), (of_columns(self._functions.h, self._given.h, self._inputs(slice(None))), every)

    def _inputs(self, steps: slice) -> Any:
        return None if self._given.u is None else self._matrix(self._given.u[:, steps])


def _fixed(function: Any) -> bool:
    """Tells whether a function's Jacobian is the same at every step."""
    return not reads_state(function) and not reads_input(function)


def _one_lane(A: Any) -> Any:
    return type(A)(A.array[:, :, :1]) if A.array.shape[2] else A


def _with_a_first_row(x: jax.Array) -> jax.Array:
    """Puts a row that is not read before the T - 1 rows of what varies, and drops the time axis of what does not."""
    return x[0] if len(x) == 1 else jnp.concatenate([jnp.zeros_like(x, shape=(1, *x.shape[1:])), x])
