"""Fast exact inference for state-space models in JAX, with dynamax's functions."""

import importlib
from types import ModuleType

from fastscan.adoption import Adoption, adopt
from fastscan.dispatch.crossovers import use_crossover_table
from fastscan.hmm import (
    check_hmm_weights,
    compute_transition_probs,
    hmm_backward_filter,
    hmm_filter,
    hmm_marginal_loglik,
    hmm_posterior_mode,
    hmm_posterior_sample,
    hmm_smoother,
    hmm_two_filter_smoother,
    parallel_hmm_filter,
    parallel_hmm_posterior_sample,
    parallel_hmm_smoother,
)
from fastscan.hmm.fixed_lag import hmm_fixed_lag_smoother
from fastscan.kernels.xla_hints import use_xla_hints
from fastscan.lengths import use_shared_programs
from fastscan.lgssm import (
    lgssm_filter,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
    parallel_lgssm_filter,
    parallel_lgssm_posterior_sample,
    parallel_lgssm_smoother,
)
from fastscan.lgssm.fixed_lag import lgssm_fixed_lag_smoother
from fastscan.lgssm.forecast import lgssm_forecast, lgssm_posterior_predictive
from fastscan.scans import NewtonScan, Recurrence, affine_scan, newton_scan, scan
from fastscan.sequences import pack_sequences, pad_sequences, unpack_sequences
from fastscan.types import (
    GaussianState,
    HMMPosterior,
    HMMPosteriorFiltered,
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    ParamsLGSSMInitial,
    PosteriorGSSMFiltered,
    PosteriorGSSMSmoothed,
    Regimes,
    make_lgssm_params,
)

__version__ = "0.1.0"

_ON_DEMAND = ("lds", "learn", "mcmc", "nonlinear", "slds", "streaming")

__all__ = [
    "Adoption",
    "GaussianState",
    "HMMPosterior",
    "HMMPosteriorFiltered",
    "NewtonScan",
    "ParamsLGSSM",
    "ParamsLGSSMDynamics",
    "ParamsLGSSMEmissions",
    "ParamsLGSSMInitial",
    "PosteriorGSSMFiltered",
    "PosteriorGSSMSmoothed",
    "Recurrence",
    "Regimes",
    "adopt",
    "affine_scan",
    "check_hmm_weights",
    "compute_transition_probs",
    "hmm_backward_filter",
    "hmm_filter",
    "hmm_fixed_lag_smoother",
    "hmm_marginal_loglik",
    "hmm_posterior_mode",
    "hmm_posterior_sample",
    "hmm_smoother",
    "hmm_two_filter_smoother",
    "lgssm_filter",
    "lgssm_fixed_lag_smoother",
    "lgssm_forecast",
    "lgssm_joint_sample",
    "lgssm_marginal_loglik",
    "lgssm_posterior_predictive",
    "lgssm_posterior_sample",
    "lgssm_smoother",
    "make_lgssm_params",
    "newton_scan",
    "pack_sequences",
    "pad_sequences",
    "parallel_hmm_filter",
    "parallel_hmm_posterior_sample",
    "parallel_hmm_smoother",
    "parallel_lgssm_filter",
    "parallel_lgssm_posterior_sample",
    "parallel_lgssm_smoother",
    "scan",
    "unpack_sequences",
    "use_crossover_table",
    "use_shared_programs",
    "use_xla_hints",
]


def __getattr__(name: str) -> ModuleType:
    """Imports a part of fastscan as it is asked for."""
    if name in _ON_DEMAND:
        return importlib.import_module(f"fastscan.{name}")
    raise AttributeError(f"module 'fastscan' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists these parts, too."""
    return sorted({*globals(), *_ON_DEMAND})
