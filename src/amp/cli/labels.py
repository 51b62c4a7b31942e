"""`--label` and `--join`: labels of a load, as they are typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from amp.client import Client

__all__ = ['Joins', 'KeepAll', 'Labels', 'TypedLabel', 'add_labels', 'typed_labels']

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


@dataclass(frozen=True)
class TypedLabel:
    """One `--label` with its `--join`; without one (no keys) the key is found when the columns are known."""

    name: str
    path: Path
    stream_keys: tuple[str, ...]
    label_keys: tuple[str, ...]
    how: Literal['inner', 'left']


def typed_labels(labels: Sequence[str] | None, joins: Sequence[str] | None, *, left: bool) -> list[TypedLabel]:
    """What the three options say together. Raises a usage error."""
    labels, joins = labels or (), joins or ()
    if joins and len(joins) != len(labels):
        raise typer.BadParameter(f'{len(labels)} --label and {len(joins)} --join do not pair up')
    if left and not joins:
        raise typer.BadParameter('--left needs a --label and a --join')
    return [
        _typed(label, join, 'left' if left else 'inner')
        for label, join in zip(labels, joins or [''] * len(labels), strict=True)
    ]


def add_labels(client: Client, typed: Sequence[TypedLabel]) -> dict[str, Any]:
    """Give the labels to the client; the options of a load that joins them. Raises ConfigError."""
    from amp.loaders.types import LabelJoinConfig

    joins: list[str | LabelJoinConfig] = []
    for label in typed:
        client.add_label(label.name, label.path)
        if label.stream_keys:
            joins.append(LabelJoinConfig(label.name, label.label_keys, label.stream_keys, label.how))
        else:
            joins.append(label.name)
    return {'label_config': joins} if joins else {}


def _typed(label: str, join: str, how: Literal['inner', 'left']) -> TypedLabel:
    name, _, path = label.partition('=')
    if not (name and path):
        raise typer.BadParameter(f'--label {label!r} is not NAME=FILE')
    pairs = [part.partition('=') for part in join.split(',')] if join else []
    stream_keys = tuple(column.strip() for column, _, _ in pairs)
    if not all(stream_keys):
        raise typer.BadParameter(f'--join {join!r} is not COLUMN or COLUMN=LABEL_COLUMN')
    label_keys = tuple(own.strip() or column.strip() for column, _, own in pairs)
    return TypedLabel(name, Path(path).expanduser(), stream_keys, label_keys, how)
