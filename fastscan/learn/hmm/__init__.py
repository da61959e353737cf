"""Hidden Markov models to be learnt, and what their states emit."""

from fastscan.learn.hmm.model import HMM, ParamsHMM

__all__ = ["HMM", "ParamsHMM"]
