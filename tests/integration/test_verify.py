"""What verify says of a stream that is well, and of every way in which one can be tampered with."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import duckdb
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from amp.cli.app import app
from amp.client import Client
from amp.devserver import LocalAmp
from amp.errors import ConfigError, LoadError, SourceError, VerifyError
from amp.loaders.findings import Report
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.implementations.postgresql_loader import PostgreSQLLoader
from amp.loaders.verify import verify, verify_table
from amp.streaming.ledger import stream_interval
from amp.streaming.types import BatchMetadata, BlockRange, ResponseBatch
from tests.integration.loaders.test_base_streaming import eth, response
from tests.support.following import at_head, follow, until_head

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

WHOLE = 'SELECT * FROM eth_rpc.logs SETTINGS stream = true'


@pytest.fixture(scope='module')
def amp() -> Iterator[LocalAmp]:
    """A chain with reorgs at several depths, one of them far inside a microbatch."""
    with LocalAmp.simulate(seed=5, blocks=250, logs_per_block=(1, 5), microbatch_max_blocks=10) as server:
        yield server


@pytest.fixture(scope='module')
def followed(amp, tmp_path_factory) -> str:
    """A file that followed that chain, reorgs included, and stands at its head."""
    path = str(tmp_path_factory.mktemp('verify') / 'chain.db')
    until_head(amp, f'duckdb:///{path}', sql=WHOLE)
    for depth, extend in ((3, 2), (17, 1), (1, 5), (12, 9)):
        amp.reorg(depth, extend=extend)
        until_head(amp, f'duckdb:///{path}', sql=WHOLE)
    return path


@pytest.fixture
def path(followed, tmp_path) -> str:
    return shutil.copy(followed, tmp_path / 'chain.db')


def verified(path: str, amp: LocalAmp | None = None, **options) -> Report:
    with DuckDBLoader({'path': path}) as loader:
        if amp is None:
            [report] = verify_table(loader, 'logs', **options)
        else:
            with Client(amp.url) as client:
                [report] = verify_table(loader, 'logs', source=client, **options)
    return report


def tamper(path: str, *statements: str) -> None:
    with duckdb.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)


def edit_state(path: str, change: Callable[[dict], None]) -> dict:
    with duckdb.connect(path) as connection:
        [(text,)] = connection.execute('SELECT document FROM _amp_streams').fetchall()
        document = json.loads(text)
        change(document)
        connection.execute('UPDATE _amp_streams SET document = ?', [json.dumps(document)])
    return document


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_a_stream_through_reorgs_is_well(path, amp):
    report = verified(path, amp)
    assert report.ok
    assert report.notes == []
    assert report.rows == amp.canonical('logs').num_rows
    head, _ = amp.head
    assert report.compared == (BlockRange(amp.network, 0, head),)
    report.raise_if_off()


def test_it_changes_nothing(path, amp):
    def snapshot() -> tuple:
        with duckdb.connect(path) as connection:
            rows = connection.execute('SELECT count(*), sum(hash(logs)) FROM logs').fetchall()
            return rows, connection.execute('SELECT * FROM _amp_streams').fetchall()

    before = snapshot()
    verified(path, amp)
    assert snapshot() == before


def test_a_deleted_row_is_missing_in_its_block(path, amp):
    tamper(path, 'DELETE FROM logs WHERE _block_num = 100 AND log_index = 0')
    assert verified(path).ok
    report = verified(path, amp)
    [finding] = report.findings
    assert (finding.kind, finding.ranges) == ('rows', (BlockRange(amp.network, 100, 100),))
    assert finding.counts == {'missing': 1, 'extra': 0, 'twice': 0}
    assert finding.text == f'{amp.network} block 100: 1 row missing'
    with pytest.raises(VerifyError, match='block 100') as raised:
        report.raise_if_off()
    assert raised.value.exit_code == 6


def test_a_row_that_is_there_twice(path, amp):
    tamper(path, 'INSERT INTO logs SELECT * FROM logs WHERE _block_num = 60 AND log_index = 0')
    [finding] = verified(path, amp).findings
    assert finding.ranges == (BlockRange(amp.network, 60, 60),)
    assert finding.counts == {'missing': 0, 'extra': 0, 'twice': 1}


@pytest.mark.parametrize(
    'change',
    [
        'log_index = 99',
        "data = data || '\\x00'::BLOB",
        "topic3 = CASE WHEN topic3 IS NULL THEN '\\x00'::BLOB END",
        "timestamp = TIMESTAMP '2001-01-01'",
        "address = '\\x00\\x01'::BLOB",
    ],
)
def test_a_changed_value_is_one_row_missing_and_one_strange(path, amp, change):
    tamper(path, f'UPDATE logs SET {change} WHERE _block_num = 222 AND log_index = 0')
    [finding] = verified(path, amp).findings
    assert finding.ranges == (BlockRange(amp.network, 222, 222),)
    assert finding.counts == {'missing': 1, 'extra': 1, 'twice': 0}


def test_rows_of_neighbouring_blocks_are_one_finding_and_of_distant_ones_several(path, amp):
    tamper(path, 'DELETE FROM logs WHERE _block_num BETWEEN 70 AND 79 OR _block_num = 7')
    report = verified(path, amp)
    assert [(f.ranges[0].start, f.ranges[0].end) for f in report.findings] == [(7, 7), (70, 79)]
    assert all(f.counts['missing'] and not f.counts['extra'] for f in report.findings)


def test_very_many_differences_are_told_in_few_findings(path, amp):
    tamper(path, 'DELETE FROM logs WHERE _block_num % 2 = 0 AND log_index = 0')
    report = verified(path, amp)
    assert len(report.findings) == 16
    even = sum(1 for n in range(amp.head[0] + 1) if n % 2 == 0)
    assert sum(f.counts['missing'] for f in report.findings) == even


def test_an_orphan_is_named_by_its_id(path, amp):
    orphan = stream_interval(1).first + (1 << 27) + 99_999
    tamper(path, f'INSERT INTO logs SELECT * REPLACE ({orphan} AS _amp_tx_id) FROM logs WHERE _block_num = 249 LIMIT 1')
    report = verified(path)
    assert kinds(report) == ['orphans']
    assert [tuple(run) for run in report.findings[0].runs] == [(orphan, orphan)]
    assert 'of blocks 249-249' in report.findings[0].text
    assert {f.kind for f in verified(path, amp).findings} == {'orphans', 'rows'}


def test_an_id_of_no_stream(path):
    tamper(path, 'INSERT INTO logs SELECT * REPLACE (7 AS _amp_tx_id) FROM logs WHERE _block_num = 9')
    report = verified(path)
    assert kinds(report) == ['orphans']
    assert 'no stream that is known' in report.findings[0].text


def test_an_entry_that_was_removed_from_the_middle(path):
    gone = []
    edit_state(path, lambda document: gone.append(document['entries'].pop(4)))
    [(first, last, [[network, start, end, *_]])] = gone
    report = verified(path)
    assert kinds(report) == ['gap', 'orphans']
    assert report.findings[0].ranges == (BlockRange(network, start, end),)
    assert [tuple(run) for run in report.findings[1].runs] == [(first, last)]


def test_an_entry_that_was_removed_from_the_end(path, amp):
    gone = []
    edit_state(path, lambda document: gone.append(document['entries'].pop()))
    report = verified(path)
    assert kinds(report) == ['orphans']
    assert [tuple(run) for run in report.findings[0].runs] == [(gone[0][0], gone[0][1])]


def test_the_first_entry_of_the_window_was_removed(path):
    gone = []
    edit_state(path, lambda document: gone.append(document['entries'].pop(0)))
    report = verified(path)
    assert kinds(report) == ['gap', 'outside']
    assert [tuple(run) for run in report.findings[1].runs] == [(gone[0][0], gone[0][1])]


def test_the_final_history_was_removed(path):
    edit_state(path, lambda document: document['segments'].clear())
    report = verified(path)
    assert kinds(report) == ['gap', 'orphans']
    assert report.findings[0].ranges[0].start == 0


def test_a_hash_that_does_not_link(path):
    def change(document: dict) -> None:
        document['entries'][3][2][0][3] = '0x' + '11' * 32

    edit_state(path, change)
    assert kinds(verified(path)) == ['chain', 'batch']


def test_ranges_that_overlap_and_ids_that_do_not_rise(path):
    def change(document: dict) -> None:
        entries = document['entries']
        entries[3][2][0][1] -= 2
        entries[5][0] = entries[5][1] = entries[4][0]

    edit_state(path, change)
    found = kinds(verified(path))
    assert 'overlap' in found
    assert 'ids' in found


def test_an_id_of_an_epoch_that_was_never_taken(path):
    def change(document: dict) -> None:
        document['entries'][-1][0] += 50 << 27
        document['entries'][-1][1] += 50 << 27

    edit_state(path, change)
    assert kinds(verified(path)) == ['ids', 'orphans']


def test_rows_in_blocks_that_their_microbatch_has_not(path):
    tamper(path, 'UPDATE logs SET _block_num = 5 WHERE _block_num = 255')
    assert kinds(verified(path)) == ['outside']
    tamper(path, 'UPDATE logs SET _block_num = 100000 WHERE _block_num = 20')
    assert verified(path).findings[0].counts['rows'] > 5


def test_rows_with_the_batch_id_of_another_microbatch(path):
    tamper(path, "UPDATE logs SET _amp_batch_id = 'feedfeedfeedfeed' WHERE _block_num = 255 AND log_index = 0")
    [finding] = verified(path).findings
    assert finding.kind == 'batch'
    assert finding.ranges[0].contains_block(255)
    assert finding.counts == {'rows': 1}


def test_two_batch_ids_under_one_id_of_final_history(path):
    tamper(path, "UPDATE logs SET _amp_batch_id = 'feedfeedfeedfeed' WHERE _block_num = 5 AND log_index = 0")
    assert kinds(verified(path)) == ['batch']


def test_a_table_that_is_gone(path):
    tamper(path, 'DROP TABLE logs')
    assert kinds(verified(path)) == ['table']


def test_another_query_is_another_truth(path, amp):
    report = verified(path, amp, query='SELECT * FROM eth_rpc.logs WHERE log_index > 0 -- only some')
    assert {f.counts['extra'] > 0 for f in report.findings} == {True}
    assert {f.counts['missing'] for f in report.findings} == {0}


def test_a_query_with_fewer_columns_compares_those(path, amp):
    report = verified(path, amp, query='SELECT log_index, _block_num, topic0 FROM eth_rpc.logs;')
    assert report.ok
    assert 'not of the query' in report.notes[0]


def test_a_query_with_a_column_that_the_table_has_not(path, amp):
    report = verified(path, amp, query='SELECT *, log_index + 1 AS next FROM eth_rpc.logs')
    assert kinds(report) == ['column']
    assert "'next'" in report.findings[0].text


def test_a_query_without_blocks_needs_the_block_column(path, amp):
    with pytest.raises(ConfigError, match='--block-column'):
        verified(path, amp, query='SELECT log_index FROM eth_rpc.logs')
    with pytest.raises(ConfigError, match='number'):
        verified(path, amp, query='SELECT data, log_index FROM eth_rpc.logs', block_column='data')
    with pytest.raises(ConfigError, match='no column'):
        verified(path, block_column='nothing')
    report = verified(path, amp, query='SELECT block_num, log_index FROM eth_rpc.logs', block_column='block_num')
    assert report.ok


def test_streams_and_tables_that_are_not_there(path):
    with pytest.raises(ConfigError, match="no stream 'other' of 'logs'"):
        verified(path, name='other')
    with DuckDBLoader({'path': path}) as loader, pytest.raises(ConfigError, match="no stream into 'nothing'"):
        verify_table(loader, 'nothing')


def test_blocks_that_the_chain_has_replaced_since_are_left_out(tmp_path):
    path = str(tmp_path / 'chain.db')
    with LocalAmp.simulate(seed=8, blocks=40, logs_per_block=2, microbatch_max_blocks=10) as amp:
        until_head(amp, f'duckdb:///{path}')
        amp.mine(3)
        report = verified(path, amp)
        assert (report.ok, report.notes, report.compared[0].end) == (True, [], 39)
        amp.reorg(10, extend=2)
        report = verified(path, amp)
        assert report.ok
        assert report.compared == (BlockRange(amp.network, 0, 32),)
        assert report.notes == ['blocks 33-39 were not compared: the chain has changed there since the last commit']
        tamper(path, 'DELETE FROM logs WHERE block_num = 3')
        assert [f.ranges[0].start for f in verified(path, amp).findings] == [3]


def test_a_server_that_is_gone_is_an_error_of_the_source(path):
    with DuckDBLoader({'path': path}) as loader, Client('grpc://127.0.0.1:1') as client, pytest.raises(SourceError):
        verify_table(loader, 'logs', source=client)


def test_two_streams_into_one_table_and_rows_of_a_plain_load(path, amp):
    until_head(amp, f'duckdb:///{path}', sql=WHOLE, name='second')
    tamper(path, 'INSERT INTO logs SELECT * REPLACE (NULL AS _amp_tx_id) FROM logs WHERE _block_num = 9 LIMIT 3')
    with DuckDBLoader({'path': path}) as loader, Client(amp.url) as client:
        reports = verify(loader, source=client)
        assert [(r.key.name, r.ok, r.rows) for r in reports] == [
            ('logs', True, amp.canonical('logs').num_rows),
            ('second', True, amp.canonical('logs').num_rows),
        ]
        assert '3 rows of loads that were no stream' in reports[0].notes[0]
        [report] = verify_table(loader, 'logs', name='second', source=client)
        assert report.key.name == 'second'
        loader.connection.execute(f'DELETE FROM logs WHERE _block_num = 8 AND _amp_tx_id >= {stream_interval(2).first}')
        first, second = verify(loader, source=client)
        assert (first.ok, second.ok) == (True, False)


def test_batches_made_by_hand_without_a_query(tmp_path):
    rows = pa.record_batch({'block_num': pa.array([1, 2, 3], pa.uint64())})
    metadata = BatchMetadata([BlockRange('net', 1, 3, '0xa')], ranges_complete=True)
    with DuckDBLoader({'path': str(tmp_path / 'x.db')}) as loader:
        assert verify(loader) == []
        list(loader.load_stream_continuous([ResponseBatch.data_batch(rows, metadata)], 'hand'))
        [report] = verify_table(loader, 'hand')
        assert (report.ok, report.rows) == (True, 3)
        with pytest.raises(ConfigError, match='--query'), Client('grpc://127.0.0.1:1') as client:
            verify_table(loader, 'hand', source=client)


def test_every_table_of_the_chain_survives_the_way_through_duckdb(tmp_path):
    path = str(tmp_path / 'chain.db')
    with LocalAmp.simulate(seed=2, blocks=60, logs_per_block=3, microbatch_max_blocks=10) as amp:
        for table in ('blocks', 'transactions', 'logs'):
            until_head(amp, f'duckdb:///{path}', table, sql=f'SELECT * FROM eth_rpc.{table}')
        with DuckDBLoader({'path': path}) as loader, Client(amp.url) as client:
            reports = verify(loader, source=client)
        assert [(r.key.table, r.ok, r.notes) for r in reports] == [
            ('blocks', True, []),
            ('transactions', True, []),
            ('logs', True, []),
        ]


@pytest.mark.postgresql
def test_every_table_of_the_chain_survives_the_way_through_postgresql(postgresql_test_config):
    config = {**postgresql_test_config, 'schema': 'amp_verify'}
    with LocalAmp.simulate(seed=2, blocks=60, logs_per_block=3, microbatch_max_blocks=10) as amp:
        with Client(amp.url) as client, PostgreSQLLoader(config) as loader:
            client.configure_connection('here', 'postgresql', config)
            for table in ('blocks', 'transactions', 'logs'):
                stream = client.sql(f'SELECT * FROM eth_rpc.{table}').load('here', table, stream=True)
                with closing(stream):
                    assert any(at_head(amp, result) for result in stream)
            reports = verify(loader, source=client)
            assert [(r.key.table, r.findings) for r in reports] == [('blocks', []), ('transactions', []), ('logs', [])]
            with loader.connection.transaction():
                loader.connection.execute('DELETE FROM amp_verify.logs WHERE _block_num = 33')
            [report] = verify_table(loader, 'logs', source=client)
            assert [f.ranges for f in report.findings] == [(BlockRange(amp.network, 33, 33),)]


def test_a_stream_that_runs_on_meanwhile_is_not_blamed(tmp_path):
    path = str(tmp_path / 'chain.db')
    moves = random.Random(4)
    enough = threading.Event()
    begun = threading.Event()
    with LocalAmp.simulate(seed=4, blocks=60, logs_per_block=4, microbatch_max_blocks=10) as amp:

        def follow_and_move() -> None:
            with closing(follow(amp, f'duckdb:///{path}', sql='SELECT * FROM eth_rpc.logs')) as stream:
                for result in stream:
                    if enough.is_set():
                        return
                    if at_head(amp, result):
                        begun.set()
                        amp.reorg(moves.randint(1, 8), extend=2) if moves.random() < 0.5 else amp.mine(2)

        with DuckDBLoader({'path': path}) as loader, Client(amp.url) as client:
            thread = threading.Thread(target=follow_and_move)
            thread.start()
            try:
                assert begun.wait(60)
                reports = [report for _ in range(8) for report in verify_table(loader, 'logs', source=client)]
            finally:
                enough.set()
                amp.mine(1)
                thread.join(120)
            assert not thread.is_alive()
    assert [report.findings for report in reports] == [[]] * 8


class Interrupted(DuckDBLoader):
    """Something happens just before its rows are read, and something just after."""

    moves: Iterator[object]

    def stamped_scan(self, table_name, columns=None, where=None):
        if columns is None:
            return super().stamped_scan(table_name, columns, where)
        next(self.moves, None)
        rows = super().stamped_scan(table_name, columns, where).read_all()
        next(self.moves, None)
        return rows.to_reader()


def test_a_unit_that_came_and_went_while_the_rows_were_read_is_not_blamed(tmp_path):
    path = str(tmp_path / 'chain.db')
    first, second = response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11)
    undone = ResponseBatch.reorg_batch([eth(10, 19, '0xc', '0xa')])
    with DuckDBLoader({'path': path}) as writer, Interrupted({'path': path}) as reader:
        moves = writer.load_stream_continuous([first, second, undone], 't')
        next(moves)
        reader.moves = moves
        [report] = verify(reader)
        assert report.findings == []
        assert report.rows == 2, 'the rows of both were read'
        assert next(moves, None) is None
        writer.connection.execute('UPDATE t SET _amp_tx_id = _amp_tx_id + 1')
        [report] = verify(reader)
        assert [finding.kind for finding in report.findings] == ['orphans']


def test_a_stream_that_begins_while_the_rows_are_read_is_not_blamed(tmp_path):
    path = str(tmp_path / 'chain.db')
    with DuckDBLoader({'path': path}) as writer, Interrupted({'path': path}) as reader:
        list(writer.load_stream_continuous([response(eth(0, 9, '0xa'), 1)], 't', stream_name='one'))
        reader.moves = writer.load_stream_continuous([response(eth(0, 9, '0xb'), 2)], 't', stream_name='two')
        [report] = verify(reader)
        assert report.findings == []


def test_a_loader_that_cannot_show_stamps_says_so(path):
    class Plain(DuckDBLoader):
        def stamped_scan(self, *args, **kwargs):
            return super(DuckDBLoader, self).stamped_scan(*args, **kwargs)

    with Plain({'path': path}) as loader, pytest.raises(LoadError, match='stamped_scan'):
        verify_table(loader, 'logs')


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ['verify', *arguments])


def test_the_command(path, amp):
    url = f'duckdb:///{path}'
    well = command(url, '--table', 'logs', '--source', amp.url)
    assert (well.exit_code, well.stderr) == (0, '')
    assert well.stdout.count('\n') == 1
    assert well.stdout.endswith('none lost, none twice, none orphaned\n')

    tamper(path, 'DELETE FROM logs WHERE _block_num = 100')
    off = command(url, '--source', amp.url)
    assert off.exit_code == 6
    assert f'{amp.network} block 100' in off.stdout
    assert 'error: 1 finding' in off.stderr

    events = [json.loads(line) for line in command(url, '--source', amp.url, '--json').stdout.splitlines()]
    assert [event['event'] for event in events] == ['finding', 'verified', 'error']
    assert events[0]['ranges'] == [{'network': amp.network, 'start': 100, 'end': 100}]
    assert (events[1]['ok'], events[2]['exit_code']) == (False, 6)


def test_the_command_refuses_what_cannot_be_meant(path):
    assert command(f'duckdb:///{path}', '--query', 'SELECT 1').exit_code == 2
    assert command(f'duckdb:///{path}', '--name', 'x').exit_code == 2
    assert command('duckdb:////no/such/file.db').exit_code == 5
    edit_state(path, lambda document: document.update(version=9))
    broken = command(f'duckdb:///{path}')
    assert broken.exit_code == 6
    assert 'newer amp' in broken.stderr
