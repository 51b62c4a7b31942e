"""`--label`, `--join`, `--left` and `--label-reload`: the labels of a load, as they are typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from amp.errors import ConfigError
from amp.label_words import TypedLabel, add_labels, labels_of

__all__ = ['Joins', 'KeepAll', 'Labels', 'Reload', 'TypedLabel', 'add_labels', 'typed_labels']

Labels = Annotated[
    list[str] | None,
    typer.Option(
        '--label', metavar='NAME=FILE', help='Join every row with a CSV or Parquet file of labels; repeatable.'
    ),
]
Joins = Annotated[
    list[str] | None,
    typer.Option(
        '--join',
        metavar='COLUMN[=LABEL_COLUMN]',
        help='The key of a label, in the order of --label; several columns with commas. Default: the address column.',
    ),
]
KeepAll = Annotated[bool, typer.Option('--left', help='Keep rows that have no label; otherwise they are left out.')]
Reload = Annotated[
    bool, typer.Option('--label-reload', help='Read the file of a label again when it was replaced meanwhile.')
]


def typed_labels(
    labels: Sequence[str] | None, joins: Sequence[str] | None, *, left: bool, reload: bool = False
) -> list[TypedLabel]:
    """What the four options say together. Raises a usage error."""
    try:
        return labels_of(labels or (), joins or (), left=left, reload=reload, word='--{}'.format)
    except ConfigError as error:
        raise typer.BadParameter(error.message) from error
