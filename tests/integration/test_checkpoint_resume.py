"""A stream that stops and starts again goes on exactly where its destination stands, whatever happened meanwhile."""

from __future__ import annotations

from contextlib import closing

import pytest

from amp.devserver import LocalAmp
from amp.errors import ConfigError, ReorgTooDeepError
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.streaming import BatchIdentifier, BlockRange
from tests.support.following import SQL, expected, follow, position, stored, until_head

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=11, blocks=30, logs_per_block=(0, 4), microbatch_max_blocks=10) as server:
        yield server


@pytest.fixture
def destination(tmp_path):
    return f'duckdb:///{tmp_path}/chain.db'


def test_a_restart_goes_on_from_the_position(amp, destination):
    first = until_head(amp, destination)
    amp.mine(5)
    second = until_head(amp, destination)
    assert [r['start'] for result in second for r in result.metadata['ranges']] == [30]
    assert second[0].metadata['epoch'] == first[0].metadata['epoch'] + 1
    assert stored(destination) == expected(amp)


@pytest.mark.parametrize('depth', [1, 5, 9, 10, 11, 20, 25, 29], ids=lambda d: f'depth {d}')
def test_a_reorg_while_nothing_ran(amp, destination, depth):
    until_head(amp, destination)
    amp.reorg(depth)
    results = until_head(amp, destination)
    assert any(result.is_reorg for result in results)
    assert stored(destination) == expected(amp)


@pytest.mark.parametrize('depth', [1, 7, 10, 25])
def test_a_reorg_while_nothing_ran_on_a_server_that_forgot_the_orphans(amp, destination, depth):
    until_head(amp, destination)
    amp.reorg(depth)
    amp.forget_orphans()
    until_head(amp, destination)
    assert stored(destination) == expected(amp)


def test_a_flip_to_another_branch_and_back_while_nothing_ran(amp, destination):
    until_head(amp, destination)
    amp.reorg(4)
    until_head(amp, destination)
    amp.switch_back()
    until_head(amp, destination)
    assert stored(destination) == expected(amp)


def test_a_server_that_ignores_the_cursor_once_changes_nothing(amp, destination):
    until_head(amp, destination, retention=5)
    amp.mine(3)
    amp.faults.ignore_cursor()
    results = until_head(amp, destination, retention=5)
    assert not any(result.is_reorg for result in results)
    assert stored(destination) == expected(amp)


def test_a_reorg_below_the_kept_history_is_an_error_and_touches_nothing(amp, destination):
    until_head(amp, destination, retention=5)
    before = stored(destination)
    amp.reorg(25)
    with pytest.raises(
        ReorgTooDeepError, match=r'5 blocks inside history that is final here \(up to block 9\)'
    ) as raised:
        until_head(amp, destination, retention=5)
    assert 'retention' in raised.value.hint
    assert stored(destination) == before


def test_begin_again_on_request(amp, destination):
    until_head(amp, destination)
    results = until_head(amp, destination, resume=False)
    assert results[0].metadata['ranges'][0]['start'] == 0
    assert stored(destination) == expected(amp)


def test_another_query_on_the_same_stream_is_refused_unless_asked_for(amp, destination):
    until_head(amp, destination)
    other = SQL + ' WHERE log_index = 0'
    with pytest.raises(ConfigError, match='begun with another query'):
        until_head(amp, destination, sql=other)
    amp.mine(2)
    until_head(amp, destination, sql=other, accept_changed_query=True)
    rows = stored(destination)
    assert [row for row in rows if row[0] < 30] == [row for row in expected(amp) if row[0] < 30]
    assert all(row[2] == 0 for row in rows if row[0] >= 30)


def test_two_queries_feed_one_table_and_undo_only_their_own(amp, destination):
    even, odd = SQL + ' WHERE log_index % 2 = 0', SQL + ' WHERE log_index % 2 = 1'
    until_head(amp, destination, sql=even, name='even')
    until_head(amp, destination, sql=odd, name='odd')
    assert stored(destination) == expected(amp)
    amp.reorg(12)
    until_head(amp, destination, sql=even, name='even')
    halfway = stored(destination)
    assert [row for row in halfway if row[2] % 2 == 0] == [row for row in expected(amp) if row[2] % 2 == 0]
    until_head(amp, destination, sql=odd, name='odd')
    assert stored(destination) == expected(amp)


def test_the_state_store_answers_from_the_destination(amp, tmp_path):
    destination = f'duckdb:///{tmp_path}/chain.db'
    until_head(amp, destination, retention=5)
    with DuckDBLoader({'url': destination}) as loader:
        store = loader.state_store
        watermark = store.get_resume_position('any name', 'logs')
        assert watermark.to_dict() == {amp.network: {'number': 29, 'hash': amp.block_hash(29)}}
        assert store.get_resume_position('any name', 'logs', detect_gaps=True).gaps == ()
        assert store.get_resume_position('any name', 'nothing') is None
        last = BlockRange(amp.network, 20, 29, amp.block_hash(29), amp.block_hash(19))
        assert store.is_processed('any name', 'logs', [BatchIdentifier.from_block_range(last)])
        orphan = BlockRange(amp.network, 20, 29, '0x' + 'ab' * 32, amp.block_hash(19))
        assert not store.is_processed('any name', 'logs', [BatchIdentifier.from_block_range(orphan)])


def test_the_query_is_stored_and_the_name_of_the_connection_is_not(amp, tmp_path):
    until_head(amp, f'duckdb:///{tmp_path}/chain.db')
    amp.mine(1)
    alias = tmp_path / 'alias'
    alias.symlink_to(tmp_path)
    results = until_head(amp, f'duckdb:///{alias}/chain.db')
    assert results[0].metadata['ranges'][0]['start'] == 30, 'an alias finds the same state'
    with DuckDBLoader({'path': str(tmp_path / 'chain.db')}) as loader:
        [info] = loader.list_streams()
        assert info.claim.query == SQL


def test_results_come_only_for_what_is_durable(amp, destination, tmp_path):
    with closing(follow(amp, destination)) as stream:
        result = next(stream)
        with DuckDBLoader({'path': str(tmp_path / 'chain.db')}) as other:
            [info] = other.list_streams()
            assert info.state.position.to_dict()[amp.network]['number'] == position(result)[amp.network][0]
            assert other.get_table_info('logs')['row_count'] == result.rows_loaded
