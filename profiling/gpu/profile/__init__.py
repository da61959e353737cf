"""Profiles of a few public calls: JAX's own, kernel by kernel, and Nsight Compute's counters."""
