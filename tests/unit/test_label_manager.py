"""LabelManager: what a file says is what the table says, or an error that names the place."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.config.label_file import read_label
from amp.config.label_manager import LabelFileNotFoundError, LabelManager
from amp.errors import ConfigError

pytestmark = pytest.mark.unit

USDC = '0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48'
WETH = '0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2'
TOKENS = f'address,symbol,decimals\n{USDC},USDC,6\n{WETH},WETH,18\n'


@pytest.fixture
def manager(tmp_path: Path) -> LabelManager:
    return LabelManager(tmp_path)


def read(folder: Path, text: str, binary_columns: list[str] | None = None) -> pa.Table:
    path = folder / 'label.csv'
    path.write_bytes(text.encode())
    return read_label(path, binary_columns)


def replace(path: Path, text: str) -> None:
    """As one replaces a file that others read: whole, by a rename."""
    new = path.with_suffix('.new')
    new.write_text(text)
    new.replace(path)


def test_add_get_list_remove_clear(manager: LabelManager, tmp_path: Path) -> None:
    (tmp_path / 'tokens.csv').write_text(TOKENS)
    assert manager.list_labels() == []
    assert manager.get_label('tokens') is None
    manager.add_label('tokens', 'tokens.csv')
    manager.add_label('again', str(tmp_path / 'tokens.csv'))
    assert manager.list_labels() == ['again', 'tokens']
    table = manager.get_label('tokens')
    assert table is not None
    assert table.schema == pa.schema([('address', pa.binary(20)), ('symbol', pa.string()), ('decimals', pa.int64())])
    assert table['address'].to_pylist() == [bytes.fromhex(USDC[2:]), bytes.fromhex(WETH[2:])]
    assert manager.remove_label('again')
    assert not manager.remove_label('again')
    manager.clear()
    assert manager.list_labels() == []


def test_a_second_label_of_a_name_replaces_the_first(manager: LabelManager, tmp_path: Path) -> None:
    (tmp_path / 'a.csv').write_text('id,x\n1,a\n')
    (tmp_path / 'b.csv').write_text('id,x\n2,b\n')
    manager.add_label('l', 'a.csv')
    manager.add_label('l', 'b.csv')
    assert manager.get_label('l').to_pylist() == [{'id': 2, 'x': 'b'}]


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'tokens.csv').write_text(TOKENS)
    monkeypatch.setenv('AMP_LABEL_DIR', str(tmp_path))
    manager = LabelManager()
    manager.add_label('tokens', 'tokens.csv')
    assert manager.get_label('tokens').num_rows == 2
    assert LabelManager(tmp_path / 'other').label_dir == tmp_path / 'other'
    monkeypatch.delenv('AMP_LABEL_DIR')
    assert LabelManager().label_dir is None


def test_without_a_folder_paths_are_the_working_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'tokens.csv').write_text(TOKENS)
    monkeypatch.delenv('AMP_LABEL_DIR', raising=False)
    monkeypatch.chdir(tmp_path)
    manager = LabelManager()
    manager.add_label('tokens', 'tokens.csv')
    assert manager.list_labels() == ['tokens']


def test_a_file_that_is_not_there(manager: LabelManager) -> None:
    with pytest.raises(LabelFileNotFoundError, match=r'nothing\.csv') as caught:
        manager.add_label('tokens', 'nothing.csv')
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, ConfigError)
    with pytest.raises(LabelFileNotFoundError, match=r'the folder .* does not exist'):
        manager.add_label('tokens', 'no/where.csv')
    assert manager.list_labels() == []


def test_an_unknown_label_is_named_with_what_there_is(manager: LabelManager, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='add it first'):
        manager.require('tokens')
    (tmp_path / 'tokens.csv').write_text(TOKENS)
    manager.add_label('tokens', 'tokens.csv')
    with pytest.raises(ConfigError, match=r"'token'.*did you mean 'tokens'"):
        manager.require('token')


@pytest.mark.parametrize(
    ('values', 'kind', 'first'),
    [
        (['1', '-20', '0'], pa.int64(), 1),
        (['9223372036854775807'], pa.int64(), 2**63 - 1),
        (['9223372036854775808'], pa.string(), '9223372036854775808'),
        (['115792089237316195423570985008687907853269984665640564039457584007913129639935'], pa.string(), None),
        (['007', '8'], pa.string(), '007'),
        (['+1', '2'], pa.string(), '+1'),
        (['-0', '1'], pa.string(), '-0'),
        (['1', 'two'], pa.string(), '1'),
        (['1', '0x2'], pa.string(), '1'),
        (['1.5', '2', '-0.25'], pa.float64(), 1.5),
        (['3.0', '2.5'], pa.float64(), 3.0),
        (['1.50', '2.25'], pa.float64(), 1.5),
        (['1.10', '1.1'], pa.string(), '1.10'),
        (['1.10', '2'], pa.string(), '1.10'),
        (['0.1234567890123456789'], pa.string(), '0.1234567890123456789'),
        (['1e5', '2'], pa.string(), '1e5'),
        (['true', 'false'], pa.bool_(), True),
        (['True', 'False'], pa.bool_(), True),
        (['True', 'false'], pa.string(), 'True'),
        (['yes', 'no'], pa.string(), 'yes'),
        (['2024-02-29', '2024-03-01'], pa.date32(), date(2024, 2, 29)),
        (['2023-02-29'], pa.string(), '2023-02-29'),
        (['2024-01-02T03:04:05Z'], pa.timestamp('us', 'UTC'), None),
        (['2024-01-02 03:04:05.5'], pa.timestamp('us'), None),
        (['2024-01-02', '2024-01-02 03:04:05'], pa.string(), '2024-01-02'),
        (['NA', 'null', 'NaN'], pa.string(), 'NA'),
        (['nan', '1.5'], pa.string(), 'nan'),
    ],
)
def test_types_are_inferred_only_where_nothing_is_lost(
    tmp_path: Path, values: list[str], kind: pa.DataType, first: object
) -> None:
    column = read(tmp_path, 'x,k\n' + ''.join(f'{value},k\n' for value in values))['x']
    assert column.type == kind
    assert column.null_count == 0
    if first is not None:
        assert column[0].as_py() == first
    if kind == pa.string():
        assert column.to_pylist() == values


def test_an_empty_field_is_null_whatever_the_type(tmp_path: Path) -> None:
    table = read(tmp_path, f'address,n,s,nothing\n{USDC},1,a,\n,,"",\n')
    assert table.slice(1).to_pylist() == [{'address': None, 'n': None, 's': None, 'nothing': None}]
    assert table.schema.types == [pa.binary(20), pa.int64(), pa.string(), pa.string()]


def test_text_survives_quotes_commas_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    table = read(tmp_path, '\ufeffname,id\n"a ""b"", c\nd",1\nŁódź 🦄,2\n')
    assert table.to_pylist() == [{'name': 'a "b", c\nd', 'id': 1}, {'name': 'Łódź 🦄', 'id': 2}]


def test_a_file_with_only_a_header_is_an_empty_label(tmp_path: Path) -> None:
    table = read(tmp_path, 'address,symbol\n')
    assert table.num_rows == 0
    assert table.column_names == ['address', 'symbol']


@pytest.mark.parametrize(
    ('text', 'says'),
    [('', 'does not parse'), ('a,b\n1,2,3\n', 'does not parse'), ('a,a\n1,2\n', "two columns 'a'")],
)
def test_files_that_are_no_tables(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, text)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / 'latin.csv'
    path.write_bytes('name\nŁ\n'.encode('utf-16'))
    with pytest.raises(ConfigError, match=r'latin\.csv'):
        read_label(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='cannot be read'):
        read_label(tmp_path)


def test_addresses_in_any_case_with_or_without_0x(tmp_path: Path) -> None:
    texts = [USDC, USDC.lower(), USDC.upper().replace('0X', '0x'), USDC[2:], '0X' + USDC[2:].upper()]
    table = read(tmp_path, 'token_Address\n' + '\n'.join(texts) + '\n')
    assert table['token_Address'].type == pa.binary(20)
    assert set(table['token_Address'].to_pylist()) == {bytes.fromhex(USDC[2:])}


@pytest.mark.parametrize(
    ('bad', 'row'),
    [('nothex', 2), (USDC[:-1], 2), (USDC + '00', 2), ('0x' + 'g' * 40, 2), ('0x', 2), (' ' + USDC, 2)],
)
def test_a_value_that_is_not_hex_names_row_and_column(tmp_path: Path, bad: str, row: int) -> None:
    with pytest.raises(ConfigError, match=rf"row {row} of column 'address' .*label\.csv is not hex of 20 bytes") as e:
        read(tmp_path, f'address,s\n{WETH},a\n{bad},b\n{USDC},c\n{USDC},d\n')
    assert (e.value.context['row'], e.value.context['column']) == (row, 'address')
    assert isinstance(e.value, ValueError)


@pytest.mark.parametrize('bad', ['0xZZ', '0x', '0x12', '0x' + 'ab' * 19])
@pytest.mark.parametrize('is_first', [True, False], ids=['first', 'last'])
def test_of_an_address_and_what_is_none_the_address_is_right(tmp_path: Path, bad: str, is_first: bool) -> None:
    lines = [bad, USDC] if is_first else [USDC, bad]
    with pytest.raises(ConfigError, match=rf"row {1 if is_first else 2} of column 'address' .* 20 bytes: '{bad}'"):
        read(tmp_path, 'address\n' + '\n'.join(lines) + '\n')


def test_columns_that_only_sound_like_addresses_stay_what_they_are(tmp_path: Path) -> None:
    table = read(tmp_path, f'address,address_type,email_address,address_count\n{USDC},cafe,a@b.c,12\n')
    assert table.schema.types == [pa.binary(20), pa.string(), pa.string(), pa.int64()]


def test_addresses_of_another_kind_of_chain_stay_text(tmp_path: Path) -> None:
    solana = 'EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v'
    table = read(tmp_path, f'address,symbol\n{solana},USDC\n')
    assert table['address'].to_pylist() == [solana]


def test_named_columns_are_hex_of_any_width(tmp_path: Path) -> None:
    text = f'address,selector,hash\n{USDC},a9059cbb,0x{"ab" * 32}\n{WETH},,0x{"cd" * 32}\n'
    table = read(tmp_path, text, ['selector', 'hash'])
    assert table.schema.types == [pa.binary(20), pa.binary(4), pa.binary(32)]
    assert table['selector'].to_pylist() == [bytes.fromhex('a9059cbb'), None]
    assert read(tmp_path, text, []).schema.types == [pa.string()] * 3
    with pytest.raises(ConfigError, match="no column 'missing'"):
        read(tmp_path, text, ['missing'])
    with pytest.raises(ConfigError, match="row 1 of column 'symbol'"):
        read(tmp_path, 'symbol\nUSDC\n', ['symbol'])


def test_parquet_keeps_its_types(manager: LabelManager, tmp_path: Path) -> None:
    table = pa.table(
        {
            'address': [USDC, None],
            'owner_address': pa.array([b'\x01' * 20, b'\x02' * 20], pa.binary()),
            'code': ['007', '008'],
            'rank': pa.array([1, 2], pa.uint8()),
            'kind': pa.array(['a', 'b']).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / 'tokens.data')
    manager.add_label('tokens', 'tokens.data')
    found = manager.get_label('tokens')
    assert found.schema.types == [pa.binary(20), pa.binary(20), pa.string(), pa.uint8(), pa.string()]
    assert found['address'].to_pylist() == [bytes.fromhex(USDC[2:]), None]


def test_compressed_and_tab_separated_files(manager: LabelManager, tmp_path: Path) -> None:
    with pa.CompressedOutputStream(str(tmp_path / 'tokens.csv.gz'), 'gzip') as stream:
        stream.write(TOKENS.encode())
    (tmp_path / 'tokens.tsv').write_text(TOKENS.replace(',', '\t'))
    manager.add_label('gz', 'tokens.csv.gz')
    manager.add_label('tsv', 'tokens.tsv')
    assert manager.get_label('gz').equals(manager.get_label('tsv'))


def test_a_replaced_file_is_read_again_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / 'l.csv'
    path.write_text('id,x\n1,a\n')
    manager = LabelManager(tmp_path)
    manager.add_label('still', path)
    manager.add_label('fresh', path, reload=True)
    before = manager.get_label('fresh')
    assert manager.get_label('fresh') is before
    replace(path, 'id,x\n1,b\n2,c\n')
    assert manager.get_label('fresh').to_pylist() == [{'id': 1, 'x': 'b'}, {'id': 2, 'x': 'c'}]
    assert manager.get_label('still').to_pylist() == [{'id': 1, 'x': 'a'}]
    everything = LabelManager(tmp_path, reload=True)
    everything.add_label('l', path)
    replace(path, 'id,x\n3,d\n')
    assert everything.get_label('l').num_rows == 1


@pytest.mark.parametrize('text', ['id,x\n1\n', 'id,y\n1,a\n', 'id,x\none,a\n', None])
def test_a_file_replaced_by_a_bad_one_leaves_the_label_as_it_was(
    tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / 'l.csv'
    path.write_text('id,x\n1,a\n')
    manager = LabelManager(tmp_path, reload=True)
    manager.add_label('l', path)
    replace(path, text) if text is not None else path.unlink()
    with caplog.at_level(logging.WARNING, 'amp.labels'):
        for _ in range(3):
            assert manager.get_label('l').to_pylist() == [{'id': 1, 'x': 'a'}]
    assert len(caplog.records) == (1 if text is not None else 0)
    replace(path, 'id,x\n2,b\n')
    assert manager.get_label('l').to_pylist() == [{'id': 2, 'x': 'b'}]


def test_many_threads_add_read_and_reload(tmp_path: Path) -> None:
    manager = LabelManager(tmp_path, reload=True)
    shared = tmp_path / 'shared.csv'
    shared.write_text('id,x\n0,a\n')
    manager.add_label('shared', shared)

    def work(number: int) -> None:
        (tmp_path / f'{number}.csv').write_text(f'id,x\n{number},a\n')
        manager.add_label(f'own{number}', f'{number}.csv')
        for turn in range(10):
            new = tmp_path / f'shared.{number}'
            new.write_text(f'id,x\n{number * 100 + turn},a\n')
            new.replace(shared)
            assert manager.get_label('shared').num_rows == 1
            assert manager.get_label(f'own{number}')['id'].to_pylist() == [number]
            assert f'own{number}' in manager.list_labels()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(manager.list_labels()) == 9


def test_a_manager_travels_to_another_process(manager: LabelManager, tmp_path: Path) -> None:
    (tmp_path / 'tokens.csv').write_text(TOKENS)
    manager.add_label('tokens', 'tokens.csv')
    there = pickle.loads(pickle.dumps(manager))
    assert there.get_label('tokens').equals(manager.get_label('tokens'))
    assert there.remove_label('tokens')
    assert manager.list_labels() == ['tokens']


CELLS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.decimals(-(10**12), 10**12, places=3).map(str),
    st.text(st.characters(codec='utf-8', exclude_characters='\r\x00'), max_size=8),
    st.sampled_from(['', '00', 'true', 'True', '2024-01-01', 'NULL', '1e9', '0x12', '-0', '1.0', '1.00']),
)


@given(st.lists(CELLS, min_size=1, max_size=8))
def test_what_was_not_text_can_be_written_again(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    quoted = ''.join('k,"' + cell.replace('"', '""') + '"\n' for cell in cells)
    column = read(tmp_path_factory.getbasetemp(), 'k,x\n' + quoted)['x']
    again = column.cast(pa.string()).to_pylist()
    for cell, value in zip(cells, again, strict=True):
        if cell == '':
            assert value is None
        elif pa.types.is_floating(column.type):
            assert float(cell) == float(value)
            assert cell.rstrip('0').rstrip('.') == value or '.' not in cell
        elif pa.types.is_boolean(column.type):
            assert cell.lower() == value
        else:
            assert cell == value
