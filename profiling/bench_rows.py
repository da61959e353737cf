"""A line of the bench record."""

from typing import NamedTuple


class Row(NamedTuple):
    """One line of the record. ``value`` is a ratio: theirs over ours for speed, ours over the bound elsewhere."""

    work: str
    against: str
    ours: float | None
    theirs: float | None
    value: float | None
    at_least: str
    aim: str
