"""No Python touches a row: what would turn Arrow into Python objects is called on single values and on labels only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SOURCE = Path(__file__).parents[2] / 'src' / 'amp'

# Each of these looks at one value, or at something that is not rows: minima, keys in an error, labels, files, hashes.
ALLOWED = {
    'as_py': {
        'cli/doctor.py', 'cli/plan.py', 'config/label_file.py', 'config/label_index.py', 'devserver/evm/units.py',
        'loaders/iceberg/upsert.py', 'loaders/implementations/lmdb_loader.py', 'loaders/implementations/redis_loader.py',
        'loaders/lmdb/table.py', 'loaders/lmdb/unit.py', 'loaders/redis/checks.py', 'loaders/redis/reader.py', 'loaders/redis/resp.py',
        'loaders/redis/rows.py', 'loaders/redis/table.py', 'loaders/redis/unit.py', 'loaders/row_keys.py',
    },
    'to_pylist': {
        'config/label_index.py', 'devserver/evm/eth_call.py', 'loaders/delta/compact.py', 'loaders/iceberg/files.py', 'loaders/parquet/unit.py',
        'testing/oracle.py',
    },
    'to_pydict': set(),
}  # fmt: skip


def calls(name: str) -> set[str]:
    found = set()
    for path in SOURCE.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                found.add(path.relative_to(SOURCE).as_posix())
    return found


@pytest.mark.parametrize('name', ALLOWED)
def test_rows_never_become_python_objects(name):
    assert calls(name) <= ALLOWED[name]
