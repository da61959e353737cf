"""Every public function, of healthy data: small ones, of a random key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import fastscan as fs
from fastscan import lds, slds
from fastscan.learn import GAUSSIAN, HMM, LGSSM, GaussianEmissions, ParamsHMM, fit_em, fit_hmc, fit_sgd
from fastscan.mcmc import rw_metropolis
from oracles.hmm import random_model
from oracles.lds import random_chain
from oracles.lgssm import random_params, simulate
from oracles.slds import random_slds

T, D, M, K = 4, 2, 2, 2
PARAMS = random_params(0, D, M)
Y = simulate(PARAMS, T, 0)
GAPS = np.where(np.arange(T * M).reshape(T, M) == 3, np.nan, Y)
WITH_INPUTS = PARAMS._replace(dynamics=PARAMS.dynamics._replace(bias=None, input_weights=np.ones((D, 1))))
U = np.linspace(0, 1, T)[:, None]
STATES = random_model(0, T, K)
CHAIN, SWITCHING = random_chain(0, T, D), random_slds(0, T, D, K)
Q_OF_K = np.full((T - 1, K), 1 / K)
FITTED = ParamsHMM(*STATES[:2], GaussianEmissions(np.arange(K * M, dtype=float).reshape(K, M), np.stack([np.eye(M)] * K)))


def density(x):
    return -0.5 * (x**2).sum(0)


FUNCTIONS = {
    "lgssm_filter": lambda _: fs.lgssm_filter(PARAMS, Y),
    "lgssm_smoother": lambda _: fs.lgssm_smoother(WITH_INPUTS, Y, U),
    "lgssm_smoother of gaps": lambda _: fs.lgssm_smoother(PARAMS, GAPS),
    "lgssm_smoother of a batch": lambda _: fs.lgssm_smoother(PARAMS, np.stack([Y, Y])),
    "lgssm_marginal_loglik": lambda _: fs.lgssm_marginal_loglik(PARAMS, Y),
    "lgssm_posterior_sample": lambda key: fs.lgssm_posterior_sample(key, PARAMS, Y),
    "lgssm_joint_sample": lambda key: fs.lgssm_joint_sample(PARAMS, key, T),
    "lgssm_posterior_predictive": lambda _: fs.lgssm_posterior_predictive(PARAMS, GAPS),
    "lgssm_forecast": lambda _: fs.lgssm_forecast(WITH_INPUTS, Y, 2, U, U[:2]),
    "pad_sequences": lambda _: fs.pad_sequences([Y, Y[:2]]),
    "timing": lambda _: fs.lgssm_filter(WITH_INPUTS, Y, U, timing="departure"),
    "functions of time": lambda _: fs.lgssm_filter(
        PARAMS._replace(dynamics=PARAMS.dynamics._replace(weights=lambda t: jnp.stack([jnp.eye(D)] * T)[t])), Y
    ),
    "hmm_filter": lambda _: fs.hmm_filter(*STATES),
    "hmm_filter of functions of time": lambda _: fs.hmm_filter(
        STATES[0], None, STATES[2], lambda t: jnp.stack([STATES[1]] * T)[t]
    ),
    "hmm_marginal_loglik": lambda _: fs.hmm_marginal_loglik(*STATES),
    "hmm_smoother": lambda _: fs.hmm_smoother(*STATES),
    "hmm_smoother of logarithms": lambda _: fs.hmm_smoother(*map(np.log, STATES[:2]), STATES[2], log_weights=True),
    "hmm_backward_filter": lambda _: fs.hmm_backward_filter(*STATES[1:]),
    "hmm_posterior_mode": lambda _: fs.hmm_posterior_mode(*STATES),
    "hmm_posterior_sample": lambda key: fs.hmm_posterior_sample(key, *STATES),
    "hmm_fixed_lag_smoother": lambda _: fs.hmm_fixed_lag_smoother(*STATES, 2),
    "compute_transition_probs": lambda _: fs.compute_transition_probs(STATES[1], fs.hmm_smoother(*STATES)),
    "lds_inference": lambda _: lds.lds_inference(*CHAIN),
    "lds_log_normalizer": lambda _: lds.lds_log_normalizer(*CHAIN),
    "lds_sample": lambda key: lds.lds_sample(key, *CHAIN),
    "slds_inference": lambda key: slds.slds_inference(*SWITCHING, key=key, max_iters=30, tol=1e-2),
    "slds_sample": lambda key: slds.slds_sample(key, *SWITCHING, slds_posterior()),
    "slds_kl": lambda _: slds.slds_kl(SWITCHING[0], slds_posterior()),
    "rw_metropolis": lambda key: rw_metropolis(key, density, jnp.zeros((2, 8)), 3, warmup=2),
    "rw_metropolis of moments": lambda key: rw_metropolis(key, density, np.zeros((2, 8)), 3, keep="moments").moments,
    "fit_em": lambda _: fit_em(LGSSM, PARAMS, Y, num_iters=2, progress=False),
    "fit_em of states": lambda _: fit_em(HMM(GAUSSIAN), FITTED, Y, num_iters=2, progress=False),
    "fit_sgd": lambda key: fit_sgd(LGSSM, PARAMS, Y, num_epochs=2, progress=False, key=key, shuffle=True),
    "fit_hmc": lambda key: fit_hmc(LGSSM, PARAMS, Y, key=key, num_samples=2, warmup_steps=2, frozen=FROZEN, progress=False),
    "affine_scan": lambda _: fs.affine_scan(np.ones((T, D, D)) / 4, Y, starts=np.arange(T) == 2, structure="dense"),
    "newton_scan": lambda _: fs.newton_scan(lambda x, u: jnp.tanh(x + u), np.zeros(M), Y).states,
    "gradient": lambda _: jax.grad(lambda u: fs.lgssm_marginal_loglik(WITH_INPUTS, np.stack([Y, Y]), u).sum())(U),
}


FROZEN = ["initial", "dynamics", "emissions.weights", "emissions.bias"]


@functools.cache
def slds_posterior():
    return slds.slds_inference(*SWITCHING, initial_probs=Q_OF_K, max_iters=3)


@functools.cache
def without(name):
    return FUNCTIONS[name](jax.random.key(0))
