"""Stochastic gradient descent."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from rich.progress import track

from fastscan.given import check_key, count
from fastscan.learn.constraints import from_unconstrained, to_unconstrained
from fastscan.learn.learnable import Learnable, Target, prepare

ADAM = optax.adam(1e-3)
"""One for all calls, so that they share what is compiled."""


def fit_sgd(
    model: Learnable,
    params: Any,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    frozen: Iterable[str] = (),
    log_prior: Callable[[Any], jax.Array] | None = None,
    optimizer: optax.GradientTransformation = ADAM,
    batch_size: int = 1,
    num_epochs: int = 50,
    shuffle: bool = False,
    key: jax.Array | None = None,
    progress: bool = True,
) -> tuple[Any, jax.Array]:
    """Finds parameters of largest joint density, by stochastic gradients through the log-likelihood in unconstrained
    coordinates.

    The loss is dynamax's: the negative log joint density, with a minibatch's log-likelihood scaled up to all sequences, over
    the number of emissions' entries.

    Args:
        model: the family, such as `LGSSM` or ``HMM(GAUSSIAN)``.
        params: where to start.
        emissions: one sequence (T, ...) or a batch (B, T, ...); missing ones as the family has them.
        inputs: (T, U), (B, T, U) or None.
        frozen: parameters that keep their values, as "initial" or "dynamics.cov".
        log_prior: from parameters to a log density; None is flat.
        optimizer: of optax; default ``optax.adam(1e-3)``.
        batch_size: sequences a step.
        num_epochs: passes through all sequences.
        shuffle: take sequences in another order in every epoch.
        key: of that order; default ``jax.random.key(0)``.
        progress: show a bar.

    Returns:
        Parameters, and the mean loss of every epoch's steps (num_epochs,).

    Raises:
        TypeError: parameters or data that are not arrays of numbers; a key that is not a random key.
        ValueError: shapes that do not fit together, unknown names in ``frozen``, a setting out of range.
    """
    num_epochs, batch_size = count("num_epochs", num_epochs), count("batch_size", batch_size)
    if key is not None:
        check_key(key)
    target, params, emissions, inputs = prepare(model, params, emissions, inputs, frozen, log_prior)
    position = to_unconstrained(params, target.constraints)
    state = position, optimizer.init(position)
    losses = []
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_epochs)
    for epoch_key in track(keys, "SGD", disable=not progress):
        order = jax.random.permutation(epoch_key, len(emissions)) if shuffle else jnp.arange(len(emissions))
        state, loss = _epoch(target, optimizer, min(batch_size, len(emissions)), state, params, emissions, inputs, order)
        losses.append(loss)
    return from_unconstrained(state[0], target.constraints, params), jnp.stack(losses)


@functools.partial(jax.jit, static_argnames=("target", "optimizer", "batch_size"))
def _epoch(
    target: Target,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    state: Any,
    params: Any,
    emissions: jax.Array,
    inputs: jax.Array | None,
    order: jax.Array,
) -> tuple[Any, jax.Array]:
    """Steps over all sequences, the last one over what is left: the state, and their mean loss."""

    def loss(position: Any, chosen: jax.Array) -> jax.Array:
        some, given = emissions[chosen], None if inputs is None else inputs[chosen]
        at = from_unconstrained(position, target.constraints, params)
        return -target.log_joint(at, some, given, len(emissions) / len(chosen)) / emissions.size

    def step(state: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
        position, memory = state
        value, gradient = jax.value_and_grad(loss)(position, chosen)
        change, memory = optimizer.update(gradient, memory, position)
        return (optax.apply_updates(position, change), memory), value

    whole = len(order) // batch_size * batch_size
    state, losses = lax.scan(step, state, order[:whole].reshape(-1, batch_size))
    if whole < len(order):
        state, last = step(state, order[whole:])
        losses = jnp.append(losses, last)
    return state, losses.mean()
