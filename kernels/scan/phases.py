"""The phases of a run, whatever runs them: what drivers and passes ask of XLA and of GPU kernels alike."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence


class Phases(Protocol):
    """A plan, and what carries it out.

    Series are pytrees of arrays (B or 1, T, rows, columns), everything else arrays (rows, columns, C or 1, B or 1). Between
    `split` and `join`, `matrices` and `arrays`, each implementation has a layout of its own, which callers pass on unseen:
    "rows" are a split series, "states", "summaries" and "params" what `matrices` makes of arrays.
    """

    @property
    def plan(self) -> Plan:
        """How recurrences are run."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether JAX can differentiate what is run. A kernel is a program that it does not look into."""
        ...

    @property
    def addressable(self) -> bool:
        """Whether matrices have columns that are told by a computed number, as arrays have and registers have not."""
        ...

    def matrices(self, tree: Any) -> Any:
        """Takes arrays (rows, columns, C or 1, B or 1) into the layout of states, summaries and params."""
        ...

    def arrays(self, tree: Any) -> Any:
        """Inverts `matrices`."""
        ...

    def split(self, series: Any) -> Any:
        """Takes a series (B or 1, T, rows, columns) into the layout of rows."""
        ...

    def join(self, rows: Any, last: Any = None) -> Any:
        """Inverts `split`, for one array, and puts one more row at its end.

        Args:
            rows: an output of `sweep`.
            last: (rows, columns, 1, B or 1), for an output that was swept with ``room``; or None.
        """
        ...

    def total(self, rows: jax.Array) -> jax.Array:
        """Sums numbers over time: of an output of `sweep`, (B or 1, T, 1, 1) when joined, to (B or 1,)."""
        ...

    def summarise(self, recurrence: Recurrence, params: Any, state: Any, rows: Any, *, reverse: bool = False) -> Any:
        """Folds `append` over every chunk's rows.

        Args:
            recurrence: what is folded.
            params: of its rows.
            state: any state, for its sizes and dtype.
            rows: of the series.
            reverse: fold from a chunk's last row to its first.

        Returns:
            Every chunk's summary.
        """
        ...

    def entries(self, recurrence: Recurrence, state: Any, summaries: Any, *, reverse: bool = False) -> Any:
        """Finds the state before every chunk; with ``reverse``, after it."""
        ...

    def entries_and_futures(self, recurrence: Recurrence, hindsight: Hindsight, state: Any, summaries: Any) -> tuple[Any, Any]:
        """Finds the state before every chunk, and what all that follows says of the state after it."""
        ...

    def sweep(
        self,
        recurrence: Recurrence,
        params: Any,
        entries: tuple,
        rows: Any,
        *,
        begin: Callable | None = None,
        reverse: bool = False,
        room: Any = False,
        exits: bool = True,
    ) -> tuple[Any, Any]:
        """Runs the sequential recursion within every chunk.

        Args:
            recurrence: whose `step` is run.
            params: of its rows.
            entries: every chunk's entry state, as a tuple of one, or in a relay the first one's; or what ``begin`` makes it of.
            rows: of the series.
            begin: makes the entry state of ``entries``.
            reverse: go from a chunk's last row to its first.
            room: for each output, whether `join` is to put one more row at its end.
            exits: whether the states after every chunk are wanted.

        Returns:
            The states after every chunk, with its sums if the recurrence has any, or maybe None without ``exits``; and the
            outputs of all rows, for `join`.
        """
        ...

    def each_row(self, name: str, function: Callable, series: tuple) -> Any:
        """Applies a function of matrices to every row by itself.

        Args:
            name: of the kernel, where there is one.
            function: of as many matrices as ``series`` has arrays.
            series: arrays (B or 1, rows or 1, n, p).

        Returns:
            Arrays (B or 1, rows or 1, n, p), in the form of what ``function`` returns.
        """
        ...
