"""How a recurrence is run: into how many chunks time is cut, and what works on them."""

from typing import Any, Literal, NamedTuple

BLOCK = 16
"""About as many rows lie between two looks at the states of a chunk, where it is found out how far it has to be swept again."""


class Launch(NamedTuple):
    """How kernels are launched on a GPU.

    Attributes:
        lowering: "triton" or "mosaic", the two ways that Pallas reaches an NVIDIA GPU.
        lanes: of one program. A power of two; "mosaic" wants 128.
        warps: of one program.
        warps_of_summaries: of one that scans summaries; 0 for as many.
        group: how many summaries a lane takes where summaries are scanned.
        fill: lanes that fill the device, for those who choose the number of chunks.
        rows: the fewest that a chunk should have, likewise.
        interpret: run on any device, by Pallas's interpreter.
        whole: whether a matrix belongs to a whole program, which then works for one lane; of large models, with "triton".
    """

    lowering: Literal["triton", "mosaic"] = "triton"
    lanes: int = 32
    warps: int = 1
    warps_of_summaries: int = 0
    group: int = 8
    fill: int = 32_768
    rows: int = 16
    interpret: bool = False
    whole: bool = False


class Plan(NamedTuple):
    """How to run a recurrence over a series.

    Attributes:
        steps: T, rows of the series.
        chunks: C; chunk c holds rows c L to (c + 1) L - 1 with L = ceil(T / C).
        scan: of the summaries, under XLA: "associative" is `lax.associative_scan`; "doubling" does log2 C rounds of a loop
            of constant shape, compiled once.
        algebra: under XLA, a key of `algebra.ALGEBRAS`.
        relay: under XLA, enter chunks with guesses and sweep them again as far as that matters, if the recurrence forgets (see
            the module of that name). Its loops have no fixed length, so no reverse-mode derivative.
        one_function: under XLA on a CPU, compile every loop to one native function. Otherwise a runtime starts a loop's
            operations one by one, which for a few numbers takes longer than to compute them. Not for large arrays, nor for
            programs that are to be differentiated or mapped: XLA can't compile every operation so.
        checked: sweep again what does not fit together where chunks meet, if the recurrence says how to tell (see the module
            `seams`). How often is found out as it runs, so no reverse-mode derivative.
        vectors: under XLA, in one chunk, look whether covariances settle, and then run means in so many chunks; 0 for not (see
            the module `settling`). Rows are counted as it runs, so no reverse-mode derivative.
        in_turn: under XLA, run one sequence after the other, as this plan says for one.
        launch: None for XLA; otherwise GPU kernels.
        fewest: of a program for series of several lengths, the fewest rows that there may be; None where there are `steps`.
        count: of such a program, as it runs, the rows that there are, a number. The others are blank, at the series' end.
    """

    steps: int
    chunks: int
    scan: Literal["associative", "doubling"] = "doubling"
    algebra: str = "stacked"
    relay: bool = False
    one_function: bool = False
    checked: bool = False
    vectors: int = 0
    in_turn: bool = False
    launch: Launch | None = None
    fewest: int | None = None
    count: Any = None

    def from_fewest(self, fewest: int) -> "Plan":
        """Returns the plan for any number of rows from the fewest on, with chunks few enough that none is ever empty."""
        plan = self._replace(fewest=fewest, vectors=0)
        return next(p for C in range(self.chunks, 0, -1) if (p := plan._replace(chunks=C)).length * (C - 1) < max(fewest, 1))

    @property
    def in_lanes(self) -> "Plan":
        """The plan with lane axes, where its matrices have none."""
        return self._replace(algebra=self.algebra.removesuffix(" alone"))

    @property
    def kernels(self) -> Launch:
        """How kernels are launched, of a plan that has them."""
        assert self.launch is not None, "a plan for XLA has no kernels"
        return self.launch

    @property
    def length(self) -> int:
        """L, the rows of a chunk."""
        return self._rows[0]

    @property
    def block(self) -> int:
        """The rows of a chunk from one look at its states to the next."""
        return self._rows[1]

    @property
    def _rows(self) -> tuple[int, int]:
        """The rows of a chunk, and of its blocks: whole blocks where some chunk is padded anyway, and none becomes empty."""
        rows, fewest = -(-self.steps // self.chunks), self.steps if self.fewest is None else self.fewest
        if not self.checked or self.launch is not None or rows <= BLOCK:
            return rows, rows
        block = min(range(BLOCK - BLOCK // 4, BLOCK + BLOCK // 4 + 1), key=lambda n: (-rows % n, abs(n - BLOCK)))
        whole = -(-rows // block) * block
        fits = self.padded_by(rows) and whole * (self.chunks - 1) < fewest
        return whole if fits else rows, block

    @property
    def padded(self) -> bool:
        """Whether the last chunks hold rows past T."""
        return self.padded_by(self.length)

    def padded_by(self, length: int) -> bool:
        """Tells whether chunks of so many rows hold rows past T."""
        return self.fewest is not None or length * self.chunks > self.steps
