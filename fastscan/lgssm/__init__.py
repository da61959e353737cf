"""Inference in linear-Gaussian state-space models: see `fastscan.lgssm.api` for what all functions take and return."""

from fastscan.lgssm import api as _api
from fastscan.lgssm.api import (
    lgssm_filter,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
    parallel_lgssm_filter,
    parallel_lgssm_posterior_sample,
    parallel_lgssm_smoother,
)
from fastscan.sequences import pad_sequences
from fastscan.types import ParamsLGSSM, PosteriorGSSMFiltered, PosteriorGSSMSmoothed

__all__ = [
    "ParamsLGSSM",
    "PosteriorGSSMFiltered",
    "PosteriorGSSMSmoothed",
    "lgssm_filter",
    "lgssm_joint_sample",
    "lgssm_marginal_loglik",
    "lgssm_posterior_sample",
    "lgssm_smoother",
    "pad_sequences",
    "parallel_lgssm_filter",
    "parallel_lgssm_posterior_sample",
    "parallel_lgssm_smoother",
]

__doc__ = _api.__doc__
