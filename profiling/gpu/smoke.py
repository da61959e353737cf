"""The first minutes on a GPU: whether every family of kernels compiles, is right, and about how fast it is."""

from collections.abc import Iterable, Mapping

from fastscan.profiling.gpu.jobs import Job, problems, run_jobs, together
from fastscan.profiling.gpu.run import Run
from fastscan.profiling.measure.cases import METROPOLIS, Case, large
from fastscan.profiling.measure.operations import PARALLEL, SEQUENTIAL
from fastscan.profiling.measure.rows import Row, by_case, read

RESERVE = 20.0
"""Seconds that are left for what comes after the cases."""

_OURS = "pallas", "chunked"
_SMOOTHER = Case("lgssm_smoother", 4, 2, 100_000)
_LONG, _BATCH = _SMOOTHER._replace(T=1_000_000), _SMOOTHER._replace(T=1_000, B=1_024)
_HMM = Case("hmm_smoother", 5, 0, 1_000_000)
_SAMPLER = _SMOOTHER._replace(operation="lgssm_posterior_sample")
_POSITIONS, _MOMENTS = (Case(f"{METROPOLIS}_{what}", 1, 0, T, 1_000) for what, T in (("positions", 200), ("moments", 10_000)))
_LARGE = [case._replace(T=1_000) for case in large()]
JOBS = (
    Job("smoother", [(_SMOOTHER, _OURS)]),
    *(Job(f"large {case}", [(case, _OURS[:1])]) for case in _LARGE),
    Job("long smoother", [(_LONG, _OURS)]),
    Job("batch", [(_BATCH, _OURS)]),
    Job("hmm smoother", [(_HMM, _OURS)]),
    Job("hmm sampler", [(_HMM._replace(operation="hmm_posterior_sample"), _OURS)]),
    Job("gradient", [(_SMOOTHER._replace(operation="lgssm_loglik_gradient"), _OURS)]),
    Job("metropolis", [(_POSITIONS, _OURS[:1]), (_MOMENTS, ["pallas", "xla"]), (_MOMENTS._replace(T=1_000_000), _OURS[:1])]),
    Job("sampler", [(_SAMPLER, _OURS)]),
    Job("lds", [(Case("lds_inference", 4, 0, 100_000), _OURS)]),
    Job("hmm mode", [(_HMM._replace(operation="hmm_posterior_mode"), _OURS)]),
    Job("filter", [(_SMOOTHER._replace(operation="lgssm_filter"), _OURS)]),
    Job("likelihood", [(_SMOOTHER._replace(operation="lgssm_marginal_loglik"), _OURS)]),
    Job("associative", [(case, ["associative"]) for case in (_SMOOTHER, _HMM, _SAMPLER)]),
    Job("dynamax", [(case, [PARALLEL]) for case in (_SMOOTHER, _HMM, _BATCH, _SAMPLER, _LARGE[0])]),
    Job("large under XLA", [(case, _OURS[1:]) for case in _LARGE]),
)
"""Each a process, in order of importance. What may take minutes, or is not ours, has processes of its own."""

_TOY_LENGTHS = {1_000: 6, 10_000: 4, 100_000: 17, 1_000_000: 33}
_TOY_WALKS = {200: (20, 64), 10_000: (2_000, 512), 1_000_000: (2_100, 512)}
_COLUMNS = {"kernels": ("pallas", "pallas_interpret"), "XLA": ("chunked", "xla"), "associative": ("associative",)}
_COLUMNS |= {"dynamax": (PARALLEL, SEQUENTIAL)}


def smoked(run: Run) -> str:
    """Compiles, checks and times every family of kernels beside XLA's forms and dynamax's, each in a process of its own."""
    record = run.out / "smoke.csv"
    jobs = toy_jobs() if run.dry_run else JOBS
    ended = run_jobs(jobs, record, run.left() - RESERVE, commit=run.commit)
    run.facts["jobs"] = ended
    told = problems(ended, run.own(read(record)))
    return f"failed: {'; '.join(told)}" if told else "ok"


def table(rows: Iterable[Row], predicted: Mapping[str, tuple[float, float]] | None = None) -> list[str]:
    """Writes lines of milliseconds, the most important first, and the kernels' error.

    Args:
        rows: as `smoked` measured them; of calls in flight where there are such times, else of calls that are waited for.
        predicted: least and most seconds of the kernels, by cases' names.
    """
    lines = [f"{'milliseconds':52}{'kernels':>11}{'predicted':>16}{'XLA':>11}{'associative':>13}{'dynamax':>11}{'error':>9}"]
    order = {case: n for n, case in enumerate(case for job in JOBS for case, _ in job.work)}
    for case, measured in sorted(by_case(rows).items(), key=lambda item: order.get(item[0], len(order))):
        found = {title: next((measured[n] for n in names if n in measured), None) for title, names in _COLUMNS.items()}
        expected = (predicted or {}).get(str(case))
        kernels = found.pop("kernels")
        cells = [
            _cell(kernels),
            "-" if expected is None else "-".join(map(_milliseconds, expected)),
            *map(_cell, found.values()),
        ]
        error = "-" if kernels is None or kernels.error is None else f"{kernels.error:.0e}"
        widths = 11, 16, 11, 13, 11
        lines.append(f"{case!s:52}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)) + f"{error:>9}")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    seconds = row.in_flight or row.p50
    return row.status if seconds is None else _milliseconds(seconds)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def toy_jobs() -> list[Job]:
    """Makes the same jobs at sizes for a CPU, several to a process, as every start takes seconds of a core."""
    return together(list(map(_toy, JOBS)))


def _toy(job: Job) -> Job:
    """Returns the same job for the interpreter; of what is not chunked or a kernel one case. dynamax's parallel code may hang
    on a CPU.
    """
    instead = {"pallas": "pallas_interpret", PARALLEL: SEQUENTIAL}
    work = {}
    for case, names in job.work:
        if case.family == METROPOLIS:
            T, B = _TOY_WALKS[case.T]
        else:
            T, B = _TOY_LENGTHS[case.T], min(case.B, 3)
        if "associative" in names:  # a scan over many steps compiles for long
            T = 3
        elif PARALLEL in names:
            T = 4
        D = 9 if case.D > 8 else 2 if case.operation.startswith("hmm") else 1
        sizes = {"D": D, "m": min(case.m, 1), "T": T, "B": B}
        work[case._replace(**sizes)] = [instead.get(name, name) for name in names]
    alone = {"associative", PARALLEL} & {name for _, names in job.work for name in names}
    return job._replace(work=list(work.items())[: 1 if alone else None])
