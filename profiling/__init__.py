"""Measures fastscan, fits its crossovers, and draws. Imports fastscan; never imported by it."""
