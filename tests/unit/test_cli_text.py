"""Columns as text: every value can be had back, from JSON and from CSV."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.cli.formats import open_writer
from amp.cli.kinds import Format
from amp.cli.text import csv_header, csv_lines, display_text, json_lines

pytestmark = pytest.mark.unit

BATCH = pa.record_batch(
    {
        'big': pa.array([1, None, 2**64 - 1], pa.uint64()),
        'address': pa.array([b'\x01' * 20, None, b'\xff' * 20], pa.binary(20)),
        'data': pa.array([b'', b'a', None]),
        'view': pa.array([b'\x01\x02', None, b'\x03'], pa.binary_view()),
        'price': pa.array(
            [Decimal('1.50'), None, Decimal('99999999999999999999999999999999999.25')], pa.decimal128(38, 2)
        ),
        'huge': pa.array([Decimal(2**250), None, Decimal(-1)], pa.decimal256(76, 0)),
        'at': pa.array([1_700_000_000_000_000_001, 1_700_000_000_000_000_000, None], pa.timestamp('ns', '+00:00')),
        'text': pa.array(['a"b\\c\n,\x01é', '', None]),
        'number': pa.array([1.5, float('inf'), None]),
        'flag': pa.array([True, None, False]),
        'list': pa.array([[b'1', None], [], None], pa.list_(pa.binary())),
        'struct': pa.array(
            [{'address': b'ab', 'keys': [b'1', b'2']}, {'address': None, 'keys': None}, None],
            pa.struct([('address', pa.binary(2)), ('keys', pa.list_(pa.binary(1)))]),
        ),
        'structs': pa.array([[{'a': 1}, {'a': None}], None, []], pa.list_(pa.struct([('a', pa.int32())]))),
        'map': pa.array([[('a', 1)], None, []], pa.map_(pa.string(), pa.int32())),
        'dictionary': pa.array(['x', None, 'y']).dictionary_encode(),
        'nothing': pa.nulls(3),
        'day': pa.array([date(2024, 1, 1), None, None]),
        'clock': pa.array([time(1, 2, 3), None, None]),
        'span': pa.array([timedelta(1), None, None]),
    }
)

ROWS = [
    {
        'big': 1,
        'address': '0x' + '01' * 20,
        'data': '0x',
        'view': '0x0102',
        'price': '1.50',
        'huge': str(2**250),
        'at': '2023-11-14T22:13:20.000000001Z',
        'text': 'a"b\\c\n,\x01é',
        'number': 1.5,
        'flag': True,
        'list': ['0x31', None],
        'struct': {'address': '0x6162', 'keys': ['0x31', '0x32']},
        'structs': [{'a': 1}, {'a': None}],
        'map': [{'key': 'a', 'value': 1}],
        'dictionary': 'x',
        'nothing': None,
        'day': '2024-01-01',
        'clock': '01:02:03.000000',
        'span': '86400000000',
    },
    {
        **dict.fromkeys(BATCH.schema.names),
        'data': '0x61',
        'at': '2023-11-14T22:13:20Z',
        'text': '',
        'number': 'inf',
        'list': [],
        'struct': {'address': None, 'keys': None},
    },
    {
        **dict.fromkeys(BATCH.schema.names),
        'big': 2**64 - 1,
        'address': '0x' + 'ff' * 20,
        'view': '0x03',
        'price': '99999999999999999999999999999999999.25',
        'huge': '-1',
        'flag': False,
        'structs': [],
        'map': [],
        'dictionary': 'y',
    },
]


@pytest.mark.parametrize(('first', 'count'), [(0, 3), (1, 2), (2, 1), (1, 1), (1, 0)])
def test_json_of_every_kind_of_column_and_of_its_slices(first: int, count: int) -> None:
    lines = json_lines(BATCH.slice(first, count))
    assert [json.loads(str(line)) for line in lines] == ROWS[first : first + count]


def test_csv_tells_null_from_an_empty_text() -> None:
    lines = [str(line) for line in csv_lines(BATCH.select(['text', 'nothing', 'big']).slice(1))]
    assert lines == ['"",,', ',,18446744073709551615']


@given(
    st.lists(
        st.tuples(st.none() | st.text(), st.none() | st.binary(max_size=40), st.none() | st.integers(0, 2**64 - 1))
    )
)
def test_any_text_bytes_and_number_survive_json_and_csv(
    rows: list[tuple[str | None, bytes | None, int | None]],
) -> None:
    # A lone surrogate is no text that Arrow could hold.
    rows = [(t.encode('utf-8', 'replace').decode() if t is not None else None, b, n) for t, b, n in rows]
    schema = pa.schema({'a "name"': pa.string(), 'b': pa.binary(), 'c': pa.uint64()})
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    batch = pa.record_batch(columns, schema=schema)
    in_text = [(t, None if b is None else '0x' + b.hex(), n) for t, b, n in rows]

    assert [tuple(json.loads(str(line)).values()) for line in json_lines(batch)] == in_text

    written = '\n'.join([csv_header(schema.names), *(str(line) for line in csv_lines(batch))]) + '\n'
    header, *parsed = list(csv.reader(io.StringIO(written, newline='')))
    assert header == schema.names
    # The csv module of Python does not tell an empty field from an empty text.
    assert [tuple(row) for row in parsed] == [tuple('' if v is None else str(v) for v in row) for row in in_text]


def test_the_screen_gets_short_texts() -> None:
    shown = pa.array([b'\xab' * 32, b'\x01', None])
    assert display_text(shown) == ['0xabababab…ababab', '0x01', '']
    assert display_text(pa.array(['line\nline', 'x' * 50])) == ['line line', 'x' * 43 + '…']


@pytest.mark.parametrize('form', [Format.json, Format.jsonl, Format.csv, Format.parquet, Format.arrow])
def test_a_result_without_rows_or_of_many_batches_is_whole(form: Format) -> None:
    for batches in ([], [BATCH], [BATCH, BATCH.slice(0, 0), BATCH.slice(1)]):
        sink = io.BytesIO()
        batch_kinds = BATCH.select(['big', 'text', 'at']).schema
        writer = open_writer(form, sink, batch_kinds, seekable=False)
        for batch in batches:
            writer.write(batch.select(['big', 'text', 'at']))
        writer.close()
        assert _count(form, sink.getvalue()) == sum(batch.num_rows for batch in batches)


def _count(form: Format, data: bytes) -> int:
    import pyarrow.parquet as pq

    match form:
        case Format.json:
            return len(json.loads(data))
        case Format.jsonl:
            return len([json.loads(line) for line in data.splitlines()])
        case Format.csv:
            return len(list(csv.DictReader(io.StringIO(data.decode(), newline=''))))
        case Format.parquet:
            return pq.read_table(pa.BufferReader(data)).num_rows
        case _:
            return pa.ipc.open_stream(data).read_all().num_rows
