"""``python -m fastscan.profiling``: the demo, what we are held to, the seed's figure, reports, the crossover table."""

import argparse
from argparse import Namespace
from pathlib import Path

_SIZES = [(D, m) for D in range(1, 5) for m in range(1, 5)] + [(5, 1), (6, 1)]
"""D and m of the kernel report."""
_BENCHED = ("lgssm", "hmm", "gradients", "hmc")
_MEASURED = ("lgssm", "hmm", "hmm_mode", "hmm_sample")
_FAMILIES = ["smoother", "likelihood", "sampler", "hmm_smoother", "hmm_mode", "hmm_sampler"]


def main() -> None:
    """The command line. Each command imports what it needs."""
    parser = argparse.ArgumentParser(prog="python -m fastscan.profiling", description="Runs, measures and draws fastscan.")
    commands = parser.add_subparsers(required=True)

    demo = commands.add_parser("demo", help="CO2 at Mauna Loa, earthquakes, and the tracking model; table and figures")
    demo.add_argument("what", nargs="?", default="smoothing", choices=["smoothing", "hmc"], help="hmc: the seed's notebook")
    demo.add_argument("--lengths", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000], help="T of the tracking model")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="measure everything the project is held to, against dynamax")
    bench.add_argument("--families", nargs="+", default=list(_BENCHED), choices=_BENCHED)
    bench.set_defaults(run=_bench)

    kernels = commands.add_parser("kernels", help="compile the GPU kernels without a GPU, and say what they cost")
    kernels.add_argument(
        "--sizes", type=_size, nargs="+", default=_SIZES, help="D,m or K,0 ... (default: 1,1 to 4,4, 5,1, 6,1)"
    )
    kernels.add_argument("--families", nargs="+", default=["smoother"], choices=_FAMILIES)
    kernels.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    kernels.set_defaults(run=_kernels)

    gpu = commands.add_parser("gpu", help="what .ci/gpu runs: accuracy, timings, ceilings and the GPU tests, on a GPU")
    gpu.add_argument("--dry-run", action="store_true", help="every step at toy sizes, on a CPU")
    gpu.add_argument("--limit", type=float, default=540, help="seconds for all (default: 540)")
    gpu.add_argument("--resume", action="store_true", help="go on with the records in the folder, after the case that ended it")
    gpu.add_argument("--commit", help="what is measured, where git can't tell")
    gpu.set_defaults(run=_gpu)

    sampling = commands.add_parser("hmm-sampling", help="draw paths of HMMs, ours and dynamax's, against their length; figure")
    sampling.set_defaults(run=_sampling)

    for command in (demo, bench, kernels, gpu, sampling):
        command.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written (default: out)")

    crossover = commands.add_parser("crossover", help="measure the best number of chunks here, into fastscan/crossover.json")
    crossover.add_argument("--families", nargs="+", default=list(_MEASURED), choices=_MEASURED)
    crossover.set_defaults(run=_crossover)
    fit = commands.add_parser("fit-co2", help="fit the variances of the demo's CO2 model by maximum likelihood")
    fit.set_defaults(run=_fit)

    arguments = parser.parse_args()
    arguments.run(arguments)


def _size(text: str) -> tuple[int, int]:
    D, m = map(int, text.split(","))
    return D, m


def _demo(arguments: Namespace) -> None:
    from fastscan.profiling.demo import run_demo
    from fastscan.profiling.hmc import run_hmc

    if arguments.what == "hmc":
        run_hmc(arguments.out)
        return
    run_demo(arguments.out, tuple(arguments.lengths))


def _bench(arguments: Namespace) -> None:
    from fastscan.profiling.bench import run_bench

    run_bench(arguments.out, arguments.families)


def _kernels(arguments: Namespace) -> None:
    from fastscan.profiling.kernels import run_report

    run_report(arguments.out, arguments.sizes, arguments.families, arguments.dtype)


def _gpu(arguments: Namespace) -> None:
    from fastscan.profiling.gpu import exit_with, run_gpu

    given = (arguments.out, arguments.dry_run, arguments.limit)
    exit_with(run_gpu(*given, resume=arguments.resume, commit=arguments.commit))


def _sampling(arguments: Namespace) -> None:
    from fastscan.profiling.hmm_sampling import run_sampling

    run_sampling(arguments.out)


def _crossover(arguments: Namespace) -> None:
    from fastscan.profiling.crossover import write

    write(families=arguments.families)


def _fit(_: Namespace) -> None:
    from fastscan.profiling.fit import fit_co2_variances

    variances, loglik = fit_co2_variances()
    print(f"{variances}\nlog-likelihood {loglik:.4f}")


if __name__ == "__main__":
    main()
