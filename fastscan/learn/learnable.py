"""What fitting needs of a family of models, and what it makes of that."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.learn.constraints import freeze, from_unconstrained, log_det_jac_constrain


class Learnable(NamedTuple):
    """A family of models, as `fit_em`, `fit_sgd` and `fit_hmc` know it.

    Parameters are any tree of arrays; emissions have a leading batch axis (B, T, ...), inputs are (B, T, U) or None.

    Attributes:
        log_likelihoods: ``(params, emissions, inputs, missing)`` to log p(y_1..T) of every sequence (B,); ``missing`` is
            whether entries are, None if that is not known.
        constraints: ``params`` to a tree of the same form, of `Constraint`s.
        expect: ``(params, emissions, inputs, missing)`` to expected sufficient statistics, summed over sequences, and
            log-likelihoods (B,).
        maximise: ``(params, statistics, constraints)`` to the most likely parameters, but for the frozen ones.
        event_dims: axes of one time step's emission, by which a single sequence is told from a batch.
    """

    log_likelihoods: Callable[[Any, Any, Any, bool | None], jax.Array]
    constraints: Callable[[Any], Any]
    expect: Callable[[Any, Any, Any, bool | None], tuple[Any, jax.Array]]
    maximise: Callable[[Any, Any, Any], Any]
    event_dims: int = 1


class Target(NamedTuple):
    """What is fitted, of a model.

    Attributes:
        model: its family.
        constraints: of its parameters.
        missing: whether emissions are, None if that is not known.
        log_prior: ``params`` to a log density, or None for a flat one.
    """

    model: Learnable
    constraints: Any
    missing: bool | None
    log_prior: Callable[[Any], jax.Array] | None

    def log_joint(self, params: Any, emissions: jax.Array, inputs: jax.Array | None, scale: float = 1.0) -> jax.Array:
        """The log density of parameters and emissions, these times ``scale``."""
        total = scale * self.model.log_likelihoods(params, emissions, inputs, self.missing).sum()
        return total if self.log_prior is None else total + self.log_prior(params)

    def log_density(self, position: Any, params: Any, emissions: jax.Array, inputs: jax.Array | None) -> jax.Array:
        """The same of unconstrained parameters: ``params`` are for the frozen ones."""
        joint = self.log_joint(from_unconstrained(position, self.constraints, params), emissions, inputs)
        return joint + log_det_jac_constrain(position, self.constraints)


def prepare(
    model: Learnable,
    params: Any,
    emissions: Any,
    inputs: Any,
    frozen: Iterable[str],
    log_prior: Callable[[Any], jax.Array] | None = None,
) -> tuple[Target, Any, jax.Array, jax.Array | None]:
    """What to fit, the parameters as arrays, and data with a batch axis.

    Raises:
        ValueError: shapes of data; names of frozen parameters.
    """
    emissions = jnp.asarray(emissions)
    batched = emissions.ndim == model.event_dims + 2
    if not batched and emissions.ndim != model.event_dims + 1:
        event = ", m" * model.event_dims
        raise ValueError(f"emissions: shape {emissions.shape} given, wanted (T{event}) or (B, T{event}).")
    emissions = emissions if batched else emissions[None]
    if inputs is not None:
        inputs = jnp.asarray(inputs)
        inputs = jnp.broadcast_to(inputs, (*emissions.shape[:2], inputs.shape[-1]))
    params = jax.tree.map(jnp.asarray, params)
    known = jnp.issubdtype(emissions.dtype, jnp.floating) and not isinstance(emissions, jax.core.Tracer)
    missing = bool(jnp.isnan(emissions).any()) if known else None
    return Target(model, freeze(model.constraints(params), frozen), missing, log_prior), params, emissions, inputs
