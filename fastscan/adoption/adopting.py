"""References to another package's functions, found in its modules and replaced by ours, until that is undone."""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax

from fastscan.adoption import dynamax


class Reference(NamedTuple):
    """An attribute of a module, or of a class in one, that held a function of dynamax.

    Attributes:
        owner: the module or class.
        name: of the attribute.
        original: what it was.
        ours: what it is.
    """

    owner: Any
    name: str
    original: Any
    ours: Any

    def __str__(self) -> str:
        module = f"{self.owner.__module__}." if isinstance(self.owner, type) else ""
        return f"{module}{self.owner.__name__}.{self.name}"


class Adoption:
    """Which references are ours, until `undo`; a context manager, which undoes itself at its end.

    Attributes:
        package: what was adopted.
        replaced: references that are ours now.
        kept: names of dynamax's functions for inference that stay what they were, and why.
        notes: names of functions that are ours, where these answer otherwise than dynamax's, or call that, and how.
        elsewhere: references that other modules hold to functions that were replaced: what they import is dynamax's as before.
    """

    def __init__(
        self,
        package: str,
        replaced: list[Reference],
        kept: dict[str, str],
        notes: dict[str, str],
        elsewhere: list[Reference],
    ):
        self.package, self.replaced, self.kept, self.notes, self.elsewhere = package, replaced, kept, notes, elsewhere

    def undo(self) -> None:
        """Puts dynamax's functions back, in modules that were imported since, too; does nothing the second time."""
        ours = {id(x.ours): x.original for x in self.replaced}
        held = [(x.owner, x.name, x.ours) for x in self.replaced if isinstance(x.owner, type)]
        for owner, name, value in [*_references(), *held]:
            if id(value) in ours:
                setattr(owner, name, ours[id(value)])
        self.replaced = []
        jax.clear_caches()

    def __enter__(self) -> "Adoption":
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"{self.package}: {len(self.replaced)} references are fastscan's"]
        lines += [f"  {reference}" for reference in self.replaced]
        lines += ["of these:"] if self.notes else []
        lines += [f"  {name}: {what}" for name, what in self.notes.items()]
        lines += ["stay dynamax's:"] if self.kept else []
        lines += [f"  {name}: {why}" for name, why in self.kept.items()]
        lines += ["hold dynamax's, as they are of no adopted package:"] if self.elsewhere else []
        lines += [f"  {reference}" for reference in self.elsewhere]
        return "\n".join(lines)

    __repr__ = __str__


def adopt(package: str = "dynamax") -> Adoption:
    """Replaces dynamax's inference by ours in dynamax, and in a package that calls it: results come in dynamax's own types.

    Every reference to such a function that a module of these packages holds is replaced: `lgssm_smoother` in
    `dynamax.linear_gaussian_ssm.models` as well, so `LinearGaussianSSM.smoother` is ours. `fit_em` compiles nothing anew when
    it is called again. What was compiled before is dropped (`jax.clear_caches`), for it may hold dynamax's functions.

    Samples of a key are dynamax's, up to rounding, but for those of its parallel HMM sampler. An extended filter with
    ``num_iter`` above 1 conditions on every emission once, where dynamax's does so ``num_iter`` times.

    Args:
        package: "dynamax", or the name of an installed package whose modules call it, such as "jax_moseq".

    Returns:
        What was replaced, and what was not; ``print`` it. Its `undo` puts everything back, and so does the end of a ``with``.

    Raises:
        ImportError: the package, or dynamax, is not installed.
        ValueError: a version of dynamax whose conventions are not known.
    """
    answers, kept = dynamax.answers()
    importlib.import_module(package)
    roots = {"dynamax", package.partition(".")[0]}
    ours: dict[int, tuple[Any, Any]] = {}
    replaced, elsewhere = [], []
    for answer in answers:
        original = getattr(answer.owner, answer.name)
        if hasattr(original, _ORIGINAL):  # by an adoption before this one, whose functions serve here, too
            ours[id(getattr(original, _ORIGINAL))] = getattr(original, _ORIGINAL), original
            continue
        ours[id(original)] = original, _in_place_of(original, answer.function)
        if isinstance(answer.owner, type):
            replaced.append(Reference(answer.owner, answer.name, *ours[id(original)]))
            setattr(answer.owner, answer.name, replaced[-1].ours)
    for module, name, value in _references():
        if id(value) not in ours:
            continue
        reference = Reference(module, name, *ours[id(value)])
        root = getattr(module, "__name__", "").partition(".")[0]
        if root in roots:
            setattr(module, name, reference.ours)
            replaced.append(reference)
        elif root != "fastscan":
            elsewhere.append(reference)
    jax.clear_caches()
    if elsewhere:
        some = ", ".join(map(str, elsewhere[:3])) + (", ..." if len(elsewhere) > 3 else "")
        warnings.warn(
            f"{some}: dynamax's own functions, imported before fastscan.adopt({package!r}) and not replaced. Adopt that "
            "package, or import them afterwards.",
            stacklevel=2,
        )
    notes = {f"{answer.owner.__name__}.{answer.name}": answer.note for answer in answers if answer.note}
    return Adoption(package, replaced, kept, notes, elsewhere)


_ORIGINAL = "_fastscan_original"


def _in_place_of(original: Any, answer: Callable) -> Callable:
    """Returns a function of its own that calls an answer, and has the names and the documentation of what it replaces."""

    @functools.wraps(original, updated=())
    def ours(*args: Any, **kwargs: Any) -> Any:
        return answer(*args, **kwargs)

    setattr(ours, _ORIGINAL, original)
    return ours


def _references() -> list[tuple[ModuleType, str, Any]]:
    """Lists the attributes of all modules."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [(module, name, value) for module in modules for name, value in list(vars(module).items())]
