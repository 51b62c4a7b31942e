"""Client and Query against the local Amp: the SQL engine of Amp itself answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import amp
from amp.devserver import LocalAmp

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def local() -> Iterator[LocalAmp]:
    with LocalAmp.simulate(seed=1, blocks=50) as running:
        yield running


@pytest.fixture(scope='module')
def client(local: LocalAmp) -> Iterator[amp.Client]:
    with amp.Client(local.url) as connected:
        yield connected


def test_every_row_comes_back(local: LocalAmp, client: amp.Client) -> None:
    query = client.sql('SELECT * FROM eth_rpc.logs ORDER BY block_num, log_index')
    table = query.to_arrow()
    assert table.num_rows == local.canonical('logs').num_rows > 0
    assert query.schema() == table.schema
    assert sum(batch.num_rows for batch in query.stream()) == table.num_rows
    assert query.to_pandas()['block_num'].tolist() == table['block_num'].to_pylist()


def test_an_empty_result(client: amp.Client) -> None:
    query = client.sql('SELECT block_num FROM eth_rpc.blocks WHERE 1 = 2')
    assert query.to_arrow().column_names == ['block_num']
    assert list(query.stream()) == []


@pytest.mark.parametrize(
    ('sql', 'says'),
    [
        ('SELEC 1', 'SQL parse error'),
        ('SELECT nope FROM eth_rpc.blocks', 'No field named nope'),
        ('SELECT * FROM nowhere.blocks', 'tables are named dataset.table'),
        ('SELECT * FROM eth_rpc.nothing', 'tables are named dataset.table'),
        ('SELECT 0 AS _x', "starting with '_'"),
    ],
)
def test_mistakes_in_the_sql(client: amp.Client, sql: str, says: str) -> None:
    with pytest.raises(amp.QueryError) as caught:
        client.sql(sql).to_arrow()
    assert says in str(caught.value)
    assert caught.value.hint
    assert caught.value.context['query'] == sql
    assert not caught.value.retryable
    assert '\n' not in str(caught.value)


def test_a_query_that_cannot_be_streamed(client: amp.Client) -> None:
    with (
        client.sql('SELECT count(*) FROM eth_rpc.blocks').responses() as responses,
        pytest.raises(amp.QueryError, match='run it without streaming'),
    ):
        next(responses)


def test_a_stream_follows_the_chain_from_a_position() -> None:
    with LocalAmp.simulate(seed=2, blocks=10) as local, amp.Client(local.url) as client:
        query = client.sql('SELECT block_num FROM eth_rpc.blocks')
        with query.responses() as responses:
            last = next(response for response in responses if response.metadata.ranges_complete)
            assert last.metadata.ranges[0].end == 9
            assert responses.get(timeout=0.05) is None
            local.mine(3)
            seen = next(responses)
            assert (seen.metadata.ranges[0].start, seen.metadata.ranges[0].end) == (10, 12)
        with query.responses(amp.ResumeWatermark(last.metadata.ranges)) as responses:
            assert next(responses).metadata.ranges[0].start == 10


def test_a_wrong_token() -> None:
    with LocalAmp.simulate(seed=1, blocks=5, token='right') as local:
        with amp.Client(local.url, auth_token='right') as client:
            assert client.sql('SELECT 1').to_arrow().num_rows == 1
        with amp.Client(local.url, auth_token='wrong') as client, pytest.raises(amp.AuthError, match='AMP_AUTH_TOKEN'):
            client.sql('SELECT 1').to_arrow()


def test_a_destination_that_cannot_be_reached_is_a_failed_load(client: amp.Client) -> None:
    with pytest.raises(amp.LoadError, match='cannot be reached') as caught:
        client.sql('SELECT 1 AS a').load('postgresql://someone:hidden@127.0.0.1:1/db', 'numbers')
    result = caught.value.result
    assert result is not None
    assert (result.success, result.rows_loaded, result.loader_type, result.table_name) == (
        False,
        0,
        'postgresql',
        'numbers',
    )
    assert 'cannot be reached' in str(result.error)
    assert 'hidden' not in str(caught.value)


def test_what_cannot_be_meant_is_no_failed_load(client: amp.Client) -> None:
    for url, told in (('nowhere', 'nowhere'), ('nosuch:///x', 'nosuch'), ('duckdb:///x.db?colour=red', 'colour')):
        with pytest.raises(ValueError, match=told):
            client.sql('SELECT 1 AS a').load(url, 'numbers')
