"""Gaussian filters, smoothers and samplers of nonlinear models: step by step, every one linearised where the last one led.

A step conditions and moves a Gaussian as `fastscan.kernels.lgssm` does, so missing entries and singular covariances need no
care here. Arrays have a batch axis: those of `Given`, and results (B, T, ...).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels.affine.maps import AFFINE_MAPS, AffineMap
from fastscan.kernels.algebra import eye, zeros
from fastscan.kernels.algebra.stages import add, hadamard, matmul, matmul_add, subtract
from fastscan.kernels.arrays import as_lanes, as_rows
from fastscan.kernels.lgssm.gaussian import Gaussian, condition, decorrelate, log_density, moved, smoothing_gain, square_root
from fastscan.kernels.lgssm.smoothing import BACKWARD_KERNELS, BackwardKernel, Smoothed
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver
from fastscan.kernels.scan.recurrence import Recurrence, merge
from fastscan.kernels.scan.xla import OnXLA
from fastscan.nonlinear.check import Functions
from fastscan.nonlinear.layout import Given
from fastscan.nonlinear.linearize import Affine, Rule, Rules, Taylor, of_columns, square


class Row(NamedTuple):
    """An emission, and the transition after it; or what is the same in every row (see `recurrence.merge`).

    Attributes:
        y, weight, u: as in `Given`.
        Q, u_next: covariance and input of the transition.
        R: covariance of an emission's noise, zero where entries are missing; None where a function's.
        change, noise: the change of coordinates that makes such noise independent, and its variances; None where the noise
            depends on the state.
    """

    Q: Any = None
    u_next: Any = None
    R: Any = None
    change: Any = None
    noise: Any = None
    y: Any = None
    weight: Any = None
    u: Any = None


class Filtered(NamedTuple):
    """Filtered means (B, T, D, 1), covariances (B, T, D, D), and every step's log densities (B, T, 1, 1)."""

    mean: Any
    cov: Any
    log_density: Any


class Steps:
    """The steps of a model's filter, linearised by a rule.

    Args:
        functions: of the model.
        given: arrays of the model; of these the constants are read.
        rule: how functions are linearised.
        num_iter: how often an emission is linearised: first around the prediction, then around what came of it. Every time it
            is the prediction that is conditioned. The log density is the first one's.
    """

    def __init__(self, functions: Functions, given: Given, rule: Rule, num_iter: int = 1):
        self._functions, self._given, self._num_iter = functions, given, num_iter
        self._rules = Rules.of(functions, rule)

    def transition(self, state: Gaussian, x: Row) -> Affine:
        """Linearises the dynamics around a state; the covariance is that of all noise."""
        value, F, rest = self._rules.f.linearize(of_columns(self._functions.f, self._given.f, x.u_next), state)
        return Affine(value, F, x.Q if rest is None else add(x.Q, rest))

    def emission(self, state: Gaussian, x: Row) -> tuple[Any, Any, Any, Any]:
        """Linearises an emission around a state: its value, and in coordinates with independent noise the matrix, the change to
        these, and the noise.
        """
        value, H, rest = self._rules.h.linearize(of_columns(self._functions.h, self._given.h, x.u), state)
        if x.change is not None:
            return value, matmul(x.change, H), x.change, x.noise
        R = x.R
        if self._functions.R is not None:
            of_R = of_columns(self._functions.R, self._given.noise, x.u)
            R = square(self._rules.h.value(of_R, state), H.shape[0])
        noise = R if rest is None else add(R, rest)
        apart = decorrelate(H, hadamard(noise, matmul(x.weight, x.weight.T)))
        return value, apart.H, apart.change, apart.noise

    def observe(self, prior: Gaussian, x: Row) -> tuple[Gaussian, Any]:
        """Conditions a state on an emission, and computes the log density (1, 1)."""
        state, density = self._observe(prior, x, prior)
        for _ in range(1, self._num_iter):
            state, _ = self._observe(prior, x, state)
        return state, density

    def _observe(self, prior: Gaussian, x: Row, around: Gaussian) -> tuple[Gaussian, Any]:
        value, H, change, noise = self.emission(around, x)
        innovation = matmul(change, hadamard(subtract(x.y, value), x.weight))
        if around is not prior:
            innovation = subtract(innovation, matmul(H, subtract(prior.mean, around.mean)))
        start = zeros(prior.mean, *prior.mean.shape)
        cov, (correction,), innovations = condition(prior.cov, (start,), (innovation,), H, x.weight, noise, learning=False)
        size = matmul(hadamard(change, change), hadamard(x.weight, add(hadamard(x.y, x.y), hadamard(value, value))))
        return Gaussian(add(prior.mean, correction), cov), log_density(innovations, x.weight, size)

    def predict(self, state: Gaussian, x: Row) -> Gaussian:
        """Moves a state by one transition."""
        value, F, Q = self.transition(state, x)
        return Gaussian(value, moved(matmul(F, state.cov), F, Q))

    def step(self, params: Row, prior: Gaussian, x: Row) -> tuple[Gaussian, Filtered]:
        """Updates and predicts, as one row of a recurrence."""
        x = merge(params, x)
        state, density = self.observe(prior, x)
        return self.predict(state, x), Filtered(state.mean, state.cov, density)

    def step_ahead(self, params: Row, prior: Gaussian, x: Row) -> tuple[Gaussian, tuple[Filtered, Gaussian]]:
        """Does as `step`, and reports the prediction, too. After the last row it is with that row's input and covariance."""
        after, filtered = self.step(params, prior, x)
        return after, (filtered, after)

    def gain(self, state: Gaussian, x: Row) -> BackwardKernel:
        """Computes what the next state says of this one."""
        value, F, Q = self.transition(state, x)
        G, L = smoothing_gain(state.cov, F, Q)
        return BackwardKernel(G, subtract(state.mean, matmul(G, value)), L)


def filter_moments(
    plan: Plan, functions: Functions, given: Given, rule: Rule, num_iter: int = 1, *, ahead: bool = False
) -> Any:
    """Runs the filter: `Filtered`; with ``ahead``, that and the moments (B, T, ...) of the states after filtered ones."""
    by = OnXLA(plan._replace(steps=given.y.shape[1]))
    rows = rows_of(plan, functions, given, rule)
    params = Row(*(None if x is None or x.shape[1] > 1 else as_lanes(x) for x in rows))
    series = Row(*(None if x is None or x.shape[1] == 1 else x for x in rows))
    steps = Steps(functions, given, rule, num_iter)
    step = steps.step_ahead if ahead else steps.step
    none: Any = None
    recurrence = Recurrence("nonlinear_filter", identity=none, append=none, combine=none, enter=none, step=step)
    prior = Gaussian(*as_lanes((given.mean, given.cov)))
    _, out = driver.run(by.plan, recurrence, params, prior, series)
    return jax.tree.map(lambda x: by.join(x), out)


def backward_kernels(
    plan: Plan, functions: Functions, given: Given, rule: Rule, mean: jax.Array, cov: jax.Array
) -> BackwardKernel:
    """Computes what the next state says of every state but the last (B, T - 1, ...), from the filtered moments."""
    steps = Steps(functions, given, rule)
    row = Row(*(x if x is None or x.shape[1] == 1 else x[:, 1:] for x in (given.Q, given.u)))
    by = OnXLA(plan.in_lanes)
    state = Gaussian(*by.matrices(as_lanes((mean[:, :-1], cov[:, :-1]))))
    return as_rows(by.arrays(steps.gain(state, by.matrices(as_lanes(row)))))


def smooth_moments(plan: Plan, mean: jax.Array, cov: jax.Array, kernels: BackwardKernel) -> tuple[jax.Array, ...]:
    """Computes smoothed means (B, T, D, 1), covariances, and second moments of neighbours (B, T - 1, D, D)."""
    by, end = driver.phases(plan), (mean[:, -1:], cov[:, -1:])
    if mean.shape[1] == 1:
        return mean, cov, cov[:, :0]
    room = Smoothed(True, True, False)
    _, out = driver.run(plan, BACKWARD_KERNELS, (), Gaussian(*as_lanes(end)), kernels, reverse=True, room=room)
    return *(by.join(x, as_lanes(e)) for x, e in zip(out[:2], end, strict=True)), by.join(out.cross)


def draw(plan: Plan, mean: jax.Array, cov: jax.Array, kernels: BackwardKernel, noise: jax.Array) -> jax.Array:
    """Draws states (B, T, D, 1) from filtered moments, the kernels back, and standard normal noise (B, T, D, 1)."""
    lanes = OnXLA(plan.in_lanes)

    def shift(g: Any, L: Any, noise: Any) -> Any:
        return matmul_add(square_root(L), noise, g)

    last = as_rows(lanes.arrays(shift(*lanes.matrices(as_lanes((mean[:, -1:], cov[:, -1:], noise[:, -1:]))))))
    shifts = as_rows(lanes.arrays(shift(*lanes.matrices(as_lanes((kernels.g, kernels.L, noise[:, :-1]))))))
    return follow_back(plan, last, kernels.G, shifts)


def follow_back(plan: Plan, last: jax.Array, G: jax.Array, g: jax.Array) -> jax.Array:
    """Computes states (B, T, D, 1), of which each is ``G z + g`` of the one after it, from the last one (B or 1, 1, D, 1)."""
    if not g.shape[1]:
        return last
    _, states = driver.run(plan, AFFINE_MAPS, AffineMap(), as_lanes(last), AffineMap(G, g), reverse=True, room=True)
    return driver.phases(plan).join(states, as_lanes(last))


def rows_of(plan: Plan, functions: Functions, given: Given, rule: Rule) -> Row:
    """Returns the emissions' rows, with independent noise where that does not depend on the state; one where all are the
    same.
    """
    weight, R, transitions = given.weight, given.R, (_next(given.Q), _next(given.u))
    if R is None or not isinstance(Rules.of(functions, rule).h, Taylor):
        return Row(*transitions, R, None, None, given.y, weight, given.u)
    masked = R * weight * weight.mT
    by = OnXLA(plan)

    def change(R: Any) -> tuple[Any, Any]:
        apart = decorrelate(eye(R, R.shape[0]), R)
        return apart.change, apart.noise

    changes, noise = by.each_row("decorrelate", change, (masked,))
    return Row(*transitions, None, changes, noise, given.y, weight, given.u)


def _next(x: Any) -> Any:
    """Returns the rows after every one; after the last, itself."""
    return x if x is None or x.shape[1] == 1 else jnp.concatenate([x[:, 1:], x[:, -1:]], 1)
