"""Derivatives of a linear-Gaussian log-likelihood: one pass back over the filtered states, in which nothing else is stored.

What the data after a row say of the state before it, as information on a shift of that state's mean, is r and N of the
disturbance smoother (de Jong 1989; Durbin & Koopman 2012, sections 4.5 and 7.3.3): the log density's derivative is r with
respect to the mean, and (r r' - N) / 2 to the covariance. A smoother's messages between chunks hold just that, so the chunks
are swept back side by side. This is the score of Fisher's identity without its inverses of Q and R, which may be singular.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels.algebra import mirrored, stage
from fastscan.kernels.algebra.stages import hadamard, matmul, matmul_add, negate, symmetrized
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition, condition, push
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, FilterInputs, Message, complete, identity, read, retreat
from fastscan.kernels.scan.recurrence import Seam, merge
from fastscan.kernels.scan.seams import gaussians_apart


class ScoreRow(NamedTuple):
    """The filtered state before a row, and what the row takes."""

    state: Gaussian
    x: FilterInputs


def shifts(state: Gaussian, future: Message) -> Message:
    """Computes r and N of a state, from the information that the data after it hold of it."""
    return retreat(future, identity(state)._replace(b=state.mean, C=state.cov))


def observe_back(predicted: Gaussian, x: FilterInputs, after: Message) -> tuple[Message, Gaussian, FilterInputs]:
    """Goes from r and N after an observation to those before it.

    Returns:
        r and N, and the derivatives with respect to the predicted state, and to the observation's H, noise and y.
    """
    *_, H, noise, y, weight = complete(x)
    cov, (mean,), seen = condition(predicted.cov, (predicted.mean,), (y,), H, weight, noise, learning=False)
    smoothed = matmul_add(cov, after.eta, mean)

    def back(carry, row):
        r, N, cov = carry
        h, k, e, s, inverse, w = row
        k = hadamard(k, w)
        b = matmul(N, k.T)
        u, M = _residual(e, inverse, k, r), _information(inverse, w, k, b)
        of_h = _of_h(u, smoothed, k, b, cov)
        carry = matmul_add(h.T, u, r), _informed(N, h, b, M), _undo(cov, k, s)
        return carry, (of_h, _of_noise(u, M), negate(u))

    rows = H, seen.gains, seen.values[0], seen.variance, seen.inverse, weight
    (r, N, _), of = type(H).over_rows(back, (after.eta, mirrored(after.J), cov), tuple(_flipped(x) for x in rows))
    return Message(r, N), Gaussian(r, _of_cov(r, N)), FilterInputs(None, None, None, *map(_flipped, of))


def begin_scoring(state: Gaussian, future: Message | None = None) -> Message:
    """Returns r and N after a chunk: zeros where nothing follows."""
    return shifts(state, future) if future else read(identity(state))


def nothing_shared(params: FilterInputs, message: Message) -> FilterInputs:
    """Returns derivatives of zero, with respect to what all rows share."""
    del message
    return jax.tree.map(jnp.zeros_like, params._replace(weight=None))


def score_step(
    params: FilterInputs, state: tuple[Message, FilterInputs], row: ScoreRow
) -> tuple[tuple[Message, FilterInputs], FilterInputs]:
    """Goes one row back with r and N: its derivatives are added to those shared, or reported where it has inputs of its own."""
    message, shared = state
    x = merge(params, row.x)
    (mean,), cov = push(Transition(x.F, x.c, x.Q), (row.state.mean,), row.state.cov)
    (r, N), of_predicted, of = observe_back(Gaussian(mean, cov), x, message)
    of_F = _of_F(r, row.state.mean, of_predicted.cov, matmul(x.F, row.state.cov))
    of = of._replace(F=of_F, c=r, Q=of_predicted.cov)
    before = Message(matmul(x.F.T, r), symmetrized(matmul(matmul(x.F.T, N), x.F)))
    total = FilterInputs(*(None if total is None else total + d for total, d in zip(shared, of, strict=True)))
    total = total if total.Q is None else total._replace(Q=mirrored(total.Q))
    own = FilterInputs(*(d if total is None else None for total, d in zip(shared, of, strict=True)))
    return (before, total), own


KALMAN_SCORE = KALMAN_FILTER._replace(
    name="kalman_score",
    step=score_step,
    seam=Seam(gaussians_apart),
    sums=nothing_shared,
)
"""For chunks whose filtered states and messages are known; it has no summaries of its own."""


def _flipped(matrix: Any) -> Any:
    """Returns the rows from the last to the first."""
    n = matrix.shape[0]
    return matrix if n == 1 else type(matrix).vstack([matrix.block(i, i + 1) for i in reversed(range(n))])


@stage
def _residual(e, inverse, k, r):
    return e * inverse - k @ r


@stage
def _information(inverse, weight, k, b):
    return inverse * weight + k @ b


@stage
def _of_h(u, smoothed, k, b, cov):
    return u * smoothed.T - k + b.T @ cov


@stage
def _informed(N, h, b, M):
    across = h.T @ b.T
    return mirrored(N - across - across.T + (h.T @ h) * M)


@stage
def _undo(cov, k, s):
    return mirrored(cov + (k.T @ k) * s)


@stage
def _of_noise(u, M):
    return (u * u - M) * 0.5


@stage
def _of_cov(r, N):
    return mirrored((r @ r.T - N) * 0.5)


@stage
def _of_F(r, mean, of_cov, FP):
    return r @ mean.T + (of_cov @ FP) * 2.0
