"""The values that loaders take and give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias

from amp.errors import ConfigError
from amp.streaming.types import BlockRange

__all__ = ['LabelConfig', 'LabelJoinConfig', 'LoadConfig', 'LoadMode', 'LoadResult']


class LoadMode(Enum):
    """What happens to rows that are there already."""

    APPEND = 'append'
    OVERWRITE = 'overwrite'
    UPSERT = 'upsert'
    MERGE = 'merge'


@dataclass
class LoadResult:
    """The outcome of a batch, a table, a commit of a stream, or a reorg that was undone.

    `duration` is in seconds, `ops_per_second` in rows. `metadata` holds what the loader and the engine add.
    """

    rows_loaded: int
    duration: float
    ops_per_second: float
    table_name: str
    loader_type: str
    success: bool
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    is_reorg: bool = False
    invalidation_ranges: list[BlockRange] | None = None

    def __str__(self) -> str:
        if not self.success:
            return f'{self.table_name}: failed: {self.error}'
        if self.is_reorg:
            ranges = ', '.join(map(str, self.invalidation_ranges or []))
            return f'{self.table_name}: reorg of {ranges} undone in {self.duration:.2f} s'
        return f'{self.table_name}: {self.rows_loaded:,} rows in {self.duration:.2f} s'


@dataclass(frozen=True)
class LoadConfig:
    """How to load, as one value: what `load(...)` takes as keywords."""

    mode: LoadMode = LoadMode.APPEND
    batch_size: int = 65_536
    create_table: bool = True
    key_columns: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """The same as keywords."""
        said = {'mode': self.mode, 'batch_size': self.batch_size, 'create_table': self.create_table}
        return {**said, **({'key_columns': self.key_columns} if self.key_columns else {}), **self.options}


@dataclass(frozen=True)
class LabelJoinConfig:
    """Join the label `label_name` on its column `label_key_column` = the stream's `stream_key_column`.

    A list of columns on each side is a key of several. `how` is `inner` (rows without a label go) or `left` (they stay,
    with nulls). With `many` a key may be in the label more than once, and a row then comes once for each. `columns`
    are those wanted of the label (default: all but its key), and `prefix` is put before their names.
    Raises ConfigError for keys that do not pair up or an unknown `how`.
    """

    label_name: str
    label_key_column: str | Sequence[str]
    stream_key_column: str | Sequence[str]
    how: Literal['inner', 'left'] = 'inner'
    many: bool = False
    columns: Sequence[str] | None = None
    prefix: str = ''

    def __post_init__(self) -> None:
        if self.how not in {'inner', 'left'}:
            raise ConfigError(f'a label is joined inner or left, not {self.how!r}')
        if not self.label_keys or len(self.label_keys) != len(self.stream_keys):
            raise ConfigError(
                f'the keys of the label {self.label_name!r} do not pair up: {", ".join(self.label_keys) or "none"} of '
                f'the label, {", ".join(self.stream_keys) or "none"} of the stream'
            )

    @property
    def label_keys(self) -> tuple[str, ...]:
        """The key columns of the label."""
        return _names(self.label_key_column)

    @property
    def stream_keys(self) -> tuple[str, ...]:
        """The key columns of the stream, in the order of those of the label."""
        return _names(self.stream_key_column)


LabelConfig: TypeAlias = str | LabelJoinConfig | Sequence[str | LabelJoinConfig]


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)
