"""A family of models as fitting needs it, and the target that is made of it."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, array, check_kind, emissions_array, seen
from fastscan.learn.constraints import dotted, freeze, from_unconstrained, log_det_jac_constrain
from fastscan.learn.priors import NormalInverseWishart


def _no_floors(params: Any, emissions: Any) -> dict[str, Any]:
    del params, emissions
    return {}


def _flat(params: Any, given: dict[str, Any]) -> float:
    del params, given
    return 0.0


class Learnable(NamedTuple):
    """A family of models, as `fit_em`, `fit_sgd` and `fit_hmc` know it.

    Parameters are arrays in NamedTuples; emissions have a leading batch axis (B, T, ...), inputs are (B, T, U) or None.

    Attributes:
        log_likelihoods: ``(params, emissions, inputs, missing)`` to log p(y_1..T) of every sequence (B,); ``missing`` is
            whether entries are, None if that is not known.
        constraints: ``params`` to a tree of the same form, of `Constraint`s.
        expect: ``(params, emissions, inputs, missing, starts)`` to what ``maximise`` takes, and log-likelihoods (B,); starts
            are (B, T), True where one of many sequences begins, or None.
        maximise: ``(params, statistics, constraints, priors, floors)`` to the most likely parameters, but for the frozen ones,
            and what was noticed, ``{kind: {field: whether, an array}}``, the same at every iteration.
        check: ``(params, emissions, inputs)``, raises where these do not go together.
        event_dims: axes of one time step's emission, by which a single sequence is told from a batch.
        floors: ``(params, emissions)`` to what ``maximise`` takes, once for all iterations.
        log_prior: ``(params, priors)`` to the log density of the parameters.
        priors: pairs of a group of parameters that has conjugate priors, and their types.
    """

    log_likelihoods: Callable[[Any, Any, Any, bool | None], jax.Array]
    constraints: Callable[[Any], Any]
    expect: Callable[[Any, Any, Any, bool | None, Any], tuple[Any, jax.Array]]
    maximise: Callable[[Any, Any, Any, dict[str, Any], Any], tuple[Any, dict[str, Any]]]
    check: Callable[[Any, Any, Any], None]
    event_dims: int = 1
    floors: Callable[[Any, Any], Any] = _no_floors
    log_prior: Callable[[Any, dict[str, Any]], Any] = _flat
    priors: tuple[tuple[str, tuple[type, ...]], ...] = ()


class Target(NamedTuple):
    """A model as it is fitted.

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
        """Computes the log density of parameters and emissions, these times ``scale``."""
        total = scale * self.model.log_likelihoods(params, emissions, inputs, self.missing).sum()
        if self.log_prior is None:
            return total
        prior = jnp.asarray(self.log_prior(params), total.dtype)
        if prior.shape:
            raise ValueError(f"log_prior: shape {prior.shape} returned, wanted one number, the log density of all parameters.")
        return total + prior

    def log_density(self, position: Any, params: Any, emissions: jax.Array, inputs: jax.Array | None) -> jax.Array:
        """Computes the same for unconstrained parameters: ``params`` are for the frozen ones."""
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
    """Prepares a fit: the target, the parameters as arrays, and data with a batch axis.

    Raises:
        TypeError: data or parameters that are not arrays of numbers.
        ValueError: shapes that do not fit together, unknown names in ``frozen``.
    """
    if model.event_dims == 0 and isinstance(emissions, np.ma.MaskedArray) and emissions.dtype.kind in "iu":
        emissions = np.ma.filled(emissions.astype(np.int64), -1)  # symbols, of which negative ones are missing
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
    for path, x in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_list):
        if callable(x):
            raise TypeError(f"{dotted(path)}: a function given, wanted an array: its values at all time steps.")
        array(dotted(path), x)
    params = jax.tree.map(jnp.asarray, params, is_leaf=_is_list)
    model.check(params, emissions, inputs)
    known = jnp.issubdtype(emissions.dtype, jnp.floating) and not isinstance(emissions, jax.core.Tracer)
    missing = bool(jnp.isnan(emissions).any()) if known else None
    return Target(model, freeze(model.constraints(params), frozen), missing, log_prior), params, emissions, inputs


def check_priors(model: Learnable, params: Any, priors: Any) -> dict[str, Any]:
    """Check conjugate priors, and make them arrays of the parameters' dtype.

    Raises:
        TypeError: a prior of another kind than its part.
        ValueError: a name of no part that takes a prior, shapes that do not fit, a concentration below 1.
    """
    known, found = dict(model.priors), {}
    dtype = jax.tree.leaves(params)[0].dtype
    for name, prior in (priors or {}).items():
        if name not in known:
            raise ValueError(f"priors: {name!r} given, wanted some of {', '.join(known) or 'none'}.")
        if not isinstance(prior, known[name]):
            wanted = " or ".join(f"priors.{x.__name__}" for x in known[name])
            raise TypeError(f"priors: {type(prior).__name__} given for {name!r}, wanted {wanted}.")
        found[name] = jax.tree.map(lambda x: jnp.asarray(x, dtype), prior)
        concentration = getattr(prior, "concentration", 1)
        below = not isinstance(prior, NormalInverseWishart) and not isinstance(concentration, jax.core.Tracer)
        if below and np.min(concentration) < 1:
            raise ValueError(
                f"priors: concentration {np.min(concentration)} given for {name!r}, wanted at least 1: "
                "below, the density has no maximum. Take fit_hmc."
            )
    jax.eval_shape(model.log_prior, params, found)  # which checks shapes
    return found


def _is_list(x: Any) -> bool:
    """Tells an array that is written as a list from a container of arrays."""
    return isinstance(x, list)
