"""For the checkout only: `src.amp` and every `src.amp.x` are the modules `amp` and `amp.x` themselves.

So code that imports `src.amp...` from the repository's root and code that imports `amp...` share one registry and one
set of classes. The installed package has no part in it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_PREFIX = f'{__name__}.'
_ALIASED = f'{_PREFIX}amp'


class _Alias(MetaPathFinder, Loader):
    """Answers for `src.amp...` with the module of the name behind `src.`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _ALIASED and not fullname.startswith(f'{_ALIASED}.'):
            return None
        real = importlib.util.find_spec(fullname.removeprefix(_PREFIX))
        if real is None:
            return None
        return ModuleSpec(fullname, self, origin=real.origin, is_package=real.submodule_search_locations is not None)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        sys.modules[name] = importlib.import_module(name.removeprefix(_PREFIX))


if importlib.util.find_spec('amp') is None:
    sys.path.append(str(Path(__file__).parent))
if not any(type(finder).__name__ == _Alias.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _Alias())
