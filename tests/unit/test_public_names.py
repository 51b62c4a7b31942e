"""What `import amp` offers, and that `src.amp` is the same thing under another name."""

from __future__ import annotations

import importlib

import pytest

import amp

pytestmark = pytest.mark.unit

_STREAMING = ['iterator', 'parallel', 'reorg', 'resilience', 'state', 'types']


def test_all_is_sorted_and_everything_in_it_exists() -> None:
    assert amp.__all__ == sorted(amp.__all__)
    for name in amp.__all__:
        assert getattr(amp, name) is not None
    assert set(amp.__all__) <= set(dir(amp))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match='Klient'):
        _ = amp.Klient


@pytest.mark.parametrize(
    'module',
    ['amp', 'amp.client', 'amp.errors', 'amp.flight.protocol', 'amp.loaders.registry', 'amp.loaders.types',
     'amp.streaming', 'amp.streaming.types'],
)  # fmt: skip
def test_src_amp_is_the_same_module(module: str) -> None:
    aliased = importlib.import_module(f'src.{module}')
    assert aliased is importlib.import_module(module)
    assert aliased.__spec__ is not None
    assert aliased.__spec__.name == module


def test_classes_hold_across_both_names() -> None:
    from src.amp.errors import QueryError
    from src.amp.streaming import types
    from src.amp.streaming.types import BlockRange

    assert isinstance(QueryError('no'), amp.AmpError)
    assert BlockRange is amp.BlockRange
    assert types.BlockRange('mainnet', 1, 2) == amp.BlockRange('mainnet', 1, 2)


def test_streaming_offers_what_its_rooms_have() -> None:
    from amp import streaming

    assert streaming.__all__ == sorted(streaming.__all__)
    rooms = [importlib.import_module(f'amp.streaming.{room}') for room in _STREAMING]
    for name in streaming.__all__:
        assert any(getattr(room, name, None) is getattr(streaming, name) for room in rooms), name
    with pytest.raises(AttributeError, match='Streem'):
        _ = streaming.Streem


def test_the_registry_has_its_functions_as_methods() -> None:
    from amp.loaders import LoaderRegistry, registry

    assert LoaderRegistry.get_available_loaders() == registry.get_available_loaders()
    assert LoaderRegistry.get_loader_class('duckdb') is registry.get_loader_class('duckdb')
    assert LoaderRegistry.create_loader('duckdb', {'path': ':memory:'}).config.path == ':memory:'
    with pytest.raises(ValueError, match='there is no loader'):
        LoaderRegistry.get_loader_class('nope')


def test_a_module_that_is_not_there_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r'src\.amp\.nothing'):
        importlib.import_module('src.amp.nothing')
