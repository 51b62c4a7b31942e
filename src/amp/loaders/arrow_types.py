"""One table of types for all destinations: what each Arrow type becomes there, and in which form it is handed over.

A type lands losslessly or is refused by column and type before the first row; a single value that does not fit is
refused with its column when its batch comes. What a destination holds is data, in `type_tables.py`; how a column gets
into that form is here. `docs/types.md` is written from both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.types as pt

from amp.errors import SchemaError
from amp.loaders.json_text import is_bytes, is_list, is_text, plain
from amp.loaders.list_views import without_views

__all__ = ['AS', 'Landing', 'Rule', 'TypeTable', 'kind_of', 'land', 'type_table', 'wire_schema']

Column: TypeAlias = 'pa.Array[Any]'
Convert: TypeAlias = Callable[[Column], Column]

AS = b'amp:as'
"""The key in a field's metadata under which a wish of the user travels: `decimal` for text that holds numbers."""


@dataclass(frozen=True)
class Rule:
    """How one kind of Arrow type lands.

    `column` is the destination's type as its DDL writes it; `{precision}`, `{scale}`, `{width}`, `{inner}`, `{key}` and
    `{fields}` in it stand for those of the Arrow type. `wire` is the Arrow type that is handed over (None: as it is;
    a function of the Arrow type where it depends on it), reached by `convert` and a cast that loses nothing.
    """

    column: str
    wire: pa.DataType | Callable[[Any], pa.DataType] | None = None
    convert: Convert | None = None
    note: str = ''


@dataclass(frozen=True)
class Landing:
    """A column of a table to be: its name, its type there, and the way its values go."""

    name: str
    column: str
    wire: pa.DataType
    convert: Convert | None = None

    def land(self, values: Column) -> Column:
        """The values in their wire form. Raises SchemaError when one of them does not fit."""
        try:
            converted: Column = without_views(values if self.convert is None else self.convert(values))
            return converted if converted.type.equals(self.wire) else converted.cast(self.wire)
        except SchemaError as error:
            raise SchemaError(f'column {self.name!r}: {error.message}', hint=error.hint, column=self.name) from error
        except pa.ArrowInvalid as error:
            raise SchemaError(
                f'column {self.name!r} has a value that {self.column} cannot hold: {error}',
                hint='nothing of the unit was kept; land the column as text, or cast in the query',
                column=self.name,
            ) from error


class TypeTable:
    """The rules of one destination, by kind (see `kind_of`). A kind without a rule is refused.

    `list`, `struct` and `map` land element by element where their elements land by a cast alone, else by the rule
    `nested` when there is one.
    """

    def __init__(self, destination: str, rules: Mapping[str, Rule]) -> None:
        self.destination = destination
        self.rules = dict(rules)

    def landings(self, schema: pa.Schema) -> list[Landing]:
        """One landing for each column. Raises SchemaError for the first that has none."""
        return [self.landing(field) for field in schema]

    def landing(self, field: pa.Field[Any]) -> Landing:
        """Raises SchemaError, by column and type."""
        wish = (field.metadata or {}).get(AS, b'').decode()
        found = self._find(field.name, field.type, wish)
        if found is None:
            wished = f' as {wish}' if wish else ''
            raise SchemaError(
                f'{self.destination} has no type for column {field.name!r} of type {field.type}{wished}',
                hint=f"land it as text with column_types={{{field.name!r}: 'text'}}, or cast in the query",
                column=field.name,
            )
        return found

    def _find(self, name: str, kind: Any, wish: str = '') -> Landing | None:
        if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
            found = self._find(name, kind.value_type, wish)
            return found and Landing(name, found.column, found.wire, _after(plain, found.convert))
        if wish:
            rule = self.rules.get(f'{kind_of(kind)} as {wish}')
            if rule is not None or is_text(kind):
                return None if rule is None else _landing(name, kind, rule)
        nested = self._nested(name, kind)
        if nested is not None:
            return nested
        rule = self.rules.get('nested' if kind_of(kind) in _NESTED else kind_of(kind))
        return None if rule is None else _landing(name, kind, rule)

    def _nested(self, name: str, kind: Any) -> Landing | None:
        rule = self.rules.get(kind_of(kind))
        if rule is None or kind_of(kind) not in _NESTED:
            return None
        if is_list(kind):
            parts = {'inner': self._element(kind.value_type)}
        elif pt.is_map(kind):
            parts = {'key': self._element(kind.key_type), 'inner': self._element(kind.item_type)}
        else:
            parts = {field.name: self._element(field.type) for field in kind}
        found = {part: landing for part, landing in parts.items() if landing is not None}
        if len(found) < len(parts):
            return None
        wires = [landing.wire for landing in found.values()]
        if pt.is_struct(kind):
            fields = ', '.join(f'{inner} {landing.column}' for inner, landing in found.items())
            wire: pa.DataType = pa.struct(list(zip(found, wires, strict=True)))
            return Landing(name, rule.column.format(fields=fields), wire)
        wire = pa.list_(wires[0]) if is_list(kind) else pa.map_(wires[0], wires[1])
        return Landing(name, rule.column.format(**{part: landing.column for part, landing in found.items()}), wire)

    def _element(self, kind: Any) -> Landing | None:
        found = self._find('', kind)
        return found if found is not None and found.convert is None else None


def _landing(name: str, kind: Any, rule: Rule) -> Landing:
    sizes: dict[str, int] = {}
    if pt.is_decimal(kind):
        scale = max(kind.scale, 0)
        sizes = {'precision': max(kind.precision - min(kind.scale, 0), scale), 'scale': scale}
    elif pt.is_fixed_size_binary(kind):
        sizes = {'width': kind.byte_width}
    wire = kind if rule.wire is None else rule.wire if isinstance(rule.wire, pa.DataType) else rule.wire(kind)
    return Landing(name, rule.column.format(**sizes), wire, rule.convert)


def _after(first: Convert, then: Convert | None) -> Convert:
    return first if then is None else lambda column: then(first(column))


def kind_of(kind: Any) -> str:
    """The row of the table for an Arrow type; encodings (dictionary, run-end) count as what they encode."""
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return kind_of(kind.value_type)
    if pt.is_timestamp(kind):
        fine = '[ns]' if kind.unit == 'ns' else ''
        return f'timestamp{fine}' if kind.tz is None else f'timestamp{fine} with zone'
    if pt.is_time(kind):
        return 'time[ns]' if kind == pa.time64('ns') else 'time'
    if pt.is_duration(kind):
        return 'duration[ns]' if kind.unit == 'ns' else 'duration'
    return next((name for name, matches in _KINDS if matches(kind)), str(kind))


_NESTED = frozenset({'list', 'struct', 'map'})
_KINDS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ('text', is_text),
    ('fixed bytes', pt.is_fixed_size_binary),
    ('bytes', is_bytes),
    ('list', is_list),
    ('struct', pt.is_struct),
    ('map', pt.is_map),
    ('decimal256', pt.is_decimal256),
    ('decimal', pt.is_decimal),
    ('date', pt.is_date),
    ('bool', pt.is_boolean),
    ('float16', pt.is_float16),
    ('float32', pt.is_float32),
    ('float64', pt.is_float64),
)


def land(batch: pa.RecordBatch, landings: Sequence[Landing]) -> pa.RecordBatch:
    """The batch with every column in its wire form. Raises SchemaError, by column."""
    columns = [landing.land(column) for landing, column in zip(landings, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=wire_schema(landings))


def wire_schema(landings: Sequence[Landing]) -> pa.Schema:
    """The Arrow schema of what is handed over."""
    return pa.schema([pa.field(landing.name, landing.wire) for landing in landings])


def type_table(destination: str) -> TypeTable:
    """The table of a destination, by the name of its loader. Raises KeyError."""
    from amp.loaders.type_tables import TABLES

    return TABLES[destination]
