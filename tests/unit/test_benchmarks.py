"""What `make bench` says of two runs: which claims got worse, which cannot be compared, and what the picture shows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from benchmarks import __main__ as bench
from benchmarks._picture import picture
from benchmarks._record import changes, machine, missing, regressions, versions

pytestmark = pytest.mark.unit

HERE = {'cpu': 'one', 'cores': 2, 'memory_gb': 8, 'system': 'Linux', 'python': '3.11'}


def run(at: dict[str, Any] = HERE, **claims: tuple[str, float, float]) -> dict[str, Any]:
    """A run of one benchmark; a claim is its sign, its bound and its value."""
    found = {
        name.replace('_per_', ' / '): {
            'sign': sign,
            'bound': bound,
            'value': value,
            'ok': value >= bound if sign == '>=' else value <= bound,
        }
        for name, (sign, bound, value) in claims.items()
    }
    measured = {'seconds': 1.0, 'exit_code': 0, 'claims': found, 'rows_per_second': {'load': 1_500_000}}
    return {'size': 'quick', 'machine': at, 'versions': {'pyarrow': '26'}, 'benchmarks': {'duckdb': measured}}


def test_less_of_what_should_be_more_is_a_regression():
    before, now = run(load_per_bare=('>=', 0.9, 1.0)), run(load_per_bare=('>=', 0.9, 0.8))
    [change] = changes(now, before)
    assert (change.benchmark, change.claim, change.before, change.now) == ('duckdb', 'load / bare', 1.0, 0.8)
    assert change.change == pytest.approx(-0.2)
    assert regressions(now, before, 0.15) == [change]
    assert regressions(now, before, 0.25) == []
    assert str(change) == 'duckdb: load / bare: 1.000 -> 0.800 (-20%)'


def test_more_of_what_should_be_less_is_a_regression():
    before, now = run(undo_per_undo=('<=', 2.0, 1.0)), run(undo_per_undo=('<=', 2.0, 1.5))
    assert [c.change for c in regressions(now, before, 0.15)] == [pytest.approx(-0.5)]
    assert regressions(before, now, 0.15) == [], 'faster is none'


def test_the_worst_comes_first():
    before = run(a=('>=', 0, 1.0), b=('>=', 0, 1.0), c=('>=', 0, 1.0))
    now = run(a=('>=', 0, 0.7), b=('>=', 0, 0.5), c=('>=', 0, 1.2))
    assert [c.claim for c in changes(now, before)] == ['b', 'a', 'c']


@pytest.mark.parametrize('claim', ['64k rows: ms', 'us in memory', 'seconds to replace', 'Swap, 1,000 logs/s'])
def test_times_are_compared_on_the_same_machine_only(claim):
    before, now = run(**{claim: ('<=', 5.0, 1.0)}), run(**{claim: ('<=', 5.0, 4.0)})
    assert len(regressions(now, before, 0.15)) == 1
    assert regressions({**now, 'machine': {**HERE, 'cpu': 'other'}}, before, 0.15) == []


def test_what_one_run_lacks_is_no_regression_and_is_told():
    before, now = run(a=('>=', 0, 1.0), b=('>=', 0, 1.0)), run(b=('>=', 0, 1.0), c=('>=', 0, 1.0))
    assert [c.claim for c in changes(now, before)] == ['b']
    assert missing(now, before) == ['duckdb: a']
    assert missing({**now, 'benchmarks': {}}, before) == [], 'a benchmark that was not run says nothing'


@pytest.mark.parametrize(
    ('now', 'before', 'code', 'said'),
    [
        (run(a=('>=', 0.9, 1.0)), run(a=('>=', 0.9, 1.05)), 0, 'all bounds hold'),
        (run(a=('>=', 0.9, 1.0)), run(a=('>=', 0.9, 1.4)), 1, 'worse than recorded: duckdb: a: 1.400 -> 1.000 (-29%)'),
        (run(a=('>=', 0.9, 0.8)), None, 1, 'duckdb: a: 0.8 is not >= 0.9'),
        (run(a=('>=', 0.9, 1.0)), None, 0, 'nothing to compare with'),
    ],
)
def test_the_exit_code_and_the_words(now, before, code, said, capsys):
    assert bench.judge(now, before, 0.15) == code
    assert said in capsys.readouterr().out


def test_a_benchmark_that_died_is_told(capsys):
    now = run()
    now['benchmarks']['duckdb'] |= {'exit_code': -9, 'claims': bench.told('Killed\n')['claims']}
    assert bench.judge(now, None, 0.15) == 1
    assert 'duckdb failed' in capsys.readouterr().out


def test_every_benchmark_has_a_small_size_and_every_small_size_a_benchmark():
    assert set(bench.QUICK) | {'state'} == set(bench.names())


def test_an_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.main(['quick', '--only', 'oracle'])
    assert "there is no benchmark 'oracle'; there are backfill, " in capsys.readouterr().err


def test_the_picture_has_a_bar_for_each_speed_and_a_mark_for_the_record():
    now = run(load_per_bare=('>=', 0.9, 0.95), slow_per_bare=('>=', 0.9, 0.5), undo_per_undo=('<=', 2.0, 1.0))
    svg = ET.fromstring(picture(now, run(load_per_bare=('>=', 0.9, 1.0))))
    texts = [node.text for node in svg.iter() if node.text]
    assert {'duckdb', 'load / bare', '0.95', '1.50 M rows/s', 'slow / bare'} <= set(texts)
    assert not any('undo' in text for text in texts)
    bars = [node for node in svg.iter() if node.get('fill-opacity')]
    assert len({bar.get('fill') for bar in bars}) == 2, 'a missed bound has another colour'
    assert len([node for node in svg.iter() if node.get('stroke-width') == '2.5']) == 1


def test_the_machine_and_the_versions_can_be_written_down():
    told = json.loads(json.dumps({**machine(), **versions()}))
    assert told['cores'] >= 1
    assert told['pyarrow']


def test_a_rate_is_that_of_the_place_that_a_claim_speaks_of():
    now = run(**{'load / bare, HTTP': ('>=', 0.9, 1.0), 'load / bare, in this process': ('>=', 0.9, 1.0)})
    rates = {'bare, HTTP': 1, 'load, HTTP': 2_000_000, 'load, in this process': 3_000_000}
    now['benchmarks']['duckdb']['rows_per_second'] = rates
    shown = [text.text for text in ET.fromstring(picture(now, None)).iter() if (text.text or '').endswith('rows/s')]
    assert shown == ['2.00 M rows/s', '3.00 M rows/s']
