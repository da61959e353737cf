"""Markov chains, of which each is a lane: random-walk Metropolis, its random numbers, and log densities taken apart."""
