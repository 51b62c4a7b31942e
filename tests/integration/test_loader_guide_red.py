"""What the guide says of its examples: break a promise here, and that test goes red. Each is broken, and does."""

from __future__ import annotations

from pathlib import Path

import pytest

from amp.testing import proofs
from amp.testing.conformance import Conformance, Destination
from amp.testing.scenarios import SCENARIOS

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / 'src/amp/loaders/NEW_LOADER_GUIDE.md').read_text()
EXAMPLES = REPOSITORY / 'examples' / 'loaders'
LOADERS = {'sqlite': ('SQLiteLoader', 'path'), 'shelf': ('ShelfLoader', 'root')}
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

_COMMIT_FIRST = "self._connection.execute('COMMIT'), self._connection.execute('BEGIN IMMEDIATE')\n            "
_SAVE = 'self._loader._streams.save(self._run, self._key, state)'
_ANY_EPOCH = (
    "self._run('UPDATE _amp_streams SET document = ? WHERE table_name = ? AND stream = ?', "
    '[state.to_json(), *self._key])'
)


def crash_before_the_state(kit):
    kit.crash_at(BY_NAME['append'], [{'point': 'commit.before', 'nth': 1}])


def crash_after_a_value(kit):
    kit.crash_at(BY_NAME['append'], [{'point': 'shelf.put', 'nth': 1}])


def reorg(kit):
    kit.run(BY_NAME['reorg inside a range'])


# What the guide's table says, then what is broken and the proof that finds it.
BROKEN = [
    ('sqlite', 'commit rows before the state', _SAVE, _COMMIT_FIRST + _SAVE, crash_before_the_state, 'rows found, 0 expected'),
    ('sqlite', 'save the state whatever the epoch', _SAVE, _ANY_EPOCH, proofs.late_writer_loses, 'nothing came from the process|StaleEpochError'),
    ('sqlite', 'forget the undo', 'self._take_back(self._undo)', 'pass', reorg, 'not on the branch'),
    ('shelf', 'leave out the last id of a run', '<= tx_id <= run.last', '<= tx_id < run.last', reorg, 'not on the branch'),
    ('shelf', 'show what is not done', 'undo_by_id(self).uncommitted(table_name)', '()', crash_after_a_value, 'rows found, 0 expected'),
    ('shelf', 'replace a document without looking', 'if self.get(shelf, name) != expected:', 'if False:', proofs.documents_are_compared, 'it should have said False'),
]  # fmt: skip

QUICK = {'forget the undo', 'replace a document without looking'}


def test_the_guide_tells_of_each():
    assert all(f'| {what} |' in GUIDE for _, what, *_ in BROKEN)


@pytest.mark.parametrize(
    ('name', 'what', 'right', 'wrong', 'proof', 'found'),
    [pytest.param(*broken, id=broken[1], marks=() if broken[1] in QUICK else pytest.mark.slow) for broken in BROKEN],
)
def test_it_goes_red(name, what, right, wrong, proof, found, tmp_path, monkeypatch):
    source = (EXAMPLES / f'amp-loader-{name}/src/amp_loader_{name}/{name}_loader.py').read_text()
    assert source.count(right) == 1
    module = f'{name}_{what.replace(" ", "_")}'
    (tmp_path / f'{module}.py').write_text(source.replace(right, wrong))
    monkeypatch.syspath_prepend(str(tmp_path))
    class_name, key = LOADERS[name]
    destination = Destination(f'{module}:{class_name}', {key: str(tmp_path / 'here'), 'durable': False})
    with Conformance(destination) as kit, pytest.raises(AssertionError, match=found):
        proof(kit)
