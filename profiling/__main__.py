"""``python -m fastscan.profiling``: the demo, the figures we are held to, the kernel report, and the crossover table."""

import argparse
from pathlib import Path

_SIZES = [(D, m) for D in range(1, 5) for m in range(1, 5)] + [(5, 1), (6, 1)]


def _size(text: str) -> tuple[int, int]:
    D, m = map(int, text.split(","))
    return D, m


def main() -> None:
    """The command line. Each command imports what it needs."""
    parser = argparse.ArgumentParser(prog="python -m fastscan.profiling", description="Runs, measures and draws fastscan.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="smooth the Mauna Loa CO2 record and the tracking model; table and figures")
    demo.add_argument("--lengths", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000], help="T of the tracking model")
    bench = commands.add_parser("bench", help="measure everything the project is held to, against dynamax")
    kernels = commands.add_parser(
        "kernels", help="compile the GPU kernels without a GPU, and say what they cost"
    )
    kernels.add_argument(
        "--sizes", type=_size, nargs="+", default=_SIZES, help="D,m ... (default: 1,1 to 4,4, 5,1, 6,1)"
    )
    kernels.add_argument("--families", nargs="+", default=["smoother"], choices=["smoother", "likelihood", "sampler"])
    kernels.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    for command in (demo, bench, kernels):
        command.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written (default: out)")
    commands.add_parser("crossover", help="measure the best number of chunks on this device, into fastscan/crossover.json")
    commands.add_parser("fit-co2", help="fit the variances of the demo's CO2 model by maximum likelihood")
    arguments = parser.parse_args()
    if arguments.command == "demo":
        from fastscan.profiling.demo import run_demo

        run_demo(arguments.out, tuple(arguments.lengths))
    elif arguments.command == "bench":
        from fastscan.profiling.bench import run_bench

        run_bench(arguments.out)
    elif arguments.command == "kernels":
        from fastscan.profiling.kernels import run_report

        run_report(arguments.out, arguments.sizes, arguments.families, arguments.dtype)
    elif arguments.command == "crossover":
        from fastscan.profiling.crossover import write

        write()
    else:
        from fastscan.profiling.fit import fit_co2_variances

        variances, loglik = fit_co2_variances()
        print(f"{variances}\nlog-likelihood {loglik:.4f}")


if __name__ == "__main__":
    main()
