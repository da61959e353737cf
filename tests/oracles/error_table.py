"""Errors on models that people have, beside dynamax's and the textbook's: cases, verdicts, a table."""

import argparse
import functools
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import dynamax.linear_gaussian_ssm as dynamax
import jax
import jax.numpy as jnp
import numpy as np

from fastscan import lgssm_filter, lgssm_marginal_loglik, lgssm_smoother
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm import problem
from oracles import accurate
from oracles.accurate import GOOD, Truth
from oracles.models_people_have import MODELS, VARIANTS, prepare

FUNCTIONS = ("smoother", "filter", "loglik", "sample")
LENGTHS = (1, 2, 3, 17, 60, 120, 500, 5_000)
DTYPES = ("float32", "float64")
SAMPLED = 500
"""Numbers in a series, T D, up to which a sampler's covariances are found: by a sample for every one of them."""
LOUD = 2.0**20
"""Of the noise from which these are found: a mean's rounding is small beside what it moves."""
NEGATIVE = -8
"""Units of rounding, that a variance may be below zero."""
NOBODY = 1e-2
"""An error that nobody has to fall below where all others fail in the same dtype."""


class Case(NamedTuple):
    """Data, and who infers from it. ``implementation`` may be "auto"; other seeds are for who looks for more, by the table."""

    model: str
    T: int
    dtype: str
    variant: str
    gaps: bool
    implementation: str
    function: str
    seed: int = 0

    def __str__(self) -> str:
        gaps = "gaps" if self.gaps else "full"
        return f"{self.model}-T{self.T}-{self.dtype}-{self.variant}-{gaps}-{self.implementation}-{self.function}"


class Known(NamedTuple):
    """What is known of a case's data: the truth, and errors of others.

    Where a covariance is a rounding below zero, truths are two: of what is given, and of the nearest that is a covariance. How
    far they are apart says what that rounding is worth to anyone who raises it to zero in a way of his own.
    """

    params: Any
    emissions: np.ndarray
    truths: tuple[Truth, ...]
    apart: dict[str, float]
    dynamax: dict[str, float]
    textbook: dict[str, float]


class Row(NamedTuple):
    """A line of the table: errors, the other's, what is allowed, and what is wrong."""

    case: Case
    errors: dict[str, float]
    others: dict[str, float]
    least: float
    wrong: list[str]


@functools.lru_cache(256)
def known(model: str, T: int, dtype: str, variant: str, gaps: bool, seed: int) -> Known:
    params, y = prepare(model, T, dtype, variant, gaps, seed)
    altered = accurate.as_covariances(params)
    convert = accurate.mpmath_numbers(MODELS[model].digits) if MODELS[model].digits else np.longdouble
    truths = tuple(accurate.truth(p, y, convert) for p in (params, altered) if p is not None)
    result = Known(params, y, truths, {}, {}, {})
    if len(truths) == 2:
        apart = accurate.errors(whole(truths[1]), truths[0], float(np.finfo(y.dtype).eps))
        result = result._replace(apart=apart)
    theirs = {} if np.isnan(y).any() else errors(result, dynamaxs(params, y))
    plain = {}
    if not theirs or not np.all(np.isfinite(list(theirs.values()))):
        textbook = accurate.textbook(params, y)
        plain = errors(result, whole(Truth(*[np.nan] * 7) if textbook is None else textbook))
    return result._replace(dynamax=theirs, textbook=plain)


def whole(moments: Truth) -> dict[str, Any]:
    """As what infers gives them."""
    return moments._asdict() | {"loglik": np.sum(moments.loglik), "scale": None}


def errors(case: Known, given: dict[str, Any]) -> dict[str, float]:
    """The smallest against either truth: whether a rounding below zero is one is for who infers to say."""
    eps = float(np.finfo(case.emissions.dtype).eps)
    both = [accurate.errors(given, truth, eps) for truth in case.truths]
    return {name: min(e[name] for e in both) for name in both[0]}


_dynamax_smoother = jax.jit(dynamax.lgssm_smoother)


def dynamaxs(params, y: np.ndarray) -> dict[str, Any]:
    with jax.enable_x64(y.dtype == np.float64):
        found = _dynamax_smoother(jax.tree.map(jnp.asarray, params), jnp.asarray(y))
    names = ("filtered_means", "filtered_covariances", "smoothed_means", "smoothed_covariances")
    return {"loglik": found.marginal_loglik} | {name: getattr(found, name) for name in names}


def ours(params, y: np.ndarray, implementation: str, function: str, missing: bool) -> dict[str, Any]:
    """By the names of `Truth`."""
    how = {"implementation": None if implementation == "auto" else implementation, "missing": missing}
    if function == "loglik":
        return {"loglik": lgssm_marginal_loglik(params, y, **how)}
    if function == "sample":
        return sampled(params, y, **how)
    if function == "filter":
        found = lgssm_filter(params, y, **how)
        return {"loglik": found.marginal_loglik} | {k: x for k, x in found._asdict().items() if k.startswith("filtered")}
    loglik, *moments = lgssm_smoother(params, y, central=True, **how)
    names = ("filtered_means", "filtered_covariances", "smoothed_means", "smoothed_covariances", "cross")
    return {"loglik": loglik} | dict(zip(names, moments, strict=True))


def sampled(params, y: np.ndarray, implementation: str | None, missing: bool) -> dict[str, Any]:
    """Exact moments of `lgssm_posterior_sample`: an affine function of its noise, of which the parts are found one by one."""
    (T, _), D = y.shape, len(params.initial.mean)
    N = T * D if T * D <= SAMPLED else 0
    noise = np.concatenate([np.zeros((1, T * D)), LOUD * np.eye(N, T * D)]).reshape(N + 1, T, D).astype(y.dtype)
    states = np.asarray(_samples(params, y, noise, missing, implementation), np.float64)
    parts = (states[1:] - states[0]) / LOUD
    cov = np.einsum("nti,ntj->tij", parts, parts) if N else None
    cross = np.einsum("nti,ntj->tij", parts[:, :-1], parts[:, 1:]) if N else None
    return {"smoothed_means": states[0], "smoothed_covariances": cov, "cross": cross}


@functools.partial(jax.jit, static_argnames=("missing", "implementation"))
def _samples(params, y, noise, missing, implementation):
    """What `lgssm_posterior_sample` does once it has drawn its noise, for many noises."""
    y = jnp.broadcast_to(y, (len(noise), *y.shape))
    model, y, _, how = problem.prepare(params, y, None, missing, implementation)
    return lgssm_inference.sample_states(model, y, noise, jnp.zeros((), y.dtype), how)[..., 0]


def judge(case: Case) -> Row:
    """Runs a case, and says what is wrong with it."""
    this, same = known(*case[:5], case.seed), [known(*case[:3], v, case.gaps, case.seed) for v in VARIANTS]
    missing = case.gaps or bool(np.isnan(this.emissions).any())
    given = ours(this.params, this.emissions, case.implementation, case.function, missing)
    found, wrong, others = errors(this, given), [], {}
    for name, error in found.items():
        other = reference_error(this, same, name)
        others[name] = other
        allowed = max(GOOD, 2 * this.apart.get(name, 0.0), 2 * other if np.isfinite(other) else NOBODY)
        if not np.isfinite(error) or error > allowed:
            wrong.append(f"{name} {error:.1e} > {allowed:.1e}")
    covs = [x for name, x in given.items() if name.endswith("covariances") and x is not None]
    least = min((accurate.least_variance(x, this.truths[-1]) for x in covs), default=0.0)
    least /= float(np.finfo(case.dtype).eps)
    if least < NEGATIVE:
        wrong.append(f"variance {least:.1e} eps")
    return Row(case, found, others, least, wrong)


def reference_error(this: Known, same: list[Known], name: str) -> float:
    """Dynamax's error; where dynamax has none, or is no number, the textbook's in the same dtype.

    It is the largest one of the ``same`` data in another order too, for in one of them they may be lucky; the textbook's, on
    which units have no influence but by luck, also in other units.
    """
    name = "smoothed_covariances" if name == "cross" else name
    if np.isfinite(this.dynamax.get(name, np.inf)):
        alike = [x.dynamax.get(name, np.inf) for x in same if np.array_equal(_units(x), _units(this))]
    else:
        alike = [x.textbook.get(name, np.inf) for x in same]
    return max((x for x in alike if np.isfinite(x)), default=np.inf)


def _units(this: Known) -> np.ndarray:
    """What tells data in some units from the same in others: all entries of the initial covariance, in any order."""
    return np.sort(np.ravel(this.params.initial.cov))


def available(model: str, implementation: str, T: int) -> bool:
    """Whether it makes sense: a program that compiles for minutes, or is interpreted for minutes, does not."""
    D = MODELS[model].D
    small = {"associative": D <= 3 and T <= 120, "pallas_interpret": D <= 3 and T <= 17}
    return MODELS[model].longest >= T and small.get(implementation, True)


def by_shapes(name: str) -> tuple[int, int, str]:
    return MODELS[name].shapes


def product(seed: int = 0) -> list[Case]:
    """Every model, length, dtype, variant, implementation and function, though not each with each: at random, but repeatable.

    Programs cost more than their runs. So models of the same shapes are given to the same ones, in all variants.
    """
    cases = []
    for shapes, names in itertools.groupby(sorted(MODELS, key=by_shapes), by_shapes):
        group = list(names)
        for dtype in DTYPES:
            r = np.random.default_rng([*repr(shapes).encode(), DTYPES.index(dtype), seed])
            for implementation, T, function in drawn_programs(r, shapes[0], [MODELS[name].longest for name in group]):
                gaps = bool(r.integers(2))
                for name, variant in itertools.product(group, VARIANTS):
                    if available(name, implementation, T):
                        cases.append(Case(name, T, dtype, variant, gaps, implementation, function, seed))
    return cases


def drawn_programs(r: np.random.Generator, D: int, longest: list[int]) -> Iterator[tuple[str, int, str]]:
    """Implementations, T and functions. Now and then T is so large that not every model of a group goes so far."""
    ways = [("sequential", 1, 17), ("sequential", 60, 5_000), ("auto", 120, 5_000)]
    ways += [(f"chunked:{r.choice([2, 3, 4, 7])}", 17, 120), (f"chunked:{r.choice([8, 16, 31, 64])}", 120, 5_000)]
    if D <= 3:
        ways += [("associative", 3, 60), ("pallas_interpret", 2, 17)]
    functions = ["smoother", "smoother", "smoother", "filter", "loglik", "sample"]
    for name, least, most in ways:
        lengths = [T for T in LENGTHS if least <= T <= min(most, r.choice(longest))]
        yield name, int(r.choice(lengths)), str(r.choice(functions))


HEADER = (
    f"{'model':24} {'T':>4} {'dtype':7} {'variant':8} gaps {'run as':16} {'function':8}"
    f" | {'means':>7} {'other':>7} | {'covs':>7} {'other':>7} | {'loglik':>7} {'other':>7}"
    f" | {'worst':>7} {'below 0':>8} | verdict"
)


def line(row: Row) -> str:
    """The function's own moments, the worst ratio to the other's error where that is more than `GOOD`, and what is wrong."""
    c = row.case
    kind = "filtered" if c.function == "filter" else "smoothed"
    cells = []
    for name in (f"{kind}_means", f"{kind}_covariances", "loglik"):
        pair = [errors.get(name, np.nan) for errors in (row.errors, row.others)]
        cells.append(" ".join(f"{'-' if np.isnan(x) else f'{x:.1e}':>7}" for x in pair))
    worst = max(e / max(row.others[name], GOOD) if np.isfinite(e) else np.inf for name, e in row.errors.items())
    verdict = "FAIL " + "; ".join(row.wrong) if row.wrong else "ok"
    return (
        f"{c.model:24} {c.T:4} {c.dtype:7} {c.variant:8} {'yes' if c.gaps else 'no':4} {c.implementation:16} {c.function:8}"
        f" | {' | '.join(cells)} | {worst:7.1e} {min(row.least, 0):8.1e} | {verdict}"
    )


def print_table(cases: Iterable[Case], failing: bool) -> int:
    """Prints lines as they are found, and how many fail."""
    print(HEADER, flush=True)
    total = fail = 0
    for case in cases:
        row = judge(case)
        total, fail = total + 1, fail + bool(row.wrong)
        if row.wrong or not failing:
            print(line(row), flush=True)
    print(f"{fail} of {total} fail")
    return fail


def main() -> int:
    """As said on the command line."""
    parser = argparse.ArgumentParser(description="Errors on models that people have. Arguments may be given several times.")
    parser.add_argument("--suite", action="store_true", help="the cases of the slow tests, of what else is said")
    parser.add_argument("--model", action="append", help=f"a name or its beginning, of {', '.join(MODELS)}")
    parser.add_argument("--length", action="append", type=int, help="T; default 60")
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--gaps", choices=["no", "yes", "both"], help="default no")
    parser.add_argument("--implementation", action="append", help="default sequential and chunked:4; auto is None")
    parser.add_argument("--function", action="append", choices=FUNCTIONS, help="default smoother")
    parser.add_argument("--seed", type=int, default=0, help="of models and data, and of what --suite draws")
    parser.add_argument("--failing", action="store_true", help="print only what fails")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", module="dynamax")
    names = [n for n in MODELS if given.model is None or n.startswith(tuple(given.model))]
    gaps = {"no": [False], "yes": [True], "both": [False, True], None: None}[given.gaps]
    if given.suite:
        asked = (names, given.length, given.dtype, given.variant, gaps, given.implementation, given.function)
        cases = [c for c in product(given.seed) if all(a is None or x in a for x, a in zip(c[:7], asked, strict=True))]
        return bool(print_table(cases, given.failing))
    names.sort(key=by_shapes)
    runs = given.implementation or ["sequential", "chunked:4"]
    functions, dtypes = given.function or ["smoother"], given.dtype or DTYPES
    cases = [
        Case(name, T, dtype, variant, g, implementation, function, given.seed)
        for T, dtype, name, g, variant, implementation, function in itertools.product(
            given.length or [60], dtypes, names, gaps or [False], given.variant or VARIANTS, runs, functions
        )
        if available(name, implementation, T)
    ]
    return bool(print_table(cases, given.failing))
