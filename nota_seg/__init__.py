"""nota-seg: research on light semantic segmentation models.

Importing this package makes transformers' Auto classes know our models. transformers takes seconds to import and
`nota-seg --help` must not, so the registration waits until the Auto classes themselves are imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["NotaSegConfig", "create_model", "list_models", "load_checkpoint"]

if TYPE_CHECKING:
    from nota_seg.models.checkpoints import load_checkpoint
    from nota_seg.models.configuration import NotaSegConfig
    from nota_seg.models.zoo import create_model, list_models

_PUBLIC = {
    "NotaSegConfig": "nota_seg.models.configuration",
    "create_model": "nota_seg.models.zoo",
    "list_models": "nota_seg.models.zoo",
    "load_checkpoint": "nota_seg.models.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'nota_seg' has no attribute {name!r}")


_AUTO = "transformers.models.auto.modeling_auto"


def _register() -> None:
    from nota_seg.models.auto import register

    register()


class _RegisterAfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Runs `_register` right after transformers' Auto classes have been imported for the first time."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            self._loader = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()


if _AUTO in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterImport())
