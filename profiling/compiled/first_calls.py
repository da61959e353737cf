"""First calls: where their time goes, ours and dynamax's, each from a cold start in a process of its own; and their text.

A first call traces, lowers, compiles and runs. XLA's own profile says what it compiled with: its passes over the program, what
it emits of them, and LLVM's code. Names in that profile are not part of XLA's interface; what is not found is left out.
"""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData
from rich.console import Console
from rich.table import Table

from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.machine import describe
from fastscan.profiling.measure.operations import SEQUENTIAL
from fastscan.profiling.measure.progress import counted
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.measure.timing import last_line

CASES = (
    Case("lgssm_smoother", 4, 2, 1_000),
    Case("lgssm_smoother", 4, 2, 10_000),
    Case("lgssm_filter", 4, 2, 10_000),
    Case("lgssm_posterior_sample", 4, 2, 10_000),
    Case("lgssm_loglik_gradient", 4, 2, 10_000),
    *(Case(f"hmm_{what}", 5, 0, T) for what in ("smoother", "posterior_mode", "posterior_sample") for T in (1_000, 100_000)),
)
"""The calls that people begin with, at the sizes of the models that they begin with."""

CALLED, JITTED, COMPLETE, DYNAMAX = "called", "in jit", "in jit, complete", "dynamax, in jit"
WAYS = CALLED, JITTED, COMPLETE, DYNAMAX
"""Ours as it is called, in a user's own `jax.jit`, there also with word that no emissions are missing; and dynamax's sequential
code in one."""

REPEATS, TIMEOUT = 3, 300.0
"""Processes of each, whose median counts; and a process's seconds."""

_TRACED = "/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"
_EVENTS = {
    "passes": r"HLO passes (through|after) layout assignment.*",
    "emission": r"ThunkEmitter::EmitEntryComputation",
    "codegen": r"Codegen",
}
_PHASE = re.compile(r"(summarise|scan_summaries|sweep_forward|sweep_backward)")
_NAMED = re.compile(r'op_name="([^"]*)"')
_CODE = """
import json
from fastscan.profiling.compiled.first_calls import first_call
from fastscan.profiling.measure.cases import Case
print(json.dumps(first_call({case!r}, {way!r})))
"""


class FirstCall(NamedTuple):
    """A first call, in seconds; and its program.

    Attributes:
        case, way: what was called, and how (see `WAYS`).
        total: from the call until its results are there.
        lowering, compiling: to XLA's language; and all that XLA does.
        passes, emission, codegen: of the latter. None where XLA's profile does not say. Codegen runs on several cores.
        running: a second call.
        lines, fusions, calls, loops: of the compiled program, where it is one.
        phases: lines that name a phase of a recurrence's run, by its name, as JSON.
    """

    case: str
    way: str
    total: float
    lowering: float
    compiling: float
    passes: float | None
    emission: float | None
    codegen: float | None
    running: float
    lines: int | None = None
    fusions: int | None = None
    calls: int | None = None
    loops: int | None = None
    phases: str = ""

    @property
    def tracing(self) -> float:
        """Seconds of Python: what is left of the total."""
        return max(self.total - self.lowering - self.compiling - self.running, 0.0)


class Text(NamedTuple):
    """A compiled program's text: its lines, those of some kinds, and those that name a phase."""

    lines: int
    fusions: int
    calls: int
    loops: int
    phases: dict[str, int]


def ways(case: Case) -> list[str]:
    """Lists the ways to call a case. Only linear-Gaussian models are told whether emissions are missing."""
    return [way for way in WAYS if way != COMPLETE or case.operation.startswith("lgssm")]


def count_text(hlo: str) -> Text:
    """Counts the lines of a compiled program."""
    lines = hlo.splitlines()
    fusions, calls, loops = (sum(f" {opcode}(" in line for line in lines) for opcode in ("fusion", "call", "while"))
    names = (match[1] for line in lines if (match := _NAMED.search(line)))
    phases = Counter(match[1] for name in names if (match := _PHASE.search(name)))
    return Text(len(lines), fusions, calls, loops, dict(phases))


def first_call(case: Case, way: str) -> FirstCall:
    """Makes a first call in this process, which must not have made it before, and a second one.

    Raises:
        ValueError: dynamax has no such function.
    """
    names = {COMPLETE: "default", DYNAMAX: SEQUENTIAL}
    function = operations.function(case, names[way]) if way in names else operations.as_users_write(case)
    if function is None:
        raise ValueError(f"{case}: dynamax has no such function.")
    call = function if way == CALLED else jax.jit(function)
    data = jax.block_until_ready(jax.device_put(operations.data(case)))
    spent = dict.fromkeys(_TRACED, 0.0)

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event in spent:
            spent[event] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            total = _seconds(lambda: call(*data))
        events = _durations(next(Path(folder).rglob("*.xplane.pb")))
    lowering, compiling = (spent[event] for event in _TRACED)
    running = _seconds(lambda: call(*data))
    passes, emission, codegen = (events.get(name) for name in _EVENTS)
    found = FirstCall(str(case), way, total, lowering, compiling, passes, emission, codegen, running)
    if way == CALLED:
        return found
    text = count_text(call.lower(*data).compile().as_text() or "")  # JAX kept the program: nothing is compiled again
    return found._replace(**text._asdict() | {"phases": json.dumps(text.phases)})


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _durations(profile: Path) -> dict[str, float]:
    """Sums up what XLA's profile says of compiling, by the names of `_EVENTS`; those that do not occur are left out."""
    found: dict[str, float] = {}
    for plane in ProfileData.from_file(str(profile)).planes:
        for event in (event for line in plane.lines for event in line.events):
            for name, pattern in _EVENTS.items():
                if re.fullmatch(pattern, event.name):
                    found[name] = found.get(name, 0.0) + 1e-9 * event.duration_ns
    return found


def from_cold_start(case: Case, way: str) -> FirstCall:
    """Makes a first call in a process of its own.

    Raises:
        RuntimeError: it failed, or took longer than `TIMEOUT`; its own message is in it.
    """
    line = last_line(_CODE.format(case=case, way=way), TIMEOUT)
    if line is None:
        raise RuntimeError(f"{case}, {way}: not done within {TIMEOUT:.0f} s.")
    return FirstCall(*json.loads(line))


def run_first_calls(folder: Path, only: str, repeats: int = REPEATS) -> list[FirstCall]:
    """Makes all first calls whose case's text holds a text, in turns, and prints a table.

    Args:
        folder: for the record, ``DATE-TIME-first-calls.csv`` and a json of its name.
        only: of cases whose text holds this.
        repeats: processes of each.
    """
    about = describe("python -m fastscan.profiling first-calls") | {"repeats": repeats}
    cases = [case for case in CASES if only in str(case)]
    console, found = Console(width=130), []
    with counted(console, sum(len(ways(case)) for case in cases) * repeats) as begin:
        for case in cases:
            turns: dict[str, list[FirstCall]] = {way: [] for way in ways(case)}
            for _ in range(repeats):
                for way, calls in turns.items():
                    begin(f"{case}, {way}")
                    calls.append(from_cold_start(case, way))
            found += [_median(calls) for calls in turns.values()]
    path = folder / time.strftime("%Y-%m-%d-%H%M-first-calls.csv")
    write_record(path, about, FirstCall._fields, found)
    console.print(_table(found))
    print(f"record: {path}")
    return found


def _median(calls: Sequence[FirstCall]) -> FirstCall:
    """Takes the call whose total is the median one."""
    return sorted(calls, key=lambda call: call.total)[len(calls) // 2]


def _table(found: Sequence[FirstCall]) -> Table:
    title = "First calls, in seconds, each from a cold start in a process of its own"
    columns = (
        "call",
        "way",
        "total",
        "over dynamax",
        "tracing",
        "lowering",
        "compiling",
        "passes",
        "codegen",
        "lines",
        "fusions",
    )
    table = Table(*columns, title=title)
    theirs = {call.case: call.total for call in found if call.way == DYNAMAX}
    for call in found:
        ratio = f"{call.total / theirs[call.case]:.1f}" if call.case in theirs else "-"
        parts = call.tracing, call.lowering, call.compiling, call.passes, call.codegen
        cells = ("-" if x is None else f"{x:.2f}" for x in parts)
        counts = ("-" if x is None else f"{x:,}" for x in (call.lines, call.fusions))
        table.add_row(call.case, call.way, f"{call.total:.2f}", ratio, *cells, *counts)
    return table
