"""Switching linear dynamical systems by enumeration of all discrete paths, and problems to try them on."""

import itertools

import numpy as np

from fastscan.lds import InitialPotential, NodePotential, PairPotential
from fastscan.slds import SLDSParams
from oracles.lds import dense


def random_slds(seed, T, D, K, N=None, *, spread=0.1):
    """Parameters, and potentials of what N emissions of a simulated series say.

    Rotations of K speeds; averages over their uncertainty, that is more precision than a density's, and weights that sum to
    less than one.
    """
    r = np.random.default_rng(seed)
    N = N or 2 * D
    A = np.stack([_rotation(r, D, 0.2 + 0.5 * k) for k in range(K)]) * 0.95
    b = 0.3 * r.standard_normal((K, D))
    Q = np.stack([np.diag(r.uniform(0.05, 0.2, D)) for _ in range(K)])
    P = np.linalg.inv(Q)
    J12 = A.swapaxes(-1, -2) @ P
    J11 = J12 @ A + spread * np.eye(D)
    h2 = (P @ b[..., None])[..., 0]
    h1 = (J12 @ b[..., None])[..., 0]
    log_scale = -0.5 * ((b * h2).sum(-1) + np.linalg.slogdet(Q)[1] + D * np.log(2 * np.pi))
    transition = 0.8 * np.eye(K) + 0.2 / K
    params = SLDSParams(
        np.log(np.full(K, 0.9 / K)),
        np.log(0.97 * transition / transition.sum(1, keepdims=True)),
        InitialPotential(np.zeros(D), np.eye(D)),
        PairPotential(h1, J11, J12, P, h2),
        log_scale,
        np.float64(-D / 2 * np.log(2 * np.pi)),
    )
    x, k, ys = r.standard_normal(D), 0, []
    H, noise = r.standard_normal((N, D)), r.uniform(0.3, 1.0, N)
    for _ in range(T):
        ys.append(H @ x + np.sqrt(noise) * r.standard_normal(N))
        k = r.choice(K, p=transition[k] / transition[k].sum())
        x = A[k] @ x + b[k] + np.sqrt(np.diag(Q[k])) * r.standard_normal(D)
    node = NodePotential(np.array(ys) / noise @ H, np.broadcast_to(H.T / noise @ H, (T, D, D)).copy())
    return node, params


def _rotation(r, D, speed):
    S = r.standard_normal((D, D))
    values, vectors = np.linalg.eigh(1j * (S - S.T))
    return (vectors @ np.diag(np.exp(1j * speed * np.sign(values))) @ vectors.conj().T).real


def log_integral(node, init, pair):
    """Of the product of a chain's potentials."""
    Lambda, eta = dense(node, init, pair)
    return 0.5 * (eta @ np.linalg.solve(Lambda, eta) - np.linalg.slogdet(Lambda)[1] + len(eta) * np.log(2 * np.pi))


def paths(T, K):
    """Every path of the discrete states, (K^(T-1), T - 1)."""
    return np.array(list(itertools.product(range(K), repeat=T - 1)))


def path_weights(params, every):
    """Logarithms of their weights."""
    weights = params.log_initial[every[:, 0]]
    return weights + params.log_transition[every[:, :-1], every[:, 1:]].sum(1)


def log_normalizer(node, params):
    """Of x and k together."""
    T, K = len(node.r), len(params.log_initial)
    every = paths(T, K)
    logs = path_weights(params, every) + params.log_scale[every].sum(1) + params.init_log_scale
    logs += [log_integral(node, params.init, PairPotential(*(x[path] for x in params.pair))) for path in every]
    return np.logaddexp.reduce(logs)


def path_probs(params, log_likelihoods):
    """Every path, and what q(k) says of it."""
    steps = len(log_likelihoods)
    every = paths(steps + 1, len(params.log_initial))
    logs = path_weights(params, every) + log_likelihoods[np.arange(steps), every].sum(1)
    return every, np.exp(logs - np.logaddexp.reduce(logs))


def bound(node, params, pair, log_likelihoods):
    """E_q[log potentials and weights] and the entropies of q(x), made with ``pair``, and of q(k), made with log-likelihoods."""
    T, D = node.r.shape
    every, q = path_probs(params, log_likelihoods)
    Lambda, eta = dense(node, params.init, pair)
    cov = np.linalg.inv(Lambda)
    mean, second = cov @ eta, cov + np.outer(cov @ eta, cov @ eta)
    entropy_x = 0.5 * (np.linalg.slogdet(cov)[1] + T * D * (1 + np.log(2 * np.pi)))
    entropy_k = -(q * np.log(q)).sum()
    energy = (q * (path_weights(params, every) + params.log_scale[every].sum(1))).sum() + params.init_log_scale
    for probability, path in zip(q, every, strict=True):
        L, e = dense(node, params.init, PairPotential(*(x[path] for x in params.pair)))
        energy += probability * (e @ mean - 0.5 * (L * second).sum())
    return energy + entropy_x + entropy_k
