"""``python -m fastscan.profiling``: the demo, the figures we are held to, and the crossover table."""

import argparse
from pathlib import Path


def main() -> None:
    """The command line. Each command imports what it needs."""
    parser = argparse.ArgumentParser(prog="python -m fastscan.profiling", description="Runs, measures and draws fastscan.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="smooth the Mauna Loa CO2 record and the tracking model; table and figures")
    demo.add_argument("--lengths", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000], help="T of the tracking model")
    bench = commands.add_parser("bench", help="measure everything the project is held to, against dynamax")
    for command in (demo, bench):
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
    elif arguments.command == "crossover":
        from fastscan.profiling.crossover import write

        write()
    else:
        from fastscan.profiling.fit import fit_co2_variances

        variances, loglik = fit_co2_variances()
        print(f"{variances}\nlog-likelihood {loglik:.4f}")


if __name__ == "__main__":
    main()
