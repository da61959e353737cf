"""Our answers to dynamax's functions of nonlinear models, in the version whose convention of time is ours."""

from typing import Any

import jax
import jax.numpy as jnp

from fastscan import nonlinear as ours
from fastscan.adoption import keys
from fastscan.adoption.answer import Answer, as_theirs, size
from fastscan.given import known
from fastscan.nonlinear.api import MOMENTS
from fastscan.nonlinear.check import checked
from fastscan.nonlinear.layout import is_linear

MOST_EXTENDED = 12
"""The most states for which ours answers within `jax.jit`, by extended filters; of more, dynamax's does. Of 16 the two take
about as long (``python -m fastscan.profiling nonlinear-peers``). Whatever the states, ours answers where a model is linear, and
outside of `jax.jit`, where dynamax's compiles at every call: a second at least."""

MOST_UNSCENTED = 8
"""The same of unscented ones: of 16 states ours takes longer."""

_LARGE = "within jax.jit, of a model of more than {} states that is not linear, dynamax's is called, which is faster there"

_ITERATED = (
    "with num_iter > 1 every linearisation conditions the prediction, where dynamax's conditions on the emission again and "
    "counts it num_iter times"
)


def answers(extended: Any, unscented: Any) -> list[Answer]:
    """Lists what is replaced in dynamax's modules of extended and of unscented filters."""
    of_extended, of_unscented = _OfExtended(extended), _OfUnscented(unscented)
    large, larger = _LARGE.format(MOST_UNSCENTED), _LARGE.format(MOST_EXTENDED)
    return [
        Answer(extended, "extended_kalman_filter", of_extended.filter, f"{_ITERATED}; {larger}"),
        Answer(extended, "extended_kalman_smoother", of_extended.smoother, larger),
        Answer(extended, "extended_kalman_posterior_sample", of_extended.posterior_sample, larger),
        Answer(unscented, "unscented_kalman_filter", of_unscented.filter, large),
        Answer(unscented, "unscented_kalman_smoother", of_unscented.smoother, large),
    ]


class _OfExtended:
    """Answers to functions of `inference_ekf`."""

    def __init__(self, module: Any):
        self._filtered, self._smoothed = module.PosteriorGSSMFiltered, module.PosteriorGSSMSmoothed
        self._filter, self._smoother = module.extended_kalman_filter, module.extended_kalman_smoother
        self._posterior_sample = module.extended_kalman_posterior_sample

    def filter(self, params, emissions, inputs=None, num_iter=1, output_fields=MOMENTS):
        if num_iter == 1 and _theirs_is_faster(MOST_EXTENDED, params, emissions, inputs):
            return self._filter(params, emissions, inputs, num_iter, output_fields)
        given = _as_read(params, len(emissions)), emissions, inputs, num_iter, _fields(output_fields)
        return as_theirs(self._filtered, ours.extended_kalman_filter(*given))

    def smoother(self, params, emissions, filtered_posterior=None, inputs=None):
        if _theirs_is_faster(MOST_EXTENDED, params, emissions, inputs):
            return self._smoother(params, emissions, filtered_posterior, inputs)
        model = _as_read(params, len(emissions))
        if filtered_posterior is None:
            return _smoothed(self._smoothed, ours.extended_kalman_smoother(model, emissions, None, inputs))
        loglik = filtered_posterior.marginal_loglik  # which dynamax hands on as it is, and which may be one of every step
        filtered = filtered_posterior._replace(marginal_loglik=jnp.zeros(()))
        found = ours.extended_kalman_smoother(model, emissions, filtered, inputs)
        return _smoothed(self._smoothed, found)._replace(marginal_loglik=loglik)

    def posterior_sample(self, key, params, emissions, inputs=None):
        if _theirs_is_faster(MOST_EXTENDED, params, emissions, inputs):
            return self._posterior_sample(key, params, emissions, inputs)
        drawn = keys.of_posterior_sample(key, len(emissions), *size(params.initial_mean))
        return ours.extended_kalman_posterior_sample(drawn, _as_read(params, len(emissions)), emissions, inputs)


class _OfUnscented:
    """Answers to functions of `inference_ukf`."""

    def __init__(self, module: Any):
        self._filtered, self._smoothed = module.PosteriorGSSMFiltered, module.PosteriorGSSMSmoothed
        self._filter, self._smoother = module.unscented_kalman_filter, module.unscented_kalman_smoother

    def filter(self, params, emissions, hyperparams, inputs=None, output_fields=MOMENTS):
        if _theirs_is_faster(MOST_UNSCENTED, params, emissions, inputs):
            return self._filter(params, emissions, hyperparams, inputs, output_fields)
        given = _as_read(params, len(emissions)), emissions, _points(hyperparams), inputs, _fields(output_fields)
        return as_theirs(self._filtered, ours.unscented_kalman_filter(*given))

    def smoother(self, params, emissions, hyperparams, inputs=None):
        if _theirs_is_faster(MOST_UNSCENTED, params, emissions, inputs):
            return self._smoother(params, emissions, hyperparams, inputs)
        given = _as_read(params, len(emissions)), emissions, _points(hyperparams), inputs
        return _smoothed(self._smoothed, ours.unscented_kalman_smoother(*given))


def _theirs_is_faster(most: int, params: Any, emissions: Any, inputs: Any) -> bool:
    """Tells whether a model has more states than ``most``, is not linear, and is computed with within `jax.jit`."""
    if len(params.initial_mean) <= most:
        return False
    given = checked(_as_read(params, len(emissions)), emissions, inputs)
    return not is_linear(given.functions) and not all(known(type(x)) for x in jax.tree.leaves((given.model, given.data)))


def _as_read(params: Any, T: int) -> Any:
    """Returns a model as dynamax reads it: of emissions' covariances of N steps, not T, it reads entry min(t, N - 1)."""
    R = params.emission_covariance
    if jnp.ndim(R) != 3 or len(R) in (0, T):
        return params
    return params._replace(emission_covariance=jnp.asarray(R)[jnp.minimum(jnp.arange(T), len(R) - 1)])


def _fields(wanted: Any) -> list[str]:
    """Returns the fields of a filter that are wanted; dynamax passes over others."""
    return [name for name in (*MOMENTS, "marginal_loglik") if name in wanted]


def _points(hyperparams: Any) -> ours.UKFHyperParams:
    return ours.UKFHyperParams(hyperparams.alpha, hyperparams.beta, hyperparams.kappa)


def _smoothed(kind: Any, result: Any) -> Any:
    """Returns smoothed moments in dynamax's type, which has no cross moments of nonlinear models."""
    return as_theirs(kind, result)._replace(smoothed_cross_covariances=None)
