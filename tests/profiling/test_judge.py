"""The automatic choice, judged by records."""

from fastscan.dispatch.crossovers import use_crossover_table
from fastscan.profiling.measure.cases import held_out
from fastscan.profiling.measure.operations import PUBLIC, SEQUENTIAL
from fastscan.profiling.verdicts import crossover
from fastscan.profiling.verdicts.judge import chosen, judge, verdicts
from oracles.records import made_up

CASE = held_out()[0]


def row(implementation, p50, **fields):
    return made_up(CASE, implementation, p50, device="cpu", **fields)


def taking(implementation):
    """A table by which this one is taken."""
    seconds = {name: 1e-3 if name == implementation else 9e-3 for name in ("sequential", "chunked:8")}
    rows = [row(name, p50, T=T) for name, p50 in seconds.items() for T in (10, 100, 1_000)]
    use_crossover_table(crossover.fit(rows))


def measured(*rows):
    return {r.implementation: r for r in rows}


def test_the_choice_is_the_present_table_s():
    found = measured(row("sequential", 1e-3, default=True), row("chunked:8", 2e-3), row(SEQUENTIAL, 5e-4), row(PUBLIC, 1e-4))
    taking("chunked:8")
    assert chosen(found).implementation == "chunked:8"
    taking("sequential")
    assert chosen(found).implementation == "sequential"
    taking("chunked:8")
    assert chosen(measured(row("sequential", 1e-3, default=True), row("chunked:3", 1e-3))).implementation == "sequential"
    assert chosen(measured(row(SEQUENTIAL, 1e-3), row(PUBLIC, 1e-4))) is None


def test_verdicts():
    taking("sequential")
    rows = [row("sequential", 1.3e-3), row("chunked:8", 1e-3), row(SEQUENTIAL, 1e-3)]
    (verdict,) = verdicts(rows)
    assert (verdict.case, verdict.chosen, verdict.best, verdict.open) == (CASE, "sequential", "chunked:8", False)
    assert abs(verdict.over_best - 1.3) < 1e-9
    assert abs(verdict.over_dynamax - 1.3) < 1e-9
    text = "\n".join(judge(rows))
    assert "held out: 1 cases; over our best: median 1.30, worst 1.30" in text
    assert f"{CASE}: sequential takes 1.30 of chunked:8's time" in text
    assert f"{CASE}: sequential takes 1.30 of dynamax's sequential time" in text
    elsewhere = [r._replace(T=CASE.T + 1) for r in rows]
    assert not any("held out" in line for line in judge(elsewhere))
    quick = [row("sequential", 1e-3), row("chunked:8", 1e-3), row(SEQUENTIAL, 1e-3)]
    assert len(judge(quick)) == 2
    assert verdicts([row("sequential", 1e-3), row(SEQUENTIAL, 1e-3)]) == []
