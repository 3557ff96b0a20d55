"""Stands in for `mmcv._ext` where mmcv-lite is installed, so that mmseg can be imported.

mmseg imports `mmcv.ops` unconditionally, and `mmcv.ops` asks its compiled extension whether it has certain
functions. mmcv-lite has no such extension, and UperNet calls none of these functions.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

NAME = "mmcv._ext"


class StubModule(ModuleType):
    """A module with every public attribute: a function that explains why it cannot be called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("_"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise ImportError(
                f"{NAME}.{name} is a compiled operation, and this is mmcv-lite, which has none: "
                "install the full mmcv for models that need it (UperNet does not)"
            )

        missing.__name__ = name
        return missing


class StubFinder(MetaPathFinder, Loader):
    """Asked after all other finders, so that a real `mmcv._ext` is never shadowed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec for `mmcv._ext` alone."""
        return ModuleSpec(fullname, self) if fullname == NAME else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Returns the stub."""
        return StubModule(spec.name, __doc__)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the stub is complete."""


def install() -> None:
    """Makes `import mmcv._ext` possible; imports nothing itself, so it may be called before anything else."""
    if not any(isinstance(finder, StubFinder) for finder in sys.meta_path):
        sys.meta_path.append(StubFinder())
