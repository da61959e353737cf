"""Progress, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from fastscan.profiling.measure import progress
from fastscan.profiling.measure.progress import counted


def said(total, names, terminal=False):
    file = io.StringIO()
    with counted(Console(file=file, force_terminal=terminal, width=100), total) as begin:
        for name in names:
            begin(name)
    return file.getvalue()


def test_without_a_terminal_lines_come_now_and_then(monkeypatch):
    assert said(3, "abc") == "1/3 a\n"  # at once; the others came within two seconds
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    assert said(3, "abc") == "1/3 a\n2/3 b\n3/3 c\n"
    assert said(None, ["[x] of [y]", "b"]) == "1 [x] of [y]\n2 b\n"


@pytest.mark.parametrize(("total", "wanted"), [(3, "2/3"), (None, "2/?")])
def test_on_a_terminal_a_bar_has_counts_and_goes_away(total, wanted):
    """What is said last before the end is how much is done, where the third step is at work."""
    text = said(total, ["one", "two", "[three]"], terminal=True)
    assert "[three]" in text
    assert wanted in text
    assert text.endswith("\x1b[2K")  # the line is erased


def test_an_error_ends_the_bar_and_is_raised():
    file = io.StringIO()

    def fail():
        with counted(Console(file=file, force_terminal=True), 2) as begin:
            begin("one")
            raise RuntimeError("of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        fail()
    assert "0/2" in file.getvalue()
