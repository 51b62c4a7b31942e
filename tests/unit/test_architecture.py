"""Arrows between rooms point one way; the page about it names every room; what it quotes is what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / 'src' / 'amp'

# Lowest first: a room may import those of the lines above its own, and those of its own line only where they are one room.
LEVELS = [
    {'errors', 'events', 'waiting'},
    {'streaming'},
    {'config', 'instrumentation'},
    {'auth'},
    {'flight'},
    {'loaders', 'devserver'},
    {'client', 'query'},
    {'label_words'},
    {'backfill', 'pipeline'},
    {'testing', 'ui'},
    {'cli'},
    {'__main__'},
]
ROOMS = set().union(*LEVELS)
ONE_ROOM = [{'client', 'query'}]
UPWARD = {
    ('amp.query', 'backfill'): 'Query.load(parallel_config=...)',
    ('amp.streaming.parallel', 'backfill'): 'the name that users know',
}
# Folders beside those of the destinations: what several of them are built on.
NO_DESTINATION = {'implementations', 'deltalog', '__pycache__'}
NEVER_AT_REST = {'socket', 'subprocess', 'urllib', 'http', 'pyarrow.flight', 'pyarrow.fs', 'ssl', 'asyncio'}


def level(room: str) -> int:
    return next(n for n, rooms in enumerate(LEVELS) if room in rooms)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob('*.py')):
        name = '.'.join(['amp', *path.relative_to(SOURCE).with_suffix('').parts]).removesuffix('.__init__')
        yield name, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that the code can import when it runs: those that only type checkers read are left out."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names if node.module == 'amp')


def room_of(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


MODULES = dict(modules())


@pytest.mark.parametrize('name', MODULES)
def test_no_import_points_upward(name):
    room = room_of(name)
    if not room:
        return  # the package itself only names things, when they are asked for
    for wanted in imports(MODULES[name]):
        other = room_of(wanted) if wanted.startswith('amp.') else ''
        if other not in ROOMS or other == room or (name, other) in UPWARD or {room, other} in ONE_ROOM:
            continue
        assert level(other) < level(room), f'{name} imports {wanted}'


def test_every_exception_is_still_one():
    for (name, room), _ in UPWARD.items():
        assert any(wanted.startswith(f'amp.{room}') for wanted in imports(MODULES[name])), (name, room)


def test_streaming_touches_nothing():
    for name, tree in MODULES.items():
        if room_of(name) == 'streaming':
            assert not set(imports(tree)) & NEVER_AT_REST, name


def test_destinations_do_not_know_each_other():
    folders = {path.name for path in (SOURCE / 'loaders').iterdir() if path.is_dir()} - NO_DESTINATION
    for name, tree in MODULES.items():
        parts = name.split('.')
        if parts[1:2] != ['loaders'] or len(parts) < 4:
            continue
        own = parts[3].removesuffix('_loader') if parts[2] == 'implementations' else parts[2]
        own = {'deltalake': 'delta'}.get(own, own)
        for wanted in imports(tree):
            theirs = wanted.split('.')
            if theirs[:2] == ['amp', 'loaders'] and len(theirs) > 2 and theirs[2] in folders:
                assert theirs[2] == own, f'{name} imports {wanted}'


def test_only_flight_and_the_local_server_know_the_wire():
    for name, tree in MODULES.items():
        if any(wanted.startswith('pyarrow.flight') or wanted == 'pyarrow.flight' for wanted in imports(tree)):
            assert room_of(name) in {'flight', 'devserver'}, name


def test_files_of_ours_that_texts_of_the_code_name_are_there():
    there = {path.relative_to(SOURCE) for path in SOURCE.rglob('*.py')}
    for path in sorted(there):
        for named in re.findall(r'`([\w/]+\.py)`', (SOURCE / path).read_text()):
            assert any(f'/{other}'.endswith(f'/{named}') for other in there), f'{path} names {named}'


def has_comment(line: str) -> bool:
    """Whether words say why, beside what a linter is told."""
    _, _, comment = line.partition('#')
    return re.search(r'\w', re.sub(r'noqa(: [A-Z0-9, ]+)?', '', comment)) is not None


def test_whoever_catches_everything_says_why():
    for path in sorted(SOURCE.rglob('*.py')):
        lines = path.read_text().splitlines()
        for at, line in enumerate(lines):
            if re.match(r'\s*except\b.*\b(Base)?Exception\b|\s*except:', line):
                near = lines[max(at - 1, 0) : at + 2]
                assert any(map(has_comment, near)), f'{path.relative_to(SOURCE)}:{at + 1} {line.strip()}'


def test_the_page_names_every_room():
    page = (REPOSITORY / 'docs' / 'architecture.md').read_text()
    told = set(re.findall(r'`amp\.(\w+)`', page))
    there = {p.stem for p in SOURCE.iterdir() if p.suffix == '.py' or (p / '__init__.py').exists()}
    assert there - {'__init__'} == ROOMS
    assert there - {'__init__', '__main__'} <= told


def test_errors_of_the_troubleshooting_page_are_texts_of_the_code():
    page = (REPOSITORY / 'docs' / 'troubleshooting.md').read_text()
    quoted = re.findall(r'^\| `([^`]+)` \|', page, re.MULTILINE)
    code = '\n'.join(path.read_text() for path in SOURCE.rglob('*.py'))
    assert len(quoted) > 20
    for text in quoted:
        assert text in code, text
