"""The second, tiny update that gives a conditioned covariance the accuracy of Joseph's form.

What the first one's rounding left along an observation h is known, because ``P h'`` must end as the noise times the gain k.
"""

from fastscan.kernels.algebra import mirrored, multiply_add, stage


def repaired(reduced, h, k, noise, weight):
    """Removes what rounding left along observations.

    Args:
        reduced: a covariance after its first update (D, D), symmetric to the last bit.
        h: (n, D).
        k: what a mean moves by per innovation (D, n).
        noise: (n, 1).
        weight: (n, 1) or (1, 1).
    """
    error = _remaining_error(reduced, h, k, noise)
    return _remove_error(reduced, _share_error(error, h, k, weight), k, weight)


@stage
def _remaining_error(reduced, h, k, noise):
    return multiply_add(reduced, h.T, k * (noise.T * -1.0))


@stage
def _share_error(error, h, k, weight):
    return multiply_add(k, (h @ error) * (weight * -0.5), error)


@stage
def _remove_error(reduced, share, k, weight):
    minus_k = k * (weight * -1.0)
    return mirrored(multiply_add(share, minus_k.T, multiply_add(minus_k, share.T, reduced)))
