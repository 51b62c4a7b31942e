"""Rows joined with labels on their way into a destination: batch by batch, in order, none lost.

What a join gives depends on the columns of the batch alone, so the table can be made before the first row.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from amp.config.hex_text import Column
from amp.config.label_file import is_address_name, plain
from amp.config.label_index import LabelIndex
from amp.config.label_manager import Label, LabelManager
from amp.errors import ConfigError
from amp.loaders.label_record import record_of
from amp.loaders.stamps import STAMP_COLUMNS
from amp.loaders.types import LabelConfig, LabelJoinConfig

__all__ = ['LabelJoin']

logger = logging.getLogger('amp.labels')


@dataclass(frozen=True)
class _Step:
    """One label, bound to the columns of a batch: `schema` is what comes out."""

    label: Label
    config: LabelJoinConfig
    index: LabelIndex
    columns: tuple[str, ...]
    schema: pa.Schema

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        keys = [batch[name] for name in self.config.stream_keys]
        rows, found = self.index.find(keys, left=self.config.how == 'left')
        kept = [_movable(column) for column in batch.columns]
        if rows is not None:
            kept = [column.take(rows) for column in kept]
        added = self.index.take(self.columns, found, self.config.how == 'left')
        return pa.RecordBatch.from_arrays([*kept, *added], schema=self.schema)


@dataclass(frozen=True)
class _Bound:
    """All joins, for one schema and one reading of each label."""

    labels: tuple[Label, ...]
    steps: tuple[_Step, ...]
    record: str
    refused: tuple[Label, ...] = ()


class LabelJoin:
    """The joins of one load. Threads may share it.

    `joins` are LabelJoinConfigs or names of labels; a bare name finds its key when the columns are known: the address
    column that both sides share, else the only one of each. Raises ConfigError for a label that is not there.
    """

    def __init__(self, manager: LabelManager, joins: Sequence[LabelJoinConfig | str]) -> None:
        self._manager = manager
        self._joins = tuple(joins)
        self._bound: dict[pa.Schema, _Bound] = {}
        self._lock = threading.Lock()
        for name in self._names:
            manager.require(name)

    @classmethod
    def steps(cls, manager: object | None, config: LabelConfig) -> list[LabelJoin]:
        """The steps of a load that a `label_config` asks for. Raises ConfigError."""
        joins: list[Any] = [config]
        if isinstance(config, Sequence) and not isinstance(config, str):
            joins = list(config)
        for join in joins:
            if not isinstance(join, str | LabelJoinConfig):
                raise ConfigError(f'label_config is a LabelJoinConfig, a list of them or a name, not {join!r}')
        if not joins:
            return []
        if not isinstance(manager, LabelManager):
            raise ConfigError(
                'this loader knows no labels', hint='make it with label_manager=LabelManager(...), or by a Client'
            )
        return [cls(manager, joins)]

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns after the joins. Raises ConfigError when they cannot be made with these columns."""
        return self._bound_to(schema).steps[-1].schema

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its labels: rows in their order, columns of the labels behind its own."""
        for step in self._bound_to(batch.schema).steps:
            batch = step.apply(batch)
        return batch

    def record(self, schema: pa.Schema) -> str:
        """What a stream remembers of the joins with rows of this schema: see `label_record`."""
        return self._bound_to(schema).record

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(join if isinstance(join, str) else join.label_name for join in self._joins)

    def _bound_to(self, schema: pa.Schema) -> _Bound:
        labels = tuple(map(self._manager.require, self._names))
        with self._lock:
            known = self._bound.get(schema)
            if known is not None and labels in (known.labels, known.refused):
                return known
            try:
                bound = self._bind(labels, schema)
                self._manager.note_joined(labels)
            except ConfigError as error:
                before = self._manager.last_joined(self._names)
                if before is None or before == labels:
                    raise
                logger.warning('the labels before stay in use: %s', error)
                bound = replace(known or self._bind(before, schema), refused=labels)
            self._bound[schema] = bound
            return bound

    def _bind(self, labels: tuple[Label, ...], schema: pa.Schema) -> _Bound:
        steps: list[_Step] = []
        joined = schema
        for label, join in zip(labels, self._joins, strict=True):
            config = _guessed(label, schema) if isinstance(join, str) else join
            steps.append(_step(label, config, joined))
            joined = steps[-1].schema
        return _Bound(labels, tuple(steps), record_of((step.label, step.config) for step in steps))


def _step(label: Label, config: LabelJoinConfig, schema: pa.Schema) -> _Step:
    for column in config.label_keys:
        _require(column, label.table.column_names, f'the label {label.name!r}')
    for column in config.stream_keys:
        _require(column, schema.names, f'what is joined with the label {label.name!r}')
    forms = [
        label.form(own, plain(pa.nulls(0, schema.field(theirs).type)).type, theirs)
        for own, theirs in zip(config.label_keys, config.stream_keys, strict=True)
    ]
    columns = _wanted(label, config)
    added = [pa.field(config.prefix + name, plain(label.table[name]).type) for name in columns]
    _refuse_collisions(label, added, schema)
    own = [field.with_type(_movable(pa.nulls(0, field.type)).type) for field in schema]
    joined = pa.schema([*own, *added]).with_metadata(schema.metadata)
    return _Step(label, config, label.index(config.label_keys, forms, config.many), columns, joined)


def _movable(column: Column) -> Column:
    """The column as Arrow can take rows of it: views it cannot."""
    is_view = pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)
    return plain(column) if is_view else column


def _wanted(label: Label, config: LabelJoinConfig) -> tuple[str, ...]:
    if config.columns is None:
        return tuple(name for name in label.table.column_names if name not in config.label_keys)
    wanted = (config.columns,) if isinstance(config.columns, str) else tuple(config.columns)
    for name in wanted:
        _require(name, label.table.column_names, f'the label {label.name!r}')
    return wanted


def _refuse_collisions(label: Label, added: Sequence[pa.Field[Any]], schema: pa.Schema) -> None:
    # Many destinations do not tell `Symbol` from `symbol`.
    taken = {name.casefold() for name in (*schema.names, *STAMP_COLUMNS)}
    for field in added:
        if field.name.casefold() in taken:
            raise ConfigError(
                f'the label {label.name!r} and what it is joined with both have a column {field.name!r}',
                hint="say LabelJoinConfig(..., prefix='...') or columns=[...], or rename it in the query with AS",
                column=field.name,
            )
        taken.add(field.name.casefold())


def _guessed(label: Label, schema: pa.Schema) -> LabelJoinConfig:
    ours = _address_columns(label.table.schema)
    theirs = _address_columns(schema)
    folded = {name.casefold(): name for name in theirs}
    shared = [(name, folded[name.casefold()]) for name in ours if name.casefold() in folded]
    if len(shared) == 1:
        [(own, their)] = shared
    elif not shared and len(ours) == len(theirs) == 1:
        [own], [their] = ours, theirs
    else:
        raise ConfigError(
            f'which columns the label {label.name!r} is joined on cannot be told: addresses of the label are '
            f'{", ".join(ours) or "none"}, of the rows {", ".join(theirs) or "none"}',
            hint=f'say LabelJoinConfig({label.name!r}, label_key_column, stream_key_column)',
            label=label.name,
        )
    return LabelJoinConfig(label.name, own, their)


def _address_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold addresses, going by their names; where some are bytes, text is something else."""
    named = [field for field in schema if is_address_name(field.name)]
    kinds = {field.name: plain(pa.nulls(0, field.type)).type for field in named}
    as_bytes = [n for n, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)]
    return as_bytes or [n for n, kind in kinds.items() if pa.types.is_string(kind)]


def _require(column: str, names: Sequence[str], where: str) -> None:
    if column not in names:
        raise ConfigError(f'{where} has no column {column!r}', hint=f'it has: {", ".join(names)}', column=column)
