"""What every destination does with types, names and new columns. A backend subclasses this as it does the others."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.support.type_extremes import amp_columns, other_columns

ROW = 'row_no'
# A destination without a number as wide keeps its digits.
_WIDE = re.compile('-?[0-9]{20,}')


class BaseTypeTests:
    """`supports_evolution`: the destination has tables with fixed columns. `case_folds`: `A` and `a` are one name."""

    __test__ = False
    config: ClassVar[LoaderTestConfig]
    supports_evolution: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.__name__.startswith('Test')

    @pytest.fixture
    def db(self, loader):
        with loader:
            yield loader

    def test_every_amp_type_lands_exactly(self, db, test_table_name, cleanup_tables):
        cleanup_tables.append(test_table_name)
        table = numbered(pa.table(amp_columns()))
        result = db.load_table(table, test_table_name)
        assert result.success, result.error
        assert values(db.scan(test_table_name)) == values(table)

    @pytest.mark.parametrize('name', other_columns())
    def test_another_type_lands_exactly_or_is_refused_by_name(self, db, test_table_name, cleanup_tables, name):
        cleanup_tables.append(test_table_name)
        table = numbered(pa.table({name: other_columns()[name]}))
        result = db.load_table(table, test_table_name)
        if result.success:
            assert values(db.scan(test_table_name)) == values(table)
        else:
            assert name in result.error, result.error
            assert not db.table_exists(test_table_name) or db.scan(test_table_name).read_all().num_rows == 0

    def test_real_amp_tables_land_exactly(self, db, amp_test_data, cleanup_tables, test_table_name):
        for number, table in enumerate(amp_tables(amp_test_data)):
            name = f'{test_table_name}_{number}'
            cleanup_tables.append(name)
            wanted = numbered(table)
            result = db.load_table(wanted, name)
            assert result.success, result.error
            assert values(db.scan(name)) == values(wanted)

    def test_empty_batches_and_rows_of_nulls(self, db, test_table_name, cleanup_tables):
        cleanup_tables.append(test_table_name)
        table = numbered(pa.table(amp_columns()))
        assert db.load_batch(table.to_batches()[0].slice(0, 0), test_table_name).success
        result = db.load_table(table.slice(2), test_table_name)
        assert result.success, result.error
        assert values(db.scan(test_table_name)) == values(table.slice(2))

    def test_hostile_names_are_only_names(self, db, test_table_name, cleanup_tables):
        cleanup_tables.append(test_table_name)
        table = pa.table(
            {ROW: [1], 'from': [2], 'to': [3], 'index': [4], 'camelCase': [5], 'a b': [6], 'q"uo\'te': [7]}
        )
        assert db.load_table(pa.table({ROW: [0]}), test_table_name).success
        for name in (f'{test_table_name}_"; drop', f"{test_table_name}_'x'", f'{test_table_name}_select ünï'):
            cleanup_tables.append(name)
            result = db.load_table(table, name)
            assert result.success, result.error
            assert values(db.scan(name)) == values(table)
        assert values(db.scan(test_table_name)) == {0: {ROW: '0'}}

    def test_a_column_as_text_or_in_two_parts(self, db, test_table_name, cleanup_tables):
        cleanup_tables.append(test_table_name)
        columns = {name: {**amp_columns(), **other_columns()}[name] for name in ('uint64', 'decimal256', 'zoned ns')}
        forms = {'uint64': 'text', 'decimal256': 'text', 'zoned ns': 'split'}
        result = db.load_table(numbered(pa.table(columns)), test_table_name, column_types=forms)
        assert result.success, result.error
        found = db.scan(test_table_name).read_all().sort_by(ROW).to_pydict()
        assert found['uint64'] == ['0', str(2**64 - 1), None]
        assert found['decimal256'][1:] == [str(2**250), None]
        assert found['zoned ns_ns'] == [1, 789, None]

    def test_new_columns_are_refused_unless_the_table_may_evolve(self, db, test_table_name, cleanup_tables):
        if not self.supports_evolution:
            return
        cleanup_tables.append(test_table_name)
        assert db.load_table(pa.table({ROW: [1]}), test_table_name).success
        wider = pa.table({ROW: [2], 'added': pa.array([2**64 - 1], pa.uint64()), 'and': ['text']})
        refused = db.load_table(wider, test_table_name)
        assert not refused.success
        assert 'added' in refused.error
        assert 'and' in refused.error
        assert db.scan(test_table_name).read_all().num_rows == 1
        result = db.load_table(wider, test_table_name, schema_evolution='evolve')
        assert result.success, result.error
        # A column that rows leave out is null.
        assert db.load_table(pa.table({ROW: [3], 'and': ['more']}), test_table_name).success
        assert values(db.scan(test_table_name)) == {
            1: {ROW: '1', 'added': None, 'and': None},
            2: {ROW: '2', 'added': str(2**64 - 1), 'and': '"text"'},
            3: {ROW: '3', 'added': None, 'and': '"more"'},
        }

    def test_unknown_wishes_are_refused(self, db, test_table_name):
        table = pa.table({ROW: [1]})
        with pytest.raises(ValueError, match='schema_evolution'):
            db.load_table(table, test_table_name, schema_evolution='drop everything')
        with pytest.raises(ValueError, match='no form'):
            db.load_table(table, test_table_name, column_types={ROW: 'smaller'})
        result = db.load_table(table, test_table_name, column_types={'nowhere': 'text'})
        assert not result.success
        assert 'nowhere' in result.error


def amp_tables(folder: Any) -> list[pa.Table]:
    """Amp-written tables where there are some, else those of a simulated chain."""
    if folder is not None:
        return [pq.read_table(path) for path in sorted((folder / 'amp-parquet').glob('*/*.parquet'))]
    amp = LocalAmp.simulate(blocks=20, seed=7)
    return [amp.canonical(table) for tables in amp.datasets.values() for table in tables]


def numbered(table: pa.Table) -> pa.Table:
    """The table with a number for each row: destinations promise no order."""
    return table.add_column(0, ROW, pa.array(range(table.num_rows), pa.int64()))


def values(rows: pa.Table | pa.RecordBatchReader) -> dict[int, dict[str, str | None]]:
    """Each row by its number, every value as a text that does not depend on the type that holds it."""
    table = rows if isinstance(rows, pa.Table) else rows.read_all()
    columns = {name: [_text(value) for value in _whole(table[name]).to_pylist()] for name in table.column_names}
    return {int(columns[ROW][i]): {name: texts[i] for name, texts in columns.items()} for i in range(table.num_rows)}


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as the nanoseconds that they stand for; Python's own end at microseconds."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp('ns', kind.tz)).cast(pa.int64())
    if pa.types.is_duration(kind):
        return column.cast(pa.duration('ns')).cast(pa.int64())
    if pa.types.is_time(kind):
        return column.cast(pa.time64('ns')).cast(pa.int64())
    if pa.types.is_date64(kind):
        return column.cast(pa.date32())
    return column


def _text(value: Any) -> str | None:
    """JSON with bytes as hex: nested values are the same whether a destination keeps them as such or as JSON."""
    if value is None:
        return None
    if isinstance(value, str) and value[:1] in {'[', '{'}:
        value = json.loads(value)
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return '0x' + value.hex()
    if isinstance(value, str) and _WIDE.fullmatch(value):
        return int(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else str(value.normalize())
    if isinstance(value, pa.MonthDayNano):
        return value.days * 86_400_000_000_000 + value.nanoseconds
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return {'key': _plain(value[0]), 'value': _plain(value[1])}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str):
        return value
    return str(value)
