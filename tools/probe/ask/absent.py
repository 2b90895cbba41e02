"""Empty modules for packages that vLLM's GPU kernels import and that nothing here calls: a GB of compilers."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

#: Import names of what `environment.LEFT_OUT` leaves out.
ABSENT = frozenset({"cutlass", "tilelang", "quack", "numba", "cuda"})


class Nothing(type):
    """Whatever an absent module is asked for: any attribute, call, index, operand, decorator or base class."""

    def __getattr__(cls, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})

    def __call__(cls, *args: Any, **more: Any) -> Any:
        """What a decorator returns is the function; what else is called returns nothing."""
        decorates = len(args) == 1 and not more and callable(args[0])
        return args[0] if decorates else Nothing("result", (), {})

    def __getitem__(cls, item: Any) -> Nothing:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __add__ = __sub__ = __mul__ = __rmul__ = __truediv__ = __floordiv__ = __or__

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(cls, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()


class AbsentModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages in `ABSENT`. It is asked last, so an installed package wins."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of an absent package or of a module below it."""
        absent = name.split(".", maxsplit=1)[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module in which every name is a `Nothing`."""
        module = types.ModuleType(spec.name)
        vars(module)["__getattr__"] = lambda name: getattr(Nothing("module", (), {}), name)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""


def install() -> None:
    """Makes the absent packages importable."""
    sys.meta_path.append(AbsentModules())
