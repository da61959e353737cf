"""Independent float64 references for HMMs: the recursions in logarithms, and all K^T paths."""

import itertools
from typing import NamedTuple

import numpy as np

ERRSTATE = {"divide": "ignore", "invalid": "ignore"}


class States(NamedTuple):
    """In float64: log-likelihood, and probabilities (T, K), (T, K), (T, K), (T - 1, K, K)."""

    loglik: float
    filtered: np.ndarray
    predicted: np.ndarray
    smoothed: np.ndarray
    pairs: np.ndarray


def logsumexp(x, axis=None):
    largest = np.max(x, axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(**ERRSTATE):
        out = np.log(np.sum(np.exp(x - largest), axis=axis, keepdims=True)) + largest
    return np.squeeze(out, axis) if axis is not None else out.item()


def random_model(seed: int, T: int, K: int, dtype="float64", *, varying=False, zeros=0.0, spread=1.0):
    """Initial distribution, transitions and log-likelihoods; a share of ``zeros`` among the transitions, never a whole row."""
    r = np.random.default_rng(seed)
    A = r.dirichlet(np.ones(K), size=(T - 1, K) if varying else K)
    drop = (r.random(A.shape) < zeros) & ~np.eye(K, dtype=bool)
    A = np.where(drop, 0, A)
    A = A / A.sum(-1, keepdims=True)
    return tuple(x.astype(dtype) for x in (r.dirichlet(np.ones(K)), A, spread * r.normal(size=(T, K))))


def textbook(initial, A, ll) -> States:
    """Forward and backward recursions, a logsumexp an entry; weights need not be normalised."""
    initial, A, ll = (np.asarray(x, np.float64) for x in (initial, A, ll))
    T, K = ll.shape
    ll = np.where(np.isnan(ll).all(-1, keepdims=True), 0, ll)
    with np.errstate(**ERRSTATE):
        log_A = np.broadcast_to(np.log(A), (T - 1, K, K)) if A.ndim == 2 else np.log(A)
        forward = [np.log(initial) + ll[0]]
    predicted = [initial]
    for t in range(T - 1):
        moved = logsumexp(forward[-1][:, None] + log_A[t], 0)
        predicted.append(np.exp(moved - logsumexp(forward[-1])))
        forward.append(moved + ll[t + 1])
    backward = [np.zeros(K)]
    for t in range(T - 2, -1, -1):
        backward.append(logsumexp(log_A[t] + ll[t + 1] + backward[-1], 1))
    backward = backward[::-1]
    loglik = logsumexp(forward[-1])
    pairs = [np.exp(forward[t][:, None] + log_A[t] + ll[t + 1] + backward[t + 1] - loglik) for t in range(T - 1)]
    return States(
        loglik,
        np.array([np.exp(f - logsumexp(f)) for f in forward]),
        np.array(predicted),
        np.array([np.exp(f + b - loglik) for f, b in zip(forward, backward, strict=True)]),
        np.array(pairs).reshape(T - 1, K, K),
    )


def paths(initial, A, ll) -> tuple[np.ndarray, np.ndarray]:
    """All paths (K^T, T) in lexicographic order, and the logarithms of their weights."""
    T, K = ll.shape
    every = np.array(list(itertools.product(range(K), repeat=T)))
    A = np.broadcast_to(A, (T - 1, K, K)) if np.ndim(A) == 2 else A
    with np.errstate(**ERRSTATE):
        weights = np.log(initial)[every[:, 0]] + ll[np.arange(T), every].sum(1)
        weights = weights + np.log(A[np.arange(T - 1), every[:, :-1], every[:, 1:]]).sum(1)
    return every, weights


def score(initial, A, ll, states) -> float:
    """The logarithm of one path's weight."""
    A = np.broadcast_to(A, (len(ll) - 1, *np.shape(A)[-2:])).astype(float)
    with np.errstate(**ERRSTATE):
        steps = np.log(A[np.arange(len(ll) - 1), states[:-1], states[1:]]).sum()
        return float(np.log(float(initial[states[0]])) + steps + np.asarray(ll, float)[np.arange(len(ll)), states].sum())


def viterbi(initial, A, ll) -> np.ndarray:
    """The most likely path, backward scores, the first state of equal ones."""
    initial, A, ll = (np.asarray(x, np.float64) for x in (initial, A, ll))
    T, K = ll.shape
    A = np.broadcast_to(A, (T - 1, K, K))
    best, choices = np.zeros(K), []
    with np.errstate(**ERRSTATE):
        for t in range(T - 2, -1, -1):
            scores = np.log(A[t]) + ll[t + 1] + best
            choices.append(scores.argmax(1))
            best = scores.max(1)
        states = [int(np.argmax(np.log(initial) + ll[0] + best))]
    for choice in choices[::-1]:
        states.append(int(choice[states[-1]]))
    return np.array(states)
