"""Linear-Gaussian state-space models to be learnt."""

from fastscan.learn.lgssm.model import LGSSM

__all__ = ["LGSSM"]
