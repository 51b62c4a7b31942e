"""The JSON Lines endpoint and the Admin API of the local Amp, by a plain HTTP client."""

from __future__ import annotations

import json
import threading

import httpx
import pytest

from amp.devserver import LocalAmp
from tests.support.bare_client import BareClient
from tests.support.faults import wait_until

pytestmark = pytest.mark.integration

TRANSFERS = (
    "SELECT block_num, tx_hash, event['value'] AS value FROM ("
    ' SELECT block_num, tx_hash, evm_decode_log(topic1, topic2, topic3, data, '
    "'Transfer(address indexed from, address indexed to, uint256 value)') AS event FROM eth.logs)"
)


@pytest.fixture
def amp():
    with LocalAmp.simulate(blocks=50, logs_per_block=4, jsonl_port=0, admin_port=0) as amp:
        yield amp


@pytest.fixture
def jsonl(amp):
    with httpx.Client(base_url=amp.jsonl_url, timeout=60) as client:
        yield client


@pytest.fixture
def admin(amp):
    with httpx.Client(base_url=amp.admin_url, timeout=60) as client:
        yield client


def rows(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_rows_as_json_lines(amp, jsonl):
    response = jsonl.post('/', content='SELECT * FROM eth_rpc.logs ORDER BY block_num, log_index')
    assert response.headers['content-type'].startswith('application/x-ndjson')
    assert response.headers['content-encoding'] == 'gzip'
    found = rows(response)
    stored = amp.canonical('logs').to_pylist()
    assert len(found) == len(stored) == 200
    first = found[0]
    assert first['tx_hash'] == stored[0]['tx_hash'].hex()
    assert first['data'] == stored[0]['data'].hex()
    assert first['timestamp'] == '2023-11-14T22:13:20Z'
    assert first['_block_num'] == 0
    # A null is left out.
    assert 'topic3' not in first


def test_values_of_every_kind(jsonl):
    sql = (
        "SELECT 1 AS n, 'ä\"' AS text, true AS yes, CAST(NULL AS INT) AS nothing, CAST(1.5 AS DOUBLE) AS x, "
        "CAST(12345678901234567890 AS DECIMAL(38, 0)) AS large, [1, 2] AS list, x'00ff' AS bytes"
    )
    [row] = rows(jsonl.post('/', content=sql.encode()))
    assert row['bytes'] == '00ff'
    assert (row['n'], row['text'], row['yes'], row['x'], row['list']) == (1, 'ä"', True, 1.5, [1, 2])
    assert 'nothing' not in row
    assert rows(jsonl.post('/', content='SELECT * FROM eth_rpc.logs WHERE block_num > 1000')) == []


@pytest.mark.parametrize(
    ('sql', 'status', 'code'),
    [
        ('', 400, 'INVALID_SQL_STRING'),
        ('SELEC 1', 400, 'SQL_PARSE_ERROR'),
        ("SELECT 'abc", 400, 'SQL_PARSE_ERROR'),
        ('SELECT 1; SELECT 2', 400, 'SQL_PARSE_ERROR'),
        ('SELECT * FROM eth_rpc.blocks SETTINGS stream = true', 400, 'STREAMING_NOT_SUPPORTED'),
        ('SELECT * FROM a.b.c', 400, 'TABLE_REFERENCE_RESOLUTION'),
        ('SELECT * FROM nowhere.blocks', 500, 'PHYSICAL_CATALOG_ERROR'),
        ('SELECT nope FROM eth_rpc.blocks', 500, 'PLANNING_ERROR'),
        ('SELECT 0 AS _block_num', 400, 'INVALID_PLAN'),
        ("SELECT evm_encode_hex('0x' || CAST(block_num AS TEXT)) AS h FROM eth_rpc.blocks", 500, 'EXECUTION_ERROR'),
    ],
)
def test_errors_before_the_first_row(jsonl, sql, status, code):
    response = jsonl.post('/', content=sql)
    assert response.status_code == status, response.text
    assert response.json()['error_code'] == code
    assert response.json()['error_message']
    assert jsonl.get('/health').status_code == 200


@pytest.mark.parametrize(
    ('sql', 'told'),
    [
        ('SELECT * FROM other.blocks', 'Dataset not found: other'),
        ('SELECT * FROM eth_rpc.nothing', 'Table nothing not found in dataset eth_rpc'),
    ],
)
def test_tables_are_looked_up_before_the_plan(jsonl, sql, told):
    answer = jsonl.post('/', content=sql)
    assert answer.status_code == 500
    assert answer.json() == {
        'error_code': 'PHYSICAL_CATALOG_ERROR',
        'error_message': f'error creating physical catalog | Caused by: {told}',
    }


def test_friendly_errors_are_for_both_endpoints():
    with LocalAmp.simulate(blocks=2, jsonl_port=0, friendly=True) as amp:
        answer = httpx.post(amp.jsonl_url, content='SELECT * FROM eth_rpc.block')
    assert (answer.status_code, answer.json()['error_code']) == (404, 'PHYSICAL_CATALOG_ERROR')
    assert answer.json()['error_message'] == "dataset eth_rpc has no table 'block' (did you mean blocks?)"


def test_an_error_among_the_rows_breaks_the_answer_off(jsonl):
    sql = (
        "SELECT evm_encode_hex(CASE WHEN l.block_num > 48 AND b.block_num > 48 THEN '0x123' ELSE repeat('0', 64) END) AS h "
        'FROM eth_rpc.logs l CROSS JOIN eth_rpc.logs b'
    )
    try:
        with jsonl.stream('POST', '/', content=sql, headers={'accept-encoding': 'identity'}) as response:
            if response.status_code == 200:
                with pytest.raises(httpx.RemoteProtocolError):
                    list(response.iter_bytes())
            else:
                response.read()
                assert response.json()['error_code'] == 'EXECUTION_ERROR'
    finally:
        assert jsonl.get('/health').status_code == 200


def test_a_query_ends_with_its_client(jsonl):
    endless = 'SELECT sum(value) AS n FROM generate_series(1, 100000000000)'
    of_others = set(threading.enumerate())

    def is_over() -> bool:
        return not any(t.name == 'amp-devserver-ahead' for t in set(threading.enumerate()) - of_others)

    with pytest.raises(httpx.TimeoutException):
        jsonl.post('/', content=endless, timeout=0.5)
    wait_until(is_over)
    with jsonl.stream('POST', '/', content=f'SELECT 1 AS n UNION ALL {endless}') as answer:
        assert answer.status_code == 200
    wait_until(is_over)
    assert jsonl.post('/', content='SELECT 1 AS one').text == '{"one":1}\n'


def test_a_browser_may_ask(jsonl, admin):
    for client in (jsonl, admin):
        asked = {'origin': 'http://localhost:3000', 'access-control-request-method': 'POST'}
        answer = client.options('/' if client is jsonl else '/datasets', headers=asked)
        assert answer.status_code == 200
        assert answer.headers['access-control-allow-origin'] in {'*', 'http://localhost:3000'}


def test_what_the_server_has_of_itself(admin):
    assert admin.get('/healthz').status_code == 200
    [dataset] = admin.get('/datasets').json()['datasets']
    assert dataset == {'namespace': '_', 'name': 'eth_rpc', 'latest_version': '0.0.1', 'versions': ['0.0.1']}
    versions = admin.get('/datasets/_/eth_rpc/versions').json()
    digest = versions['versions'][0]['manifest_hash']
    assert versions['special_tags'] == {'latest': '0.0.1', 'dev': digest}
    manifest = admin.get('/datasets/_/eth_rpc/versions/latest/manifest').json()
    assert (manifest['kind'], manifest['network'], manifest['start_block']) == ('evm-rpc', 'simnet', 0)
    fields = {f['name']: f for f in manifest['tables']['blocks']['schema']['arrow']['fields']}
    assert '_block_num' not in fields
    assert fields['timestamp'] == {
        'name': 'timestamp',
        'type': {'Timestamp': ['Nanosecond', '+00:00']},
        'nullable': False,
    }
    assert fields['hash']['type'] == {'FixedSizeBinary': 32}
    assert fields['base_fee_per_gas'] == {'name': 'base_fee_per_gas', 'type': {'Decimal128': [38, 0]}, 'nullable': True}
    for revision in ('0.0.1', 'latest', 'dev', digest):
        info = admin.get(f'/datasets/_/eth_rpc/versions/{revision}').json()
        assert info == {
            'namespace': '_',
            'name': 'eth_rpc',
            'revision': revision,
            'manifest_hash': digest,
            'kind': 'evm-rpc',
            'start_block': 0,
            'finalized_blocks_only': False,
            'tables': ['blocks', 'logs', 'transactions'],
        }
    [job] = admin.get('/jobs').json()['jobs']
    assert (job['status'], job['descriptor']['kind']) == ('RUNNING', 'materialize-raw')
    progress = admin.get(f'/jobs/{job["id"]}/progress').json()
    assert progress['tables']['logs'] == {
        'current_block': 49,
        'start_block': 0,
        'files_count': 0,
        'total_size_bytes': 0,
    }
    [worker] = admin.get('/workers').json()['workers']
    detail = admin.get(f'/workers/{worker["node_id"]}').json()
    assert detail.keys() == {'node_id', 'info', 'created_at', 'registered_at', 'heartbeat_at'}
    assert detail['info'].keys() == {'version', 'commit_sha', 'commit_timestamp', 'build_date'}
    assert admin.get('/workers/other').json()['error_code'] == 'WORKER_NOT_FOUND'
    described = admin.get('/openapi.json').json()
    assert {'/datasets', '/jobs/{job_id}/stop', '/schema', '/manifests'} <= described['paths'].keys()
    assert 'ErrorBody' in described['components']['schemas']


def register(admin, name='erc20', sql=TRANSFERS, version='1.0.0', **more) -> httpx.Response:
    manifest = {
        'kind': 'manifest',
        'dependencies': {'eth': '_/eth_rpc@0.0.1'},
        'tables': {'transfers': {'input': {'sql': sql}, 'schema': {'arrow': {'fields': []}}}},
        'functions': {},
    }
    body = {'namespace': 'me', 'name': name, 'version': version, 'manifest': manifest, **more}
    return admin.post('/datasets', json={key: value for key, value in body.items() if value is not None})


def test_a_derived_dataset_from_registration_to_rows(amp, admin):
    registered = register(admin)
    assert registered.status_code == 201, registered.text
    said = registered.json()
    assert (said['version'], said['kind'], said['tables']) == ('1.0.0', 'manifest', ['transfers'])
    with BareClient(amp.url) as client:
        with pytest.raises(Exception, match=r'error creating physical catalog.*erc20.transfers has not been synced'):
            client.query('SELECT * FROM "me/erc20@1.0.0".transfers')
        deployed = admin.post('/datasets/me/erc20/versions/1.0.0/deploy', json={})
        assert deployed.status_code == 202
        job = deployed.json()['job_id']
        found = client.query('SELECT * FROM "me/erc20@1.0.0".transfers')
        assert found.schema.names == ['_block_num', 'block_num', 'tx_hash', 'value']
        assert found.num_rows == 200
        assert found['_block_num'].to_pylist() == found['block_num'].to_pylist()
        # It follows, reorgs included, and a stream over it has the hashes of the blocks.
        with client.stream('SELECT block_num, value FROM "me/erc20".transfers') as stream:
            assert stream.microbatch()[-1].range['hash'] == amp.block_hash(49)
            amp.reorg(3)
            again = stream.microbatch()
            assert again[-1].span == (47, 50)
            assert sum(received.rows for received in again) == 16
            assert again[-1].range['prev_hash'] == amp.block_hash(46)
        progress = admin.get(f'/jobs/{job}/progress').json()
        assert (progress['job_status'], progress['tables']['transfers']['current_block']) == ('RUNNING', 50)
        assert admin.put(f'/jobs/{job}/stop').status_code == 200
        assert admin.put(f'/jobs/{job}/stop').status_code == 200
        assert admin.get(f'/jobs/{job}').json()['status'] == 'STOPPED'
        amp.mine(5)
        assert client.query('SELECT max(block_num) AS last FROM erc20.transfers')['last'].to_pylist() == [50]
        assert admin.get('/datasets/me/erc20/versions/1.0.0/jobs').json()['jobs'][0]['id'] == job


@pytest.mark.parametrize(('end_block', 'last'), [('latest', 49), ('30', 30), ('-10', 39), ('52', 52)])
def test_a_job_with_an_end_completes(amp, admin, end_block, last):
    register(admin)
    job = admin.post('/datasets/me/erc20/versions/dev/deploy', json={'end_block': end_block}).json()['job_id']
    if last > 49:
        assert admin.get(f'/jobs/{job}').json()['status'] == 'RUNNING'
    amp.mine(5)
    assert admin.get(f'/jobs/{job}').json()['status'] == 'COMPLETED'
    with BareClient(amp.url) as client:
        assert client.query('SELECT max(block_num) AS last FROM erc20.transfers')['last'].to_pylist() == [last]
    assert [j['id'] for j in admin.get('/jobs', params={'status': 'completed'}).json()['jobs']] == [job]
    assert admin.delete('/jobs').status_code == 400
    assert admin.delete('/jobs', params={'status': 'terminal'}).status_code == 204
    assert admin.get(f'/jobs/{job}').json()['error_code'] == 'JOB_NOT_FOUND'


def test_versions_and_manifests(admin):
    first = register(admin, version='1.0.0').json()['manifest_hash']
    other = TRANSFERS.replace('AS value', 'AS amount')
    second = register(admin, version='1.10.0', sql=other).json()['manifest_hash']
    third = register(admin, version='1.9.0', manifest=first).json()['manifest_hash']
    assert (first == third, first == second) == (True, False)
    assert register(admin, version=None, manifest=first).status_code == 201
    versions = admin.get('/datasets/me/erc20/versions').json()
    assert [v['version'] for v in versions['versions']] == ['1.10.0', '1.9.0', '1.0.0']
    assert versions['special_tags'] == {'latest': '1.10.0', 'dev': first}
    assert admin.get('/datasets/me/erc20/versions/latest').json()['manifest_hash'] == second
    tagged = admin.get(f'/manifests/{first}/datasets').json()
    assert {d['version'] for d in tagged['datasets']} == {'1.0.0', '1.9.0'}
    assert admin.delete(f'/manifests/{first}').status_code == 409
    alone = admin.post('/manifests', json={'kind': 'evm-rpc', 'network': 'x', 'tables': {'blocks': {}}})
    assert alone.status_code == 201
    assert admin.get(f'/manifests/{alone.json()["hash"]}').json()['network'] == 'x'
    assert {m['dataset_count'] for m in admin.get('/manifests').json()['manifests']} == {0, 1}
    assert admin.delete('/manifests').json() == {'deleted_count': 1}
    assert admin.delete('/datasets/me/erc20/versions/1.9.0').status_code == 204
    assert admin.delete('/datasets/me/erc20/versions/1.10.0').status_code == 400
    for _ in range(2):
        assert admin.delete('/datasets/me/erc20').status_code == 204
    assert admin.get('/datasets/me/erc20/versions/1.0.0').status_code == 404


def test_a_deployment_of_another_version_is_what_is_served_then(amp, admin):
    register(admin, version='1.0.0')
    register(admin, version='2.0.0', sql='SELECT block_num, address FROM eth.logs')
    with BareClient(amp.url) as client:
        for version, column in (('1.0.0', 'value'), ('2.0.0', 'address'), ('1.0.0', 'value')):
            assert admin.post(f'/datasets/me/erc20/versions/{version}/deploy', json={}).status_code == 202
            assert client.query('SELECT * FROM erc20.transfers').schema.names[-1] == column
    jobs = admin.get('/jobs', params={'status': 'all'}).json()['jobs']
    assert [job['status'] for job in jobs] == ['RUNNING', 'RUNNING', 'STOPPED', 'RUNNING']
    page = admin.get('/jobs', params={'status': 'all', 'limit': 3}).json()
    assert [job['id'] for job in page['jobs']] == [4, 3, 2]
    assert page['next_cursor'] == 2
    rest = admin.get('/jobs', params={'status': 'all', 'last_job_id': 2}).json()
    assert [job['id'] for job in rest['jobs']] == [1]
    assert 'next_cursor' not in rest
    assert admin.delete('/jobs/4').status_code == 409
    assert admin.delete('/jobs/3').status_code == 409
    assert admin.delete('/jobs/2').status_code == 204


def test_each_revision_of_a_dataset_has_its_own_tables(amp, admin):
    old = register(admin, version='1.9.0').json()['manifest_hash']
    newer = 'SELECT block_num, address FROM eth.logs WHERE block_num < 10'
    new = register(admin, version='1.10.0', sql=newer).json()['manifest_hash']
    development = 'SELECT block_num, topic0 FROM eth.logs'
    latest_not = register(admin, version=None, sql=development).json()['manifest_hash']
    for revision in ('1.9.0', 'latest', 'dev'):
        assert admin.post(f'/datasets/me/erc20/versions/{revision}/deploy', json={}).status_code == 202
    columns = {
        '@1.9.0': 'value',
        '@1.10.0': 'address',
        '@latest': 'address',
        '': 'address',
        '@dev': 'topic0',
        f'@{old}': 'value',
        f'@{new}': 'address',
        f'@{latest_not}': 'topic0',
    }
    with BareClient(amp.url) as client:
        for revision, column in columns.items():
            assert client.query(f'SELECT * FROM "me/erc20{revision}".transfers').schema.names[-1] == column, revision
        # Two of them in one query, and a stream over one that is not the latest.
        both = 'SELECT (SELECT count(*) FROM "me/erc20@1.9.0".transfers) AS o, (SELECT count(*) FROM "me/erc20".transfers) AS n'
        assert client.query(both).to_pylist() == [{'o': 200, 'n': 40}]
        with client.stream('SELECT value FROM "me/erc20@1.9.0".transfers') as stream:
            assert sum(received.rows for received in stream.microbatch()) == 200
        # Each has a job of its own: one that is stopped stays where it is, and the others go on.
        [job] = admin.get('/datasets/me/erc20/versions/1.9.0/jobs').json()['jobs']
        assert admin.put(f'/jobs/{job["id"]}/stop').status_code == 200
        amp.mine(1)
        last = 'SELECT max(block_num) AS last FROM "me/erc20@{}".transfers'
        assert client.query(last.format('1.9.0'))['last'].to_pylist() == [49]
        assert client.query(last.format('dev'))['last'].to_pylist() == [50]
        for unknown in ('@3.0.0', f'@{"0" * 64}'):
            with pytest.raises(Exception, match=f'Dataset not found: me/erc20{unknown}'):
                client.query(f'SELECT * FROM "me/erc20{unknown}".transfers')
        # A derived dataset names the revision that it is made of.
        body = {'kind': 'manifest', 'dependencies': {'base': 'me/erc20@1.9.0'}, 'functions': {}}
        body['tables'] = {'t': {'input': {'sql': 'SELECT block_num, value FROM base.transfers'}}}
        assert register(admin, name='above', manifest=body).status_code == 201
        assert admin.post('/datasets/me/above/versions/latest/deploy', json={}).status_code == 202
        assert client.query('SELECT count(*) AS n FROM "me/above".t')['n'].to_pylist() == [200]
        assert admin.delete('/datasets/me/erc20/versions/1.9.0').status_code == 204
        with pytest.raises(Exception, match=r'Dataset not found: me/erc20@1.9.0'):
            client.query('SELECT * FROM "me/erc20@1.9.0".transfers')
    assert amp.datasets.keys() == {'eth_rpc', 'erc20', 'above'}


def test_a_dataset_of_another_namespace_leaves_the_servers_own_alone(amp, admin):
    own = 'SELECT count(*) AS n FROM {}.blocks'
    register(admin, namespace='my', name='eth_rpc', version='0.0.2')
    assert admin.post('/datasets/my/eth_rpc/versions/0.0.2/deploy', json={}).status_code == 202
    with BareClient(amp.url) as client:
        for reference in ('eth_rpc', '"_/eth_rpc"', '"_/eth_rpc@0.0.1"', '"eth_rpc@latest"', '"other/eth_rpc"'):
            assert client.query(own.format(reference))['n'].to_pylist() == [50], reference
        for reference in ('"my/eth_rpc"', '"my/eth_rpc@0.0.2"'):
            assert client.query(f'SELECT * FROM {reference}.transfers').num_rows == 200
            with pytest.raises(Exception, match='not found in dataset'):
                client.query(own.format(reference))
        assert amp.canonical('blocks').num_rows == 50
        assert admin.delete('/datasets/my/eth_rpc').status_code == 204
        assert client.query(own.format('eth_rpc'))['n'].to_pylist() == [50]
        # Another version of its own is another matter, and the first one is still there by its number.
        register(admin, namespace='_', name='eth_rpc', version='0.0.2')
        assert admin.post('/datasets/_/eth_rpc/versions/0.0.2/deploy', json={}).status_code == 202
        assert client.query('SELECT * FROM eth_rpc.transfers').num_rows == 200
        assert client.query(own.format('"_/eth_rpc@0.0.1"'))['n'].to_pylist() == [50]


def test_who_needs_a_token_for_flight_needs_it_for_the_rest():
    with LocalAmp.simulate(blocks=2, token='s3cret', jsonl_port=0, admin_port=0) as amp:
        for wrong in ({}, {'authorization': 'Bearer s3cre'}, {'authorization': 's3cret'}):
            for answer in (
                httpx.post(amp.jsonl_url, content='SELECT 1', headers=wrong),
                httpx.get(f'{amp.admin_url}/datasets', headers=wrong),
            ):
                assert (answer.status_code, answer.json()['error_code']) == (401, 'UNAUTHENTICATED')
                assert 's3cret' not in answer.text
        right = {'authorization': 'Bearer s3cret'}
        assert rows(httpx.post(amp.jsonl_url, content='SELECT 1 AS one', headers=right)) == [{'one': 1}]
        assert httpx.get(f'{amp.admin_url}/datasets', headers=right).status_code == 200
        # Whether it is there is no secret, and a browser asks before it brings anything.
        assert httpx.get(f'{amp.jsonl_url}/health').status_code == 200
        assert httpx.get(f'{amp.admin_url}/healthz').status_code == 200
        asks = {'origin': 'http://localhost', 'access-control-request-method': 'GET'}
        assert httpx.options(f'{amp.admin_url}/datasets', headers=asks).status_code == 200


def test_a_raw_dataset_of_another_name_is_served_from_the_source_of_its_network(amp, admin):
    manifest = admin.get('/datasets/_/eth_rpc/versions/dev/manifest').json()
    body = {'namespace': 'me', 'name': 'mine', 'version': '0.1.0', 'manifest': manifest}
    assert admin.post('/datasets', json=body).status_code == 201
    assert admin.post('/datasets/me/mine/versions/latest/deploy', json={'parallelism': 4}).status_code == 202
    with BareClient(amp.url) as client:
        assert client.query('SELECT count(*) AS n FROM "me/mine@0.1.0".blocks')['n'].to_pylist() == [50]
    body['manifest'] = {**manifest, 'network': 'mars'}
    refused = admin.post('/datasets', json=body)
    assert (refused.status_code, refused.json()['error_code']) == (400, 'MANIFEST_VALIDATION_ERROR')
    assert 'no source of the network mars; it has simnet' in refused.json()['error_message']


def test_schema_of_tables_that_are_not_registered(admin):
    asked = {'tables': {'t': TRANSFERS}, 'dependencies': {'eth': '_/eth_rpc@0.0.1'}}
    answer = admin.post('/schema', json=asked).json()
    described = answer['schemas']['t']
    assert described['networks'] == ['simnet']
    assert described['schema']['arrow']['fields'] == [
        {'name': '_block_num', 'type': 'UInt64', 'nullable': False},
        {'name': 'block_num', 'type': 'UInt64', 'nullable': False},
        {'name': 'tx_hash', 'type': {'FixedSizeBinary': 32}, 'nullable': False},
        {'name': 'value', 'type': 'Utf8', 'nullable': True},
    ]


@pytest.mark.parametrize(
    ('sql', 'code'),
    [
        ('SELEC', 'INVALID_TABLE_SQL'),
        ('SELECT nope FROM eth.logs', 'SCHEMA_INFERENCE'),
        ('SELECT count(*) AS n FROM eth.logs', 'NON_INCREMENTAL_QUERY'),
        ('SELECT * FROM other.logs', 'DEPENDENCY_ALIAS_NOT_FOUND'),
        ('SELECT * FROM eth.nothing', 'TABLE_NOT_FOUND_IN_DATASET'),
    ],
)
def test_sql_that_cannot_be_a_table(admin, sql, code):
    asked = {'tables': {'t': sql}, 'dependencies': {'eth': '_/eth_rpc@0.0.1'}}
    answer = admin.post('/schema', json=asked)
    assert (answer.status_code, answer.json()['error_code']) == (400, code), answer.text
    refused = register(admin, sql=sql)
    assert (refused.status_code, refused.json()['error_code']) == (400, 'MANIFEST_VALIDATION_ERROR')


def test_manifests_that_cannot_be_meant(admin):
    good = {'input': {'sql': TRANSFERS}}
    raw = {'kind': 'evm-rpc', 'network': 'simnet'}
    derived = {'kind': 'manifest', 'dependencies': {'eth': '_/eth_rpc@0.0.1'}}
    refused = [
        ({**derived, 'tables': {'1bad': good}}, 'INVALID_MANIFEST', "'1bad' is no name of a table"),
        ({**derived, 'tables': {'t': 5}}, 'INVALID_MANIFEST', 'the table t is no object'),
        ({**derived, 'tables': {'t': {'input': {'sql': 5}}}}, 'INVALID_MANIFEST', 'the table t has no input.sql'),
        ({**derived, 'tables': {'t': good}, 'dependencies': {'eth': 5}}, 'INVALID_MANIFEST', 'dependencies are'),
        ({**derived, 'tables': {'t': good}, 'start_block': 'x'}, 'INVALID_MANIFEST', 'start_block is no number'),
        ({**raw, 'tables': {'foo': 5}}, 'INVALID_MANIFEST', 'the table foo is no object'),
        (
            {**raw, 'tables': {'foo': {}}},
            'MANIFEST_VALIDATION_ERROR',
            'the tables of the network simnet are blocks, transactions, logs, not foo',
        ),
        ({**raw, 'network': '', 'tables': {'blocks': {}}}, 'INVALID_MANIFEST', 'it names no network'),
    ]
    for name in ('eth_rpc', 'other'):
        for manifest, code, told in refused:
            answer = register(admin, name=name, manifest=manifest)
            assert (answer.status_code, answer.json()['error_code']) == (400, code), answer.text
            assert told in answer.json()['error_message']


def test_errors_have_one_form_whatever_was_asked(admin):
    deep = f'{{"namespace": "me", "name": "x", "manifest": {"[" * 100_000}{"]" * 100_000}}}'
    refused = [
        (admin.get('/nothing'), 404, 'NOT_FOUND', 'there is no /nothing'),
        (admin.put('/datasets'), 405, 'METHOD_NOT_ALLOWED', '/datasets does not take PUT'),
        (admin.post('/datasets', content=deep), 400, 'INVALID_PAYLOAD_FORMAT', 'invalid request body: '),
    ]
    for answer, status, code, told in refused:
        assert answer.status_code == status
        assert answer.json().keys() == {'error_code', 'error_message'}
        assert answer.json()['error_code'] == code
        assert answer.json()['error_message'].startswith(told)


def test_requests_that_cannot_be_meant(admin):
    unknown = '/datasets/_/nothing/versions/latest'
    refused = [
        (admin.get('/datasets/_/eth_rpc'), 400, 'INVALID_PATH'),
        (admin.get('/datasets/A-B/eth_rpc/versions'), 400, 'INVALID_PATH'),
        (admin.get('/datasets/_/eth_rpc/versions/one'), 400, 'INVALID_PATH'),
        (admin.get(unknown), 404, 'DATASET_NOT_FOUND'),
        (admin.post(f'{unknown}/deploy', json={}), 404, 'DATASET_NOT_FOUND'),
        (admin.post('/datasets/_/eth_rpc/versions/dev/deploy', json={'end_block': 100}), 400, 'INVALID_BODY'),
        (admin.post('/datasets/_/eth_rpc/versions/dev/deploy', json={'worker_id': 'x*'}), 400, 'WORKER_NOT_AVAILABLE'),
        (admin.post('/datasets', content=b'{'), 400, 'INVALID_PAYLOAD_FORMAT'),
        (register(admin, manifest={'kind': 'sql', 'tables': {'t': {}}}), 400, 'UNSUPPORTED_DATASET_KIND'),
        (register(admin, manifest={'kind': 'manifest', 'tables': {'t': {}}}), 400, 'INVALID_MANIFEST'),
        (register(admin, manifest='0' * 64), 404, 'MANIFEST_NOT_FOUND'),
        (register(admin, version='01.0.0'), 400, 'INVALID_PAYLOAD_FORMAT'),
        (register(admin, version='1.0.0-..'), 400, 'INVALID_PAYLOAD_FORMAT'),
        (register(admin, name='Bad-Name'), 400, 'INVALID_PAYLOAD_FORMAT'),
        (admin.get('/jobs/one'), 400, 'INVALID_JOB_ID'),
        (admin.get('/jobs/77/progress'), 404, 'JOB_NOT_FOUND'),
        (admin.get('/jobs', params={'limit': 0}), 400, 'INVALID_QUERY_PARAMETERS'),
        (admin.get('/jobs', params={'status': 'FAILED'}), 400, 'INVALID_QUERY_PARAMETERS'),
        (admin.post('/schema', json={}), 400, 'EMPTY_TABLES_AND_FUNCTIONS'),
        (
            admin.post('/schema', json={'tables': {'t': 'SELECT 1'}, 'dependencies': {'a': '_/nothing@1.0.0'}}),
            404,
            'DEPENDENCY_NOT_FOUND',
        ),
    ]
    for response, status, code in refused:
        assert (response.status_code, response.json()['error_code']) == (status, code), response.text
    assert admin.get('/healthz').status_code == 200
