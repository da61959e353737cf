"""``python -m fastscan.profiling``: fastscan's own records, tables and report, and what users have, too."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from fastscan.profiling.command_line import add_commands, rows, run

_SIZES = [(D, m) for D in range(1, 5) for m in range(1, 5)] + [(5, 1), (6, 1)]
"""D and m of the kernel report."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command, by default that of the command line. Each command imports what it needs."""
    parser = ArgumentParser(prog="python -m fastscan.profiling", description="Runs, measures and draws fastscan.")
    commands = parser.add_subparsers(required=True)
    add_commands(commands)

    compare = commands.add_parser("compare", help="two records or commits: what became slower, larger, less accurate")
    compare.add_argument("old", help="a record, or a commit that has one")
    compare.add_argument("new", help="likewise")
    compare.add_argument("--all", action="store_true", help="also what stayed the same")
    compare.set_defaults(run=_compare)

    trial = commands.add_parser("trial", help="whether compare finds a slowdown that is planted, and only that")
    trial.add_argument("--tries", type=int, default=10)
    trial.set_defaults(run=_trial)

    judge = commands.add_parser("judge", help="the automatic choice against the best that was measured, case by case")
    judge.add_argument("records", type=Path, nargs="*", help="default: the newest one of this device")
    judge.set_defaults(run=_judge)

    report = commands.add_parser("report", help="everything in the records as one page of HTML")
    report.set_defaults(run=_report)

    tables = commands.add_parser("tables", help="write the READMEs' tables from the records")
    tables.set_defaults(run=_tables)

    kernels = commands.add_parser("kernels", help="compile the GPU kernels without a GPU, and say what they cost")
    kernels.add_argument(
        "--sizes", type=_size, nargs="+", default=_SIZES, help="D,m or K,0 ... (default: 1,1 to 4,4, 5,1, 6,1)"
    )
    kernels.add_argument("--families", nargs="+", default=["smoother"], help="default: smoother; or likelihood, hmm_mode...")
    kernels.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    kernels.set_defaults(run=_kernels)

    ahead = commands.add_parser("ahead-of-time", help="compile public calls for a GPU that is not here, by XLA's own compiler")
    ahead.add_argument("--only", default="", help="calls whose name holds this, e.g. 'hmm_smoother'")
    ahead.add_argument("--devices", nargs="+", default=["NVIDIA H100 80GB HBM3"], help="or 'NVIDIA H200'")
    ahead.add_argument("--hlo", type=Path, help="folder for the optimised programs (default: none are kept)")
    ahead.set_defaults(run=_ahead_of_time)

    first = commands.add_parser("first-calls", help="where the time of first calls goes, ours and dynamax's, from cold starts")
    first.add_argument("--only", default="", help="cases whose text holds this, e.g. 'lgssm_filter'")
    first.add_argument("--repeats", type=int, default=3, help="processes of each, whose median counts (default: 3)")
    first.set_defaults(run=_first_calls)

    lengths = commands.add_parser("lengths", help="what calls with several lengths take, alone and by programs that they share")
    lengths.add_argument("operation", nargs="?", default="lgssm_smoother", help="a public function (default: lgssm_smoother)")
    lengths.add_argument("--D", type=int, default=4, help="state dimensions, or an HMM's states (default: 4)")
    lengths.add_argument("--m", type=int, default=2, help="emission dimensions, 0 of an HMM (default: 2)")
    lengths.set_defaults(run=_lengths)

    large = commands.add_parser("large", help="large models beside Numba, statsmodels, hmmlearn and dynamax, and memory")
    large.add_argument("--only", default="", help="work whose name holds this, e.g. 'smoother, D=32'")
    large.set_defaults(run=_large)
    adopted = commands.add_parser("adopted", help="dynamax's models as they are, and under fastscan.adopt")
    adopted.add_argument("--only", default="", help="calls whose name holds this, e.g. 'fit_em'")
    adopted.set_defaults(run=_adopted)

    moseq = commands.add_parser("moseq", help="jax-moseq's steps of Gibbs sampling, by dynamax and under fastscan.adopt")
    moseq.add_argument("--only", default="", help="work whose name holds this, e.g. 'discrete'")
    moseq.set_defaults(run=_moseq)

    peers = commands.add_parser("nonlinear-peers", help="extended, unscented and iterated smoothers beside dynamax's")
    peers.add_argument("--only", default="", help="work whose name holds this, e.g. 'iterated'")
    peers.set_defaults(run=_nonlinear_peers)

    scans = commands.add_parser("scans", help="affine and nonlinear recurrences beside lax.associative_scan and lax.scan")
    scans.add_argument("--only", default="", help="work whose name holds this, e.g. 'dense'")
    scans.set_defaults(run=_scans)

    streams = commands.add_parser("streams", help="a hundred million steps, smoothed from disk to disk")
    streams.add_argument("--steps", type=int, default=100_000_000, help="T (default: 100,000,000)")
    streams.add_argument("--folder", type=Path, default=Path("out/streams"), help="for 28 bytes a step (default: out/streams)")
    streams.set_defaults(run=_streams)

    predict = commands.add_parser("predict", help="predict what public calls take on an H100 and an H200, kernel by kernel")
    predict.add_argument("--only", default="", help="calls whose name holds this")
    predict.set_defaults(run=_predict)

    gpu = commands.add_parser("gpu", help="what .ci/gpu runs on a GPU, in stages; see there")
    gpu.add_argument("--stage", default="full", choices=["smoke", "full", "profile"], help="default: full")
    gpu.add_argument("--dry-run", action="store_true", help="every step at toy sizes, on a CPU")
    gpu.add_argument("--limit", type=float, help="seconds for all (default: 150 of smoke, 480 of full, 110 of profile)")
    gpu.add_argument("--commit", help="what is measured, where git can't tell")
    gpu.set_defaults(run=_gpu)

    keep = commands.add_parser(
        "keep", help="a GPU run's folder: into the records, the crossover table, the READMEs, the report"
    )
    keep.add_argument("folder", type=Path, help="what .ci/gpu wrote")
    keep.set_defaults(run=_keep)

    fit = commands.add_parser("fit-co2", help="fit the variances of the demo's CO2 model by maximum likelihood")
    fit.set_defaults(run=_fit)

    nonlinear = commands.add_parser("nonlinear", help="targets by their bearings, and the rate of earthquakes; two figures")
    nonlinear.set_defaults(run=_nonlinear)

    sticky = commands.add_parser("sticky", help="states that hardly ever change: ours and dynamax's beside exact; a figure")
    sticky.set_defaults(run=_sticky)

    for command in (ahead, predict, first):
        command.add_argument(
            "--record", type=Path, help="folder for it (default: its own in profiling/records; with --only, out)"
        )
    for command in (report, kernels, gpu, keep, nonlinear, sticky):
        command.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written (default: out)")
    run(parser, arguments)


def _size(text: str) -> tuple[int, int]:
    D, m = map(int, text.split(","))
    return D, m


def _compare(arguments: Namespace) -> None:
    from fastscan.profiling.measure.rows import RECORDS
    from fastscan.profiling.verdicts.compare import compare, find, markdown, regressed

    findings = compare(find(arguments.old, RECORDS), find(arguments.new, RECORDS))
    print(markdown(findings, everything=arguments.all))
    sys.exit(1 if regressed(findings) else 0)


def _trial(arguments: Namespace) -> None:
    from fastscan.profiling.verdicts.trial import run_trial

    sys.exit(0 if run_trial(arguments.tries) else 1)


def _judge(arguments: Namespace) -> None:
    from fastscan.profiling.verdicts.judge import judge

    print("\n".join(judge(rows(arguments.records))))


def _report(arguments: Namespace) -> None:
    from fastscan.dispatch import crossovers
    from fastscan.profiling.measure.rows import RECORDS
    from fastscan.profiling.report.page import write_report

    crossovers.use_crossover_table(crossovers.committed_table())
    print(write_report(arguments.out, RECORDS))


def _tables(_: Namespace) -> None:
    from fastscan.dispatch import crossovers
    from fastscan.profiling.report.readme import write_tables

    crossovers.use_crossover_table(crossovers.committed_table())
    write_tables()


def _kernels(arguments: Namespace) -> None:
    from fastscan.profiling.compiled.kernel_report import FAMILIES, run_report

    unknown = [name for name in arguments.families if name not in FAMILIES]
    if unknown:
        raise ValueError(f"--families: {', '.join(unknown)} given, wanted some of {', '.join(FAMILIES)}.")
    run_report(arguments.out, arguments.sizes, arguments.families, arguments.dtype)


def _ahead_of_time(arguments: Namespace) -> None:
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the plugin does without the libraries that no program calls
    from fastscan.profiling.compiled.ahead_of_time import DEVICES, run_ahead_of_time
    from fastscan.profiling.measure.rows import RECORDS

    unknown = [name for name in arguments.devices if name not in DEVICES]
    if unknown:
        raise ValueError(f"--devices: {', '.join(unknown)} given, wanted some of {', '.join(DEVICES)}.")
    folder = arguments.record or (Path("out") if arguments.only else RECORDS / "ahead-of-time")
    run_ahead_of_time(folder, arguments.only, arguments.devices, arguments.hlo)


def _folder(arguments: Namespace, kind: str) -> Path:
    """Returns the folder for a record: that of its kind, or, of some of the work alone, out."""
    from fastscan.profiling.measure.rows import RECORDS

    return Path("out") if arguments.only else RECORDS / kind


def _first_calls(arguments: Namespace) -> None:
    from fastscan.profiling.compiled.first_calls import run_first_calls

    folder = arguments.record or _folder(arguments, "first-calls")
    run_first_calls(folder, arguments.only, arguments.repeats)


def _large(arguments: Namespace) -> None:
    from fastscan.profiling.peers.large import run_large

    run_large(_folder(arguments, "large"), arguments.only)


def _adopted(arguments: Namespace) -> None:
    from fastscan.profiling.peers.adopted import run_adopted

    run_adopted(_folder(arguments, "adopted"), arguments.only)


def _moseq(arguments: Namespace) -> None:
    from fastscan.profiling.peers.moseq import run_moseq

    run_moseq(_folder(arguments, "moseq"), arguments.only)


def _nonlinear_peers(arguments: Namespace) -> None:
    from fastscan.profiling.peers.nonlinear import run_nonlinear_peers

    run_nonlinear_peers(_folder(arguments, "nonlinear"), arguments.only)


def _scans(arguments: Namespace) -> None:
    from fastscan.profiling.peers.scans import run_scans

    run_scans(_folder(arguments, "scans"), arguments.only)


def _streams(arguments: Namespace) -> None:
    from fastscan.profiling.demos.streams import run_streams

    run_streams(arguments.folder, arguments.steps)


def _lengths(arguments: Namespace) -> None:
    from fastscan.profiling.compiled.lengths import run_lengths

    run_lengths(arguments.operation, arguments.D, arguments.m)


def _predict(arguments: Namespace) -> None:
    from fastscan.profiling.compiled.predictions import run_predict
    from fastscan.profiling.measure.rows import RECORDS

    folder = arguments.record or (Path("out") if arguments.only else RECORDS / "predictions")
    run_predict(folder, RECORDS, arguments.only)


def _gpu(arguments: Namespace) -> None:
    from fastscan.profiling.gpu.run import exit_with
    from fastscan.profiling.gpu.stages import run_gpu

    exit_with(run_gpu(arguments.out, arguments.dry_run, arguments.limit, stage=arguments.stage, commit=arguments.commit))


def _keep(arguments: Namespace) -> None:
    from fastscan.profiling.gpu.keep import keep

    print("\n".join(keep(arguments.folder, page=arguments.out)))


def _fit(_: Namespace) -> None:
    from rich.console import Console

    from fastscan.profiling.demos.fit_co2 import fit_co2_variances
    from fastscan.profiling.measure.progress import counted

    with counted(Console()) as begin:
        variances, loglik = fit_co2_variances(begin)
    print(f"{variances}\nlog-likelihood {loglik:.4f}")


def _sticky(arguments: Namespace) -> None:
    from fastscan.profiling.demos.sticky import run_sticky

    run_sticky(arguments.out)


def _nonlinear(arguments: Namespace) -> None:
    from fastscan.profiling.demos.nonlinear import run_nonlinear

    run_nonlinear(arguments.out)


if __name__ == "__main__":
    main()
