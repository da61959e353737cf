"""Time-invariant models whose covariances converge: see `scan.settling`.

Rows before the covariance has settled are those of the ordinary recursion. From there on the gain is constant, and so is what
whitens the innovations. On the way back the smoother's gain is constant over the same rows; from the end on the smoothed
covariance settles, and the rows at the beginning are the ordinary ones again.

Arrays in the order of time are (T, rows, columns, 1, B or 1) here.
"""
