"""Every destination of amp is held to the same: it inherits all classes of tests that there are for destinations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parents[1]
LOADERS = Path(__file__).parents[2] / 'src' / 'amp' / 'loaders' / 'implementations'
NAMES = sorted(path.stem.removesuffix('_loader') for path in LOADERS.glob('*_loader.py'))


def bases(path: Path) -> set[str]:
    """The names of the classes that test classes of a file inherit, directly or from another class of the file."""
    return {
        base.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }


def test_there_are_nine():
    assert len(NAMES) >= 9


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('inherited', ['BaseLoaderTests', 'BaseStreamingTests', 'BaseTypeTests'])
def test_a_destination_inherits_what_all_are_held_to(name, inherited):
    assert inherited in bases(TESTS / 'integration' / 'loaders' / 'backends' / f'test_{name}.py')


@pytest.mark.parametrize('name', NAMES)
def test_a_destination_is_put_through_the_conformance_kit(name):
    assert 'ExactlyOnceTests' in bases(TESTS / 'chaos' / f'test_{name}_exactly_once.py')


@pytest.mark.parametrize('name', NAMES)
def test_a_destination_says_which_keywords_it_takes_and_that_it_streams(name):
    """The inherited tests ask nothing of a loader that does not say so; ours do."""
    source = (LOADERS / f'{name}_loader.py').read_text()
    assert 'LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset(' in source
    tests = (TESTS / 'integration' / 'loaders' / 'backends' / f'test_{name}.py').read_text()
    assert not any(f'supports_{what} = False' in tests for what in ('streaming', 'multi_network', 'null_values'))
