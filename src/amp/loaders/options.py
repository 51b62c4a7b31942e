"""The keywords of one load call, checked before anything happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from amp.errors import ConfigError
from amp.loaders.evolution import FREEZE, evolution
from amp.loaders.shape import Shape
from amp.loaders.types import LoadMode
from amp.streaming.types import BlockRange

__all__ = [
    'COMMON',
    'NAMES',
    'LoadOptions',
    'as_keys',
    'as_mode',
    'check_name',
    'is_name',
    'listed',
    'partition_columns',
]

NAMES = 'a name is a text of at least one character, without NUL and without half a surrogate pair'
_NO_CHARACTER = re.compile('[\0\ud800-\udfff]')

COMMON = frozenset(
    {'mode', 'create_table', 'key_columns', 'block_ranges', 'column_types', 'label_config', 'schema_evolution'}
)


@dataclass(frozen=True)
class LoadOptions:
    """What every loader understands, and what is the loader's own (`extra`)."""

    mode: LoadMode
    create_table: bool
    key_columns: tuple[str, ...]
    block_ranges: tuple[BlockRange, ...]
    schema_evolution: str
    shape: Shape
    extra: Mapping[str, Any]

    @classmethod
    def parse(
        cls, given: Mapping[str, Any], loader: str, own: frozenset[str] | None, shape: Callable[[Any, Any], Shape]
    ) -> LoadOptions:
        """`own` are the loader's options; None lets all through. Raises ConfigError for what nobody knows."""
        extra = {key: value for key, value in given.items() if key not in COMMON}
        if own is not None:
            unknown = sorted(set(extra) - own)
            if unknown:
                raise ConfigError(
                    f'unknown option {unknown[0]!r} for {loader}', hint=f'known options: {listed(COMMON | own)}'
                )
        return cls(
            as_mode(given.get('mode', LoadMode.APPEND)),
            bool(given.get('create_table', True)),
            as_keys(given.get('key_columns')),
            tuple(given.get('block_ranges') or ()),
            evolution(given.get('schema_evolution', FREEZE)),
            shape(given.get('column_types'), given.get('label_config')),
            extra,
        )

    def for_author(self) -> dict[str, Any]:
        """The keywords that `_load_batch_impl` gets."""
        keys = {'key_columns': list(self.key_columns)} if self.key_columns else {}
        return {'mode': self.mode, **keys, **self.extra}


def as_mode(mode: LoadMode | str) -> LoadMode:
    """A mode by its name. Raises ConfigError."""
    if isinstance(mode, LoadMode):
        return mode
    try:
        return LoadMode(str(mode).lower())
    except ValueError as error:
        raise ConfigError(f'there is no mode {mode!r}', hint=f'modes: {listed(m.value for m in LoadMode)}') from error


def as_keys(columns: Iterable[Any] | None) -> tuple[str, ...]:
    """Key columns; a text is the name of one. Raises ConfigError."""
    names = (columns,) if isinstance(columns, str) else tuple(columns or ())
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f'key_columns are names of columns, not {columns!r}')
    return names


def partition_columns(given: Any) -> tuple[str, ...]:
    """Partition columns, which a URL names in one text with commas. Raises ConfigError for what names none, or one twice."""
    if given is None:
        return ()
    if isinstance(given, str):
        given = [name.strip() for name in given.split(',')]
    names = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f'partition_by names columns, which {given!r} does not', hint="for example partition_by=['network', 'day']"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f'partition_by names the column {twice!r} twice', hint='name each column once')
    return tuple(names)


def is_name(name: object) -> bool:
    """True for what a destination that writes names as UTF-8 can hold: not for nothing, NUL or half a surrogate pair."""
    return isinstance(name, str) and name != '' and _NO_CHARACTER.search(name) is None


def check_name(name: object) -> None:
    """Raises ConfigError for what is no name of a table or stream."""
    if not is_name(name):
        raise ConfigError(f'{name!r} is not a name for a table or stream', hint=NAMES)


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ', '.join(sorted(names))
