"""A stream whose server misbehaves: cut, ended early, repeated, restarted, broken. Rows stay exact."""

from __future__ import annotations

import logging
import threading
from contextlib import closing

import pyarrow as pa
import pytest

from amp import events
from amp.devserver import LocalAmp
from amp.errors import ConnectError, LoadError, ProtocolError, QueryError
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.settings import StreamSettings
from amp.loaders.stream import StreamEngine
from amp.loaders.unit import StreamJob
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch
from amp.streaming.iterator import END
from amp.streaming.ledger import StreamKey
from tests.support.faults import At, hook, wait_until
from tests.support.following import SQL, at_head, expected, follow, position, stored, until_head

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=5, blocks=40, logs_per_block=6, microbatch_max_blocks=10) as server:
        server.faults.split(7)
        yield server


@pytest.fixture
def destination(tmp_path):
    return f'duckdb:///{tmp_path}/chain.db'


@pytest.mark.parametrize('after_batches', [0, 1, 4])
@pytest.mark.parametrize('how', ['cut', 'end_early'])
def test_a_connection_lost_inside_a_microbatch(amp, destination, how, after_batches):
    fault = getattr(amp.faults, how)(after_batches=after_batches, at_block=25, times=2)
    until_head(amp, destination)
    assert fault.fired == 2
    assert stored(destination) == expected(amp)


def test_keep_alives_and_repeats_change_nothing(amp, destination):
    amp.faults.keep_alives()
    amp.faults.repeat_microbatch(times=3)
    until_head(amp, destination)
    assert stored(destination) == expected(amp)


def test_a_server_that_restarts(amp, destination):
    with closing(follow(amp, destination)) as stream:
        for result in stream:
            if at_head(amp, result):
                break
        amp.stop()
        amp.mine(3)
        # It comes back when it was missed.
        unlisten = events.listen(lambda event: amp.start() if isinstance(event, events.Retrying) else None)
        for result in stream:
            if at_head(amp, result):
                break
        unlisten()
    assert stored(destination) == expected(amp)


def test_reorgs_while_it_follows(amp, destination):
    with closing(follow(amp, destination)) as stream:
        for depth in (3, 10, 14, 1, 25, None, None, 2):
            if depth is None:
                amp.switch_back()
            else:
                amp.reorg(depth)
            for result in stream:
                if at_head(amp, result):
                    break
    assert stored(destination) == expected(amp)


def test_under_backlog_microbatches_share_a_commit_and_keep_their_own_ids(tmp_path, monkeypatch):
    with LocalAmp.simulate(seed=5, blocks=400, logs_per_block=3, microbatch_max_blocks=2) as amp:
        destination = f'duckdb:///{tmp_path}/chain.db'
        # The first commit takes so long that the server is far ahead of it.
        ahead = amp.faults.call(lambda: None, at_block=300)
        hook(monkeypatch, At('commit.before', ahead.wait))
        results = until_head(amp, destination)
        hook(monkeypatch, None)
        assert len(results) < 200, 'every microbatch was a commit of its own'
        with DuckDBLoader({'url': destination}) as loader:
            [(ids,)] = loader.connection.execute('SELECT count(DISTINCT _amp_tx_id) FROM logs').fetchall()
        assert ids == 200
        amp.reorg(3)
        again = until_head(amp, destination)
        undone = [r.metadata['rows_undone'] for r in again if r.is_reorg]
        assert sum(undone) <= 12, 'an undo takes back microbatches, not the commit they came with'
        assert stored(destination) == expected(amp)


def test_metadata_that_breaks_a_rule_stops_the_stream_where_it_stands(amp, destination):
    amp.faults.override_metadata(b'{"ranges":[{"numbers":{"start":20,"end":', at_block=25)
    seen = []
    with pytest.raises(ProtocolError, match='not JSON'):
        seen.extend(iter_until_error(amp, destination))
    with DuckDBLoader({'url': destination}) as loader:
        [info] = loader.list_streams()
    assert info.state.position.to_dict()[amp.network]['number'] < 30
    assert {row[0] for row in stored(destination)} == set(
        range(info.state.position.to_dict()[amp.network]['number'] + 1)
    )
    amp.faults.clear()
    until_head(amp, destination)
    assert stored(destination) == expected(amp)


def iter_until_error(amp, destination):
    with closing(follow(amp, destination, commit_rows=1)) as stream:
        yield from stream


def test_a_server_that_is_not_there_is_said_at_once(destination, tmp_path):
    gone = LocalAmp.simulate(seed=1, blocks=1)
    with gone:
        pass
    with pytest.raises(ConnectError):
        next(follow(gone, destination))


def test_a_query_that_cannot_stream_is_said_at_once(amp, destination):
    with pytest.raises(QueryError, match='non-incremental'):
        next(follow(amp, destination, sql='SELECT count(*) AS n FROM eth_rpc.logs'))


def test_a_destination_that_refuses_stops_the_stream_and_moves_nothing(amp, destination):
    with DuckDBLoader({'url': destination}) as loader:
        loader.connection.execute('CREATE TABLE logs (something VARCHAR)')
    with pytest.raises(Exception, match='logs') as raised:
        next(follow(amp, destination))
    assert isinstance(raised.value, LoadError) or raised.value.exit_code == 5
    with DuckDBLoader({'url': destination}) as loader:
        [info] = loader.list_streams()
        assert not info.state.position


def test_nothing_synced_yet_is_waited_for(tmp_path, caplog):
    destination = f'duckdb:///{tmp_path}/chain.db'
    caplog.set_level(logging.INFO, 'amp.stream')
    with LocalAmp.simulate(seed=2, blocks=0, logs_per_block=2) as amp:

        def mine_when_it_was_asked_in_vain() -> None:
            wait_until(lambda: 'nothing new' in caplog.text)
            amp.mine(3)

        miner = threading.Thread(target=mine_when_it_was_asked_in_vain)
        miner.start()
        with closing(follow(amp, destination)) as stream:
            result = next(r for r in stream if position(r).get(amp.network, (0,))[0] == 2)
        miner.join()
        assert result.success
        assert stored(destination) == expected(amp)


def test_a_plain_load_of_a_result_that_breaks_leaves_nothing(amp, destination):
    from amp.client import Client

    amp.faults.cut(after_batches=2)
    with pytest.raises(ConnectError):
        Client(amp.url).sql(SQL).load(destination, 'logs')
    with DuckDBLoader({'url': destination}) as loader:
        assert not loader.table_exists('logs')
    assert Client(amp.url).sql(SQL).load(destination, 'logs').rows_loaded == 240


class _AllHere:
    """A source that has everything already: the backlog lasts until the last batch was taken."""

    repeatable = False

    def __init__(self, responses):
        self._left = list(responses)[::-1]

    @property
    def backlog(self) -> bool:
        return bool(self._left)

    def get(self, timeout=None):
        return self._left.pop() if self._left else END

    def close(self) -> None:
        """Nothing to stop."""


@pytest.mark.parametrize(('settings', 'commits'), [({}, 1), ({'commit_rows': 10}, 20), ({'commit_rows': 1}, 200)])
def test_a_backlog_commits_at_its_limits_and_at_its_end_only(tmp_path, settings, commits):
    batch = pa.record_batch({'block_num': pa.array([1], pa.uint64())})
    ranges = [BlockRange('n', i, i, f'0x{i}', f'0x{i - 1}') for i in range(200)]
    source = _AllHere(ResponseBatch.data_batch(batch, BatchMetadata([r], ranges_complete=True)) for r in ranges)
    with DuckDBLoader({'path': f'{tmp_path}/x.db'}) as loader:
        chosen = StreamSettings(strict=False, commit_seconds=3_600, **settings)
        engine = StreamEngine(loader, StreamJob(StreamKey('t', 't')), lambda position: source, chosen)
        assert len(list(engine.run())) == commits
        assert loader.scan('t').read_all().num_rows == 200
