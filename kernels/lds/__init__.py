"""Chains of Gaussian potentials as recurrences."""
