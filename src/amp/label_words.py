"""Labels as they are typed: `--label NAME=FILE --join COLUMN` on the command line, the same words in a pipeline's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amp.errors import ConfigError

if TYPE_CHECKING:
    from amp.client import Client

__all__ = ['TypedLabel', 'add_labels', 'labels_of']


@dataclass(frozen=True)
class TypedLabel:
    """One label with its join; without one (no keys) the key is found when the columns are known."""

    name: str
    path: Path
    stream_keys: tuple[str, ...]
    label_keys: tuple[str, ...]
    how: Literal['inner', 'left']
    reload: bool = False


def labels_of(
    labels: Sequence[str],
    joins: Sequence[str],
    *,
    left: bool = False,
    reload: bool = False,
    word: Callable[[str], str] = str,
) -> list[TypedLabel]:
    """What the words `label`, `join`, `left` and `label-reload` say together; `word` is how they are written there.

    Raises ConfigError.
    """
    if joins and len(joins) != len(labels):
        raise ConfigError(f'{len(labels)} {word("label")} and {len(joins)} {word("join")} do not pair up')
    if left and not joins:
        raise ConfigError(f'{word("left")} needs a {word("label")} and a {word("join")}')
    if reload and not labels:
        raise ConfigError(f'{word("label-reload")} needs a {word("label")}')
    typed = []
    for label, join in zip(labels, joins or [''] * len(labels), strict=True):
        name, _, path = label.partition('=')
        if not (name and path):
            raise ConfigError(f'{word("label")} {label!r} is not NAME=FILE')
        pairs = [part.partition('=') for part in join.split(',')] if join else []
        stream_keys = tuple(column.strip() for column, _, _ in pairs)
        if not all(stream_keys):
            raise ConfigError(f'{word("join")} {join!r} is not COLUMN or COLUMN=LABEL_COLUMN')
        label_keys = tuple(own.strip() or column.strip() for column, _, own in pairs)
        how: Literal['inner', 'left'] = 'left' if left else 'inner'
        typed.append(TypedLabel(name, Path(path).expanduser(), stream_keys, label_keys, how, reload))
    return typed


def add_labels(client: Client, typed: Sequence[TypedLabel]) -> dict[str, Any]:
    """Give the labels to the client; the options of a load that joins them. Raises ConfigError."""
    from amp.loaders.types import LabelJoinConfig

    joins: list[str | LabelJoinConfig] = []
    for label in typed:
        client.add_label(label.name, label.path, reload=label.reload or None)
        if label.stream_keys:
            joins.append(LabelJoinConfig(label.name, label.label_keys, label.stream_keys, label.how))
        else:
            joins.append(label.name)
    return {'label_config': joins} if joins else {}
