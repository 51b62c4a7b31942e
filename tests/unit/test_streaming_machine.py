from __future__ import annotations

import pytest

from amp.errors import IntegrityError, ProtocolError, ReorgTooDeepError
from amp.streaming.ledger import MAX_COUNTER, StreamState, transaction_id
from amp.streaming.machine import (
    Abandon,
    Completed,
    Flush,
    Idle,
    Reconnect,
    Rewind,
    Rows,
    StreamMachine,
    batch_id,
)
from amp.streaming.types import BatchIdentifier, BatchMetadata, BlockRange

pytestmark = pytest.mark.unit


def r(start: int, end: int, branch: str = 'a', parent: str | None = None, network: str = 'eth') -> BlockRange:
    return BlockRange(network, start, end, f'{branch}{end}', f'{parent or branch}{start - 1}' if start else None)


class Driver:
    """A machine with the least of an engine: it commits where `commit` says and keeps ids of rows per unit."""

    def __init__(self, state: StreamState | None = None, retention: int = 128, strict: bool = True) -> None:
        self.machine = StreamMachine(state or StreamState(1, 1), retention=retention, strict=strict)
        self.machine.connected()
        self.log: list[str] = []

    def data(self, *ranges: BlockRange, rows: int = 3) -> str:
        return self._show(BatchMetadata(ranges), rows)

    def close(self, *ranges: BlockRange, rows: int = 0, commit: bool = True) -> str:
        shown = self._show(BatchMetadata(ranges, ranges_complete=True), rows)
        if commit and shown.endswith('>'):
            self.commit()
        return shown

    def unit(self, *ranges: BlockRange) -> str:
        return f'{self.data(*ranges)} {self.close(*ranges)}'

    def commit(self) -> None:
        assert self.machine.at_boundary
        self.machine.committed_unit()

    def restart(self) -> None:
        """Killed, and started again: what is committed, as text, under the next epoch."""
        state = self.machine.committed
        reread = StreamState.from_json(state.number, state.epoch + 1, state.to_json())
        self.machine = StreamMachine(reread, retention=self.machine._retention)
        self.machine.connected()

    def _show(self, metadata: BatchMetadata, rows: int) -> str:
        said: list[str] = []
        while True:
            assert len(said) < 5, 'it goes in circles'
            step = self.machine.receive(metadata, rows)
            match step:
                case Rows(tx_id):
                    return ' '.join([*said, f'rows{self._n(tx_id)}'])
                case Completed(tx_id):
                    return ' '.join([*said, f'<{self._n(tx_id)}>'])
                case Idle():
                    return ' '.join([*said, 'idle'])
                case Flush():
                    said.append('flush')
                    self.commit()
                case Abandon():
                    said.append('abandon')
                case Reconnect():
                    self.machine.connected()
                    return ' '.join([*said, 'reconnect'])
                case Rewind(undo, reconnect):
                    said.append('undo' + ','.join(f'{self._n(a)}-{self._n(b)}' for a, b in undo.runs))
                    if reconnect:
                        self.commit()
                        self.machine.connected()
                        return ' '.join([*said, 'reconnect'])

    def _n(self, tx_id: int) -> int:
        return tx_id - transaction_id(1, 1, 0)

    def position(self) -> dict[str, object]:
        return dict(self.machine.committed.position.to_dict())


def at(block: int, branch: str = 'a') -> dict[str, object]:
    return {'eth': {'number': block, 'hash': f'{branch}{block}'}}


def test_a_microbatch_is_rows_under_one_id_and_moves_the_position_only_when_closed() -> None:
    d = Driver()
    assert d.data(r(0, 9)) == 'rows0'
    assert d.data(r(0, 9), rows=0) == 'rows0'
    assert d.position() == {}
    assert not d.machine.at_boundary
    assert d.close(r(0, 9), commit=False) == '<0>'
    assert d.machine.at_boundary
    assert d.machine.is_dirty
    assert d.position() == {}
    d.commit()
    assert d.position() == at(9)
    assert not d.machine.is_dirty
    assert d.unit(r(10, 19)) == 'rows1 <1>'
    assert d.close(r(20, 29)) == '<2>'
    assert d.position() == at(29)


def test_1_a_reorg_inside_the_last_unit_takes_it_back_whole_and_asks_from_before_it() -> None:
    d = Driver()
    d.unit(r(0, 99))
    d.unit(r(100, 199))
    assert d.data(r(150, 199, 'c', 'x')) == 'undo1-1 reconnect'
    assert d.position() == at(99)
    assert d.unit(r(100, 199, 'c', 'a')) == 'rows2 <2>'
    assert d.position() == at(199, 'c')


def test_2_a_reorg_of_depth_one_with_each_block_alone() -> None:
    d = Driver()
    for n in range(3):
        d.unit(r(n, n))
    assert d.unit(r(2, 3, 'b', 'a')) == 'undo2-2 rows3 <3>'
    assert d.position() == at(3, 'b')


def test_3_a_reorg_inside_a_microbatch_of_two_blocks() -> None:
    d = Driver()
    d.unit(r(0, 0))
    d.unit(r(1, 2))
    assert d.data(r(2, 3, 'b', 'a')) == 'undo1-1 reconnect'
    assert d.position() == at(0)


@pytest.mark.parametrize(
    ('rule', 'ranges'),
    [
        ('HashMismatchOnConsecutiveBlocks', [r(10, 19, 'b', 'z')]),
        ('Gap', [r(11, 19)]),
        ('InvalidReorg', [BlockRange('eth', 9, 19, 'b19', 'a9')]),
        ('MissingPrevHash', [BlockRange('eth', 10, 19, 'b19')]),
        ('MissingHash', [BlockRange('eth', 10, 19, None, 'a9')]),
        ('InvalidPrevHash', [BlockRange('eth', 0, 19, 'b19', 'x')]),
        ('DuplicateNetwork', [r(10, 19), r(10, 19)]),
        ('NetworkCountChanged', [r(10, 19), r(10, 19, network='base')]),
        ('UnexpectedNetwork', [r(10, 19, network='base')]),
    ],
)
def test_7_to_11_a_broken_promise_is_an_error_that_changes_nothing(rule: str, ranges: list[BlockRange]) -> None:
    d = Driver()
    d.unit(r(0, 9))
    before = d.machine.committed
    with pytest.raises(ProtocolError) as caught:
        d.data(*ranges)
    assert caught.value.context['rule'] == rule
    assert d.machine.committed is before
    assert not d.machine.is_dirty


def test_rows_without_ranges_are_refused_and_an_empty_end_is_nothing() -> None:
    d = Driver()
    assert d.close() == 'idle'
    with pytest.raises(ProtocolError) as caught:
        d.data(rows=1)
    assert caught.value.context['rule'] == 'MissingRanges'


def test_13_an_open_microbatch_that_another_one_replaces_is_abandoned() -> None:
    """0-10 committed; rows of 11-15, never closed; then 11-12 of another branch."""
    d = Driver()
    d.unit(r(0, 10))
    assert d.data(r(11, 15)) == 'rows1'
    assert d.close(r(11, 12, 'b', 'a')) == 'abandon <2>'
    assert d.position() == at(12, 'b')


def test_14_completed_but_uncommitted_microbatches_are_flushed_before_they_are_taken_back() -> None:
    d = Driver()
    d.unit(r(0, 10))
    for span in (r(11, 20), r(21, 30), r(31, 40)):
        d.close(span, commit=False)
    assert d.close(r(11, 20, 'b', 'a')) == 'flush undo1-3 <4>'
    assert d.position() == at(20, 'b')


def test_15_two_reorgs_in_a_row() -> None:
    d = Driver()
    for span in (r(0, 10), r(11, 20), r(21, 30)):
        d.unit(span)
    assert d.close(r(21, 25, 'b', 'a')) == 'undo2-2 <3>'
    assert d.unit(r(26, 30, 'b', 'b')) == 'rows4 <4>'
    assert d.close(r(21, 30, 'c', 'a')) == 'undo3-4 <5>'
    assert d.position() == at(30, 'c')


@pytest.mark.parametrize('uncommitted', [0, 1, 3])
def test_16_and_17_a_restart_forgets_what_was_not_committed_and_uses_no_id_again(uncommitted: int) -> None:
    d = Driver()
    d.unit(r(0, 10))
    used = {d.machine.committed.entries[0].last_id}
    for i in range(uncommitted):
        used.add(d.machine.unit_id())
        d.close(r(11 + i, 11 + i), commit=False)
    d.restart()
    assert d.position() == at(10)
    assert d.machine.unit_id() > max(used)
    assert d.close(r(11, 20)).endswith('>')
    assert d.position() == at(20)


def test_17_a_crash_on_the_very_first_microbatch_begins_again() -> None:
    d = Driver()
    d.data(r(5, 9))
    d.restart()
    assert d.position() == {}
    assert d.unit(r(5, 9)) == f'rows{1 << 27} <{1 << 27}>'


def test_18_pruning_counts_from_the_start_of_the_newest_range() -> None:
    d = Driver(retention=10)
    for span in (r(0, 5), r(6, 10), r(11, 20), r(21, 25)):
        d.unit(span)
    assert [(e.ranges[0].start, e.ranges[0].end) for e in d.machine.committed.entries] == [(11, 20), (21, 25)]
    assert d.machine.committed.segments == (r(0, 10),)


def test_19_a_reorg_below_what_is_kept_ends_with_an_error_and_takes_nothing_back() -> None:
    d = Driver(retention=5)
    for n in range(40):
        d.unit(r(n, n))
    before = d.machine.committed.to_json()
    assert d.data(r(20, 60, 'b', 'a')) == 'reconnect'
    assert d.data(r(20, 60, 'b', 'a')) == 'reconnect'
    with pytest.raises(ReorgTooDeepError) as caught:
        d.data(r(20, 60, 'b', 'a'))
    assert '14 blocks' in str(caught.value)
    assert caught.value.hint is not None
    assert d.machine.committed.to_json() == before
    assert not d.machine.is_dirty


def test_20_a_jump_far_back_takes_back_every_unit_from_there_on() -> None:
    d = Driver()
    for span in (r(0, 5), r(6, 10), r(11, 15), r(16, 20)):
        d.unit(span)
    assert d.close(r(6, 10, 'b', 'a')) == 'undo1-3 <4>'


def test_21_after_an_orphaned_cursor_the_stream_goes_on_from_the_fork() -> None:
    d = Driver()
    for n in range(3):
        d.unit(r(n, n))
    d.restart()
    assert d.data(r(1, 3, 'b', 'a')).startswith('undo1-2 rows')
    assert d.machine.pending.position.to_dict() == at(0)


def test_22_an_ignored_cursor_is_asked_again_before_anything_is_taken_back() -> None:
    d = Driver(retention=5)
    for n in range(40):
        d.unit(r(n, n))
    d.restart()
    assert d.data(r(0, 39)) == 'reconnect'
    assert d.unit(r(40, 41)).startswith('rows')
    assert d.unit(r(42, 43)).startswith('rows')
    assert d.position() == at(43)


def test_22_a_gap_that_stays_is_an_error() -> None:
    d = Driver()
    d.unit(r(0, 9))
    for _ in range(2):
        d.machine.connected()
        assert d.data(r(20, 29)) == 'reconnect'
    with pytest.raises(ProtocolError, match='does not continue'):
        d.data(r(20, 29))


def test_answers_beside_the_position_count_only_without_progress() -> None:
    d = Driver()
    d.unit(r(0, 9))
    for n in range(1, 6):
        for _ in range(2):
            d.machine.connected()
            assert d.data(r(900, 909)) == 'reconnect'
        assert d.close(r(n * 10, n * 10 + 9)).endswith('>')


def test_a_source_that_never_closes_a_microbatch_is_not_asked_for_ever() -> None:
    d = Driver()
    d.unit(r(0, 9))
    for _ in range(2):
        d.data(r(10, 19))
        assert d.data(r(20, 29)) == 'abandon reconnect'
    d.data(r(10, 19))
    with pytest.raises(ProtocolError, match='does not continue'):
        d.data(r(20, 29))


def test_an_unknown_cursor_peels_units_until_the_chains_meet() -> None:
    """The server forgot the orphans: it starts at the number that it is asked from, again and again."""
    d = Driver()
    for n in range(6):
        d.unit(r(n, n))
    for n in (5, 4, 3):
        assert d.data(r(n, 9, 'b', 'b')).endswith('reconnect')
    assert d.position() == at(1)
    assert d.unit(r(2, 9, 'b', 'a')) == 'rows6 <6>'


def test_a_dropped_connection_forgets_the_unit_in_hand() -> None:
    d = Driver()
    d.unit(r(0, 9))
    d.close(r(10, 19), commit=False)
    d.data(r(20, 29))
    d.machine.connected()
    assert not d.machine.is_dirty
    assert d.machine.at_boundary
    assert d.unit(r(10, 29)) == 'rows3 <3>'


def test_a_dropped_connection_forgets_an_undo_that_was_not_committed() -> None:
    d = Driver()
    d.unit(r(0, 9))
    d.unit(r(10, 19))
    assert d.data(r(10, 15, 'b', 'a')) == 'undo1-1 rows2'
    d.machine.connected()
    assert d.position() == at(19)
    assert d.machine.pending is d.machine.committed
    assert d.data(r(10, 16, 'b', 'a')) == 'undo1-1 rows3'


def test_a_flip_back_to_the_first_branch_uses_new_ids() -> None:
    d = Driver()
    d.unit(r(0, 9))
    d.unit(r(10, 19))
    assert d.unit(r(10, 20, 'b', 'a')) == 'undo1-1 rows2 <2>'
    assert d.unit(r(10, 21, 'a')) == 'undo2-2 rows3 <3>'
    assert d.unit(r(10, 22, 'b', 'a')) == 'undo3-3 rows4 <4>'


def test_an_epoch_ends_with_its_last_id() -> None:
    d = Driver()
    d.machine._counter = MAX_COUNTER
    assert not d.machine.epoch_is_spent
    d.unit(r(0, 9))
    assert d.machine.epoch_is_spent
    with pytest.raises(IntegrityError):
        d.data(r(10, 19))
    d.restart()
    assert not d.machine.epoch_is_spent


def test_batch_ids_of_one_and_of_two_networks() -> None:
    one, two = r(0, 9), r(0, 9, network='base')
    first, second = (BatchIdentifier.from_block_range(x).unique_id for x in (two, one))
    assert batch_id([one]) == second
    assert batch_id([one, two]) == batch_id([two, one]) == f'{first}|{second}'


# Batches that a caller made


def bare(start: int, end: int, network: str = 'eth') -> BlockRange:
    return BlockRange(network, start, end)


def test_hand_made_ranges_need_no_hashes_and_may_leave_gaps() -> None:
    d = Driver(strict=False)
    assert d.unit(bare(0, 9)) == 'rows0 <0>'
    assert d.unit(bare(20, 29)) == 'rows1 <1>'
    assert d.unit(bare(20, 29)) == 'undo1-1 rows2 <2>'


def test_hand_made_rows_of_an_unclosed_microbatch_are_never_dropped_in_silence() -> None:
    d = Driver(strict=False)
    d.data(bare(0, 9))
    with pytest.raises(ProtocolError) as caught:
        d.close(bare(10, 19))
    assert caught.value.context['rule'] == 'UnfinishedMicrobatch'
    d = Driver(strict=False)
    d.data(bare(0, 9))
    with pytest.raises(ProtocolError):
        d.machine.reorg([bare(10, 19)])


def test_hand_made_ranges_that_do_not_link_are_an_error_at_once() -> None:
    d = Driver(strict=False)
    d.unit(r(0, 9))
    with pytest.raises(ProtocolError):
        d.data(r(15, 19))


def test_news_of_a_reorg_takes_back_what_reaches_to_it() -> None:
    d = Driver(strict=False)
    for span in (bare(0, 9), bare(10, 19), bare(20, 29)):
        d.unit(span)
    d.close(bare(30, 39), commit=False)
    assert isinstance(d.machine.reorg([bare(15, 25)]), Flush)
    d.commit()
    step = d.machine.reorg([bare(15, 25)])
    assert isinstance(step, Rewind)
    assert not step.reconnect
    assert [(d._n(a), d._n(b)) for a, b in step.undo.runs] == [(1, 3)]
    d.commit()
    assert isinstance(d.machine.reorg([bare(15, 25)]), Idle)
    assert d.machine.committed.position.ranges[0].end == 9


def test_news_of_a_reorg_of_the_open_microbatch_abandons_it() -> None:
    d = Driver(strict=False)
    d.unit(bare(0, 9))
    d.data(bare(10, 19))
    assert isinstance(d.machine.reorg([bare(12, 19)]), Abandon)
    assert isinstance(d.machine.reorg([bare(12, 19)]), Idle)
    assert d.unit(bare(10, 21)) == 'rows2 <2>'


def test_news_of_a_reorg_of_final_history_is_an_error() -> None:
    d = Driver(strict=False, retention=5)
    for n in range(20):
        d.unit(bare(n, n))
    with pytest.raises(ReorgTooDeepError):
        d.machine.reorg([bare(3, 20)])
