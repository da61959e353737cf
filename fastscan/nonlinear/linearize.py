"""Affine functions in the place of nonlinear ones, around a Gaussian: by derivatives at its mean, or by sigma points.

Matrices are of one algebra (see `fastscan.kernels.algebra`), a function's argument a column (D, 1) in every lane.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.algebra import eliminate, eye, select, stage
from fastscan.kernels.algebra.stages import add, hadamard, matmul, matmul_add, symmetrized
from fastscan.kernels.functions import Function
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.nonlinear.check import Functions, reads_state

OfColumns = Callable[[jax.Array], jax.Array]
"""A function of columns: from arrays (D, points, C, B) to (n, points, C, B)."""


class Affine(NamedTuple):
    """g(z) as ``value + A (z - mean) + e``, e ~ N(0, cov): value (n, 1), A (n, D), cov (n, n), or None for none."""

    value: Any
    A: Any
    cov: Any


class Taylor(NamedTuple):
    """The first two terms of Taylor's series, as extended filters take them."""

    def linearize(self, g: OfColumns, around: Gaussian) -> Affine:
        """Linearises a function around a mean; the covariance is not read."""
        mean = around.mean
        value, push = jax.linearize(g, mean.array)
        D = mean.shape[0]

        def pushed(basis: Any) -> jax.Array:
            return push(jnp.broadcast_to(basis.reshape(D, *(1,) * (value.ndim - 1)), mean.array.shape))[:, 0]

        A = jax.vmap(pushed, out_axes=1)(np.eye(D, dtype=value.dtype))
        return Affine(type(mean)(value), type(mean)(A), None)

    def value(self, g: OfColumns, around: Gaussian) -> Any:
        """Computes the affine function at the mean."""
        return type(around.mean)(g(around.mean.array))


class SigmaPoints(NamedTuple):
    """The unscented transform's points, and statistical linear regression at these (García-Fernández, Svensson, Morelande &
    Särkkä 2015): the mean, and on both sides of it the columns of a root of the covariance, times a number.

    Attributes:
        scale: the square of that number, D + lambda (1, 1, 1, B or 1). Points but the mean weigh half its inverse.
        bend: by how much the weight of the mean's bend is above 1 in covariances, beta - alpha² (1, 1, 1, B or 1).
    """

    scale: Any
    bend: Any

    def linearize(self, g: OfColumns, around: Gaussian) -> Affine:
        """Linearises a function around a Gaussian."""
        scale, bend = map(type(around.mean).from_array, self)
        d, inverse, values = self._values(g, around)
        slopes, curves = _slopes(values, scale), _curves(values)
        shift = _mean_bend(curves, scale)
        A = matmul(hadamard(slopes, _inverse_root(d).T), inverse)
        rest = matmul_add(hadamard(shift, bend), shift.T, matmul(hadamard(curves, _quarter(scale)), curves.T))
        return Affine(add(values.columns(0, 1), shift), A, symmetrized(rest))

    def value(self, g: OfColumns, around: Gaussian) -> Any:
        """Computes the expectation of a function."""
        *_, values = self._values(g, around)
        return add(values.columns(0, 1), _mean_bend(_curves(values), type(values).from_array(self.scale)))

    def _values(self, g: OfColumns, around: Gaussian) -> tuple[Any, Any, Any]:
        """Computes a function at all points (n, 2 D + 1), and the pivots and the inverse factor of the covariance that they are
        spread by (see `algebra.eliminate`).
        """
        mean, cov = around
        factor, d, inverse = eliminate(cov, eye(cov, cov.shape[0]), checked=True)
        points = _points(mean, factor, _root(d), type(mean).from_array(self.scale))
        return d, inverse, type(mean)(g(points.array))


Rule = Taylor | SigmaPoints


class Rules(NamedTuple):
    """The rules by which a model's dynamics and emissions are linearised."""

    f: Rule
    h: Rule

    @classmethod
    def of(cls, functions: Functions, rule: Rule) -> "Rules":
        """Takes derivatives in the place of sigma points where a function is affine, which is the same and takes less."""
        return cls(*(rule if reads_state(g) else Taylor() for g in (functions.f, functions.h)))

    @property
    def exact(self) -> bool:
        """Whether both are derivatives."""
        return isinstance(self.f, Taylor) and isinstance(self.h, Taylor)


def sigma_points(alpha: jax.Array, beta: jax.Array, kappa: jax.Array, D: int) -> SigmaPoints:
    """Makes the unscented transform of its parameters, () or (B or 1,)."""
    alpha, beta, kappa = (jnp.reshape(x, (1, 1, 1, -1)) for x in (alpha, beta, kappa))
    return SigmaPoints(alpha**2 * (D + kappa), beta - alpha**2)


def of_columns(function: Function, constants: tuple[jax.Array, ...], u: Any) -> OfColumns:
    """Makes a model's function one of columns.

    Args:
        function: of its constants, a state (D,), and an input.
        constants: (B or 1, ...).
        u: inputs as columns, a matrix (U, 1), or None.
    """
    shapes = function.arguments[1][1:]
    sequences = max((len(x) for x in constants), default=1)
    own = tuple(0 if len(x) > 1 else None for x in constants)
    constants = tuple(x if k == 0 else x[0] for x, k in zip(constants, own, strict=True))

    def at(constants: Any, z: jax.Array, *u: jax.Array) -> jax.Array:
        value = function(constants, z, *(x.reshape(s.shape).astype(s.dtype) for x, s in zip(u, shapes, strict=True)))
        return value.reshape(-1).astype(z.dtype)

    def columns(Z: jax.Array) -> jax.Array:
        rows, points, *lanes = Z.shape
        if sequences > 1:
            lanes = jnp.broadcast_shapes(tuple(lanes), (1, sequences))
        given = []
        if u is not None:
            lanes = jnp.broadcast_shapes(tuple(lanes), u.array.shape[2:])
            given = [jnp.broadcast_to(u.array, (*u.array.shape[:2], *lanes)).reshape(len(u.array), *_two(lanes))]
        Z = jnp.broadcast_to(Z, (rows, points, *lanes)).reshape(rows, points, *_two(lanes))
        of_points = jax.vmap(at, (None, 1, *(None for _ in given)), 1)
        of_chunks = jax.vmap(of_points, (None, 2, *(1 for _ in given)), 2)
        value = jax.vmap(of_chunks, (own, 3, *(2 for _ in given)), 3)(constants, Z, *given)
        return value.reshape(*value.shape[:2], *lanes)

    return columns


def _two(lanes: Any) -> tuple[int, ...]:
    """Returns the lengths of both lane axes, of which a matrix alone has none."""
    return tuple(lanes) or (1, 1)


def square(R: Any, m: int) -> Any:
    """Returns covariances as matrices (m, m), from columns of their entries, or of variances."""
    array = R.array
    if len(array) == m * m:
        return type(R)(array.reshape(m, m, *array.shape[2:]))
    return type(R)(array * jnp.eye(m, dtype=array.dtype).reshape(m, m, *(1,) * (array.ndim - 2)))


@stage
def _root(d):
    def root(d):
        positive = jnp.sqrt(select(d > 0, d, 1))
        return select(d > 0, positive, select(d == 0, 0.0, np.asarray(np.nan, d.dtype)))

    return type(d).elementwise(root, d)


@stage
def _inverse_root(d):
    return type(d).elementwise(lambda d: select(d > 0, 1 / jnp.sqrt(select(d > 0, d, 1)), 0), d)


@stage
def _points(mean, factor, root, scale):
    spread = factor * (root * type(scale).elementwise(jnp.sqrt, scale)).T
    return type(mean)(jnp.concatenate([x.array for x in (mean, mean + spread, mean - spread)], 1))


@stage
def _slopes(values, scale):
    D = values.shape[1] // 2
    apart = values.columns(1, D + 1) - values.columns(D + 1, 2 * D + 1)
    return apart * type(scale).elementwise(lambda s: 0.5 / jnp.sqrt(s), scale)


@stage
def _curves(values):
    D = values.shape[1] // 2
    return (values.columns(1, D + 1) - values.columns(0, 1)) + (values.columns(D + 1, 2 * D + 1) - values.columns(0, 1))


@stage
def _mean_bend(curves, scale):
    return curves.reduce(jnp.add) * type(scale).elementwise(lambda s: 0.5 / s, scale)


@stage
def _quarter(scale):
    return type(scale).elementwise(lambda s: 0.25 / s, scale)
