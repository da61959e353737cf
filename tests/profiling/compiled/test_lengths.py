"""What calls with several lengths take."""

from fastscan.profiling.compiled.lengths import run_lengths


def test_every_length_is_called_both_ways(capsys):
    rows = run_lengths("hmm_posterior_mode", 2, 0, (40, 41, 42))
    assert [row[0] for row in rows] == [40, 41, 42]
    assert all(seconds > 0 for row in rows for seconds in row[1:])
    assert "ratio of warm" in capsys.readouterr().out
