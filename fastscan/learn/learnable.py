"""What fitting needs of a family of models, and what it makes of that."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, array, check_kind, emissions_array, seen
from fastscan.learn.constraints import dotted, freeze, from_unconstrained, log_det_jac_constrain


class Learnable(NamedTuple):
    """A family of models, as `fit_em`, `fit_sgd` and `fit_hmc` know it.

    Parameters are arrays in NamedTuples; emissions have a leading batch axis (B, T, ...), inputs are (B, T, U) or None.

    Attributes:
        log_likelihoods: ``(params, emissions, inputs, missing)`` to log p(y_1..T) of every sequence (B,); ``missing`` is
            whether entries are, None if that is not known.
        constraints: ``params`` to a tree of the same form, of `Constraint`s.
        expect: ``(params, emissions, inputs, missing)`` to what ``maximise`` takes, and log-likelihoods (B,).
        maximise: ``(params, statistics, constraints)`` to the most likely parameters, but for the frozen ones.
        check: ``(params, emissions, inputs)``, raises where these do not go together.
        event_dims: axes of one time step's emission, by which a single sequence is told from a batch.
    """

    log_likelihoods: Callable[[Any, Any, Any, bool | None], jax.Array]
    constraints: Callable[[Any], Any]
    expect: Callable[[Any, Any, Any, bool | None], tuple[Any, jax.Array]]
    maximise: Callable[[Any, Any, Any], Any]
    check: Callable[[Any, Any, Any], None]
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
        if self.log_prior is None:
            return total
        prior = jnp.asarray(self.log_prior(params), total.dtype)
        if prior.shape:
            raise ValueError(f"log_prior: shape {prior.shape} returned, wanted one number, the log density of all parameters.")
        return total + prior

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
        TypeError, ValueError: data, parameters, names of frozen ones: what was given, what was wanted.
    """
    if model.event_dims == 0 and isinstance(emissions, np.ma.MaskedArray) and emissions.dtype.kind in "iu":
        emissions = emissions.astype(np.int64).filled(-1)  # symbols, of which negative ones are missing
    emissions = emissions_array(emissions)
    check_kind("emissions", emissions)
    batched = emissions.ndim == model.event_dims + 2
    if not batched and emissions.ndim != model.event_dims + 1:
        event = ", m" * model.event_dims
        raise ValueError(f"emissions: shape {emissions.shape} given, wanted (T{event}) or (B, T{event}).")
    emissions = emissions if batched else emissions[None]
    emissions = jax.device_put(emissions) if seen(emissions) else jnp.asarray(emissions)
    B, T = emissions.shape[:2]
    inputs = None if inputs is None else jnp.asarray(array("inputs", inputs))
    if inputs is not None:
        allowed = [(T,), (B, T)] if batched else [(T,)]
        if inputs.shape[:-1] not in allowed:
            wanted = " or ".join(str((*shape, "U")) for shape in allowed)
            raise ShapeError(f"inputs: shape {inputs.shape} given, wanted {wanted}.")
        inputs = jnp.broadcast_to(inputs, (B, T, inputs.shape[-1])) if inputs.shape[-1] else None
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if callable(x):
            raise TypeError(f"{dotted(path)}: a function given, wanted an array: its values at all time steps.")
        array(dotted(path), x)
    params = jax.tree.map(jnp.asarray, params)
    model.check(params, emissions, inputs)
    known = jnp.issubdtype(emissions.dtype, jnp.floating) and not isinstance(emissions, jax.core.Tracer)
    missing = bool(jnp.isnan(emissions).any()) if known else None
    return Target(model, freeze(model.constraints(params), frozen), missing, log_prior), params, emissions, inputs
