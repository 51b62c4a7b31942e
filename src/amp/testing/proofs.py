"""What no crash at a named point shows: kills at any moment, a writer that wakes up late, company, size, lost replies."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

from amp.testing.conformance import Conformance, Trial
from amp.testing.oracle import Feed
from amp.testing.process import Child

__all__ = [
    'documents_are_compared',
    'late_writer_loses',
    'lost_acknowledgement',
    'memory_stays_flat',
    'random_kills',
    'second_process_is_refused',
    'two_streams_in_one_table',
    'upsert_is_refused',
]

_EACH = {'commit_rows': 1}
_LONGEST_LIFE = 0.4
_DEEPEST = 9


def random_kills(kit: Conformance, kills: int, seed: int) -> Trial:
    """Kill at `kills` random moments while the chain grows, forks, returns and forgets; check after each."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret

    def play(trial: Trial) -> None:
        (wire,) = trial.wires
        away = False
        for _ in range(kills):
            happens = chance.choice(['nothing', 'mine', 'reorg', 'reorg', 'leave', 'forget', 'ignore', 'split'])
            while_up = chance.random() < 0.5
            if while_up:
                trial.start(wire)
                time.sleep(chance.uniform(0, _LONGEST_LIFE / 2))
            if away:
                trial.switch_back(extend=chance.randint(1, 3))
            away = _happen(trial, happens, chance)
            if not while_up:
                trial.start(wire)
            time.sleep(chance.uniform(0, _LONGEST_LIFE))
            trial.kill(wire)
        trial.mine(1)
        trial.finish()

    return kit.trial(play, options=_EACH if seed % 2 else {})


def _happen(trial: Trial, what: str, chance: random.Random) -> bool:
    """Do it; True when the chain has left a branch to which it will return."""
    depth = chance.randint(1, _DEEPEST)
    match what:
        case 'mine':
            trial.mine(chance.randint(1, 6))
        case 'reorg' | 'leave':
            trial.reorg(depth, extend=chance.randint(1, 3))
        case 'forget':
            trial.reorg(depth)
            trial.amp.forget_orphans()
        case 'ignore':
            trial.amp.faults.ignore_cursor()
        case 'split':
            trial.amp.faults.split(chance.choice([None, 1, 3, 7]))
    return what == 'leave'


def documents_are_compared(kit: Conformance) -> None:
    """Where documents are kept, one is replaced only by who knows what is there: also between two of one moment."""
    loader: Any
    with kit.destination.make() as loader:
        if not (hasattr(loader, '_read_state') and hasattr(loader, '_write_state')):
            return
        steps: list[tuple[str, str | None, bool]] = [
            ('first', None, True),
            ('second', None, False),
            ('second', 'something else', False),
            ('second', 'first', True),
            ('third', 'first', False),
        ]
        for text, expected, wanted in steps:
            if loader._write_state('conformance', text, expected) is not wanted:
                raise AssertionError(f'_write_state replaced {expected!r} by {text!r}: it should have said {wanted}')
        if (found := loader._read_state('conformance')) != 'second':
            raise AssertionError(f'_read_state found {found!r}, not what was written last')


def late_writer_loses(kit: Conformance, point: str = 'unit.after_data') -> None:
    """Stop a process inside a unit, let another take the stream, and wake the first: it must lose and leave no trace."""

    def play(trial: Trial) -> None:
        (wire,) = trial.wires
        late = trial.start(wire, {'point': point, 'nth': 2, 'action': 'stop'})
        late.wait_stopped()
        trial.start(wire)
        trial.follow()
        late.send_signal(signal.SIGCONT)
        expect_error(late, 'StaleEpochError', 5)
        trial.mine(2)
        trial.finish()

    kit.trial(play, options=_EACH)


def second_process_is_refused(kit: Conformance) -> None:
    """A destination of one process at a time says so to the second, and goes on."""

    def play(trial: Trial) -> None:
        (wire,) = trial.wires
        trial.follow()
        first = wire.child
        expect_error(trial.start(wire), 'DestinationError', 5)
        wire.child = first
        trial.mine(2)
        trial.finish()

    kit.trial(play, options=_EACH)


def two_streams_in_one_table(kit: Conformance) -> None:
    """Two queries into one table: a reorg, and crashes, in one of them leave the other's rows alone."""

    def play(trial: Trial) -> None:
        low, high = trial.wires
        for wire in trial.wires:
            trial.follow(wire)
            trial.stop(wire)
        trial.reorg(6)
        trial.arm()
        trial.follow(low)
        trial.stop(low)
        if not kit.destination.single_process:
            trial.follow()
            trial.mine(3)
            trial.follow()
            trial.stop()
        for wire in (high, low):
            trial.follow(wire)
            trial.stop(wire)

    orders = [{'point': point, 'nth': 1} for point in ('unit.begun', 'unit.before_commit', 'unit.after_data')]
    trial = kit.trial(play, feeds=[Feed('low', 0, 1), Feed('high', 2)], options=_EACH, orders=orders)
    if not trial.kills:
        raise AssertionError('no process was killed')


def memory_stays_flat(kit: Conformance, *, rows: int = 100_000, times: int = 4) -> tuple[int, int]:
    """One microbatch of `rows` rows, and one of `times` as many: peak memory (KiB) of the process for each.

    Raises AssertionError when it grows by more than half of the bytes that came in addition.
    """
    peaks, sizes = [], []

    def play(trial: Trial) -> None:
        trial.amp.faults.split(rows // 20)
        trial.follow()
        (wire,) = trial.wires
        child: Child | None = wire.child
        if child is None or child.commits != 1:
            raise AssertionError('one microbatch is one commit')
        peaks.append(child.peak_rss_kb)
        sizes.append(trial.oracle.expected({wire.feed: trial.told(wire)}).nbytes // 1024)
        trial.stop()

    for n in (rows, rows * times):
        kit.trial(play, options={'max_bytes': 4 * 1024**2}, blocks=50, logs_per_block=n // 50, cap=1000)
    if peaks[1] - peaks[0] > (sizes[1] - sizes[0]) // 2:
        raise AssertionError(f'microbatches of {sizes} KiB took {peaks} KiB')
    return peaks[0], peaks[1]


def lost_acknowledgement(kit: Conformance) -> None:
    """Lose the answer to a commit: the process finds out what happened, and no row is there twice or counted twice."""
    if kit.destination.proxy is None:
        raise AssertionError('the destination has no proxy')
    with kit.destination.proxy() as proxy:

        def play(trial: Trial) -> None:
            (wire,) = trial.wires
            child = trial.start(wire, config=proxy.config)
            trial.follow()
            for _ in range(2):
                proxy.lose_replies()
                trial.mine(2)
                trial.follow()
                proxy.heal()
            if wire.child is not child:
                raise AssertionError('the process did not survive')
            rows = trial.oracle.expected({wire.feed: trial.told(wire)}).num_rows
            if child.rows != rows:
                raise AssertionError(f'{child.rows} rows were reported, {rows} are there')
            trial.finish()

        kit.trial(play, options=_EACH)


def upsert_is_refused(kit: Conformance) -> None:
    """A loader without UPSERT says so before anything is written."""

    def play(trial: Trial) -> None:
        (wire,) = trial.wires
        expect_error(trial.start(wire), 'ConfigError', 3)
        wire.child = None
        trial.check()

    kit.trial(play, options={'mode': 'upsert', 'key_columns': ['address']})


def expect_error(child: Child, name: str, exit_code: int) -> None:
    """Wait for the end of a process that must fail with this error. Raises AssertionError."""
    code = child.wait_end()
    if code != exit_code or child.error is None or child.error['type'] != name:
        raise AssertionError(f'the process should have ended with {name}: {child.told()}')
