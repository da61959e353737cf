"""The crossover table: what is fitted to measurements, what it says between them, and whose table is asked."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastscan
from fastscan.dispatch import choice as dispatch
from fastscan.dispatch import crossovers
from fastscan.dispatch.choice import choose
from fastscan.dispatch.crossovers import expected, use_crossover_table, winner
from fastscan.profiling.measure.cases import Case, held_out
from fastscan.profiling.verdicts import crossover
from oracles.lgssm import random_params, simulate
from oracles.records import made_up

LENGTHS = [10, 100, 1_000, 10_000]


def rows(D=4, B=1, wins_from=300.0, operation="lgssm_smoother", spread=0.02):
    """The sequential code takes 1 us a step, 8 chunks the same at ``wins_from``, and time as the square root of T."""
    for T in LENGTHS:
        for name, p50 in {"sequential": 1e-6 * T, "chunked:8": 1e-6 * math.sqrt(T * wins_from), "chunked:4": 1.0}.items():
            yield made_up(Case(operation, D, 2, T, B), name, p50, spread=spread)


def slices(*measured):
    table = crossover.fit([row for some in measured for row in some])
    return table["devices"]["abacus"]["families"]["lgssm"]


def test_the_fit_finds_where_chunks_win():
    (only,) = slices(rows())
    assert (only["D"], only["m"], only["B"], only["dtype"], only["T"]) == (4, 2, 1, "float32", LENGTHS)
    assert only["seconds"]["sequential"] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    assert only["chunks"] == [8, 8, 8, 8]
    win = only["wins"]["chunked"]
    assert win["from"] == pytest.approx(300 * crossovers.MARGIN**2, rel=0.01)
    low, high = win["band"]
    assert low == pytest.approx(win["from"] / 1.02**4, rel=0.01)
    assert high == pytest.approx(win["from"] * 1.02**4, rel=0.01)


def test_what_is_left_out():
    few = [row._replace(dtype="float64") for row in rows() if row.T in LENGTHS[:2]]
    apart = [row._replace(**held_out()[0]._asdict()) for row in rows()]
    assert slices(rows(), few, apart) == slices(rows())


def test_what_always_or_never_wins():
    assert slices(rows(wins_from=1e-3))[0]["wins"]["chunked"]["from"] == LENGTHS[0]
    assert slices(rows(wins_from=1e6))[0]["wins"]["chunked"] == {"from": None, "band": [None, None]}


def test_of_almost_equal_numbers_the_fewer_chunks():
    again = [r._replace(implementation="chunked:16", p50=r.p50 / 1.02) for r in rows() if r.implementation == "chunked:8"]
    assert slices([*rows(), *again])[0]["chunks"] == [8, 8, 8, 8]
    again = [r._replace(p50=r.p50 / 1.1) for r in again]
    assert slices([*rows(), *again])[0]["chunks"] == [16, 16, 16, 16]


def test_at_its_entries_a_table_says_what_was_measured():
    table = slices(rows(), rows(D=8, wins_from=2_000.0), rows(B=64, wins_from=900.0))
    for T in LENGTHS:
        found = expected(table, D=8, T=T, B=1)
        assert found["sequential"].seconds == pytest.approx(1e-6 * T)
        assert found["chunked"].seconds == pytest.approx(1e-6 * math.sqrt(2_000 * T), rel=0.01)
        assert found["chunked"].chunks == 8
    assert expected(table, D=4, T=100, B=64)["chunked"].seconds == pytest.approx(3e-4, rel=0.01)


@given(D=st.integers(1, 40), T=st.integers(1, 10**7), B=st.integers(1, 10**5))
def test_between_its_entries_it_says_something_between_them(D, T, B):
    table = slices(rows(), rows(D=16, wins_from=3_000.0), rows(B=64, wins_from=900.0), rows(D=16, B=64, wins_from=100.0))
    found = expected(table, D=D, T=T, B=B)
    assert found.keys() == {"sequential", "chunked"}
    assert 1e-5 * 0.99 <= found["sequential"].seconds <= 1e-2 * 1.01
    assert found["chunked"].chunks == 8
    at = min(max(T, 10), 10_000)
    assert math.sqrt(100 * at) * 0.98 <= 1e6 * found["chunked"].seconds <= math.sqrt(3_000 * at) * 1.02


def test_the_winner_is_faster_by_a_margin():
    found = {"sequential": crossovers.Expected(1.0, None), "chunked": crossovers.Expected(0.97, 8)}
    assert winner(found) == "sequential"
    assert winner(found | {"chunked": crossovers.Expected(0.9, 8)}) == "chunked"
    assert winner({"chunked": crossovers.Expected(0.9, 8)}) == "chunked"


def test_what_was_not_measured_at_all_lengths_is_asked_only_there():
    some = [row for row in rows() if row.implementation != "sequential" or row.T <= 100]
    table = slices(some)
    assert expected(table, D=4, T=50, B=1).keys() == {"sequential", "chunked"}
    assert expected(table, D=4, T=500, B=1).keys() == {"chunked"}


def test_the_default_follows_the_table():
    table = crossover.fit([r._replace(device="cpu") for r in rows()])
    params = random_params(0, 2, 1, "float32")
    y = simulate(params, 40, 0).astype("float32")
    use_crossover_table(table)
    assert choose(None, T=100, B=1, D=4, m=2, dtype="float32").implementation == "sequential"
    choice = choose(None, T=2_000, B=1, D=4, m=2, dtype="float32", device="cpu")
    assert (choice.implementation, choice.plan.chunks) == ("chunked", 8)
    assert "chunked 0.775 ms, sequential 2 ms" in choice.reason
    before = fastscan.lgssm_smoother(params, y)
    always = crossover.fit([r._replace(device="cpu") for r in rows(wins_from=1e-3)])
    use_crossover_table(always)
    text = jax.jit(fastscan.lgssm_smoother).lower(params, y).as_text()
    assert "scan_summaries" in text or "8x" in text
    np.testing.assert_allclose(fastscan.lgssm_smoother(params, y).smoothed_means, before.smoothed_means, atol=1e-5)


def test_whose_table_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(crossovers, "user_cache_path", lambda name: tmp_path / name)
    crossovers.of_device.cache_clear()
    assert crossovers.of_device("cpu") == crossovers.committed_table()["devices"]["cpu"]
    assert crossovers.of_device("abacus") == {}
    crossover.write(crossover.fit(rows()), crossovers.user_table())
    use_crossover_table(None)  # as a new process
    assert crossovers.of_device("abacus")["families"].keys() == {"lgssm"}
    assert crossovers.of_device("cpu") == crossovers.committed_table()["devices"]["cpu"]
    use_crossover_table({"devices": {}})
    assert crossovers.of_device("cpu") == {}
    assert "not measured" in choose(None, T=10_000, B=1, D=4, m=2, dtype="float32", device="cpu").reason
    use_crossover_table(str(crossovers.user_table()))
    assert crossovers.of_device("abacus")["families"].keys() == {"lgssm"}


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(FileNotFoundError):
        use_crossover_table(path)
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no crossover table"):
            use_crossover_table(path)
    with pytest.raises(ValueError, match='wanted "devices"'):
        use_crossover_table({"machines": {}})
    assert crossovers.given_table() is None


def test_tables_are_written_merged_and_told_apart(tmp_path):
    old, new = crossover.fit(rows()), crossover.fit([*rows(wins_from=500.0), *rows(operation="hmm_smoother")])
    crossover.write(old, tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == old
    assert len((tmp_path / "t.json").read_text().splitlines()) < 30
    both = crossover.merged({"devices": {"other": {}, "abacus": {"launch": {"rows": 8}}}}, new)
    assert both["devices"]["abacus"]["launch"] == {"rows": 8}
    assert both["devices"]["abacus"]["families"].keys() == {"hmm", "lgssm"}
    assert "other" in both["devices"]
    changed = crossover.changes(old, new)
    assert any("lgssm float32 D=4 B=1: chunked wins from T = 551 on (was 331)" in line for line in changed)
    assert any("hmm float32" in line and "was not measured" in line for line in changed)
    assert crossover.changes(old, old) == []


def test_explanations():
    use_crossover_table(crossover.fit([r._replace(device="cpu") for r in rows()]))
    text = crossover.explain("lgssm_smoother", D=4, T=5_000)
    assert "lgssm_smoother runs as 'chunked', 8 chunks" in text
    assert "chunked wins from T = 331 on (open from" in text
    assert "commit 0123456789ab" in text
    assert "sequential" in crossover.explain("parallel_lgssm_filter", D=4, T=20).splitlines()[0]
    assert "not measured" in crossover.explain("hmm_smoother", D=4, T=20)
    for wrong in ("lgssm_smother", "make_lgssm_params", "dispatch"):
        with pytest.raises(ValueError, match="wanted one of fastscan's functions"):
            crossover.explain(wrong, D=4, T=20)


def test_the_committed_table():
    table = crossovers.committed_table()
    entry = table["devices"]["cpu"]
    assert {"machine", "versions", "commit", "date"} <= entry["measured"].keys()
    assert entry["families"].keys() == set(dispatch.FAMILIES)
    for slice_ in (s for slices in entry["families"].values() for s in slices):
        lengths = slice_["T"]
        assert lengths == sorted(set(lengths))
        assert all(len(seconds) == len(lengths) for seconds in slice_["seconds"].values())
        assert all(x is None or x > 0 for seconds in slice_["seconds"].values() for x in seconds)
        assert all(c is None or 1 < c < T for c, T in zip(slice_["chunks"], lengths, strict=True))
        assert slice_["seconds"].keys() >= {"sequential", "chunked"}
