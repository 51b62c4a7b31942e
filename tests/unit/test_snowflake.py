"""What the Snowflake loader does without Snowflake: names, types, files, logins."""

from __future__ import annotations

import json
import re
import threading
from decimal import Decimal
from pathlib import Path

import jwt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from snowflake.connector import errors

from amp.errors import AmpError, ConfigError, DestinationError, SchemaError
from amp.loaders.column_types import ColumnTypes
from amp.loaders.implementations.snowflake_loader import SnowflakeConnectionConfig, SnowflakeLoader
from amp.loaders.snowflake.connect import explained
from amp.loaders.snowflake.files import ParquetFiles, put_statement
from amp.loaders.snowflake.state import Streams
from amp.loaders.snowflake.types import joined, json_arrays, json_objects, landings, name_in, name_out, quoted, wire_of
from amp.streaming.error_kinds import ErrorKind
from tests.support.type_extremes import amp_columns, other_columns

pytestmark = [pytest.mark.unit, pytest.mark.snowflake]

LOGIN = {'account': 'acme-chain', 'user': 'loader', 'database': 'CHAIN'}


# Names


@pytest.mark.parametrize(
    ('name', 'stored'),
    [
        ('block_num', 'BLOCK_NUM'),
        ('from', 'FROM'),
        ('tokenId', 'tokenId'),
        ('a b', 'a b'),
        ('FOO', 'FOO'),
        ('1x', '1x'),
    ],
)
def test_lower_case_is_written_as_snowflake_does_and_all_else_to_the_letter(name, stored):
    assert name_in(name) == stored
    assert quoted(name) == f'"{stored}"'
    assert name_out(stored) == (name if name != 'FOO' else 'foo')


def test_names_that_would_be_one_are_refused():
    with pytest.raises(SchemaError, match='FOO'):
        landings(pa.schema([('foo', pa.int64()), ('FOO', pa.int64())]))
    with pytest.raises(ConfigError, match='255'):
        name_in('x' * 256)


# Types


_FINE = ('time ns', 'naive ns', 'zoned ns')


def test_what_is_handed_over_is_exact():
    columns = {**amp_columns(), **{n: c for n, c in other_columns().items() if n in _FINE}}
    batch = pa.RecordBatch.from_pydict(columns)
    wire = wire_of(batch, landings(batch.schema))
    assert wire['UINT64'].cast(pa.uint64()) == batch['uint64']
    assert wire['ADDRESS'].cast(pa.binary(20)) == batch['address']
    for name in columns:
        if name in _FINE:
            assert wire[name_in(name)].cast(pa.int64()) == batch[name].cast(pa.int64()), name
    assert [json.loads(text) for text in wire['BLOB_HASHES'][:2].to_pylist()] == [[], ['0x' + '05' * 32]]


def test_numbers_of_up_to_38_digits_are_numbers_and_wider_ones_text():
    schema = pa.schema(
        [('narrow', pa.decimal256(38, 0)), ('wide', pa.decimal256(76, 0)), ('gas', pa.decimal128(38, 0))]
    )
    assert [landing.column for landing in landings(schema)] == ['NUMBER(38,0)', 'VARCHAR', 'NUMBER(38,0)']
    for kind in (pa.decimal256(60, 4), pa.decimal128(38, 38), pa.decimal128(38, -3)):
        with pytest.raises(SchemaError, match='odd one'):
            landings(pa.schema([('odd one', kind)]))


def test_a_value_too_wide_for_a_number_is_refused_with_its_column():
    field = pa.field('value', pa.string(), metadata={b'amp:as': b'decimal'})
    [landing] = landings(pa.schema([field]))
    assert landing.land(pa.array(['9' * 38, None])).to_pylist() == [Decimal('9' * 38), None]
    with pytest.raises(SchemaError, match=r"column 'value'.*38 digits") as refused:
        landing.land(pa.array([str(2**256 - 1)]))
    assert 'text' in refused.value.hint
    [wide] = landings(ColumnTypes({'wide': 'decimal'}).schema(pa.schema([('wide', pa.decimal256(76, 0))])))
    assert (wide.column, wide.wire) == ('NUMBER(38,0)', pa.decimal128(38, 0))
    with pytest.raises(SchemaError, match=r"column 'wide'.*NUMBER\(38,0\)") as refused:
        wide.land(pa.array([Decimal(2**250)], pa.decimal256(76, 0)))
    assert 'text' in refused.value.hint


def test_rows_as_json_are_text_that_snowflake_casts_back():
    batch = pa.record_batch({'A': [1, None], 'b': pa.array([b'\x00\xff', b'']), 'q"x': ['a"\\\n', None]})
    assert [json.loads(t) for t in json_arrays(batch).to_pylist()] == [['1', '00ff', 'a"\\\n'], [None, '', None]]
    assert json.loads(json_objects(batch).to_pylist()[0]) == {'A': '1', 'b': '00ff', 'q"x': 'a"\\\n'}
    lines = joined(json_objects(batch), '\n')
    assert [json.loads(line)['A'] for line in lines.splitlines()] == ['1', None]
    assert joined(json_objects(batch.slice(1)), '\n') == lines.split(b'\n')[1] + b'\n'
    assert joined(pa.array([], pa.string()), ',') == b''


def test_json_of_a_nested_column_goes_in_as_it_is_and_null_is_left_out():
    batch = pa.record_batch({'V': ['[{"a":1}]', None, '{}'], 'N': [1, None, 3]})
    assert json_objects(batch, {'V'}).to_pylist() == ['{"V":[{"a":1}],"N":"1"}', '{"N":null}', '{"V":{},"N":"3"}']
    assert json_objects(batch.select(['V']), {'V'}).to_pylist()[1] == '{}'


@pytest.mark.parametrize(
    ('inside', 'column'),
    [
        (pa.uint64(), 'VARIANT'),
        (pa.decimal128(38, 0), 'VARIANT'),
        (pa.binary(32), 'VARIANT'),
        (pa.struct([('a', pa.list_(pa.bool_()))]), 'VARIANT'),
        (pa.map_(pa.string(), pa.timestamp('ns')), 'VARIANT'),
        (pa.float64(), 'VARCHAR'),
        (pa.decimal128(38, 2), 'VARCHAR'),
        (pa.decimal256(76, 0), 'VARCHAR'),
        (pa.struct([('a', pa.int32()), ('b', pa.float32())]), 'VARCHAR'),
        (pa.map_(pa.string(), pa.decimal256(50, 0)), 'VARCHAR'),
    ],
    ids=str,
)
def test_nested_values_are_variants_where_those_keep_every_number(inside, column):
    for kind in (pa.list_(inside), pa.large_list(inside), pa.struct([('x', inside)]), pa.list_(pa.list_(inside))):
        [landing] = landings(pa.schema([('nested', kind)]))
        assert (landing.column, landing.wire) == (column, pa.string())


def test_text_that_json_cannot_hold_is_refused_with_its_column():
    with pytest.raises(SchemaError, match='odd one'):
        json_arrays(pa.record_batch({'odd one': ['a\x00b']}))


# Files


def test_files_are_closed_at_their_size_and_uploaded_while_the_next_is_written():
    batch = pa.record_batch(
        {'n': pa.array(range(200_000)), 'text': [f'{i * 2654435761 % 2**64:x}' for i in range(200_000)]}
    )
    seen: list[tuple[str, int]] = []
    written_on = threading.Event()

    def upload(path: Path) -> None:
        if path.name == 'part-00001.parquet':
            # It can only come to an end when rows go on being taken meanwhile.
            assert written_on.wait(120)
        seen.append((path.name, pq.read_metadata(path).num_rows))

    files = ParquetFiles(batch.schema, upload, file_bytes=2 * 1024**2)
    for _ in range(10):
        files.push(batch)
    written_on.set()
    assert files.finish() == 2_000_000
    assert sum(rows for _, rows in seen) == 2_000_000
    assert files.files == len(seen) > 2
    assert len({name for name, _ in seen}) == len(seen)


def test_files_are_of_the_size_that_snowflake_asks_for():
    noise = np.random.default_rng(1).bytes(8_000_000)
    batch = pa.record_batch({'noise': pa.array([noise[at : at + 1000] for at in range(0, len(noise), 1000)])})
    sizes: list[int] = []
    config = SnowflakeConnectionConfig(**LOGIN, password='x')
    files = ParquetFiles(
        batch.schema, lambda path: sizes.append(path.stat().st_size), file_bytes=config.file_bytes, uploads=1
    )
    for _ in range(30):
        files.push(batch)
    files.finish()
    [full, _] = sizes
    assert 100e6 < full < 250e6


def test_an_upload_that_fails_stops_the_rows_and_leaves_no_file():
    batch = pa.record_batch({'n': pa.array(range(300_000))})

    def upload(path: Path) -> None:
        folders.append(path.parent)
        raise DestinationError('the stage is full')

    folders: list[Path] = []
    files = ParquetFiles(batch.schema, upload, file_bytes=1)

    def go_on() -> None:
        for _ in range(50):
            files.push(batch)
        files.finish()

    with pytest.raises(DestinationError, match='full'):
        go_on()
    files.discard()
    assert not folders[0].exists()


def test_discarded_files_are_gone():
    batch = pa.record_batch({'n': pa.array(range(300_000))})
    folders: list[Path] = []
    files = ParquetFiles(batch.schema, lambda path: folders.append(path.parent), file_bytes=1)
    for _ in range(3):
        files.push(batch)
    files.discard()
    assert all(not folder.exists() for folder in folders)


def test_a_path_is_only_a_path():
    assert "'file:///tmp/it\\'s here/x'" in put_statement(Path("/tmp/it's here/x"), 'AMP_STAGE', '1/2')


# Logins


def test_a_url_names_account_database_and_schema():
    config = SnowflakeLoader(
        {
            'url': 'snowflake://me:se%2Fcret@acme-chain/CHAIN/RAW?warehouse=W&role=R&pool_size=7&preserve_reorg_history=true'
        }
    ).config
    assert (config.account, config.user, config.password) == ('acme-chain', 'me', 'se/cret')
    assert (config.database, config.schema, config.warehouse, config.role) == ('CHAIN', 'RAW', 'W', 'R')
    assert config.pool_size == 7
    assert config.preserve_reorg_history is True
    local = SnowflakeLoader({'url': 'snowflake://me:x@acct:8080/D?host=127.0.0.1&protocol=http'}).config
    assert (local.account, local.host, local.port, local.schema) == ('acct', '127.0.0.1', 8080, 'PUBLIC')
    with pytest.raises(ConfigError, match='more than a database'):
        SnowflakeLoader({'url': 'snowflake://me:x@acct/a/b/c'})


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({}, 'needs a login'),
        ({'password': 'x', 'loading_method': 'carrier pigeon'}, 'stage, insert, pandas, snowpipe_streaming'),
        ({'password': 'x', 'pool_size': 0}, 'at least 1'),
        ({'password': 'x', 'acount': 'typo'}, 'acount'),
        ({'password': 'x', 'database': None}, 'database'),
        ({'password': 'x', 'preserve_reorg_history': True, 'loading_method': 'snowpipe_streaming'}, 'transactions'),
        ({'password': 'x', 'state': {'storage': 'memory'}}, 'inside the destination'),
    ],
)
def test_configuration_is_checked_by_name(change, told):
    with pytest.raises(ConfigError, match=told):
        SnowflakeLoader({**LOGIN, **change})


@pytest.fixture(scope='module')
def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    secret = serialization.BestAvailableEncryption(b'passphrase-of-the-key')
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret).decode()


def test_a_key_is_a_text_or_a_path_with_a_passphrase(pem, tmp_path):
    path = tmp_path / 'key.p8'
    path.write_text(pem)
    found = [
        SnowflakeConnectionConfig(**LOGIN, private_key=key, private_key_passphrase='passphrase-of-the-key').login()
        for key in (pem, str(path))
    ]
    assert found[0]['private_key'] == found[1]['private_key']
    assert serialization.load_der_private_key(found[0]['private_key'], None).key_size == 2048
    assert 'password' not in found[0]


def test_a_key_signs_a_token_of_its_own(pem):
    config = SnowflakeConnectionConfig(**LOGIN, private_key=pem, private_key_passphrase='passphrase-of-the-key')
    key = serialization.load_der_private_key(config.key_bytes(), None)
    claims = jwt.decode(config.jwt(), key.public_key(), algorithms=['RS256'])
    assert claims['sub'] == 'ACME-CHAIN.LOADER'
    assert re.fullmatch(r'ACME-CHAIN\.LOADER\.SHA256:[\w+/]{43}=', claims['iss'])
    assert 0 < claims['exp'] - claims['iat'] < 3600


def test_a_token_is_oauth():
    assert SnowflakeConnectionConfig(**LOGIN, token='t').login()['authenticator'] == 'oauth'
    login = SnowflakeConnectionConfig(**LOGIN, token='t', authenticator='programmatic_access_token').login()
    assert login['authenticator'] == 'programmatic_access_token'


def test_secrets_are_in_no_text(pem, tmp_path):
    secret = {
        'password': 'the-password',
        'token': 'the-token',
        'private_key': pem,
        'private_key_passphrase': 'the-wrong-passphrase',
    }
    config = SnowflakeConnectionConfig(**LOGIN, **secret)
    told = [repr(config), str(config)]
    for changed in ({}, {'private_key': 'nothing here'}, {'private_key': str(tmp_path)}):
        with pytest.raises(AmpError) as failed:
            SnowflakeConnectionConfig(**LOGIN, **{**secret, **changed}).key_bytes()
        told += [str(failed.value), repr(failed.value), repr(failed.value.__cause__)]
    for text in told:
        assert not any(value in text for value in secret.values())


# The state table


def test_the_file_for_administrators_makes_the_table_that_the_loader_makes():
    text = (Path(__file__).parents[2] / 'sql' / 'snowflake_stream_state.sql').read_text()
    assert ' '.join(Streams.create().split()) in ' '.join(text.split())


# Errors


@pytest.mark.parametrize(
    ('kind', 'given', 'means'),
    [
        ('TooManyRequests', {}, ErrorKind.RATE_LIMIT),
        ('ServiceUnavailableError', {}, ErrorKind.RATE_LIMIT),
        # Some versions add the base of their numbers twice.
        ('ServiceUnavailableError', {'errno': 290_503}, ErrorKind.RATE_LIMIT),
        ('OtherHTTPRetryableError', {'errno': 290_408}, ErrorKind.TIMEOUT),
        ('RequestTimeoutError', {}, ErrorKind.TIMEOUT),
        ('GatewayTimeoutError', {'errno': 504}, ErrorKind.TIMEOUT),
        ('BadGatewayError', {}, ErrorKind.TRANSIENT),
        ('InternalServerError', {}, ErrorKind.TRANSIENT),
        ('ForbiddenError', {'errno': 290_403}, ErrorKind.PERMANENT),
        ('ForbiddenError', {'errno': 250_001, 'sqlstate': '08001'}, ErrorKind.PERMANENT),
        ('InterfaceError', {'errno': 290_429}, ErrorKind.RATE_LIMIT),
        ('InterfaceError', {'errno': 290_404, 'sqlstate': '08001'}, ErrorKind.PERMANENT),
        ('OperationalError', {'errno': 250_003}, ErrorKind.TRANSIENT),
        ('OperationalError', {'errno': 251_011}, ErrorKind.TIMEOUT),
        ('OperationalError', {'errno': 250_001}, ErrorKind.TRANSIENT),
        ('DatabaseError', {'errno': 250_001, 'sqlstate': '08001'}, ErrorKind.PERMANENT),
        ('ProgrammingError', {'errno': 630, 'sqlstate': '57014'}, ErrorKind.TIMEOUT),
        ('ProgrammingError', {'errno': 606, 'sqlstate': '57P03'}, ErrorKind.PERMANENT),
        ('ProgrammingError', {'errno': 1003, 'sqlstate': '42000'}, ErrorKind.PERMANENT),
        ('DatabaseError', {'errno': 390_303, 'sqlstate': '08001'}, ErrorKind.PERMANENT),
        ('DatabaseError', {'sqlstate': '08006'}, ErrorKind.TRANSIENT),
        ('DatabaseError', {'sqlstate': '40001'}, ErrorKind.TRANSIENT),
        ('DataError', {}, ErrorKind.PERMANENT),
    ],
)
def test_an_error_of_the_driver_is_known_by_its_number_and_class(kind, given, means):
    loader = SnowflakeLoader({**LOGIN, 'password': 'x'})
    with pytest.raises(DestinationError) as raised, explained(loader.config):
        raise getattr(errors, kind)(msg='429 time out', **given)
    assert loader.attempts.failed(raised.value) is means
    assert raised.value.retryable is means.is_transient
    assert (loader.rate_limiter.get_current_delay() > 0) is (means in {ErrorKind.RATE_LIMIT, ErrorKind.TIMEOUT})
