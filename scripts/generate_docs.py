"""Writes what pages take from the code: docs/types.md, docs/capabilities.md, the error table in docs/resilience.md, and
the files that the guide for loader authors shows.

python scripts/generate_docs.py           write them
python scripts/generate_docs.py --check   exit 1 when one is not what the code says
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from amp.loaders.arrow_types import TypeTable
from amp.loaders.type_tables import TABLES
from amp.streaming.error_kinds import ARROW_S3, BOTOCORE, CLASSES, CLICKHOUSE, HTTP, SQLSTATES, ErrorKind

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / 'docs'
GUIDE = REPOSITORY / 'src' / 'amp' / 'loaders' / 'NEW_LOADER_GUIDE.md'

# Arrow's kinds in the order of the page, and where Amp itself sends them.
KINDS = {
    'bool': 'receipts, `status`',
    'uint64': 'block and log numbers, nonces, gas',
    'uint32': 'indexes',
    'int32': 'transaction types',
    'text': 'uint256 as decimal digits, text',
    'bytes': '`data`, `input`',
    'fixed bytes': 'hashes (32), addresses (20)',
    'decimal': 'prices and values that fit 38 digits',
    'decimal256': 'what `evm_decode_*` gives for wide numbers',
    'timestamp[ns] with zone': '`timestamp`, in UTC',
    'list': '`blob_versioned_hashes`',
    'struct': 'inside lists: `access_list`',
    'map': '',
    'nested': 'lists, structs and maps that have no home of their own',
    **dict.fromkeys(
        ('int8', 'int16', 'int64', 'uint8', 'uint16', 'float16', 'float32', 'float64', 'date', 'time', 'time[ns]'), ''
    ),
    **dict.fromkeys(('timestamp', 'timestamp[ns]', 'timestamp with zone', 'duration', 'duration[ns]', 'null'), ''),
    'text as decimal': "text with `column_types={'column': 'decimal'}`",
    'decimal256 as decimal': 'decimal256 with the same wish',
}

_NESTED = {'list', 'struct', 'map'}

_INTRO = """# Types

What each Arrow type becomes in each destination. A type lands so that its value can be had back exactly, or its column
is refused by name and type before the first row; a single value that does not fit is refused with its column, and
nothing of its unit stays. This page is written by `scripts/generate_docs.py` from the table that the loaders read.

A column may land in another form than its type's own, in the open:

| `column_types={'column': ...}` | the column |
|---|---|
| `'text'` | as text: digits, `0x` and hex digits, JSON for nested values |
| `'decimal'` | text that holds whole numbers, and decimal256, as the destination's widest number |
| `'split'` | a timestamp with nanoseconds, as microseconds and a column `<name>_ns` with the rest |

In `{precision}`, `{scale}`, `{width}`, `{inner}`, `{key}` and `{fields}` stand those of the Arrow type.
"""


def types_page() -> str:
    """docs/types.md."""
    sections = [_section(table) for _, table in sorted(TABLES.items(), key=lambda item: item[1].destination.casefold())]
    return '\n'.join([_INTRO, *sections])


def _section(table: TypeTable) -> str:
    rows = [
        [
            f'`{kind}`',
            *([f'`{rule.column}`' if rule.column else '`text`', rule.note] if rule else ['refused', '']),
            used,
        ]
        for kind, used in KINDS.items()
        for rule in [table.rules.get(kind) or (table.rules.get('nested') if kind in _NESTED else None)]
        if rule is not None or kind not in {'text as decimal', 'decimal256 as decimal', 'nested'}
    ]
    head = ['Arrow', 'there', 'note', 'in tables of Amp']
    return f'## {table.destination}\n\n{_markdown(head, rows)}'


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    lines += ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def error_tables() -> str:
    """What docs/resilience.md shows between its two marks."""
    parts = []
    for title, table in (
        ('SQLSTATE begins with (PostgreSQL, Snowflake)', SQLSTATES),
        ('HTTP status', HTTP),
        ('AWS error code', BOTOCORE),
        ("S3 error of Arrow's file systems", ARROW_S3),
        ('ClickHouse code', CLICKHOUSE),
        ('class of the error, or of one it derives from', CLASSES),
    ):
        by_kind: dict[ErrorKind, list[str]] = {}
        for code, kind in table.items():
            by_kind.setdefault(kind, []).append(f'`{code}`')
        rows = [[', '.join(codes), kind.value] for kind, codes in by_kind.items()]
        parts.append(_markdown([title, 'kind'], rows))
    return '\n'.join(parts)


MARKS = ('<!-- errors: written by scripts/generate_docs.py -->\n', '<!-- errors end -->\n')


_FILE = re.compile(r'(<!-- file: (?P<path>\S+) -->\n```\w+\n).*?(?=```\n<!-- end -->)', re.DOTALL)


def with_files(page: str) -> str:
    """The page with every file that it shows as it is now."""
    return _FILE.sub(lambda found: found[1] + (REPOSITORY / found['path']).read_text(), page)


def pages() -> dict[Path, str]:
    """Every page with what it should be."""
    resilience = DOCS / 'resilience.md'
    before, _, rest = resilience.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return {
        DOCS / 'types.md': types_page(),
        GUIDE: with_files(GUIDE.read_text()),
        resilience: f'{before}{MARKS[0]}\n{error_tables()}\n{MARKS[1]}{after}',
    }


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    if '--check' in arguments:
        for path in stale:
            print(f'{path.name} is not what the code says: run scripts/generate_docs.py', file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text)
        print(f'wrote {path.name}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
