"""The join of rows with labels, against plain Python: order kept, nothing lost, whatever the batch and the key."""

from __future__ import annotations

import decimal
import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amp.config.bytes_table import BytesTable
from amp.config.label_manager import LabelManager
from amp.errors import ConfigError
from amp.loaders.labels import LabelJoin
from amp.loaders.types import LabelJoinConfig

pytestmark = pytest.mark.unit

USDC = '0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48'
WETH = '0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2'
DAI = '0x6B175474E89094C44Da98b954EedeAC495271d0F'
TOKENS = f'address,symbol,decimals\n{USDC},USDC,6\n{WETH},WETH,18\n'


def raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix('0x'))


def labels(folder: Path, **files: str | pa.Table) -> LabelManager:
    """A manager with one label for each keyword: text is CSV, a table Parquet."""
    manager = LabelManager(folder)
    for name, content in files.items():
        path = folder / f'{name}.{"csv" if isinstance(content, str) else "parquet"}'
        path.write_text(content) if isinstance(content, str) else pq.write_table(content, path)
        manager.add_label(name, path)
    return manager


def join(manager: LabelManager, *configs: LabelJoinConfig | str) -> LabelJoin:
    [step] = LabelJoin.steps(manager, list(configs))
    return step


def rows(manager: LabelManager, batch: Mapping[str, Any], *configs: LabelJoinConfig | str) -> list[dict[str, Any]]:
    given_batch = pa.record_batch(batch)
    step = join(manager, *configs)
    joined = step.batch(given_batch)
    joined.validate(full=True)
    assert joined.schema == step.schema(given_batch.schema)
    return joined.to_pylist()


def addresses(*texts: str | None) -> pa.Array:
    return pa.array([None if text is None else raw(text) for text in texts], pa.binary(20))


@pytest.fixture
def tokens(tmp_path: Path) -> LabelManager:
    return labels(tmp_path, tokens=TOKENS)


def test_inner_leaves_out_left_keeps(tokens: LabelManager) -> None:
    batch = {'address': addresses(WETH, DAI, USDC, None, WETH), 'n': [1, 2, 3, 4, 5]}
    inner = rows(tokens, batch, 'tokens')
    assert [(r['n'], r['symbol'], r['decimals']) for r in inner] == [(1, 'WETH', 18), (3, 'USDC', 6), (5, 'WETH', 18)]
    left = rows(tokens, batch, LabelJoinConfig('tokens', 'address', 'address', how='left'))
    assert [(r['n'], r['symbol']) for r in left] == [(1, 'WETH'), (2, None), (3, 'USDC'), (4, None), (5, 'WETH')]
    assert [r['address'] for r in left] == batch['address'].to_pylist()


def test_the_keys_column_of_the_label_is_not_repeated(tokens: LabelManager) -> None:
    schema = join(tokens, LabelJoinConfig('tokens', 'address', 'token')).schema(pa.schema([('token', pa.binary(20))]))
    assert schema.names == ['token', 'symbol', 'decimals']


TEXT_KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize('kind', TEXT_KINDS, ids=str)
def test_hex_text_of_the_stream_meets_bytes_of_the_label(tokens: LabelManager, kind: pa.DataType) -> None:
    texts = [USDC, USDC.lower(), USDC[2:].upper(), '0X' + USDC[2:], WETH[2:], 'no address', '', None, USDC + '0', '0x']
    batch = {'address': pa.array(texts, pa.string()).cast(kind), 'n': range(len(texts))}
    found = rows(tokens, batch, LabelJoinConfig('tokens', 'address', 'address', how='left'))
    assert [r['symbol'] for r in found] == ['USDC'] * 4 + ['WETH'] + [None] * 5
    assert [r['address'] for r in found] == texts
    assert len(rows(tokens, batch, 'tokens')) == 5


@pytest.mark.parametrize('kind', [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(20)], ids=str)
def test_every_kind_of_bytes(tokens: LabelManager, kind: pa.DataType) -> None:
    values = [raw(WETH), None, raw(USDC), b'' if kind != pa.binary(20) else bytes(20)]
    found = rows(tokens, {'address': pa.array(values, pa.binary()).cast(kind), 'n': [0, 1, 2, 3]}, 'tokens')
    assert [(r['n'], r['symbol']) for r in found] == [(0, 'WETH'), (2, 'USDC')]


def test_hex_text_of_the_label_meets_bytes_of_the_stream(tmp_path: Path) -> None:
    manager = labels(tmp_path, tokens=f'token,symbol\n{USDC},USDC\n{WETH[2:].lower()},WETH\n')
    assert manager.get_label('tokens')['token'].type == pa.string()
    config = LabelJoinConfig('tokens', 'token', 'address')
    assert [r['symbol'] for r in rows(manager, {'address': addresses(WETH, DAI, USDC)}, config)] == ['WETH', 'USDC']
    variable = {'address': pa.array([raw(WETH), b'x'], pa.binary())}
    assert [r['symbol'] for r in rows(manager, variable, config)] == ['WETH']
    texts = {'address': [WETH.upper().replace('X', 'x'), USDC.lower()]}
    assert [r['symbol'] for r in rows(manager, texts, config)] == ['WETH', 'USDC']


def test_text_of_the_label_that_is_not_hex_names_its_row(tmp_path: Path) -> None:
    manager = labels(tmp_path, tokens=f'token,symbol\n{USDC},USDC\nWrapped,WETH\n')
    with pytest.raises(ConfigError, match="row 2 of the label is not hex of that: 'Wrapped'"):
        rows(manager, {'token': addresses(WETH)}, LabelJoinConfig('tokens', 'token', 'token'))
    manager = labels(tmp_path, other='token\na b\n')
    with pytest.raises(ConfigError, match="row 1 of the label is not hex of that: 'a b'"):
        rows(manager, {'token': pa.array([b'x'], pa.binary())}, LabelJoinConfig('other', 'token', 'token'))


def test_bytes_of_two_widths_are_never_equal(tokens: LabelManager) -> None:
    with pytest.raises(ConfigError, match='20 bytes and the stream 32'):
        rows(tokens, {'topic': pa.array([bytes(32)], pa.binary(32))}, LabelJoinConfig('tokens', 'address', 'topic'))


@pytest.mark.parametrize(
    ('keys', 'kind'),
    [
        ([1, 10, 2, None], pa.int64()),
        ([1, 10, 2, None], pa.uint8()),
        ([1, 10, 2**64 - 1, None], pa.uint64()),
        ([1, 10, -1, None], pa.int16()),
        ([decimal.Decimal(1), decimal.Decimal(10), decimal.Decimal(10**70), None], pa.decimal256(76, 0)),
        (['1', '10', '01', None], pa.string()),
    ],
    ids=str,
)
def test_numbers_of_every_kind(tmp_path: Path, keys: list[Any], kind: pa.DataType) -> None:
    manager = labels(tmp_path, chains='chain_id,name\n1,mainnet\n10,optimism\n-5,nowhere\n')
    found = rows(manager, {'chain': pa.array(keys, kind)}, LabelJoinConfig('chains', 'chain_id', 'chain', how='left'))
    assert [r['name'] for r in found] == ['mainnet', 'optimism', None, None]


def test_huge_numbers_as_text_meet_decimals(tmp_path: Path) -> None:
    huge = 10**75 + 1
    manager = labels(tmp_path, ids=f'id,name\n{huge},big\n7,small\n')
    keys = pa.array([decimal.Decimal(7), decimal.Decimal(huge), decimal.Decimal(8)], pa.decimal256(76, 0))
    found = rows(manager, {'id': keys}, LabelJoinConfig('ids', 'id', 'id'))
    assert [r['name'] for r in found] == ['small', 'big']


def test_decimals_of_a_label_meet_numbers_and_text_and_no_bytes(tmp_path: Path) -> None:
    own = pa.table({'k': pa.array([decimal.Decimal(1), decimal.Decimal(2**70)], pa.decimal128(38, 0)), 'v': ['a', 'b']})
    pq.write_table(own, tmp_path / 'ids.parquet')
    manager = LabelManager(tmp_path)
    manager.add_label('ids', 'ids.parquet')
    config = LabelJoinConfig('ids', 'k', 'k')
    for keys in (pa.array([1, 5]), pa.array(['1', '01']), pa.array([decimal.Decimal(1)], pa.decimal256(60, 0))):
        assert [row['v'] for row in rows(manager, {'k': keys}, config)] == ['a'], keys.type
    with pytest.raises(ConfigError, match='cannot be compared with'):
        rows(manager, {'k': pa.array([bytes(16)], pa.binary(16))}, config)


def test_dates_and_booleans_of_one_type(tmp_path: Path) -> None:
    manager = labels(tmp_path, days='day,open\n2024-01-01,false\n2024-01-02,true\n')
    column = manager.get_label('days')['day'].combine_chunks()
    assert [r['open'] for r in rows(manager, {'day': column}, LabelJoinConfig('days', 'day', 'day'))] == [False, True]
    flags = {'o': pa.array([True, None, False])}
    assert len(rows(manager, flags, LabelJoinConfig('days', 'open', 'o'))) == 2


@pytest.mark.parametrize(
    ('label', 'key', 'values', 'says'),
    [
        ('x,y\n1.5,a\n', 'x', [1.5], 'floating-point'),
        ('x,y\n1,a\n', 'x', [1.5], 'floating-point'),
        ('x,y\n2024-01-01,a\n', 'x', ['2024-01-01'], 'CAST the column'),
        ('x,y\ntext,a\n', 'x', [True], 'CAST the column'),
        (f'address,y\n{USDC},a\n', 'address', [12], 'CAST the column'),
    ],
)
def test_keys_that_cannot_be_compared(tmp_path: Path, label: str, key: str, values: list[Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rows(labels(tmp_path, l=label), {'k': values}, LabelJoinConfig('l', key, 'k'))


def test_composite_keys(tmp_path: Path) -> None:
    manager = labels(
        tmp_path, tokens=f'chainId,address,symbol\n1,{USDC},USDC\n10,{USDC},USDC.op\n10,{WETH},WETH.op\n,{DAI},none\n'
    )
    batch = {
        'chain': pa.array([10, 1, 1, 10, None, 10], pa.uint64()),
        'token': [USDC.lower(), USDC, WETH, WETH[2:], DAI, None],
    }
    config = LabelJoinConfig('tokens', ['chainId', 'address'], ['chain', 'token'])
    assert [r['symbol'] for r in rows(manager, batch, config)] == ['USDC.op', 'USDC', 'WETH.op']
    three = LabelJoinConfig('tokens', ('chainId', 'address', 'symbol'), ('chain', 'token', 's'), how='left')
    batch['s'] = ['USDC.op', 'USDC.op', '', 'WETH.op', 'none', None]
    assert rows(manager, batch, three) == pa.table(batch).to_pylist()


def test_keys_must_pair_up() -> None:
    with pytest.raises(ConfigError, match='do not pair up'):
        LabelJoinConfig('tokens', ['a', 'b'], 'a')
    with pytest.raises(ConfigError, match='do not pair up'):
        LabelJoinConfig('tokens', [], [])
    with pytest.raises(ConfigError, match="not 'outer'"):
        LabelJoinConfig('tokens', 'a', 'a', how='outer')


def test_several_labels_at_once(tmp_path: Path) -> None:
    manager = labels(tmp_path, tokens=TOKENS, owners=f'address,owner\n{USDC},Circle\n', ranks='symbol,rank\nUSDC,3\n')
    batch = {'token': addresses(USDC, WETH, DAI)}
    configs = [
        LabelJoinConfig('tokens', 'address', 'token', how='left', columns=['symbol']),
        LabelJoinConfig('owners', 'address', 'token', how='left'),
        LabelJoinConfig('ranks', 'symbol', 'symbol', how='left'),
    ]
    assert [tuple(r.values())[1:] for r in rows(manager, batch, *configs)] == [
        ('USDC', 'Circle', 3),
        ('WETH', None, None),
        (None, None, None),
    ]


def test_one_label_twice_needs_prefixes(tokens: LabelManager) -> None:
    batch = {'token0': addresses(USDC, WETH), 'token1': addresses(WETH, USDC)}
    pair = [LabelJoinConfig('tokens', 'address', f'token{n}', prefix=f'token{n}_') for n in (0, 1)]
    found = rows(tokens, batch, *pair)
    assert [(r['token0_symbol'], r['token1_symbol'], r['token1_decimals']) for r in found] == [
        ('USDC', 'WETH', 18),
        ('WETH', 'USDC', 6),
    ]


@pytest.mark.parametrize('name', ['symbol', 'SYMBOL', '_amp_tx_id'])
def test_columns_of_one_name_are_refused_by_name(tmp_path: Path, name: str) -> None:
    manager = labels(tmp_path, tokens=TOKENS if name != '_amp_tx_id' else f'address,_amp_tx_id\n{USDC},1\n')
    batch = {'address': addresses(USDC), name: ['x']} if name != '_amp_tx_id' else {'address': addresses(USDC)}
    with pytest.raises(ConfigError, match=r"have a column '(symbol|_amp_tx_id)'.*prefix=") as caught:
        rows(manager, batch, 'tokens')
    assert caught.value.context['column'] in {'symbol', '_amp_tx_id'}
    chosen = LabelJoinConfig('tokens', 'address', 'address', columns=[] if name == '_amp_tx_id' else ['decimals'])
    assert len(rows(manager, batch, chosen)) == 1


def test_missing_columns_and_labels_are_named(tokens: LabelManager) -> None:
    batch = {'token': addresses(USDC)}
    with pytest.raises(ConfigError, match="label 'tokens' has no column 'adress'"):
        rows(tokens, batch, LabelJoinConfig('tokens', 'adress', 'token'))
    with pytest.raises(ConfigError, match=r"no column 'address'.*it has: token"):
        rows(tokens, batch, LabelJoinConfig('tokens', 'address', 'address'))
    with pytest.raises(ConfigError, match="no column 'price'"):
        rows(tokens, batch, LabelJoinConfig('tokens', 'address', 'token', columns=['price']))
    with pytest.raises(ConfigError, match=r"no label 'tokns'.*'tokens'"):
        LabelJoin.steps(tokens, 'tokns')
    with pytest.raises(ConfigError, match='knows no labels'):
        LabelJoin.steps(None, 'tokens')
    wrong: list[Any] = [[('tokens', 'address')], 5, {'label_name': 'tokens'}, LabelJoinConfig]
    for config in wrong:
        with pytest.raises(ConfigError, match='label_config is a LabelJoinConfig, a list of them or a name, not'):
            LabelJoin.steps(tokens, config)
    assert LabelJoin.steps(None, []) == []


@pytest.mark.parametrize(
    ('label', 'stream', 'says'),
    [
        ('address', 'address', None),
        ('Address', 'address', None),
        ('token_address', 'contract_address', None),
        ('address,owner_address', 'from_address,owner_address', None),
        ('address,owner_address', 'address,owner_address', 'address, owner_address'),
        ('address', 'from_address,to_address', 'from_address, to_address'),
        ('address,owner_address', 'token', 'of the rows none'),
        ('token', 'address', 'of the label are none'),
    ],
)
def test_a_bare_name_finds_its_key(tmp_path: Path, label: str, stream: str, says: str | None) -> None:
    ours, theirs = label.split(','), stream.split(',')
    manager = labels(tmp_path, tokens=f'{label},symbol\n{",".join([USDC] * len(ours))},USDC\n')
    batch = {name: addresses(USDC) for name in theirs} | ({} if says else {'address_kind': ['contract']})
    if says is None:
        [row] = rows(manager, batch, 'tokens')
        assert row['symbol'] == 'USDC'
    else:
        with pytest.raises(ConfigError, match=f"label 'tokens'.*{says}.*say LabelJoinConfig"):
            rows(manager, batch, 'tokens')


def test_doubled_keys_are_named_unless_many(tmp_path: Path) -> None:
    twice = f'address,tag\n{USDC},stable\n{WETH},wrapped\n{USDC.lower()},usd\n,a\n,b\n'
    manager = labels(tmp_path, tags=twice)
    with pytest.raises(ConfigError, match=rf'{USDC.lower()} \(rows 1, 3\).*many=True'):
        rows(manager, {'address': addresses(WETH)}, 'tags')
    many = LabelJoinConfig('tags', 'address', 'address', many=True)
    batch = {'address': addresses(USDC, DAI, WETH, None, USDC), 'n': range(5)}
    found = [(0, 'stable'), (0, 'usd'), (2, 'wrapped'), (4, 'stable'), (4, 'usd')]
    assert [(r['n'], r['tag']) for r in rows(manager, batch, many)] == found
    left = LabelJoinConfig('tags', 'address', 'address', how='left', many=True)
    expected = [*found[:2], (1, None), found[2], (3, None), *found[3:]]
    assert [(r['n'], r['tag']) for r in rows(manager, batch, left)] == expected


def test_doubled_composite_keys_are_named_with_all_their_columns(tmp_path: Path) -> None:
    manager = labels(tmp_path, l='a,b,c\n1,x,1\n1,y,2\n1,x,3\n' + ''.join(f'{i},z,0\n{i},z,0\n' for i in range(2, 9)))
    with pytest.raises(ConfigError, match=r"a, b: 1, 'x' \(rows 1, 3\); 2, 'z' .*; .*and 3 more"):
        rows(manager, {'a': [1], 'b': ['x']}, LabelJoinConfig('l', ['a', 'b'], ['a', 'b']))


@pytest.mark.parametrize('size', [0, 1, 32_767, 32_768, 32_769, 65_536, 131_072])
def test_no_row_of_a_large_batch_is_lost_or_moved(tmp_path: Path, size: int) -> None:
    """A hash join gives its answer in chunks of 32,768 rows; taking the first of them lost the rest."""
    manager = labels(tmp_path, even='k,twice\n' + ''.join(f'{k},{2 * k}\n' for k in range(0, 5_000, 2)))
    keys = [(i * 7919) % 5_000 for i in range(size)]
    batch = pa.record_batch({'k': pa.array(keys, pa.int64()), 'n': pa.array(range(size), pa.int64())})
    inner = join(manager, LabelJoinConfig('even', 'k', 'k')).batch(batch)
    assert inner['n'].to_pylist() == [n for n, k in enumerate(keys) if k % 2 == 0]
    assert inner['twice'].to_pylist() == [2 * k for k in keys if k % 2 == 0]
    left = join(manager, LabelJoinConfig('even', 'k', 'k', how='left')).batch(batch)
    assert left['n'].to_pylist() == list(range(size))
    assert left['twice'].to_pylist() == [2 * k if k % 2 == 0 else None for k in keys]


def test_all_null_and_empty_labels(tmp_path: Path) -> None:
    manager = labels(tmp_path, none='address,symbol\n', nulls=pa.table({'address': addresses(None), 'symbol': ['x']}))
    for name in ('none', 'nulls'):
        for keys in (addresses(USDC, None), pa.array([USDC, None])):
            assert rows(manager, {'address': keys}, LabelJoinConfig(name, 'address', 'address')) == []
            left = rows(manager, {'address': keys}, LabelJoinConfig(name, 'address', 'address', how='left'))
            assert [r['symbol'] for r in left] == [None, None]


def test_metadata_and_nullability_of_the_stream_are_kept(tokens: LabelManager) -> None:
    own = pa.field('address', pa.binary(20), nullable=False, metadata={'unit': 'x'})
    batch = pa.record_batch([addresses(USDC)], schema=pa.schema([own], metadata={'k': 'v'}))
    joined = join(tokens, 'tokens').batch(batch)
    assert joined.schema.field('address').equals(own, check_metadata=True)
    assert joined.schema.metadata == {b'k': b'v'}


def test_the_columns_of_a_stream_may_change_on_the_way(tokens: LabelManager) -> None:
    step = join(tokens, 'tokens')
    assert step.batch(pa.record_batch({'address': addresses(USDC)})).schema.names == ['address', 'symbol', 'decimals']
    wider = step.batch(pa.record_batch({'address': [USDC], 'n': [1]}))
    assert wider.to_pylist() == [{'address': USDC, 'n': 1, 'symbol': 'USDC', 'decimals': 6}]


def replace(path: Path, text: str) -> None:
    path.with_suffix('.new').write_text(text)
    path.with_suffix('.new').replace(path)


def test_a_reloaded_label_is_used_from_the_next_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / 'tokens.csv'
    path.write_text(TOKENS)
    manager = LabelManager(tmp_path)
    manager.add_label('tokens', path, reload=True)
    step = join(manager, 'tokens')
    batch = pa.record_batch({'address': addresses(DAI, USDC)})
    assert step.batch(batch)['symbol'].to_pylist() == ['USDC']
    replace(path, f'{TOKENS}{DAI},DAI,18\n')
    assert step.batch(batch)['symbol'].to_pylist() == ['DAI', 'USDC']
    replace(path, f'{TOKENS}{USDC},twice,6\n')
    with caplog.at_level(logging.WARNING, 'amp.labels'):
        for _ in range(3):
            assert step.batch(batch)['symbol'].to_pylist() == ['DAI', 'USDC']
    assert len(caplog.records) == 1
    assert 'rows 1, 3' in caplog.text
    replace(path, TOKENS)
    assert step.batch(batch)['symbol'].to_pylist() == ['USDC']


def test_a_new_step_too_goes_on_with_what_could_be_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A backfill hands over to a stream, whose join is another one."""
    path = tmp_path / 'tokens.csv'
    path.write_text(TOKENS)
    manager = LabelManager(tmp_path)
    manager.add_label('tokens', path, reload=True)
    batch = pa.record_batch({'address': addresses(USDC)})
    assert join(manager, 'tokens').batch(batch).num_rows == 1
    for doubled in (f'{TOKENS}{USDC},AGAIN,6\n', f'{TOKENS}{USDC},AGAIN AND AGAIN,6\n'):
        path.write_text(doubled)
        joined = join(manager, 'tokens').batch(batch)
        assert joined['symbol'].to_pylist() == ['USDC']
        assert 'the labels before stay in use' in caplog.text
    manager.add_label('tokens', path, reload=True)
    with pytest.raises(ConfigError, match='more than once'):
        join(manager, 'tokens').batch(batch)


def test_names_of_columns_may_be_one_text(tokens: LabelManager, tmp_path: Path) -> None:
    chosen = LabelJoinConfig('tokens', 'address', 'address', columns='symbol')
    assert rows(tokens, {'address': addresses(USDC)}, chosen)[0].keys() == {'address', 'symbol'}
    (tmp_path / 'by_hash.csv').write_text(f'hash,name\n0x{"ab" * 32},x\n')
    tokens.add_label('by_hash', tmp_path / 'by_hash.csv', binary_columns='hash')
    assert tokens.get_label('by_hash').schema.field('hash').type == pa.binary(32)


def test_many_threads_join_with_one_step(tokens: LabelManager) -> None:
    step = join(tokens, 'tokens')
    batches = [
        pa.record_batch({'address': addresses(*[USDC, DAI] * n), f'n{n % 3}': [n] * 2 * n}) for n in range(1, 60)
    ]
    with ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(step.batch, batches))
    assert [b.num_rows for b in joined] == list(range(1, 60))


def test_two_values_of_one_hash_are_told_apart() -> None:
    """Bytes are found by hash and then compared, so values made to meet are no others' labels."""

    class OneBucket(BytesTable):
        def _buckets(self, words: Any) -> Any:
            return np.zeros(len(words), np.int64)

    values = [bytes([n]) * 20 for n in range(100)]
    table = OneBucket(pa.array(values, pa.binary(20)))
    looked_for = [b'\xff' * 20, None, *values[::-1], b'\xfe' * 20, values[3]]
    found = table.find(pa.array(looked_for, pa.binary(20)))
    assert table.values.take(pa.array(found, mask=found < 0)).to_pylist() == [
        None,
        None,
        *values[::-1],
        None,
        values[3],
    ]


@pytest.mark.parametrize('width', [1, 3, 4, 20, 32, 33])
def test_places_of_bytes_of_any_width(width: int) -> None:
    values = [i.to_bytes(width, 'little') for i in range(min(256**width, 3_000))]
    table = BytesTable(pa.array(values, pa.binary(width)))
    sliced = pa.array([None, *reversed(values), b'\xff' * width], pa.binary(width)).slice(1)
    found = table.find(sliced)
    assert sorted(table.values.to_pylist()) == sorted(values)
    last = b'\xff' if width == 1 else None
    assert table.values.take(pa.array(found, mask=found < 0)).to_pylist() == [*reversed(values), last]


# Against plain Python

KEY = st.integers(0, 6)
WRITTEN = st.sampled_from(['bytes', 'variable', 'lower', 'upper', 'bare', 'mixed'])


def written(key: int | None, how: str) -> Any:
    value = None if key is None else key.to_bytes(20, 'big')[:19] + bytes([0xA0 + key])
    if value is None or how in {'bytes', 'variable'}:
        return value
    digits = value.hex()
    match how:
        case 'lower':
            return '0x' + digits
        case 'upper':
            return '0x' + digits.upper()
        case 'bare':
            return digits.upper()
    return ('0X' if key % 2 else '') + (digits.upper() if key % 3 else digits)


def column(keys: Sequence[int | None], how: str) -> pa.Array:
    kind = {'bytes': pa.binary(20), 'variable': pa.binary()}.get(how, pa.string())
    return pa.array([written(key, how) for key in keys], kind)


def oracle(
    stream: Sequence[tuple[Any, ...]], label: Sequence[tuple[Any, ...]], how: str
) -> list[tuple[int, int | None]]:
    """(row of the stream, row of the label) for each row of the join."""
    found = []
    for n, key in enumerate(stream):
        matches = [m for m, other in enumerate(label) if None not in key and key == other]
        found += [(n, m) for m in matches] or ([(n, None)] if how == 'left' else [])
    return found


@given(
    stream=st.lists(st.tuples(st.none() | KEY, st.none() | KEY), max_size=40),
    label=st.lists(st.tuples(st.none() | KEY, st.none() | KEY), max_size=20),
    how=st.sampled_from(['inner', 'left']),
    composite=st.booleans(),
    many=st.booleans(),
    styles=st.tuples(WRITTEN, WRITTEN),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
@example([(0, 0)] * 3, [(0, 0), (0, 1)], 'left', False, True, ('mixed', 'bytes'), [1, 1])
def test_the_join_is_that_of_plain_python(
    tmp_path_factory: pytest.TempPathFactory,
    stream: list[tuple[int | None, int | None]],
    label: list[tuple[int | None, int | None]],
    how: str,
    composite: bool,
    many: bool,
    styles: tuple[str, str],
    cuts: list[int],
) -> None:
    parts = 2 if composite else 1
    own, other = [k[:parts] for k in stream], [k[:parts] for k in label]
    table = pa.table(
        {
            'address': column([k[0] for k in label], styles[0]),
            'k': pa.array([k[1] for k in label], pa.int64()),
            'm': pa.array(range(len(label)), pa.int64()),
        }
    )
    manager = labels(tmp_path_factory.getbasetemp(), l=table)
    config = LabelJoinConfig('l', ['address', 'k'][:parts], ['token', 'j'][:parts], how=how, many=many, columns=['m'])
    rows_in = pa.record_batch(
        {
            'token': column([k[0] for k in stream], styles[1]),
            'j': pa.array([None if k[1] is None else str(k[1]) for k in stream], pa.string()),
            'n': pa.array(range(len(stream)), pa.int64()),
        }
    )
    complete = [k for k in other if None not in k]
    step = join(manager, config)
    if not many and len(set(complete)) < len(complete):
        with pytest.raises(ConfigError, match='more than once'):
            step.batch(rows_in)
        return
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [rows_in.slice(a, b - a) for a, b in itertools.pairwise(edges)] or [rows_in]
    joined = pa.Table.from_batches([step.batch(piece) for piece in pieces])
    joined.validate(full=True)
    found = list(zip(joined['n'].to_pylist(), joined['m'].to_pylist(), strict=True))
    assert found == oracle(own, other, how)
    assert joined['token'].to_pylist() == [rows_in['token'][n].as_py() for n, _ in found]


KINDS: dict[str, pa.Array] = {
    'text': pa.array([f's{i}' for i in range(50)]),
    'empty': pa.array([''] * 50),
    'bool': pa.array([i % 3 == 0 for i in range(50)]),
    'three': pa.array([bytes([i]) * 3 for i in range(50)], pa.binary(3)),
    'bytes': pa.array([b'x' * i for i in range(50)]),
    'decimal': pa.array([decimal.Decimal(i) for i in range(50)]),
    'time': pa.array(range(50), pa.timestamp('us')),
    'few': pa.array([str(i % 3) for i in range(50)]).dictionary_encode(),
    'list': pa.array([[i] for i in range(50)]),
    'struct': pa.array([{'a': i} for i in range(50)]),
    'some': pa.array([None if i % 4 == 0 else f's{i}' for i in range(50)]),
    'all but one': pa.array([None, *range(1, 50)]),
    'none': pa.nulls(50),
}


@pytest.mark.parametrize('how', ['inner', 'left'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('count', [0, 1, 50])
def test_a_column_of_any_kind_comes_as_it_is_in_the_label(tmp_path: Path, how: str, kind: str, count: int) -> None:
    keys = pa.array([bytes([i]) * 20 for i in range(50)], pa.binary(20))
    manager = labels(tmp_path, l=pa.table({'address': keys, 'value': KINDS[kind]}).slice(0, count))
    asked: list[bytes | None] = [bytes([i * 7 % 70]) * 20 for i in range(100)] + [None]
    there = dict(zip(keys.to_pylist()[:count], KINDS[kind].to_pylist()[:count], strict=True))
    config = LabelJoinConfig('l', 'address', 'address', how=how)
    for given_keys in (asked, asked[:1], []):
        found = rows(manager, {'address': pa.array(given_keys, pa.binary(20))}, config)
        kept = [key for key in given_keys if how == 'left' or key in there]
        assert found == [{'address': key, 'value': None if key is None else there.get(key)} for key in kept]
