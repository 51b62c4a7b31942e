"""A loader with a mistake in it tells its author what is wrong. The loaders are the guide's own, each with one change."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from amp.cli.loaders import _describe
from amp.errors import AmpError
from amp.loaders import registry
from amp.loaders.registry import create_loader, get_loader_class
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).parents[2] / 'examples' / 'loaders'
SOURCES = {
    'sqlite': (EXAMPLES / 'amp-loader-sqlite/src/amp_loader_sqlite/sqlite_loader.py').read_text(),
    'shelf': (EXAMPLES / 'amp-loader-shelf/src/amp_loader_shelf/shelf_loader.py').read_text(),
}
PATH_KEYS = {'sqlite': 'path', 'shelf': 'root'}


@pytest.fixture(autouse=True)
def defined(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is defined here is forgotten afterwards."""
    monkeypatch.setattr(registry.LoaderRegistry, '_defined', dict(registry.LoaderRegistry._defined))


def with_mistake(name: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SOURCES[name].count(right) == 1, right
    module = types.ModuleType(f'{name}_with_a_mistake')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(SOURCES[name].replace(right, wrong), module.__dict__)


@contextmanager
def closing_even_so(loader: Any) -> Iterator[None]:
    try:
        yield
    finally:
        loader.disconnect()


def use(name: str, folder: Path) -> Iterator[str | None]:
    """What a person does with a loader, one thing after the other; the error of each."""
    made = create_loader(name, {PATH_KEYS[name]: str(folder / 'x'), 'durable': False})
    # One that forgets to say that it is connected would leave what it opened.
    with closing_even_so(made), made as loader:
        yield loader.load_table(pa.table({'n': [1]}), 'plain').error
        yield loader.load_table(pa.table({'n': [2]}), 'plain', mode='overwrite').error
        for number in range(2):
            metadata = BatchMetadata([BlockRange('net', 0, 0, f'0x{number}')], ranges_complete=True)
            response = ResponseBatch.data_batch(pa.record_batch({'n': [3]}), metadata)
            for result in loader.load_stream_continuous([response], 'streamed'):
                yield result.error


def first_error(name: str, folder: Path) -> str | None:
    try:
        return next((error for error in use(name, folder) if error), None)
    except AmpError as error:
        return str(error)


@pytest.mark.parametrize('name', SOURCES)
def test_without_a_mistake_there_is_no_error(name, tmp_path, monkeypatch):
    with_mistake(name, 'from __future__', 'from __future__', monkeypatch)
    assert first_error(name, tmp_path) is None


MISTAKES = [
    # a method that is not there
    ('sqlite', 'def connect(', 'def conect(', 'SQLiteLoader has no connect (a loader writes _load_batch_impl, conn'),
    ('sqlite', 'def _load_batch_impl(', 'def load_batch_impl(', 'SQLiteLoader has no _load_batch_impl'),
    ('sqlite', 'def begin(', 'def start(', 'SQLiteLoader has open_stream and no begin (a stream in its own transactions'),
    ('shelf', 'def _delete_runs(', 'def delete_runs(', 'ShelfLoader has _read_state and no _delete_runs (a stream by'),
    ('shelf', 'def _write_state(', 'def write_state(', 'ShelfLoader has _read_state and no _write_state'),
    ('shelf', 'def _clear_table(', 'def clear_table(', "cannot clear the table 'plain' (it needs _clear_table for over"),
    # a return that is not what it should be
    ('sqlite', 'return insert(self.connection, ', 'insert(self.connection, ', '_load_batch_impl of sqlite returned None, not the n'),
    ('sqlite', "return insert(self._connection, 'temp._amp_stage', batch)", "return insert(self._connection, 'temp._amp_stage', batch) - 1", 'sqlite took 0 of 1 rows of a batch; the unit was rolled back'),
    ('sqlite', "return ['path']", "return 'path'", "_get_required_config_fields of sqlite returned 'path', not a list of names"),
    ('shelf', 'return None if found is None else found.decode()', 'return found', "_read_state of shelf returned b'"),
    ('shelf', 'return self.shelf.replace(\n', 'self.shelf.replace(\n', '_write_state of shelf returned None, not True or False'),
    # what the class says of itself
    ('sqlite', '= {LoadMode.APPEND, LoadMode.OVERWRITE}', "= {'append'}", "SUPPORTED_MODES of SQLiteLoader names 'append', which is no mode (modes: LoadMode.A"),
    ('sqlite', "URL_PATH_KEY: ClassVar[str | None] = 'path'", "URL_PATH_KEY = 'file'", "URL_PATH_KEY of SQLiteLoader is 'file', which SQLiteConfig does not have"),
    ('sqlite', "return ['path']", "return ['file']", "sqlite requires 'file', which SQLiteConfig does not have"),
    ('sqlite', '        self._is_connected = True\n', '', 'connect of sqlite returned and the loader is not connected (it sets self._is_connec'),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'right', 'wrong', 'sentence'), MISTAKES, ids=[m[3][:50] for m in MISTAKES])
def test_a_mistake_is_named(name, right, wrong, sentence, tmp_path, monkeypatch):
    with_mistake(name, right, wrong, monkeypatch)
    assert sentence in (first_error(name, tmp_path) or 'no error')


def test_python_itself_names_a_missing_method(monkeypatch):
    with_mistake('sqlite', 'def connect(', 'def conect(', monkeypatch)
    with pytest.raises(TypeError, match=r"abstract method '?connect"):
        registry.LoaderRegistry._defined['sqlite']({'path': 'x'})


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'mode': 'sideways'}, "there is no mode 'sideways' (modes: append, merge, overwrite, upsert)"),
        ({'no_such_option': 1}, "unknown option 'no_such_option' for sqlite"),
    ],
)
def test_a_user_of_the_example_is_told_what_is_wrong(options, sentence, tmp_path, monkeypatch):
    with_mistake('sqlite', 'from __future__', 'from __future__', monkeypatch)
    with create_loader('sqlite', {'path': str(tmp_path / 'x')}) as loader:
        with pytest.raises(ValueError, match=r'sqlite|mode') as raised:
            loader.load_table(pa.table({'n': [1]}), 't', **options)
        assert sentence in str(raised.value)
        upsert = loader.load_table(pa.table({'n': [1]}), 't', mode='upsert', key_columns=['n'])
        assert upsert.error == 'sqlite has no mode upsert (it has: append, overwrite)'
    with pytest.raises(ValueError, match="unknown configuration key 'pth' for sqlite"):
        create_loader('sqlite', {'path': 'x', 'pth': 'y'})


def announce(folder: Path, value: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package, as far as Python looks: its metadata, and a module."""
    about = folder / 'amp_loader_mine-1.0.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: amp-loader-mine\nVersion: 1.0\n')
    (about / 'entry_points.txt').write_text(f'[amp.loaders]\nmine = {value}\n')
    (folder / 'mine_of_a_test.py').write_text(module)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, 'mine_of_a_test', raising=False)


@pytest.mark.parametrize(
    ('value', 'module', 'sentence'),
    [
        ('mine_of_a_test:Mine', 'x = 1', "of amp-loader-mine, 'mine_of_a_test:Mine', cannot be imported: module"),
        ('mine_of_a_test:x', 'import no_such_driver', "cannot be imported: No module named 'no_such_driver'"),
        ('not_there:Mine', '', "cannot be imported: No module named 'not_there'"),
        ('mine_of_a_test:Mine', 'class Mine: ...', 'is no class of a loader (an entry point names a subclass'),
        ('mine_of_a_test', '', 'is no class of a loader'),
    ],
)
def test_an_entry_point_with_a_mistake_is_named_with_its_package(value, module, sentence, tmp_path, monkeypatch):
    announce(tmp_path, value, module, monkeypatch)
    registry._plugins.cache_clear()
    try:
        assert 'mine' in registry.get_available_loaders()
        with pytest.raises(ValueError, match="the loader 'mine'") as raised:
            get_loader_class('mine')
        assert sentence in str(raised.value)
        listed = _describe('mine')
        assert not listed['ready']
        assert sentence in listed['install'], 'amp loaders says it, and goes on'
    finally:
        registry._plugins.cache_clear()


def test_a_file_without_its_loader_is_named(tmp_path, monkeypatch):
    (tmp_path / 'mine_loader.py').write_text('class Other: ...')
    package: Any = sys.modules['amp.loaders.implementations']
    monkeypatch.setattr(package, '__path__', [*package.__path__, str(tmp_path)])
    registry._own_modules.cache_clear()
    try:
        with pytest.raises(
            ValueError, match=r"implementations.mine_loader defines no loader 'mine' \(a class MineLoader"
        ):
            get_loader_class('mine')
    finally:
        registry._own_modules.cache_clear()
        sys.modules.pop('amp.loaders.implementations.mine_loader', None)
