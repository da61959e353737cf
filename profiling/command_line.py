"""``fastscan``: the demo, measurements, and what they mean for the choice of an implementation.

``python -m fastscan.profiling`` has these commands, too, beside those that make fastscan's own records, tables and report.
"""

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

_INSTALL = {
    **dict.fromkeys(("blackjax", "jinja2", "matplotlib", "nvtx", "optax", "rich"), "'fastscan[profile]'"),
    **{name: name for name in ("dynamax", "statsmodels", "triton")},
}
"""The package or extra to install for each package that fastscan does without until a command needs it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs ``fastscan``, with the arguments of the command line by default."""
    parser = ArgumentParser(prog="fastscan", description="Shows, measures and explains fastscan on this machine.")
    add_commands(parser.add_subparsers(required=True))
    run(parser, arguments)


def run(parser: ArgumentParser, arguments: Sequence[str] | None = None) -> None:
    """Runs the command that was given. What a user can mend is one line on standard error, and status 2."""
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except (ValueError, ImportError, RuntimeError, FileNotFoundError, PermissionError) as error:
        message = _message(error)
        if message is None:
            raise
        parser.exit(2, f"{message}\n")


def _message(error: Exception) -> str | None:
    """Says an error in one line; None if it is a fault of fastscan's, which wants its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and error.name is not None:  # Python's own, or of fastscan.learn
        package = error.name.split(".")[0]
        wanted = _INSTALL.get(package) if isinstance(error, ModuleNotFoundError) else None
        return None if wanted is None else f"This needs {package}, which is not installed here: pip install {wanted}"
    return text if not isinstance(error, RuntimeError) or type(error) is RuntimeError else None


def add_commands(commands: "argparse._SubParsersAction") -> None:
    """Adds the commands of users. Each imports what it needs."""
    demo = commands.add_parser("demo", help="CO2 at Mauna Loa, earthquakes, and the tracking model; table and figures")
    demo.add_argument(
        "what",
        nargs="?",
        default="smoothing",
        choices=list(_DEMOS),
        help="hmc: dynamax's notebook; slds: regimes; metropolis: chains",
    )
    demo.add_argument("--lengths", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000], help="T of the tracking model")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written (default: out)")
    demo.set_defaults(run=_demo)

    measure = commands.add_parser("measure", help="errors, times, first calls and memory, ours and dynamax's, into a record")
    measure.add_argument("--cases", nargs="+", default=["grid", "others", "held-out"], help="groups, in order (default: all)")
    measure.add_argument("--only", default="", help="cases whose text holds this, e.g. 'hmm_smoother K=5'")
    measure.add_argument("--implementations", nargs="+", help="default: all that end in reasonable time, and dynamax's")
    measure.add_argument("--budget", type=float, default=780, help="seconds after which no case begins (default: 780)")
    measure.add_argument("--record", type=Path, help="CSV (default: that of this device and version, among yours)")
    measure.set_defaults(run=_measure)

    fit = commands.add_parser("fit", help="fit the table that implementation=None follows to records; say what changed")
    fit.add_argument("records", type=Path, nargs="*", help="default: the newest one of this device")
    fit.add_argument("--table", type=Path, help="JSON to write (default: this user's, which comes before the committed)")
    fit.set_defaults(run=_fit)

    explain = commands.add_parser("explain", help="which implementation would run here, and why")
    explain.add_argument("operation", help="a public function, e.g. lgssm_smoother, hmm_filter or rw_metropolis")
    explain.add_argument("--D", "--dimension", type=int, help="state dimensions; of rw_metropolis, coordinates")
    explain.add_argument("--K", type=int, help="of an HMM: its states")
    explain.add_argument("--T", type=int, help="time steps, of all but rw_metropolis")
    explain.add_argument("--B", type=int, default=1, help="sequences (default: 1)")
    explain.add_argument("--m", type=int, help="of linear-Gaussian models: emission dimensions (default: half of D)")
    explain.add_argument("--target", default="normal", help="of rw_metropolis: package.module:function, or an example's name")
    explain.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    explain.add_argument("--varying", action="store_true", help="of linear-Gaussian models: dynamics that vary in time")
    explain.set_defaults(run=_explain)


def _demo(arguments: Namespace) -> None:
    _DEMOS[arguments.what](arguments)


def _smoothing(arguments: Namespace) -> None:
    from fastscan.profiling.demos.smoothing import run_demo

    run_demo(arguments.out, tuple(arguments.lengths))


def _hmc(arguments: Namespace) -> None:
    from fastscan.profiling.demos.hmc import run_hmc

    run_hmc(arguments.out)


def _slds(arguments: Namespace) -> None:
    from fastscan.profiling.demos.slds.demo import run_slds

    run_slds(arguments.out)


def _metropolis(arguments: Namespace) -> None:
    from fastscan.profiling.demos.metropolis.demo import run_metropolis

    run_metropolis(arguments.out)


_DEMOS = {"smoothing": _smoothing, "hmc": _hmc, "slds": _slds, "metropolis": _metropolis}


def _measure(arguments: Namespace) -> None:
    from fastscan.profiling.measure.cases import GROUPS, cases
    from fastscan.profiling.measure.rows import RECORDS
    from fastscan.profiling.measure.run import default_path, measure

    unknown = [name for name in arguments.cases if name not in GROUPS]
    if unknown:
        raise ValueError(f"--cases: {', '.join(unknown)} given, wanted some of {', '.join(GROUPS)}.")
    chosen = [case for case in cases(*arguments.cases) if arguments.only in str(case)]
    if not chosen:
        raise ValueError(f"--only: {arguments.only!r} given, which is in no case, for one '{cases(*arguments.cases)[0]}'.")
    path = arguments.record or default_path(RECORDS)
    problems = measure(chosen, path, names=arguments.implementations, budget=arguments.budget)
    print("\n".join([*problems, f"record: {path}"]))


def _fit(arguments: Namespace) -> None:
    from fastscan.dispatch import crossovers
    from fastscan.profiling.verdicts.crossover import changes, fit, merged, write

    path = arguments.table or crossovers.user_table()
    table = fit(rows(arguments.records))
    committed = crossovers.committed_table()
    print("\n".join(changes(committed, table) or ["as the committed table"]))
    write(merged(crossovers.read_table(path) if path.exists() else {"devices": {}}, table), path)
    print(f"table: {path}")


def _explain(arguments: Namespace) -> None:
    if arguments.operation == "rw_metropolis":
        from fastscan.profiling.verdicts.targets import explain_target

        if arguments.D is None:
            raise ValueError("Give --dimension, the number of coordinates of a chain.")
        print(explain_target(arguments.target, arguments.D, arguments.dtype))
        return

    from fastscan.profiling.verdicts.crossover import explain

    if arguments.T is None:
        raise ValueError("Give --T, the number of time steps.")
    if (arguments.D is None) == (arguments.K is None):
        raise ValueError("Give --D, the state dimensions, or --K, an HMM's number of states.")
    sizes = {name: getattr(arguments, name) for name in ("T", "B", "m", "dtype", "varying")}
    print(explain(arguments.operation, D=arguments.D or arguments.K, **sizes))


def rows(paths: list[Path]) -> list:
    """Reads the rows of the records that were named, or of the newest one of this device."""
    from fastscan.dispatch.choice import device_kind
    from fastscan.profiling.measure.rows import RECORDS, read
    from fastscan.profiling.report.readme import newest

    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such record.")
    return [row for path in paths for row in read(path)] if paths else newest(RECORDS, device_kind())
