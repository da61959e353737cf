"""Nonlinear state-space models: extended and unscented Kalman filters, and iterated smoothers that are parallel over time."""

from fastscan.nonlinear.api import (
    extended_kalman_filter,
    extended_kalman_posterior_sample,
    extended_kalman_smoother,
    iterated_extended_kalman_filter,
    iterated_extended_kalman_smoother,
    iterated_unscented_kalman_smoother,
    unscented_kalman_filter,
    unscented_kalman_smoother,
)
from fastscan.nonlinear.models import (
    Bernoulli,
    ParamsGGSSM,
    ParamsNLGSSM,
    Poisson,
    PosteriorIterated,
    UKFHyperParams,
    poisson_params,
)

__all__ = [
    "Bernoulli",
    "ParamsGGSSM",
    "ParamsNLGSSM",
    "Poisson",
    "PosteriorIterated",
    "UKFHyperParams",
    "extended_kalman_filter",
    "extended_kalman_posterior_sample",
    "extended_kalman_smoother",
    "iterated_extended_kalman_filter",
    "iterated_extended_kalman_smoother",
    "iterated_unscented_kalman_smoother",
    "poisson_params",
    "unscented_kalman_filter",
    "unscented_kalman_smoother",
]
