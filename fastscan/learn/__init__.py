"""Learning state-space models: EM, stochastic gradients, and Hamiltonian Monte Carlo; needs the extra ``learn``."""

import importlib.util

if missing := [name for name in ("blackjax", "optax", "rich") if importlib.util.find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"fastscan.learn wants {', '.join(missing)}, not installed here. Take the extra: pip install 'fastscan[learn]'",
        name=missing[0],
    )

from fastscan.learn.constraints import (
    FROZEN,
    POSITIVE,
    POSITIVE_DEFINITE,
    REAL,
    SIMPLEX,
    Constraint,
    freeze,
    from_unconstrained,
    log_det_jac_constrain,
    to_unconstrained,
)
from fastscan.learn.em import fit_em
from fastscan.learn.hmc import Convergence, Draws, convergence, fit_hmc
from fastscan.learn.hmm import HMM, ParamsHMM
from fastscan.learn.hmm.emissions import (
    CATEGORICAL,
    GAUSSIAN,
    POISSON,
    CategoricalEmissions,
    Emissions,
    GaussianEmissions,
    PoissonEmissions,
)
from fastscan.learn.learnable import Learnable
from fastscan.learn.lgssm import LGSSM
from fastscan.learn.sgd import fit_sgd
from fastscan.learn.verdict import Fit, Verdict

__all__ = [
    "CATEGORICAL",
    "FROZEN",
    "GAUSSIAN",
    "HMM",
    "LGSSM",
    "POISSON",
    "POSITIVE",
    "POSITIVE_DEFINITE",
    "REAL",
    "SIMPLEX",
    "CategoricalEmissions",
    "Constraint",
    "Convergence",
    "Draws",
    "Emissions",
    "Fit",
    "GaussianEmissions",
    "Learnable",
    "ParamsHMM",
    "PoissonEmissions",
    "Verdict",
    "convergence",
    "fit_em",
    "fit_hmc",
    "fit_sgd",
    "freeze",
    "from_unconstrained",
    "log_det_jac_constrain",
    "to_unconstrained",
]
