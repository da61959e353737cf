"""Progress of what takes more than two seconds: a bar with counts on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 2.0
"""Between two lines where there is no terminal, at least."""


def bars(console: Console | None = None, *, transient: bool = False) -> Progress:
    """Makes bars that say what is being done, how much of it is done, and for how long.

    Args:
        console: where they are shown; default: rich's own.
        transient: whether they vanish at the end.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=transient)


@contextlib.contextmanager
def counted(console: Console, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """Shows how far a piece of work has come, and clears that away at its end.

    Nothing else that shows progress may run inside, as a terminal has room for one.

    Args:
        console: where; on anything but a terminal, as a pipe or a log, lines "3/12 what" in place of a bar, the first at once
            and others no sooner than `LINE_SECONDS` after the last one.
        total: how many steps there are; None: that is not known.

    Yields:
        A function to be called as a step begins, with words for it.
    """
    begun, said = 0, float("-inf")
    if not console.is_terminal:

        def tell(what: str) -> None:
            nonlocal begun, said
            begun += 1
            if time.monotonic() - said >= LINE_SECONDS:
                console.print(
                    f"{begun}{'' if total is None else f'/{total}'} {what}", style="dim", highlight=False, markup=False
                )
                said = time.monotonic()

        yield tell
        return

    with bars(console, transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(what: str) -> None:
            nonlocal begun
            progress.update(task, description=what, completed=begun)
            begun += 1

        yield advance
