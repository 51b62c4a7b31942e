"""Which loaders there are, found without importing a driver.

A loader is known by a name. Defining a subclass of DataLoader registers it; the package's own are found by their file
`implementations/<name>_loader.py`; installed packages announce theirs in the entry-point group `amp.loaders`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from amp.errors import ConfigError, MissingExtraError
from amp.waiting import uninterrupted

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader

__all__ = ['LoaderRegistry', 'create_loader', 'get_available_loaders', 'get_loader_class']

_SUFFIX = '_loader'
_EXTRAS = {'psycopg': 'postgresql', 'clickhouse_connect': 'clickhouse', 'pgpq': 'postgresql'}


class LoaderRegistry:
    """The loaders that have been defined so far, by name, and where the others are to be found.

    The functions of this module are its methods too.
    """

    _defined: dict[str, type[DataLoader[Any]]] = {}  # noqa: RUF012 - one registry a process is the point

    @classmethod
    def register(cls, name: str, loader_class: type[DataLoader[Any]]) -> None:
        """Make a class known under a name; the newest definition wins."""
        cls._defined[name] = loader_class

    @classmethod
    def names(cls) -> list[str]:
        """Every known name, sorted; imports nothing."""
        return sorted({*cls._defined, *_own_modules(), *_plugins()})

    @classmethod
    def get(cls, name: str) -> type[DataLoader[Any]]:
        """The class of a name, imported now if need be. Raises ConfigError or MissingExtraError."""
        if name not in cls._defined:
            cls._find(name)
        found = cls._defined.get(name)
        if found is None:
            raise _unknown(name, cls.names())
        from amp.loaders.mistakes import check_class

        check_class(found)
        return found

    @classmethod
    def create_loader(
        cls, name: str, config: Mapping[str, Any], label_manager: object | None = None
    ) -> DataLoader[Any]:
        """See the function of this name."""
        loader = cls.get(name)(dict(config))
        if label_manager is not None:
            # Not by the constructor: a loader of one's own may take its configuration alone.
            loader.label_manager = label_manager
        return loader

    get_loader_class = get
    get_available_loaders = names

    @classmethod
    def _find(cls, name: str) -> None:
        module = _own_modules().get(name)
        plugin = _plugins().get(name)
        if module is not None:
            try:
                with uninterrupted():
                    importlib.import_module(module)
            except ModuleNotFoundError as error:
                driver = (error.name or '').partition('.')[0]
                if driver in {'amp', ''}:
                    raise
                raise MissingExtraError(_EXTRAS.get(driver, name), driver) from error
            if name not in cls._defined:
                raise ConfigError(
                    f'{module} defines no loader {name!r}', hint=f'a class {name.title()}Loader(DataLoader[...]) is one'
                )
        elif plugin is not None:
            cls._defined[name] = _loaded(plugin)


@cache
def _own_modules() -> Mapping[str, str]:
    package = importlib.import_module('amp.loaders.implementations')
    return {
        module.name.removesuffix(_SUFFIX): f'{package.__name__}.{module.name}'
        for module in pkgutil.iter_modules(package.__path__)
        if module.name.endswith(_SUFFIX)
    }


@cache
def _plugins() -> Mapping[str, EntryPoint]:
    return {plugin.name: plugin for plugin in entry_points(group='amp.loaders')}


def _loaded(plugin: EntryPoint) -> type[DataLoader[Any]]:
    from amp.loaders.base import DataLoader

    package = plugin.dist.name if plugin.dist is not None else plugin.module
    about = f'the loader {plugin.name!r} of {package}, {plugin.value!r}'
    try:
        with uninterrupted():
            found: Any = plugin.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f'{about}, cannot be imported: {error}', hint=f'its entry point or what {package} needs is missing'
        ) from error
    if not (isinstance(found, type) and issubclass(found, DataLoader)):
        raise ConfigError(f'{about}, is no class of a loader', hint='an entry point names a subclass of DataLoader')
    return found


def _unknown(name: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, 1)
    hint = f'did you mean {close[0]!r}?' if close else f'known loaders: {", ".join(known)}'
    return ConfigError(f'there is no loader {name!r}', hint=hint, loader=name)


def create_loader(name: str, config: Mapping[str, Any], label_manager: object | None = None) -> DataLoader[Any]:
    """A loader by name. Raises ConfigError (a ValueError) for an unknown name or a bad key, MissingExtraError."""
    return LoaderRegistry.create_loader(name, config, label_manager)


def get_loader_class(name: str) -> type[DataLoader[Any]]:
    """The class behind a name. Raises ConfigError, MissingExtraError."""
    return LoaderRegistry.get(name)


def get_available_loaders() -> list[str]:
    """Every name that `create_loader` knows, sorted."""
    return LoaderRegistry.names()
