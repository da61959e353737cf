"""Models that people have, in any order and units, with gaps and without, beside dynamax and the textbook.

The demand, of every moment and log-likelihood: at most twice dynamax's sequential error in the same dtype, or an error that
matters to nobody (`accurate.GOOD`). Where data have gaps, or dynamax has no number, the plain forms in NumPy stand in for it.

`PYTHONPATH=tests python tests/lgssm/test_models_people_have.py --model wiener --dtype float32` prints errors as a table, of
these models beside each other, by `--suite` of the tests below; `--help` says what else.
"""

import itertools
import sys

import numpy as np
import pytest

from oracles import accurate
from oracles.error_table import Case, available, judge, main, product
from oracles.lgssm import close, dense
from oracles.models_people_have import MODELS, VARIANTS, prepare

FAST = [
    *itertools.product(
        ["wiener4-h0.1", "season4", "ar5"], [60], ["float32"], [False], ["sequential", "chunked:4"], ["smoother"]
    ),
    *itertools.product(["velocity-filterpy", "velocity-exact"], [120], ["float32"], [False], ["auto"], ["filter"]),
    *itertools.product(["matern32"], [120], ["float32", "float64"], [True], ["auto"], ["smoother"]),
    *itertools.product(["sensor-twice-of-two"], [17], ["float32", "float64"], [False], ["chunked:3"], ["loglik"]),
    *itertools.product(["mixed-frequency-of-three"], [17], ["float32"], [True], ["sequential"], ["sample"]),
]


def check(model, T, dtype, gaps, implementation, function):
    """In all variants, for which no more is compiled."""
    assert available(model, implementation, T)
    rows = [judge(Case(model, T, dtype, variant, gaps, implementation, function)) for variant in VARIANTS]
    wrong = [f"{row.case}: {'; '.join(row.wrong)}" for row in rows if row.wrong]
    assert not wrong, "\n".join(wrong)


def named(given):
    model, T, dtype, gaps, implementation, function = given
    return f"{model}-T{T}-{dtype}-{'gaps' if gaps else 'full'}-{implementation}-{function}"


@pytest.mark.parametrize("given", FAST, ids=named)
def test_some_models(given):
    check(*given)


PRODUCT = list(dict.fromkeys((c.model, c.T, c.dtype, c.gaps, c.implementation, c.function) for c in product()))


@pytest.mark.slow
@pytest.mark.parametrize("given", PRODUCT, ids=named)
def test_models(given):
    check(*given)


def test_product_has_every_model_and_way():
    for position, wanted in (
        (0, MODELS),
        (1, (1, 2, 3, 17, 60, 120, 500, 5_000)),
        (5, ("smoother", "filter", "loglik", "sample")),
    ):
        assert {given[position] for given in PRODUCT} == set(wanted)
    ways = {given[4].split(":")[0] for given in PRODUCT}
    assert ways == {"sequential", "chunked", "auto", "associative", "pallas_interpret"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_truth_of_the_joint_gaussian(variant):
    for name in ("random4", "mixed-frequency-of-three", "slope"):
        params, y = prepare(name, 12, "float32", variant, gaps=True)
        truth = accurate.truth(params, y)
        loglik, mean, cov = dense(params, y)
        units = np.max(np.abs(mean), 0)
        close(truth.loglik.sum(), loglik, 1e-9)
        close(truth.smoothed_means / units, mean / units, 1e-8)
        squares = np.outer(units, units)
        close(truth.smoothed_covariances / squares, np.einsum("titj->tij", cov) / squares, 1e-8)
        close(truth.cross / squares, np.einsum("titj->tij", cov[:-1, :, 1:]) / squares, 1e-8)


@pytest.mark.parametrize(
    "name", ["acceleration", "season7", "ar5-exact", "mixed-frequency", "regression", "sensor-twice-of-two"]
)
def test_longdouble_is_enough(name):
    params, y = prepare(name, 30, "float64", "both", gaps=True)
    more = accurate.truth(params, y, accurate.mpmath_numbers(40))
    given = accurate.truth(params, y)
    errors = accurate.errors(given._replace(loglik=given.loglik.sum())._asdict() | {"scale": None}, more, 2.0**-52)
    assert max(errors.values()) < accurate.GOOD / 4, errors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_measures_see_what_is_wrong(dtype):
    params, y = prepare("slope", 17, dtype)
    truth, eps = accurate.truth(params, y), float(np.finfo(dtype).eps)
    given = truth._asdict() | {"loglik": truth.loglik.sum(), "scale": None}
    assert max(accurate.errors(given, truth, eps).values()) == 0
    sd = np.sqrt(np.diagonal(truth.smoothed_covariances, axis1=1, axis2=2))
    moved = given | {"smoothed_means": given["smoothed_means"] + 1e-2 * sd, "cross": given["cross"] * np.nan}
    moved |= {"smoothed_covariances": given["smoothed_covariances"] * 1.01, "loglik": given["loglik"] * 1.01}
    errors = accurate.errors(moved, truth, eps)
    assert 5e-3 < errors["smoothed_means"] <= 1.001e-2
    np.testing.assert_allclose([errors["smoothed_covariances"], errors["loglik"]], 1e-2, rtol=1e-3)
    assert errors["cross"] == np.inf
    assert errors["filtered_means"] == 0
    assert accurate.least_variance(truth.smoothed_covariances, truth) > 0
    assert accurate.least_variance(-truth.smoothed_covariances, truth) < -eps
    assert accurate.least_variance(np.nan * truth.smoothed_covariances, truth) == -np.inf


if __name__ == "__main__":
    sys.exit(main())
