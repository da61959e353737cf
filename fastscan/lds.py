"""Linear dynamical systems in natural parameters, as message passing, variational inference and structured VAEs have them.

The density of states x_1 to x_T is proportional to the product of

* the initial potential, ``exp(h'x_1 - x_1'J x_1 / 2)``;
* node potentials, ``exp(r_t'x_t - x_t'R_t x_t / 2)``, zeros where nothing was observed;
* pair potentials, ``exp(-h1'x_t - x_t'J11 x_t / 2 + x_t'J12 x_{t+1} - x_{t+1}'J22 x_{t+1} / 2 + h2'x_{t+1})``, which need be no
  conditional densities: it is enough that the product can be integrated. Where it can't, results are NaN.

The derivatives of the log normaliser with respect to the potentials are the expected statistics (times 1, -1 or -1/2, as they
stand above), and reverse mode takes them from one smoother's pass. Derivatives of the statistics are JAX's, through the scans.

Of precisions the symmetric part is read, so that derivatives are symmetric, too. Functions take one chain; `jax.vmap` makes
others lanes of the same run. ``implementation`` is as in `fastscan.lgssm`.
Method: Gaussian elimination, whose pair potentials combine associatively (Särkkä & García-Fernández 2021, arXiv 1905.13002, in
information form).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.dispatch.choice import How, Problem
from fastscan.given import array, check_key
from fastscan.kernels.arrays import as_lanes
from fastscan.kernels.lds import passes
from fastscan.kernels.lds.passes import PotentialChain
from fastscan.kernels.lds.potentials import PairInputs, Potential
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import ranged
from fastscan.transforms import batch_size, scored, transformable


class InitialPotential(NamedTuple):
    """The potential of the first state: h (D,), J (D, D)."""

    h: Any
    J: Any


class NodePotential(NamedTuple):
    """The potentials of all states: r (T, D), R (T, D, D)."""

    r: Any
    R: Any


class PairPotential(NamedTuple):
    """The potentials of neighbours: h1, h2 (D,), J11, J12, J22 (D, D), the same for all; or each with a leading axis of length
    T - 1.
    """

    h1: Any
    J11: Any
    J12: Any
    J22: Any
    h2: Any


class LDSStatistics(NamedTuple):
    """E[x_t] (T, D), E[x_t x_t'] (T, D, D) and E[x_t x_{t+1}'] (T - 1, D, D)."""

    x: jax.Array
    xx: jax.Array
    xx_next: jax.Array


class LDSPosterior(NamedTuple):
    """The expected statistics, and the logarithm of the integral of all potentials' product."""

    statistics: LDSStatistics
    log_normalizer: jax.Array


@ranged
def lds_inference(
    node: NodePotential, init: InitialPotential, pair: PairPotential, *, implementation: str | None = None
) -> LDSPosterior:
    """Computes expected statistics and the log normaliser of a chain.

    Args:
        node: potentials of every state.
        init: of the first one.
        pair: of neighbours.
        implementation: None, or a name as `fastscan.lgssm` has them; kernels take D up to 4 in float32, up to 2 in float64.

    Returns:
        `LDSPosterior`; NaN if the potentials' product has no integral.

    Raises:
        TypeError: potentials that are not floats, or of several dtypes; a key that is not a random key.
        ValueError: shapes that do not fit together, an unknown implementation.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    return _inference(*_given(node, init, pair), implementation)


@ranged
def lds_log_normalizer(
    node: NodePotential, init: InitialPotential, pair: PairPotential, *, implementation: str | None = None
) -> jax.Array:
    """Computes the log normaliser alone. Arguments and errors are those of `lds_inference`."""
    return _log_normalizer(*_given(node, init, pair), implementation)


@ranged
def lds_sample(
    key: jax.Array, node: NodePotential, init: InitialPotential, pair: PairPotential, *, implementation: str | None = None
) -> jax.Array:
    """Draws states (T, D); the same for a key, up to rounding, in every implementation.

    Args:
        key: a JAX random key.
        node: as `lds_inference`.
        init: as `lds_inference`.
        pair: as `lds_inference`.
        implementation: as `lds_inference`.

    Returns:
        NaN if the potentials' product has no integral.

    Raises:
        TypeError: potentials that are not floats, or of several dtypes; a key that is not a random key.
        ValueError: shapes that do not fit together, an unknown implementation.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    check_key(key, " The order is (key, node, init, pair).")
    return _sample(key, *_given(node, init, pair), implementation)


def _given(*parts: Any) -> Any:
    """Potentials of arrays, and not of what only looks like one to a compiled function."""
    forms = NodePotential, InitialPotential, PairPotential
    named = zip(forms, parts, strict=True)
    return tuple(form(*(array(f"{form.__name__}.{n}", x) for n, x in zip(form._fields, p, strict=True))) for form, p in named)


@functools.partial(jax.jit, static_argnames="implementation")
def _inference(node, init, pair, implementation) -> LDSPosterior:
    given, how = _checked(node, init, pair, implementation)
    return LDSPosterior(*jax.tree.map(lambda x: x[0], _infer(how, given)))


@functools.partial(jax.jit, static_argnames="implementation")
def _log_normalizer(node, init, pair, implementation) -> jax.Array:
    given, how = _checked(node, init, pair, implementation)
    total = transformable(how, lambda plan, *given: _normalized(given, passes.log_normalizer(plan, _chain(*given))))
    return _scored(how, total(*jax.lax.stop_gradient(given)), given)[0]


@functools.partial(jax.jit, static_argnames="implementation")
def _sample(key, node, init, pair, implementation) -> jax.Array:
    given, how = _checked(node, init, pair, implementation)
    noise = jax.random.normal(key, given[0].r.shape, given[0].r.dtype)
    draw = transformable(how, lambda plan, noise, *given: passes.sample(plan, _chain(*given), noise[..., None])[..., 0])
    return draw(noise, *given)[0]


Given = tuple[NodePotential, InitialPotential, PairPotential]
"""Checked, with a leading batch axis and pairs (B, T - 1 or 1, ...)."""


def _infer(how: How, given: Given) -> tuple[LDSStatistics, jax.Array]:
    statistics, total = transformable(how, lambda plan, *given: _smoothed(plan, given))(*given)
    return statistics, _scored(how, jax.lax.stop_gradient(total), given)


def _smoothed(plan: Plan, given: Given) -> tuple[LDSStatistics, jax.Array]:
    total, (mean, cov, cross) = passes.smooth(plan, _chain(*given))
    B = batch_size(given)
    mean, cov, cross = (jnp.broadcast_to(x, (B, *x.shape[1:])) for x in (mean, cov, cross))
    return LDSStatistics(mean[..., 0], cov + mean * mean.mT, cross), _normalized(given, total)


def _normalized(given: Given, total: jax.Array) -> jax.Array:
    """Adds the constant (B,)."""
    _, T, D = given[0].r.shape
    return jnp.broadcast_to(total + T * D / 2 * math.log(2 * math.pi), (batch_size(given),))


def _scored(how: How, total: jax.Array, given: Given) -> jax.Array:
    """Gives the log normaliser (B,) its derivatives, which are the expected statistics."""

    def score(plan: Plan, given: Given) -> tuple[jax.Array, Given]:
        (x, xx, xx_next), total = _smoothed(plan, given)
        node = NodePotential(x, xx / -2)
        pair = PairPotential(-x[:, :-1], xx[:, :-1] / -2, xx_next, xx[:, 1:] / -2, x[:, 1:])
        if given[2].J11.shape[1] == 1:
            pair = jax.tree.map(lambda x: x.sum(1, keepdims=True), pair)
        return total, (node, InitialPotential(x[:, 0], xx[:, 0] / -2), pair)

    return scored(transformable(how, score), total, given)


def _chain(node: NodePotential, init: InitialPotential, pair: PairPotential) -> PotentialChain:
    first = Potential((init.h + node.r[:, 0])[:, None, :, None], (init.J + node.R[:, 0])[:, None])
    columns = pair._replace(h1=pair.h1[..., None], h2=pair.h2[..., None])
    own = PairInputs(r=node.r[:, 1:, :, None], R=node.R[:, 1:])
    if pair.J11.shape[1] == 1:
        return PotentialChain(first, PairInputs(*as_lanes(tuple(columns))), own)
    return PotentialChain(first, PairInputs(), PairInputs(*columns, own.r, own.R))


_PRECISIONS = "NodePotential.R", "InitialPotential.J", "PairPotential.J11", "PairPotential.J22"


def _checked(node: Any, init: Any, pair: Any, implementation: str | None) -> tuple[Given, How]:
    """Checks the arguments, and returns them with a batch axis, and how to run them."""
    node, init, pair = NodePotential(*node), InitialPotential(*init), PairPotential(*pair)
    arrays = {
        f"{type(part).__name__}.{name}": jnp.asarray(x) for part in (node, init, pair) for name, x in part._asdict().items()
    }
    r = arrays["NodePotential.r"]
    if r.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"NodePotential.r: {r.dtype} given, wanted float32 or float64.")
    if r.ndim != 2 or 0 in r.shape:
        raise ValueError(
            f"NodePotential.r: shape {r.shape} given, wanted (T, D) with at least one step; take jax.vmap for more."
        )
    T, D = r.shape
    static = arrays["PairPotential.J11"].ndim == 2
    lead = () if static else (T - 1,)
    vector, matrix = (*lead, D), (*lead, D, D)
    shapes = [(T, D), (T, D, D), (D,), (D, D), vector, matrix, matrix, matrix, vector]
    for (name, x), shape in zip(arrays.items(), shapes, strict=True):
        if x.dtype != r.dtype:
            raise TypeError(f"{name}: {x.dtype} given, wanted {r.dtype}, which NodePotential.r has.")
        if x.shape != shape:
            raise ValueError(f"{name}: shape {x.shape} given, wanted {shape}, as T = {T} and D = {D}.")
    arrays |= {name: (arrays[name] + arrays[name].mT) / 2 for name in _PRECISIONS}
    r, R, h, J, *blocks = (x[None] for x in arrays.values())
    blocks = [x[:, None] if static else x for x in blocks]
    problem = Problem(implementation, T, D, 0, str(r.dtype), "lds")
    how = How(problem.plan(1), problem)
    return (NodePotential(r, R), InitialPotential(h, J), PairPotential(*blocks)), how
