"""The command `amplify-db-migrate`: bring a store of an older form up to date, in place and without rewriting data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from amplify_db_utils import registry
from amplify_db_utils.config import DuckDBParquetConfig
from amplify_db_utils.errors import StoreError
from amplify_db_utils.store import DuckDBParquetStore


def migrate(root: str) -> list[str]:
    """Begin a log for every table in the registry that has none, over the files as they are; the names of those tables.

    `root` is the store's root, or its `_registry/tables.json`. A second run finds nothing to do.
    Raises StoreError where there is no registry, or a table is not what the registry says; tables before it are done.
    """
    root = root.removesuffix(registry.PATH) or '.'
    begun = []
    with DuckDBParquetStore(DuckDBParquetConfig(root=root if root == '/' else root.rstrip('/'))) as store:
        entries = store.registered()
        if not entries:
            raise StoreError(f'{root!r} has no {registry.PATH} that lists tables')
        for name, (schema, partition_by) in entries.items():
            if not store.log(name).exists():
                begun.append(name)
            store.create_table(name, schema, partition_by)
    return begun


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 0 for success, 1 for an error, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog='amplify-db-migrate', description=__doc__)
    parser.add_argument(
        'path', help="the store's root (a directory or s3://bucket/prefix), or its _registry/tables.json"
    )
    path = parser.parse_args(arguments).path
    try:
        begun = migrate(path)
    except (StoreError, OSError, ValueError) as error:
        print(f'amplify-db-migrate: {error}', file=sys.stderr)
        return 1
    print(f'{len(begun)} tables migrated' + (f': {", ".join(begun)}' if begun else ''))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
