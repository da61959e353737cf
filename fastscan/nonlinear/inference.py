"""The compiled part of nonlinear inference: checked models in, moments, log-likelihoods and samples out, (B, T, ...)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.given import ShapeError, array
from fastscan.kernels.arrays import matmul
from fastscan.nonlinear import filtering
from fastscan.nonlinear.check import Checked, Data, Functions, Model
from fastscan.nonlinear.deviations import Deviations, Path
from fastscan.nonlinear.filtering import Filtered
from fastscan.nonlinear.implicit import fixed_point_change, mode_change
from fastscan.nonlinear.iterating import Settings, step
from fastscan.nonlinear.iterating import iterate as iterate_on
from fastscan.nonlinear.layout import Given, arrange, how_to_run
from fastscan.nonlinear.linearize import Rule, Taylor, sigma_points
from fastscan.nonlinear.models import PosteriorIterated
from fastscan.transforms import transformable
from fastscan.types import ParamsLGSSM

Points = tuple[jax.Array, ...] | None
"""The parameters of sigma points, or None for derivatives."""


@functools.partial(jax.jit, static_argnames=("functions", "missing", "num_iter", "per_step"))
def filter_states(
    functions: Functions, model: Model, data: Data, missing: bool | None, points: Points, num_iter: int, per_step: bool
) -> tuple[jax.Array, ...]:
    """Computes the log-likelihood (B,), or its steps (B, T), filtered and predicted moments."""

    def run(plan: Any, given: Given, points: Points) -> Any:
        return filtering.filter_moments(plan, functions, given, _rule(points, given), num_iter, ahead=True)

    filtered, predicted = _run(functions, arrange(functions, model, data, missing), points, run)
    loglik = filtered.log_density[..., 0, 0]
    moments = filtered.mean[..., 0], filtered.cov, predicted.mean[..., 0], predicted.cov
    return loglik if per_step else loglik.sum(-1), *moments


@functools.partial(jax.jit, static_argnames=("functions", "missing", "implementation"))
def smooth_states(
    functions: Functions,
    model: Model,
    data: Data,
    missing: bool | None,
    points: Points,
    filtered: Filtered | None,
    implementation: str | None,
) -> tuple[jax.Array, ...]:
    """Computes the log-likelihood (B,), filtered and smoothed moments, and second moments of neighbours.

    Args:
        functions: the model's functions.
        model: its arrays.
        data: emissions and inputs.
        missing: whether entries are missing, or None if nobody knows.
        points: parameters of sigma points, or None for derivatives.
        filtered: moments that are filtered already, their log density the log-likelihood (B,); or None.
        implementation: of the way back, which is linear.
    """

    def back(plan: Any, given: Given, points: Points, mean: jax.Array, cov: jax.Array) -> Any:
        kernels = filtering.backward_kernels(plan, functions, given, _rule(points, given), mean, cov)
        return filtering.smooth_moments(plan, mean, cov, kernels)

    given = arrange(functions, model, data, missing)
    if filtered is None:
        filtered = _filtered(functions, given, points)
        filtered = filtered._replace(log_density=filtered.log_density.sum((1, 2, 3)))
    mean, cov, cross = _run(functions, given, points, back, filtered.mean, filtered.cov, implementation=implementation)
    return filtered.log_density, filtered.mean[..., 0], filtered.cov, mean[..., 0], cov, cross


@functools.partial(jax.jit, static_argnames=("functions", "missing", "implementation"))
def sample_states(
    functions: Functions, model: Model, data: Data, missing: bool | None, noise: jax.Array, implementation: str | None
) -> jax.Array:
    """Draws states (B, T, D) from standard normal noise, by an extended filter; the implementation is that of the way back."""

    def back(plan: Any, given: Given, points: Points, mean: jax.Array, cov: jax.Array, noise: jax.Array) -> jax.Array:
        kernels = filtering.backward_kernels(plan, functions, given, _rule(points, given), mean, cov)
        return filtering.draw(plan, mean, cov, kernels, noise)

    given = arrange(functions, model, data, missing)
    found = _filtered(functions, given, None)
    return _run(functions, given, None, back, found.mean, found.cov, noise[..., None], implementation=implementation)[..., 0]


@functools.partial(jax.jit, static_argnames=("functions", "settings", "own_inputs"))
def iterate(
    functions: Functions,
    model: Model,
    data: Data,
    points: Points,
    start: jax.Array | None,
    settings: Settings,
    own_inputs: bool,
) -> PosteriorIterated:
    """Iterates on every sequence by itself; under `vmap`, linear smoothers take all of them at once."""

    def one(y: jax.Array, u: Any, start: Any) -> PosteriorIterated:
        given = arrange(functions, model, Data(y, u), settings.missing)
        return _iterated(functions, settings, given, points, start)[0]

    y = data.y.reshape(-1, *data.y.shape[-2:])
    if len(y) == 1 and not own_inputs:
        return jax.tree.map(lambda x: x[None], one(y[0], data.u, None if start is None else start.reshape(y.shape[1], -1)))
    start = None if start is None else jnp.broadcast_to(start, (len(y), *start.shape[-2:]))
    return jax.vmap(one, (0, 0 if own_inputs else None, None if start is None else 0))(y, data.u, start)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _iterated(functions: Functions, settings: Settings, given: Given, points: Points, start: Any) -> tuple[Any, Path]:
    """Returns the posterior, and the path that the model was linearised around last."""
    model, cov = _model(functions, settings, given, points), None
    if start is None:
        filtered = _filtered(functions, given, points)
        start, cov = filtered.mean[0, ..., 0], filtered.cov[0]
    elif not model.rules.exact:  # around a path that was given, as derivatives have it
        extended = _model(functions, settings, given, None)
        cov = extended.smoothed(extended.linearised(Path(start, None))).smoothed_covariances
    found = iterate_on(model, Path(start, None if model.rules.exact else cov), settings)
    linear = model.linearised(found.path)
    moments = model.moments(found.path, linear, model.smoothed(linear))
    posterior = PosteriorIterated(*moments, objective=found.objectives, iterations=found.count, converged=found.settled)
    return posterior, found.path


@_iterated.defjvp
def _(functions: Functions, settings: Settings, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    out, path = _iterated(functions, settings, *primals)

    def moments(given: Given, points: Points, path: Path) -> tuple[jax.Array, ...]:
        model = _model(functions, settings, given, points)
        linear = model.linearised(path)
        return model.moments(path, linear, model.smoothed(linear))

    def slope(given: Given, points: Points, mean: jax.Array) -> jax.Array:
        model = _model(functions, settings, given, points)
        weights = model.weights(model.linearised(Path(lax.stop_gradient(mean), None)))
        return jax.grad(lambda mean: model.objective(Path(mean, None), weights))(mean)

    def moves(given: Given, points: Points, path: Path) -> Path:
        return step(_model(functions, settings, given, points), path)

    (given, points, _), (given_change, points_change, _) = primals, tangents
    changes = given_change, points_change
    if path.cov is None:
        _, brought = jax.jvp(lambda given, points: slope(given, points, path.mean), (given, points), changes)
        change = Path(mode_change(lambda mean: slope(given, points, mean), path.mean, brought), None)
    else:
        _, brought = jax.jvp(lambda given, points: moves(given, points, path), (given, points), changes)
        change = fixed_point_change(lambda path: moves(given, points, path), path, brought)
    _, of_moments = jax.jvp(moments, (given, points, path), (*changes, change))
    count, settled = (np.zeros(x.shape, jax.dtypes.float0) for x in (out.iterations, out.converged))
    constant: dict[str, Any] = {"objective": jnp.zeros_like(out.objective), "iterations": count, "converged": settled}
    return (out, path), (PosteriorIterated(*of_moments, **constant), change)


def _model(functions: Functions, settings: Settings, given: Given, points: Points) -> Deviations:
    return Deviations(functions, given, _rule(points, given), settings.missing, settings.implementation)


@jax.jit
def linear_predictions(params: ParamsLGSSM, mean: jax.Array, cov: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes moments of the states after filtered ones, (T, D) or (B, T, D), of a linear model."""
    F, b, Q = params.dynamics.weights, params.dynamics.bias, params.dynamics.cov

    def after(x: Any, rank: int) -> jax.Array:
        if x.ndim == rank:
            return x
        one = (slice(None),) * rank
        return jnp.concatenate([x[..., 1:, *one], x[..., -1:, *one]], -1 - rank)

    F, b, Q = after(F, 2), after(b, 1), after(Q, 2)
    return matmul(F, mean[..., None])[..., 0] + b, matmul(matmul(F, cov), F.mT) + Q


def filtered_again(given: Checked, filtered: Any) -> Filtered:
    """Returns filtered moments that a user gives, with a batch axis."""
    shapes = {"filtered_means": (given.D,), "filtered_covariances": (given.D, given.D), "marginal_loglik": ()}
    lead, dtype = () if given.B is None else (given.B,), given.data.y.dtype
    arrays = []
    for name, shape in shapes.items():
        x = jnp.asarray(array(f"filtered_posterior.{name}", getattr(filtered, name)), dtype)
        wanted = (*lead, *((given.T,) if shape else ()), *shape)
        if x.shape != wanted:
            raise ShapeError(f"filtered_posterior.{name}: shape {x.shape} given, wanted {wanted}.")
        arrays.append(x if lead else x[None])
    return Filtered(arrays[0][..., None], *arrays[1:])


def checked_start(given: Checked, start: Any) -> jax.Array | None:
    """Checks a path that a user gives, (T, D) or (B, T, D)."""
    if start is None:
        return None
    start = jnp.asarray(array("start", start), given.data.y.dtype)
    wanted = [(given.T, given.D)] + ([] if given.B is None else [(given.B, given.T, given.D)])
    if start.shape not in wanted:
        raise ShapeError(f"start: shape {start.shape} given, wanted {' or '.join(map(str, wanted))}.")
    return start


def _filtered(functions: Functions, given: Given, points: Points) -> Filtered:
    def run(plan: Any, given: Given, points: Points) -> Filtered:
        return filtering.filter_moments(plan, functions, given, _rule(points, given))

    return _run(functions, given, points, run)


def _run(
    functions: Functions, given: Given, points: Points, run: Callable, *more: Any, implementation: str | None = "sequential"
) -> Any:
    """Calls ``run(plan, given, points, *more)``, and returns arrays (B, ...)."""
    how = how_to_run(functions, given, implementation)
    points = None if points is None else tuple(x[None] for x in points)

    def whole(plan: Any, given: Given, *more: Any) -> Any:
        B = max(x.shape[0] for x in jax.tree.leaves((given, more)))
        out = run(plan, given, *more)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), out)

    return transformable(how, whole)(given, points, *more)


def _rule(points: Points, given: Given) -> Rule:
    return Taylor() if points is None else sigma_points(*points, D=given.cov.shape[-1])
