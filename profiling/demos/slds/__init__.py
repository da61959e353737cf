"""Switching linear dynamical systems at work, beside the same written with `lax.scan`."""
