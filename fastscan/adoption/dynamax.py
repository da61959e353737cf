"""Our answers to dynamax's functions: its arguments as it reads them, and results in its own types."""

import importlib
import importlib.metadata
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from fastscan import hmm as our_hmm
from fastscan import lgssm as our_lgssm
from fastscan.adoption import keys, learning
from fastscan.adoption.answer import Answer, as_theirs, size
from fastscan.adoption.emissions import answer_logliks
from fastscan.dispatch.choice import device_kind
from fastscan.hmm.fixed_lag import hmm_fixed_lag_smoother
from fastscan.types import Regimes

TIMINGS = {"1.0.0": "departure", "1.0.1": "departure", "1.0.2": "departure", "1.0.3": "arrival"}
"""Which transition entry t of dynamics belongs to, of the versions of dynamax that are known: see `fastscan.lgssm.timing`."""

_OURS_LACK = {
    "dynamax.linear_gaussian_ssm.info_inference": ("lgssm_info_filter", "lgssm_info_smoother"),
    "dynamax.generalized_gaussian_ssm.inference": (
        "conditional_moments_gaussian_filter",
        "iterated_conditional_moments_gaussian_filter",
        "conditional_moments_gaussian_smoother",
        "iterated_conditional_moments_gaussian_smoother",
    ),
    "dynamax.slds.inference": ("rbpfilter", "rbpfilter_optimal"),
}


MOST_VARYING = 16
"""The most states for which ours samples within `jax.jit` on a CPU, where dynamics vary; of more, dynamax's does, which
takes less time (``python -m fastscan.profiling adopted``) and more memory."""

_OTHER_STATES = "draws other states of a key, from the same distribution"
_VARYING = f"within jax.jit on a CPU, of more than {MOST_VARYING} states whose dynamics vary, dynamax's is called: it is faster"
_SHORT = "of a hundred steps or so, a call outside of jax.jit takes up to {} times as long as dynamax's"


def answers() -> tuple[list[Answer], dict[str, str]]:
    """Lists what is replaced in the dynamax that is installed, and of its inference what is not, with the reasons.

    Raises:
        ImportError: dynamax is not installed.
        ValueError: its version is not known.
    """
    from fastscan.adoption import nonlinear  # only here, so that importing fastscan does not bring fastscan.nonlinear

    version = importlib.metadata.version("dynamax")
    if version not in TIMINGS:
        raise ValueError(
            f"dynamax {version} given, wanted one of {', '.join(TIMINGS)}: which transition an entry of time-varying dynamics "
            "belongs to differs between versions, and is not known of this one."
        )
    module = importlib.import_module
    lgssm, parallel_lgssm = (module(f"dynamax.linear_gaussian_ssm.{name}") for name in ("inference", "parallel_inference"))
    hmm, parallel_hmm = (module(f"dynamax.hidden_markov_model.{name}") for name in ("inference", "parallel_inference"))
    of_lgssm = _OfLGSSM(lgssm, TIMINGS[version])
    of_hmm = _OfHMM(hmm)
    found = [
        Answer(lgssm, "lgssm_filter", of_lgssm.filter),
        Answer(lgssm, "lgssm_smoother", of_lgssm.smoother),
        Answer(lgssm, "lgssm_posterior_sample", of_lgssm.posterior_sample, _VARYING),
        Answer(lgssm, "lgssm_joint_sample", of_lgssm.joint_sample),
        Answer(parallel_lgssm, "lgssm_filter", of_lgssm.filter),
        Answer(parallel_lgssm, "lgssm_smoother", of_lgssm.parallel_smoother),
        Answer(parallel_lgssm, "lgssm_posterior_sample", of_lgssm.parallel_posterior_sample),
        Answer(hmm, "hmm_filter", of_hmm.filter, _SHORT.format("3")),
        Answer(hmm, "hmm_backward_filter", our_hmm.hmm_backward_filter),
        Answer(hmm, "hmm_two_filter_smoother", of_hmm.smoother),
        Answer(hmm, "hmm_smoother", of_hmm.smoother, _SHORT.format("4")),
        Answer(hmm, "hmm_fixed_lag_smoother", of_hmm.fixed_lag_smoother),
        Answer(hmm, "hmm_posterior_mode", of_hmm.posterior_mode, _SHORT.format("4")),
        Answer(hmm, "hmm_posterior_sample", of_hmm.posterior_sample),
        Answer(hmm, "compute_transition_probs", our_hmm.compute_transition_probs),
        Answer(parallel_hmm, "hmm_filter", of_hmm.parallel_filter),
        Answer(parallel_hmm, "hmm_smoother", of_hmm.parallel_smoother),
        Answer(parallel_hmm, "hmm_posterior_sample", of_hmm.parallel_posterior_sample, _OTHER_STATES),
    ]
    models = module("dynamax.hidden_markov_model.models")
    of_emissions = models.abstractions.HMMEmissions
    logliks = answer_logliks(models, of_emissions._compute_conditional_logliks)
    found.append(Answer(of_emissions, "_compute_conditional_logliks", logliks))
    ssm = module("dynamax.ssm").SSM
    kept = {f"{m}.{name}": "fastscan has none" for m, names in _OURS_LACK.items() for name in names if _has(m, name)}
    of_nonlinear = nonlinear.answers(*(module(f"dynamax.nonlinear_gaussian_ssm.inference_{name}") for name in ("ekf", "ukf")))
    if TIMINGS[version] == "arrival":
        found += of_nonlinear
    else:
        why = f"in version {version} covariance and input t act on the transition out of step t, in fastscan.nonlinear into it"
        kept |= {f"{answer.owner.__name__}.{answer.name}": why for answer in of_nonlinear}
    if learning.fits(ssm):
        found.append(Answer(ssm, "fit_em", learning.answer_fit_em(ssm.fit_em)))
    else:
        kept["dynamax.ssm.SSM.fit_em"] = f"its arguments in version {version} are others"
    return found, kept


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


class _OfLGSSM:
    """Answers to functions of linear-Gaussian models."""

    def __init__(self, module: Any, timing: str):
        self._filtered, self._smoothed = module.PosteriorGSSMFiltered, module.PosteriorGSSMSmoothed
        self._posterior_sample, self._timing = module.lgssm_posterior_sample, timing

    def filter(self, params, emissions, inputs=None):
        given = as_read(params, len(emissions)), emissions, inputs
        return as_theirs(self._filtered, our_lgssm.lgssm_filter(*given, **self._how(emissions)))

    def smoother(self, params, emissions, inputs=None):
        given = as_read(params, len(emissions)), emissions, inputs
        return as_theirs(self._smoothed, our_lgssm.lgssm_smoother(*given, **self._how(emissions)))

    def parallel_smoother(self, params, emissions, inputs=None):
        return self.smoother(params, emissions, inputs)._replace(smoothed_cross_covariances=None)

    def posterior_sample(self, key, params, emissions, inputs=None, jitter=0.0):
        if _theirs_is_faster(params, emissions):
            return self._posterior_sample(key, params, emissions, inputs, jitter)
        drawn = keys.of_posterior_sample(key, len(emissions), *size(params.initial.mean))
        return self._sample(drawn, params, emissions, inputs, jitter)

    def parallel_posterior_sample(self, key, params, emissions, inputs=None):
        drawn = keys.of_parallel_posterior_sample(key, len(emissions), *size(params.initial.mean))
        return self._sample(drawn, params, emissions, inputs)

    def joint_sample(self, params, key, num_timesteps, inputs=None):
        m, (D, dtype) = jnp.shape(params.emissions.cov)[-1], size(params.initial.mean)
        given = keys.of_joint_sample(key, num_timesteps, D, m, dtype), num_timesteps, inputs
        return our_lgssm.lgssm_joint_sample(as_read(params, num_timesteps), *given, timing=self._timing)

    def _sample(self, drawn: Any, params: Any, emissions: Any, *more: Any) -> jax.Array:
        given = as_read(params, len(emissions)), emissions, *more
        return our_lgssm.lgssm_posterior_sample(drawn, *given, **self._how(emissions))

    def _how(self, emissions: Any) -> dict[str, Any]:
        """Names the timing; and within `jit`, where a gap can't be seen, that there is none: dynamax knows none, and programs
        that do are twice as long.
        """
        return {"timing": self._timing, "missing": False if isinstance(emissions, jax.core.Tracer) else None}


def _theirs_is_faster(params: Any, emissions: Any) -> bool:
    """Tells whether dynamax's own sampler is the faster one: see `MOST_VARYING`."""
    F, Q = params.dynamics.weights, params.dynamics.cov
    varying = any(callable(x) or jnp.ndim(x) > 2 for x in (F, Q))
    D = jnp.shape(params.initial.mean)[-1]
    return varying and D > MOST_VARYING and isinstance(emissions, jax.core.Tracer) and device_kind() == "cpu"


_RANKS = {"weights": 2, "bias": 1, "input_weights": 2, "cov": 2}


def as_read(params: Any, T: int) -> Any:
    """Returns a model as dynamax reads it: of emissions with N entries, not T, it reads entry min(t, N - 1)."""
    emissions, changed = params.emissions, {}
    for name, rank in _RANKS.items():
        x = getattr(emissions, name)
        if x is not None and not callable(x) and jnp.ndim(x) == rank + 1 and jnp.shape(x)[0] not in (0, T):
            changed[name] = Regimes(x, jnp.minimum(jnp.arange(T), len(x) - 1))
    return params._replace(emissions=emissions._replace(**changed)) if changed else params


class _OfHMM:
    """Answers to functions of hidden Markov models."""

    def __init__(self, module: Any):
        self._filtered, self._smoothed = module.HMMPosteriorFiltered, module.HMMPosterior

    def filter(self, initial_distribution, transition_matrix, log_likelihoods, transition_fn=None):
        given = initial_distribution, transition_matrix, log_likelihoods, transition_fn
        return as_theirs(self._filtered, our_hmm.hmm_filter(*given))

    def parallel_filter(self, initial_probs, transition_matrix, log_likelihoods):
        return self.filter(initial_probs, transition_matrix, log_likelihoods)

    def smoother(self, initial_distribution, transition_matrix, log_likelihoods, transition_fn=None, compute_trans_probs=True):
        given = initial_distribution, transition_matrix, log_likelihoods, transition_fn, compute_trans_probs
        return as_theirs(self._smoothed, our_hmm.hmm_smoother(*given))

    def parallel_smoother(self, initial_probs, transition_matrix, log_likelihoods, compute_trans_probs=True):
        return self.smoother(initial_probs, transition_matrix, log_likelihoods, None, compute_trans_probs)

    def fixed_lag_smoother(self, initial_distribution, transition_matrix, log_likelihoods, window_size, transition_fn=None):
        given = initial_distribution, transition_matrix, log_likelihoods, window_size, transition_fn
        return as_theirs(self._smoothed, hmm_fixed_lag_smoother(*given))

    def posterior_mode(self, initial_distribution, transition_matrix, log_likelihoods, transition_fn=None):
        return _integers(our_hmm.hmm_posterior_mode(initial_distribution, transition_matrix, log_likelihoods, transition_fn))

    def posterior_sample(self, key, initial_distribution, transition_matrix, log_likelihoods, transition_fn=None):
        drawn = keys.of_paths(key, len(log_likelihoods), jnp.result_type(float))
        return self._sample(drawn, initial_distribution, transition_matrix, log_likelihoods, transition_fn)

    def parallel_posterior_sample(self, key, initial_distribution, transition_matrix, log_likelihoods):
        # dynamax draws K states a step
        return self._sample(key, initial_distribution, transition_matrix, log_likelihoods)

    def _sample(self, key: Any, *given: Any) -> tuple[jax.Array, jax.Array]:
        loglik, states = our_hmm.hmm_posterior_sample(key, *given)
        return loglik, _integers(states)


def _integers(states: jax.Array) -> jax.Array:
    """Returns states in JAX's default type of integers, as dynamax has them."""
    return states.astype(jnp.result_type(int))
