"""Random-walk Metropolis as a benchmark, beside others that write it."""
