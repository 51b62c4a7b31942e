"""Writes what pages take from the code: docs/types.md, docs/capabilities.md, docs/cli.md, docs/configuration.md, the error table in docs/resilience.md, and
the files that the guide for loader authors shows.

python scripts/generate_docs.py           write them
python scripts/generate_docs.py --check   exit 1 when one is not what the code says
"""

from __future__ import annotations

import json
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reference_pages import cli_page, configuration_page

import amp.loaders.implementations as implementations
from amp.loaders.arrow_types import TypeTable
from amp.loaders.base import DataLoader
from amp.loaders.registry import get_loader_class
from amp.loaders.type_tables import TABLES
from amp.loaders.types import LoadMode
from amp.streaming.error_kinds import (
    ARROW_S3,
    BOTOCORE,
    CLASSES,
    CLICKHOUSE,
    GRPC,
    HTTP,
    SNOWFLAKE,
    SNOWFLAKE_CLASSES,
    SQLSTATES,
    ErrorKind,
)

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
# No kinds of Arrow, but wishes and fallbacks.
_OPTIONAL = {'text as decimal', 'nested'}

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


_CAPABILITIES = """# What each destination can do

Written by `scripts/generate_docs.py` from the loaders themselves, their tables of types, and the recorded run of the
benchmarks. Your own loaders are listed by `amp loaders`.

"""

_AFTER = """
**Exactly once.** *One commit*: undo, rows and position are one transaction, or one commit of the table's own log. *By
ids*: an intent is recorded first, and whoever opens the stream next deletes what no finished unit names; rows of a unit
that is not done are hidden by `scan`. See [how rows become durable](exactly_once.md).

**Lanes.** How the workers of [history in parallel](parallel_streaming.md) write.

**Refused types** are refused by column before the first row, or land as text on request; every other type comes back
exactly. See [types](types.md).
"""

_SPEED = """
## Speed

{told}

"""

# What a class alone does not tell.
_SCHEME_NOTES = {
    'redis': 'one commit; large units by ids',
    'snowflake': 'one commit; Snowpipe by ids',
}


def own_loaders() -> list[str]:
    """The names of amp's own loaders."""
    modules = (module.name for module in pkgutil.iter_modules(implementations.__path__))
    return sorted(name.removesuffix('_loader') for name in modules if name.endswith('_loader'))


def capabilities_page(record: dict[str, Any]) -> str:
    """docs/capabilities.md. `record` is benchmarks/baseline.json."""
    rows = [_abilities(name, get_loader_class(name)) for name in own_loaders()]
    head = ['destination', 'plain loads', 'streams', 'exactly once', 'transactions', 'lanes', 'refused types']
    run = record.get('full') or record.get('quick')
    return f'{_CAPABILITIES}{_markdown(head, rows)}{_AFTER}{_speeds(run)}'


def _abilities(name: str, loader: type[DataLoader[Any]]) -> list[str]:
    table = TABLES[name]
    streams = loader.SUPPORTED_MODES if loader.STREAM_MODES is None else loader.STREAM_MODES
    scheme = 'one commit' if hasattr(loader, 'open_stream') else 'by ids'
    if loader.guarantee_of() != 'exactly-once':
        scheme = 'at least once'
    nested = 'nested' in table.rules
    refused = [k for k in KINDS if not (k in table.rules or (nested and k in _NESTED) or k == 'nested' or ' as ' in k)]
    return [
        f'[{table.destination}](destinations/{name}.md)',
        _modes(loader.SUPPORTED_MODES),
        _modes(streams),
        _SCHEME_NOTES.get(name, scheme),
        'yes' if loader.SUPPORTS_TRANSACTIONS else 'no',
        'in turn' if loader.ONE_WRITER else 'beside each other',
        ', '.join(f'`{kind}`' for kind in refused) or 'none',
    ]


def _modes(modes: Iterable[LoadMode]) -> str:
    return ', '.join(mode.value for mode in LoadMode if mode in modes)


def _speeds(run: dict[str, Any] | None) -> str:
    if run is None:
        return _SPEED.format(told='No run of the benchmarks is recorded: `make bench` and `--record`.').rstrip() + '\n'
    rows = []
    for name in own_loaders():
        measured = run['benchmarks'].get(name)
        if measured is not None:
            load, stream = (_speed(measured, prefix) for prefix in (('load', 'batches', 'Parquet'), ('stream',)))
            rows.append([TABLES[name].destination, load, stream])
    at = run['machine']
    told = (
        'Beside the bare path in the same run (1.00: as fast as the destination by itself), and rows a second, by '
        f'`make bench` in its {run["size"]} sizes on {at["cpu"]} with {at["cores"]} cores.'
    )
    return _SPEED.format(told=told) + _markdown(['destination', 'load', 'stream, exactly once'], rows)


def _speed(measured: dict[str, Any], prefixes: tuple[str, ...]) -> str:
    found = [
        (claim, value)
        for claim, value in measured['claims'].items()
        if claim.startswith(prefixes) and ' / ' in claim and value['sign'] == '>=' and value['bound'] <= 1
    ]
    if not found:
        return ''
    claim, value = found[0]
    ours, _, bare = claim.partition(' / ')
    rates = [rate for what, rate in measured['rows_per_second'].items() if what.startswith(ours.partition(' ')[0])]
    rate = f', {rates[0] / 1e6:.2f} M rows/s' if rates else ''
    return f'{value["value"]:.2f} of {bare}{rate}'


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    lines += ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def error_tables() -> str:
    """What docs/resilience.md shows between its two marks."""
    parts = []
    for title, table in (
        ('SQLSTATE begins with (PostgreSQL; of Snowflake only `08003`, `08006` and `40`)', SQLSTATES),
        ('HTTP status', HTTP),
        ('gRPC status (Arrow Flight has classes for them, below)', GRPC),
        ('AWS error code', BOTOCORE),
        ("S3 error of Arrow's file systems", ARROW_S3),
        ('ClickHouse code', CLICKHOUSE),
        ("number of Snowflake's errors", SNOWFLAKE),
        ("class of Snowflake's errors without such a number", SNOWFLAKE_CLASSES),
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
    recorded = REPOSITORY / 'benchmarks' / 'baseline.json'
    return {
        DOCS / 'types.md': types_page(),
        DOCS / 'capabilities.md': capabilities_page(json.loads(recorded.read_text()) if recorded.exists() else {}),
        GUIDE: with_files(GUIDE.read_text()),
        resilience: f'{before}{MARKS[0]}\n{error_tables()}\n{MARKS[1]}{after}',
        DOCS / 'cli.md': cli_page(),
        DOCS / 'configuration.md': configuration_page(),
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
