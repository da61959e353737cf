"""Chains of Gaussian potentials in textbook NumPy: the joint precision of all states, inverted."""

import numpy as np

from fastscan.lds import InitialPotential, NodePotential, PairPotential


def random_chain(seed, T, D, *, static=False, missing=(), dtype="float64"):
    """Potentials whose product is a density, with pairs that are none: each has more precision than a conditional has."""
    r = np.random.default_rng(seed)

    def precision(*lead):
        A = r.standard_normal((*lead, D, D + 1))
        return A @ A.swapaxes(-1, -2) / D + 0.3 * np.eye(D)

    lead = () if static else (T - 1,)
    whole = r.standard_normal((*lead, 2 * D, 2 * D + 1))
    whole = whole @ whole.swapaxes(-1, -2) / D + 0.1 * np.eye(2 * D)
    h1, h2 = r.standard_normal((2, *lead, D))
    pair = PairPotential(h1, whole[..., :D, :D], -whole[..., :D, D:], whole[..., D:, D:], h2)
    node = NodePotential(r.standard_normal((T, D)), precision(T))
    for t in missing:
        node.r[t], node.R[t] = 0, 0
    init = InitialPotential(r.standard_normal(D), precision())
    return tuple(type(part)(*(np.asarray(x, dtype) for x in part)) for part in (node, init, pair))


def dense(node, init, pair):
    """The joint precision (T D, T D) and linear part (T D)."""
    T, D = node.r.shape
    Lambda, eta = np.zeros((T, D, T, D)), np.array(node.r, "float64")
    eta[0] += init.h
    Lambda[0, :, 0] += init.J
    for t in range(T):
        Lambda[t, :, t] += node.R[t]
    for t in range(T - 1):
        h1, J11, J12, J22, h2 = pair if pair.J11.ndim == 2 else (x[t] for x in pair)
        eta[t] -= h1
        eta[t + 1] += h2
        Lambda[t, :, t] += J11
        Lambda[t + 1, :, t + 1] += J22
        Lambda[t, :, t + 1] -= J12
        Lambda[t + 1, :, t] -= J12.T
    return Lambda.reshape(T * D, T * D), eta.reshape(T * D)


def textbook(node, init, pair):
    """E[x], E[x x'], E[x x_next'] and the log normaliser."""
    T, D = node.r.shape
    Lambda, eta = dense(node, init, pair)
    cov = np.linalg.inv(Lambda)
    mean = cov @ eta
    second = (cov + np.outer(mean, mean)).reshape(T, D, T, D)
    log_normalizer = 0.5 * (eta @ mean - np.linalg.slogdet(Lambda)[1] + T * D * np.log(2 * np.pi))
    every = np.arange(T)
    return mean.reshape(T, D), second[every, :, every], second[every[:-1], :, every[1:]], log_normalizer
