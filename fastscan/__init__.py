"""The fastest exact inference for state-space models in JAX: dynamax's functions, faster."""

from fastscan.lgssm import (
    lgssm_filter,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
    pad_sequences,
    parallel_lgssm_filter,
    parallel_lgssm_posterior_sample,
    parallel_lgssm_smoother,
)
from fastscan.types import (
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    ParamsLGSSMInitial,
    PosteriorGSSMFiltered,
    PosteriorGSSMSmoothed,
    make_lgssm_params,
)

__version__ = "0.1.0"

__all__ = [
    "ParamsLGSSM",
    "ParamsLGSSMDynamics",
    "ParamsLGSSMEmissions",
    "ParamsLGSSMInitial",
    "PosteriorGSSMFiltered",
    "PosteriorGSSMSmoothed",
    "lgssm_filter",
    "lgssm_joint_sample",
    "lgssm_marginal_loglik",
    "lgssm_posterior_sample",
    "lgssm_smoother",
    "make_lgssm_params",
    "pad_sequences",
    "parallel_lgssm_filter",
    "parallel_lgssm_posterior_sample",
    "parallel_lgssm_smoother",
]
