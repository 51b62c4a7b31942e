"""Broken networks between amp and each destination: whatever breaks and whenever, the rows are those of the oracle.

A part of the table runs always, all of it as `slow`. A unit is 4,000 rows; its second kind undoes a reorg first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import amp.loaders.redis.connect as redis_connect
from amp.devserver import LocalAmp
from tests.support.faults import At, Run, hook
from tests.support.places import PLACES, Place
from tests.support.tcp_proxy import TcpProxy, schedule

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

MARKS = {'iceberg-catalog': 'iceberg'}
SILENCE = 50.0


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(redis_connect, '_LONGEST_SILENCE', 2.0)
    with PLACES[request.param](request.getfixturevalue, tmp_path) as found:
        yield found
        hook(monkeypatch, None)


@pytest.fixture
def run(place: Place) -> Iterator[Run]:
    with LocalAmp.simulate(seed=6, blocks=8, logs_per_block=400, microbatch_max_blocks=20) as local:
        yield Run(local, place.loader, place.through, place.direct, place.table)


# What goes wrong: at which moment of the unit, and what then happens to the network.

Fault = tuple[str, Callable[[Place], Any]]


def _some(place: Place) -> int:
    return 300 if place.few else 5_000


def _stall(place: Place) -> None:
    place.proxy.arm('stall', 'sent', _some(place), seconds=3.0 if place.patient_uploads else SILENCE)


def _away(place: Place) -> None:
    place.proxy.refuse()
    place.proxy.cut()
    place.proxy.done['away'] += 1
    threading.Timer(0.5, lambda: place.proxy.refuse(False)).start()


def _lose_commit(place: Place) -> None:
    place.proxy.lose_reply_to(place.commit)


FAULTS: dict[str, Fault] = {
    'reset in the rows': ('unit.begun', lambda place: place.proxy.arm('reset', 'sent', _some(place))),
    'cut in the rows': ('unit.begun', lambda place: place.proxy.arm('cut', 'sent', 4 * _some(place))),
    'reset in an answer': ('unit.begun', lambda place: place.proxy.arm('reset', 'received', 0)),
    'reset before the commit': ('commit', lambda place: place.proxy.arm('reset', 'sent')),
    'the answer to the commit is lost': ('commit', _lose_commit),
    'half an answer to the commit': ('commit', lambda place: place.proxy.arm('cut', 'received', 3)),
    'stall in the rows': ('unit.begun', _stall),
    'stall at the commit': ('commit', lambda place: place.proxy.arm('stall', 'received', 0, seconds=SILENCE)),
    'away for a while': ('unit.after_data', _away),
    'slow': ('unit.begun', lambda place: place.proxy.drip(2_000_000)),
}
HTTP_FAULTS: dict[str, Fault] = {
    '429 in the rows': ('unit.begun', lambda place: place.proxy.answer(429, times=2, retry_after=1)),
    '503 in the rows': ('unit.begun', lambda place: place.proxy.answer(503, times=2, retry_after=1)),
    '429 to the commit': ('commit', lambda place: place.proxy.answer(429, times=2, retry_after=1, to=place.request)),
    '503 to the commit': ('commit', lambda place: place.proxy.answer(503, times=2, retry_after=1, to=place.request)),
}
ALWAYS = {
    ('reset in the rows', 'append'),
    ('the answer to the commit is lost', 'reorg'),
    ('stall in the rows', 'append'),
    ('429 in the rows', 'append'),
    ('503 to the commit', 'reorg'),
}
SPEAK_HTTP = {'clickhouse', 'snowflake', 'deltalake', 'parquet', 'iceberg'}


def _table() -> Iterator[Any]:
    for name in PLACES:
        for fault in [*FAULTS, *(HTTP_FAULTS if name in SPEAK_HTTP else ())]:
            if name == 'iceberg-catalog' and fault.startswith('stall'):
                # Nothing of ours waits there: a catalog in PostgreSQL is reached by SQLAlchemy.
                continue
            for unit in ('append', 'reorg'):
                marks = [getattr(pytest.mark, MARKS.get(name, name))]
                if (fault, unit) not in ALWAYS:
                    marks.append(pytest.mark.slow)
                yield pytest.param(name, fault, unit, marks=marks, id=f'{name}-{fault}-{unit}')


@pytest.mark.parametrize(('place', 'fault', 'unit'), [*_table()], indirect=['place'])
def test_a_fault_loses_nothing_and_doubles_nothing(place: Place, run: Run, monkeypatch, fault: str, unit: str) -> None:
    point, break_it = {**FAULTS, **HTTP_FAULTS}[fault]
    at = At('commit.before' if point == 'commit' else point, lambda: break_it(place))

    def change() -> None:
        hook(monkeypatch, at)
        if unit == 'append':
            run.mine(10)
        else:
            run.amp.reorg(3, extend=10)
            run.oracle.look()

    run.follow(change)
    assert at.happened
    assert place.proxy.done, 'nothing went wrong'
    waited = fault == 'stall in the rows' and place.patient_uploads
    assert waited or not place.proxy.done['stall ended here'], 'the silence was waited out'
    place.proxy.heal()
    run.check()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
    'place', [pytest.param(n, marks=getattr(pytest.mark, MARKS.get(n, n))) for n in PLACES], indirect=True
)
def test_a_network_that_breaks_by_a_schedule(place: Place, run: Run, seed: int) -> None:
    proxy: TcpProxy = place.proxy
    sent, received = (10_000, 5_000) if place.few else (200_000, 20_000)

    def begin() -> None:
        proxy.misbehave(schedule(seed, sent=sent, received=received, most=12), stall_seconds=0.3)
        run.mine(5)

    steps = [lambda depth=depth: run.reorg(depth) for depth in (2, 6, 1)]
    run.follow(begin, *steps, lambda: run.mine(5), seconds=200)
    proxy.heal()
    assert proxy.done
    run.check()
