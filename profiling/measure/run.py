"""Measures cases: first whether the results are right, then how long they take, ours and dynamax's in turns.

What is measured is written down case by case, and a run that was cut off goes on where it ended. Results are held against
float64 before anything of ours is timed. Every program is jitted and its arguments are on the device.
"""

import functools
import importlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from fastscan.dispatch import launches
from fastscan.dispatch.choice import one_function_lanes
from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import MEASURED_BY, METROPOLIS, Case, others
from fastscan.profiling.measure.machine import stamp
from fastscan.profiling.measure.operations import PARALLEL, PUBLIC, SEQUENTIAL
from fastscan.profiling.measure.programs import NOT_COMPILED, CompiledCall, Programs
from fastscan.profiling.measure.progress import bars
from fastscan.profiling.measure.rows import Row, append, read
from fastscan.profiling.measure.timing import Clock, clock, in_subprocess

BOUNDS = {"float32": 1e-3, "float64": 1e-9}
"""Errors above these are wrong; good ones are far below."""

BAD = ("wrong", "failed", "crashed")
"""Statuses of rows that say that something is broken."""

BUDGET = 780.0
"""Seconds after which no further case begins, by default."""

PARALLEL_SECONDS = 100.0
"""That dynamax's parallel code gets for one case on a CPU, in a process of its own: now and then it hangs there for good."""

RETRIES = 2
"""The tries of a case whose process ended in it, before that is put down to the case."""


_log = logging.getLogger(__name__)


class DeviceLostError(Exception):
    """Nothing runs on the device any more: this process can measure nothing else, another one may."""


def chunk_counts(case: Case) -> list[int]:
    """Lists numbers of chunks to try on a CPU: what about fills its vectors and two cores, and what leaves loops one
    function.
    """
    T, most = case.T, one_function_lanes(max(case.D, case.m), case.dtype, chunked=True) // case.B
    if T < 6:
        return []
    middle = min(10 * T**0.25, T / 5) / math.sqrt(case.B)
    wanted = [middle, 2 * middle] if T >= 1_000 else [] if most >= 2 else [0.75 * middle, 1.5 * middle]
    if most >= 2:
        wanted += [min(most, middle), min(most, middle) / 2]
    counts: list[int] = []
    for count in sorted(int(np.clip(round(x), 2, T // 3)) for x in wanted):
        if not counts or count > 1.25 * counts[-1]:
            counts.append(count)
    return counts


def implementations(case: Case, device: str, *, toy: bool = False) -> list[str]:
    """Lists who is measured on a kind of device: ours, what None takes, and dynamax's where they end in reasonable time."""
    steps = case.T * case.B
    if case.family == METROPOLIS:
        kernels = ["pallas_interpret"] if toy else ["pallas"] if device != "cpu" else []
        return kernels + ["xla"] * (device == "cpu" or case.T <= 10_000)
    if toy:
        names = ["pallas_interpret", "chunked", "sequential", SEQUENTIAL]
    elif device == "cpu":
        fitted = case.operation in MEASURED_BY.values()
        names = ["sequential", *(f"chunked:{n}" for n in chunk_counts(case) if fitted)]
        names += ["associative"] * (steps <= 30 and fitted)
        names += [PUBLIC] * (case.T <= 10) + [SEQUENTIAL] + [PARALLEL] * _parallel_on_a_cpu(case)
    else:
        given = case.family, case.D, case.m, case.dtype
        large = launches.in_programs(*given)  # what others take for it may be minutes
        names = ["pallas"] * (launches.in_threads(*given) or large)
        names += ["chunked"] + ["sequential"] * (case.T <= 1_000)
        names += ["associative"] * (steps <= (1_000 if large else 10_000))  # of more, it compiles for minutes
        names += [SEQUENTIAL] * (case.T <= 10_000) + [PARALLEL] * (steps <= (64_000 if large else 1_100_000))
    if not any(is_default(case, name, device) for name in names):
        names.append("default")
    return names


def _parallel_on_a_cpu(case: Case) -> bool:
    longest = 1_000 if case.family == "lgssm" else 100_000
    return case.B == 1 and case.dtype == "float32" and case.D in (4, 5) and 10 < case.T <= longest and case in others()


def is_default(case: Case, name: str, device: str) -> bool:
    """Tells whether this is what None chooses."""
    if name in (SEQUENTIAL, PARALLEL, PUBLIC, "default"):
        return name == "default"
    if case.family == METROPOLIS:
        return name == ("pallas" if device.startswith("NVIDIA") else "xla")
    return case.choice(name, device=device).plan == case.choice(None, device=device).plan


def measure(
    cases: Sequence[Case],
    path: Path,
    *,
    names: Sequence[str] | None = None,
    budget: float = BUDGET,
    console: Console | None = None,
) -> list[str]:
    """Measures cases and appends their rows to a record, each case's as it ends.

    Args:
        cases: in order of importance.
        path: the record. What it holds of this device, these versions and this commit is not measured again.
        names: implementations; default those of `implementations`.
        budget: seconds after which no case begins.
        console: where progress is shown.

    Returns:
        What failed, a line each; and what there was no time for, as one line.

    Raises:
        DeviceLostError: start again, in another process.
    """
    start, on, programs = time.monotonic(), stamp(), Programs()
    wanted = {case: list(names or implementations(case, on["device"])) for case in cases}
    wanted = left_to_do(wanted, read(path), on)

    problems = []
    with bars(console) as progress:
        task = progress.add_task("", total=len(wanted))
        for number, (case, ns) in enumerate(wanted.items()):
            left = budget - (time.monotonic() - start)
            if left < 0:
                problems.append(f"no time for {len(wanted) - number} of {len(wanted)} cases; start again to go on")
                break
            progress.update(task, description=str(case))
            with _Begun(path, case) as begun:
                if begun.crashed:
                    rows = [row_of(case, name, on, status="crashed", note="the process died of it") for name in ns]
                else:
                    rows = measure_case(case, ns, on, programs, programs.reference(case, bool(on["dynamax"])), left)
                append(path, rows)
            problems += [f"{r.implementation} {case}: {r.status}, {r.note}" for r in rows if r.status in BAD]
            progress.advance(task)
    return problems


def left_to_do(wanted: Mapping[Case, Sequence[str]], rows: Iterable[Row], on: dict[str, Any]) -> dict[Case, list[str]]:
    """Leaves out what dynamax does not have, and what was measured on the same device and versions at the same commit."""
    same = [name for name in on if name != "date"]
    measured = (r for r in rows if r.note != NOT_COMPILED and all(getattr(r, name) == on[name] for name in same))
    done = {(r.case, r.implementation) for r in measured}

    def is_there(case: Case, name: str) -> bool:
        return not name.startswith("dynamax") or (_import_dynamax() and operations.function(case, name) is not None)

    left = {case: [n for n in ns if (case, n) not in done and is_there(case, n)] for case, ns in wanted.items()}
    return {case: ns for case, ns in left.items() if ns}


class _Begun:
    """A file beside the record that says which case is being measured; it is left behind by a process that dies."""

    def __init__(self, path: Path, case: Case) -> None:
        self._file, self._case = path.with_suffix(".begun"), str(case)
        before = self._file.read_text().splitlines() if self._file.exists() else []
        self._tries = before.count(self._case)
        self.crashed = self._tries > RETRIES

    def __enter__(self) -> "_Begun":
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text((self._case + "\n") * (self._tries + 1))
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None or not issubclass(kind, DeviceLostError):
            self._file.unlink()


def measure_case(
    case: Case,
    names: Sequence[str],
    on: dict[str, Any],
    programs: Programs,
    reference: tuple[list[np.ndarray], str],
    left: float,
    repeats: int = 15,
) -> list[Row]:
    """Checks and times a case's programs, those of them that compile and run.

    Args:
        case: the case.
        names: implementations.
        on: what it is measured on, as `stamp` says.
        programs: where its programs are.
        reference: what results are held against, and in words what that is.
        left: seconds after which no further sample is taken, but for three of each.
        repeats: samples of each.
    """
    start = time.monotonic()
    is_cpu = on["device"] == "cpu"
    wanted, how = reference
    rows: list[Row] = []
    calls: dict[Any, Callable[[], Any]] = {}
    with jax.enable_x64(case.dtype == "float64"):
        data = jax.device_put(operations.data(case))
        for name in names:
            if name == PARALLEL and is_cpu:
                rows.append(_alone(case, on, min(PARALLEL_SECONDS, left)))
                continue
            row, call = _checked(case, name, on, programs, data, wanted, how)
            rows.append(row)
            if call is not None:
                calls[name] = call
        clocks = clock(calls, repeats=repeats, in_flight=not is_cpu, seconds_left=lambda: left - (time.monotonic() - start))
    return [_timed(row, clocks[row.implementation]) if row.implementation in clocks else row for row in rows]


def _checked(
    case: Case, name: str, on: dict[str, Any], programs: Programs, data: tuple, wanted: list[np.ndarray], how: str
) -> tuple[Row, Callable[[], Any] | None]:
    """Checks a case: returns a row with everything but times, and a call, if it may be timed."""
    row = functools.partial(row_of, case, name, on, reference=how)
    try:
        if name == PUBLIC:
            function = operations.function(case, name)
            assert function is not None  # ours there always are
            program = CompiledCall(function, 0.0, None, None)
        else:
            program = programs.get(case, name, 0.1 if programs.background else None)
        call = functools.partial(program.call, *data)
        out, first = _first_call(program, call)
        ours = not name.startswith("dynamax")
        comparable = ours or operations.OPERATIONS[case.operation].reference is None
        error = operations.error(operations.results(out), wanted) if comparable else None
    except TimeoutError as problem:
        return row(status="skipped", note=str(problem)), None
    except Exception as problem:
        if not _alive():
            raise DeviceLostError(f"{name} {case}") from problem
        _log.info("%s %s failed", name, case, exc_info=problem)
        return row(status="failed", note=first_line(problem)), None
    sizes = {"bytes": program.bytes, "temporary_bytes": program.temporary_bytes}
    bound = operations.OPERATIONS[case.operation].bound or BOUNDS[case.dtype]
    if error is not None and ours and not error <= bound:
        return row(status="wrong", error=error, note=f"error above {bound:.0e}", **sizes), None
    return row(status="ok", error=error, first_call=first, **sizes), call


def _first_call(program: CompiledCall, call: Callable[[], Any]) -> tuple[Any, float]:
    """Calls a program for the first time: returns its result, and how long that took from tracing on."""
    start = time.perf_counter()
    out = jax.block_until_ready(call())
    return out, program.compile_seconds + time.perf_counter() - start


def _percentiles(seconds: list[float]) -> list[float]:
    """Computes the 20th, the 50th and the 80th percentile."""
    return np.percentile(seconds, [20, 50, 80]).tolist()


def _timed(row: Row, times: Clock) -> Row:
    p20, p50, p80 = _percentiles(times.waited)
    in_flight = float(np.median(times.in_flight)) if times.in_flight else None
    return row._replace(p20=p20, p50=p50, p80=p80, in_flight=in_flight, repeats=len(times.waited))


_ALONE = """
from fastscan.profiling import measure
from fastscan.profiling.measure.cases import Case
print(*measure.alone({case!r}))
"""


def _alone(case: Case, on: dict[str, Any], seconds: float) -> Row:
    """Dynamax's parallel code in a process of its own, with a time limit."""
    row = functools.partial(row_of, case, PARALLEL, on)
    try:
        numbers = in_subprocess(_ALONE.format(case=case), seconds)
    except RuntimeError as problem:
        return row(status="failed", note=first_line(problem))
    if numbers is None:
        return row(status="skipped", note=f"not done within {seconds:.0f} s")
    first, p20, p50, p80 = numbers
    return row(status="ok", first_call=first, p20=p20, p50=p50, p80=p80, note="timed in a process of its own")


def alone(case: Case) -> tuple[float, float, float, float]:
    """Times dynamax's parallel code: seconds of its first call, and the percentiles of warm ones."""
    with jax.enable_x64(case.dtype == "float64"):
        data = jax.device_put(operations.data(case))
        program = Programs().get(case, PARALLEL)
        call = functools.partial(program.call, *data)
        _, first = _first_call(program, call)
        p20, p50, p80 = _percentiles(clock({0: call})[0].waited)
    return first, p20, p50, p80


def row_of(case: Case, name: str, on: dict[str, Any], *, status: str, **measured: Any) -> Row:
    """Makes a row of what is given; what is not is None, or said in no words."""
    blank: dict[str, Any] = dict.fromkeys(Row._fields) | {"reference": "", "note": ""}
    default = is_default(case, name, on["device"])
    given = case._asdict() | {"implementation": name, "default": default, "status": status}
    return Row(**blank | given | measured | on)


def first_line(error: BaseException) -> str:
    """Returns an error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


@functools.cache
def _import_dynamax() -> bool:
    """Tells whether there is a dynamax that works: a package that it needs may be missing, or too new; a run goes on
    without.
    """
    try:
        importlib.import_module("dynamax.linear_gaussian_ssm")
        importlib.import_module("dynamax.hidden_markov_model")
    except Exception:
        return False
    return True


def _alive() -> bool:
    try:
        return bool(jax.block_until_ready(jax.numpy.ones(3) + 1).sum() == 6)
    except Exception:
        return False


def default_path(records: Path) -> Path:
    """Returns the record of this device and commit in a folder."""
    on = stamp()
    device = on["device"].lower().replace(" ", "-")
    cores = f"-{on['cores']}-cores" if device == "cpu" else ""
    return records / "measured" / f"measured-{device}{cores}-{on['commit']}.csv"
