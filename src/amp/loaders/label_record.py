"""What a stream remembers of the labels that its rows were joined with: enough to join the server's rows again.

Kept in the stream's state: the names, the keys, the kind of join, and the SHA-256 of each file. Never what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.config.label_manager import Label, LabelManager, content_of
from amp.errors import ConfigError, IntegrityError
from amp.loaders.types import LabelJoinConfig

if TYPE_CHECKING:
    from amp.loaders.labels import LabelJoin

__all__ = ['LabelRecord', 'join_again', 'record_of', 'with_earlier']


@dataclass(frozen=True)
class _Joined:
    config: LabelJoinConfig
    file: str
    content: str

    @property
    def keeps_rows(self) -> bool:
        return self.config.how == 'left' and not self.config.many


@dataclass(frozen=True)
class LabelRecord:
    """The joins of a stream. `mixed`: its rows were not all joined in the same way, or with the same files.

    `keeps_rows`: no join ever left a row out or made two of one.
    """

    joins: tuple[_Joined, ...] = ()
    mixed: bool = False
    keeps_rows: bool = True

    def to_json(self) -> str:
        """What stands in the state."""
        joins = [{'file': j.file, 'content': j.content, **_plain(j.config)} for j in self.joins]
        return json.dumps({'joins': joins, 'mixed': self.mixed, 'keeps_rows': self.keeps_rows}, separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str | None) -> LabelRecord:
        """From what stands in the state; None is a stream without labels. Raises IntegrityError."""
        if text is None:
            return cls()
        try:
            found: dict[str, Any] = json.loads(text)
            joins = []
            for given in found['joins']:
                file, content = str(given.pop('file')), str(given.pop('content'))
                joins.append(_Joined(LabelJoinConfig(**given), file, content))
            return cls(tuple(joins), bool(found['mixed']), bool(found['keeps_rows']))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f'what the stream says of its labels does not parse: {text[:120]}') from error


def record_of(joins: Iterable[tuple[Label, LabelJoinConfig]]) -> str:
    """The record of joins that are made now."""
    made = tuple(_Joined(config, label.given, label.content) for label, config in joins)
    return LabelRecord(made, keeps_rows=all(join.keeps_rows for join in made)).to_json()


def with_earlier(now: str | None, earlier: str | None) -> str | None:
    """The record of rows of which some were joined as `earlier` says, and some are as `now` says."""
    if now == earlier:
        return now
    new, old = LabelRecord.from_json(now), LabelRecord.from_json(earlier)
    if replace(old, mixed=False) == new:
        return earlier
    return replace(new, mixed=True, keeps_rows=new.keeps_rows and old.keeps_rows).to_json()


def join_again(text: str | None, manager: LabelManager) -> tuple[LabelJoin | None, str | None]:
    """The join that gives the server's rows their labels, and what has to be said.

    Without a join but with something to say the rows cannot be compared; with neither they are as the server has them.
    The labels are those of `manager`; one that it has not is looked for where the stream found it.
    """
    from amp.loaders.labels import LabelJoin

    record = LabelRecord.from_json(text)
    if record.mixed:
        return None, None if record.keeps_rows else (
            'its rows were not all joined with the same labels, so which rows those left out cannot be told: nothing was '
            'compared with the server'
        )
    own = LabelManager(manager.label_dir)
    for join in record.joins:
        problem = _provide(join, manager, own)
        if problem is not None:
            return None, None if record.keeps_rows else (
                f'the rows were joined with the label {join.config.label_name!r}, {problem}, so which rows it left out '
                f'cannot be told: nothing was compared with the server; give the file as it was: '
                f'--label {join.config.label_name}=FILE'
            )
    return (LabelJoin(own, [join.config for join in record.joins]) if record.joins else None), None


def _provide(join: _Joined, manager: LabelManager, own: LabelManager) -> str | None:
    """Let `own` have the label as it was; what is in the way of that."""
    name = join.config.label_name
    known = manager.find(name)
    if known is not None:
        if known.content != join.content:
            return f'and {known.path} is not what it was'
        own.adopt(known)
        return None
    path = (manager.label_dir or Path()) / join.file
    try:
        content = content_of(path)
    except OSError:
        return f'whose file {path} is not here'
    if content != join.content:
        return f'whose file {path} has changed since'
    try:
        own.add_label(name, join.file)
    except ConfigError as error:
        return f'which cannot be read again ({error.message})'
    return None


def _plain(config: LabelJoinConfig) -> dict[str, Any]:
    keys = {'label_key_column': list(config.label_keys), 'stream_key_column': list(config.stream_keys)}
    return {**asdict(config), **keys, 'columns': None if config.columns is None else list(config.columns)}
