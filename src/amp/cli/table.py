"""A result on the screen: as many columns as fit, the ones in the middle left out first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pyarrow as pa

from amp.cli.text import display_text

__all__ = ['print_table']

_PADDING = 2  # columns of the screen between two columns of the table
_PIPE_WIDTH = 100_000


def print_table(schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> int:
    """Print the rows to stdout; the number of columns that did not fit. A pipe gets all columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH, color_system=None)
    cells = [[text for batch in batches for text in display_text(batch.column(i))] for i in range(len(schema))]
    widths = [
        max(len(name), *(len(text) for text in column)) if column else len(name)
        for name, column in zip(schema.names, cells, strict=True)
    ]
    shown = _fitting(widths, console.width - 1)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _PADDING, 0, 0), header_style='bold')
    for index in shown:
        if index is None:
            table.add_column('…', style='dim')
        else:
            table.add_column(
                _plain(schema.names[index]),
                justify='right' if _is_number(schema.field(index).type) else 'left',
                no_wrap=True,
            )
    for row in range(len(cells[0]) if cells else 0):
        table.add_row(*('…' if index is None else _plain(cells[index][row]) for index in shown))
    console.print(table)
    return len(widths) - sum(index is not None for index in shown)


def _fitting(widths: Sequence[int], room: int) -> list[int | None]:
    """Which columns to show; None stands for those left out of the middle. Always at least the first one."""
    every = range(len(widths))
    if sum(widths) + _PADDING * len(widths) <= room:
        return list(every)
    left: list[int | None] = [0]
    right: list[int | None] = []
    room -= widths[0] + 1 + 2 * _PADDING
    low, high = 1, len(widths) - 1
    while low <= high:
        # Three of the first columns for one of the last: what identifies a row comes first.
        take_right = len(right) * 3 < len(left) - 1
        index = high if take_right else low
        room -= widths[index] + _PADDING
        if room < 0:
            break
        if take_right:
            right.insert(0, index)
            high -= 1
        else:
            left.append(index)
            low += 1
    return [*left, None, *right]


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
