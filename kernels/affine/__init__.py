"""Affine recurrences: vectors that move by x <- A x + b, with matrices of any structure."""
