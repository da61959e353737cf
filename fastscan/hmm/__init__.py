"""Inference in hidden Markov models: see `fastscan.hmm.api` for what all functions take and return."""

from fastscan.hmm import api as _api
from fastscan.hmm.api import (
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
from fastscan.hmm.check import ArrayLike, TransitionFn
from fastscan.hmm.transitions import check_hmm_weights, compute_transition_probs
from fastscan.types import HMMPosterior, HMMPosteriorFiltered

__all__ = [
    "ArrayLike",
    "HMMPosterior",
    "HMMPosteriorFiltered",
    "TransitionFn",
    "check_hmm_weights",
    "compute_transition_probs",
    "hmm_backward_filter",
    "hmm_filter",
    "hmm_marginal_loglik",
    "hmm_posterior_mode",
    "hmm_posterior_sample",
    "hmm_smoother",
    "hmm_two_filter_smoother",
    "parallel_hmm_filter",
    "parallel_hmm_posterior_sample",
    "parallel_hmm_smoother",
]

__doc__ = _api.__doc__
