"""Compiles programs with hints to XLA, or without, and runs them: in a process of its own, as XLA may abort it.

usage: python xla_canary.py on|ignored PROGRAM...
  ignored   as an XLA that does not know the mark of small calls
For each program: its name, how many calls are left in it, and the sums of its results. With XLA_FLAGS="--xla_dump_to=FOLDER",
XLA leaves the code of every function that it has compiled in FOLDER.
"""

import sys

import jax
import numpy as np

import fastscan
from fastscan.kernels import xla_hints
from fastscan.kernels.algebra import Staged, stage
from fastscan.mcmc import rw_metropolis

D, T = 2, 130
PARAMS = fastscan.make_lgssm_params(
    np.zeros(D, "f"),
    np.eye(D, dtype="f"),
    0.9 * np.eye(D, dtype="f"),
    np.eye(D, dtype="f"),
    np.ones((1, D), "f"),
    np.eye(1, dtype="f"),
)
Y = np.linspace(-1, 1, T, dtype="f")[:, None]
HMM = np.full(2, 0.5, "f"), np.array([[0.9, 0.1], [0.2, 0.8]], "f"), np.stack([Y[:, 0], -Y[:, 0]], 1)


def unit(x):
    """Of matrices, whose result two results are made of."""
    square = stage(lambda a: a @ a)(Staged.from_array(x[:, None, None, None] * x[None, :, None, None]))
    return (square + square).to_array(), (square * square).to_array()


PROGRAMS = {
    "unit": lambda: (unit, Y[:3, 0]),
    "lgssm_smoother": lambda: (lambda *x: fastscan.lgssm_smoother(*x, implementation="sequential"), PARAMS, Y),
    "lgssm_in_chunks": lambda: (lambda *x: fastscan.lgssm_smoother(*x, implementation="chunked:4"), PARAMS, Y),
    "of_constants": lambda: (lambda y: fastscan.lgssm_smoother(PARAMS, y, implementation="sequential").smoothed_means, Y),
    "hmm_mode": lambda: (lambda *x: fastscan.hmm_posterior_mode(*x, implementation="sequential"), *HMM),
    "hmm_sample": lambda: (
        lambda *x: fastscan.hmm_posterior_sample(jax.random.key(0), *x, implementation="chunked:2")[1], *HMM
    ),
    "metropolis": lambda: (
        lambda x: rw_metropolis(jax.random.key(0), lambda x: -0.5 * (x**2).sum(0), x, 20).samples, np.zeros((2, 20), "f")
    ),
}  # fmt: skip

if __name__ == "__main__":
    fastscan.use_xla_hints(True)  # whatever this jaxlib is
    if sys.argv[1] == "ignored":
        marked = xla_hints._marked
        xla_hints._marked = lambda **marks: marked(inlineable=marks["inlineable"])
    for name in sys.argv[2:]:
        function, *args = PROGRAMS[name]()

        def canary(*args, function=function):
            return function(*args)

        canary.__name__ = f"canary_{name}_end"
        done = jax.jit(canary).lower(*args).compile()
        sums = [float(np.sum(np.asarray(x, float))) for x in jax.tree.leaves(done(*args))]
        print(name, done.as_text().count(" call("), *sums, flush=True)
