"""Random-walk Metropolis for thousands of chains at once: see `fastscan.mcmc.api`."""

from fastscan.mcmc import api as _api
from fastscan.mcmc.api import (
    MCMC_IMPLEMENTATIONS,
    MetropolisMoments,
    MetropolisRun,
    MetropolisState,
    explain_rw_metropolis,
    rw_metropolis,
)

__all__ = [
    "MCMC_IMPLEMENTATIONS",
    "MetropolisMoments",
    "MetropolisRun",
    "MetropolisState",
    "explain_rw_metropolis",
    "rw_metropolis",
]

__doc__ = _api.__doc__
