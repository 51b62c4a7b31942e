"""LabelManager: small tables by name (token lists, known contracts) that rows are joined with on their way."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from amp.config.label_index import Form, LabelIndex

__all__ = ['Label', 'LabelFileNotFoundError', 'LabelManager', 'content_of']

logger = logging.getLogger('amp.labels')


class LabelFileNotFoundError(ConfigError, FileNotFoundError):
    """The file of a label is not where it should be."""


@dataclass(frozen=True, eq=False)
class Label:
    """One reading of a label file. It never changes; a file that did is another Label.

    `given` is the path as it was said, `content` the SHA-256 of the file.
    """

    name: str
    path: Path
    table: pa.Table
    signature: tuple[int, ...]
    given: str
    content: str
    _forms: dict[tuple[str, pa.DataType], Form] = field(default_factory=dict, repr=False)
    _indexes: dict[Any, LabelIndex] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def index(self, columns: Sequence[str], forms: Sequence[Form], many: bool) -> LabelIndex:
        """How rows are found by these columns: built when first asked for. Raises ConfigError for doubled keys."""
        from amp.config.label_index import LabelIndex

        wanted = (tuple(columns), tuple(forms), many)
        with self._lock:
            if wanted not in self._indexes:
                self._indexes[wanted] = LabelIndex(self.name, self.table, columns, forms, many)
            return self._indexes[wanted]

    def form(self, column: str, kind: pa.DataType, stream_column: str) -> Form:
        """How a key column is compared with one of type `kind`. Raises ConfigError when it cannot be."""
        from amp.config.label_file import plain
        from amp.config.label_index import form_of

        with self._lock:
            if (column, kind) not in self._forms:
                where = f'label {self.name!r}, {column} = {stream_column}'
                self._forms[column, kind] = form_of(plain(self.table[column]), kind, where)
            return self._forms[column, kind]

    def __reduce__(self) -> tuple[Callable[..., Label], tuple[Any, ...]]:
        """A lock does not travel to another process; an index is soon made."""
        return Label, (self.name, self.path, self.table, self.signature, self.given, self.content)


@dataclass(frozen=True)
class _Source:
    path: Path
    given: str
    binary_columns: tuple[str, ...] | None
    reload: bool


class LabelManager:
    """The labels of a client, by name; used by many threads.

    Relative paths are looked for in `label_dir` (default: the environment's AMP_LABEL_DIR, else the working folder).
    With `reload` every label's file is looked at before each batch, and read again when it was replaced.
    """

    def __init__(self, label_dir: str | os.PathLike[str] | None = None, *, reload: bool = False) -> None:
        given = label_dir if label_dir is not None else os.environ.get('AMP_LABEL_DIR') or None
        self.label_dir = Path(given) if given is not None else None
        self._reload = reload
        self._sources: dict[str, _Source] = {}
        self._labels: dict[str, Label] = {}
        self._joined: dict[str, Label] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f'LabelManager({", ".join(self.list_labels())})'

    def add_label(
        self,
        name: str,
        csv_path: str | os.PathLike[str],
        binary_columns: Sequence[str] | None = None,
        *,
        reload: bool | None = None,
    ) -> None:
        """Read a CSV or Parquet file as the label `name`, in the place of one of that name.

        Columns of hex whose name contains `address`, and those of `binary_columns`, become fixed-size binary; an empty
        list leaves all as they are. `reload` is for this label what it is for the manager. Raises ConfigError
        (a ValueError), which names row and column of a value that is not hex, and LabelFileNotFoundError.
        """
        if not name:
            raise ConfigError('a label needs a name')
        path = (self.label_dir or Path()) / csv_path
        columns = (binary_columns,) if isinstance(binary_columns, str) else binary_columns
        source = _Source(
            path,
            os.fspath(csv_path),
            None if columns is None else tuple(columns),
            self._reload if reload is None else reload,
        )
        label = _read(name, source)
        with self._lock:
            self._sources[name] = source
            self._labels[name] = label
            self._joined.pop(name, None)
        logger.info('label %s: %d rows of %s', name, label.table.num_rows, path)

    def adopt(self, label: Label) -> None:
        """Have a label of another manager, as it is now."""
        with self._lock:
            self._sources[label.name] = _Source(label.path, label.given, None, reload=False)
            self._labels[label.name] = label

    def get_label(self, name: str) -> pa.Table | None:
        """The table of a label; None when there is none of that name."""
        label = self.find(name)
        return None if label is None else label.table

    def list_labels(self) -> list[str]:
        """The names, sorted."""
        with self._lock:
            return sorted(self._labels)

    def remove_label(self, name: str) -> bool:
        """Forget a label; False when there is none of that name."""
        with self._lock:
            self._sources.pop(name, None)
            self._joined.pop(name, None)
            return self._labels.pop(name, None) is not None

    def clear(self) -> None:
        """Forget every label."""
        with self._lock:
            self._sources.clear()
            self._labels.clear()
            self._joined.clear()

    def find(self, name: str) -> Label | None:
        """The newest reading of a label; None when there is none of that name."""
        with self._lock:
            label = self._labels.get(name)
            if label is None or not self._sources[name].reload:
                return label
            return self._reread(label, self._sources[name])

    def require(self, name: str) -> Label:
        """The newest reading of a label. Raises ConfigError when there is none of that name."""
        label = self.find(name)
        if label is not None:
            return label
        known = self.list_labels()
        close = difflib.get_close_matches(name, known, 1)
        if close:
            hint = f'did you mean {close[0]!r}?'
        else:
            hint = f'known labels: {", ".join(known)}' if known else 'add it first: add_label(name, path)'
        raise ConfigError(f'there is no label {name!r}', hint=hint, label=name)

    def note_joined(self, labels: Sequence[Label]) -> None:
        """Remember readings that rows have been joined with: see `last_joined`."""
        with self._lock:
            self._joined.update((label.name, label) for label in labels)

    def last_joined(self, names: Sequence[str]) -> tuple[Label, ...] | None:
        """The last reading of each label that rows could be joined with; None where one never was.

        A file that was replaced by one that cannot be joined does not stop what runs well.
        """
        with self._lock:
            known = tuple(self._joined[name] for name in names if name in self._joined)
        return known if len(known) == len(names) else None

    def _reread(self, label: Label, source: _Source) -> Label:
        try:
            signature = _signature(source.path)
        except OSError:
            # Between a delete and a rename there is no file; the next batch will see it.
            return label
        if signature == label.signature:
            return label
        try:
            newer = _read(label.name, source)
            if newer.table.schema != label.table.schema:
                raise ConfigError(f'its columns or their types have changed in {source.path}')
        except ConfigError as error:
            # What is loaded goes on with what was good; said once, until the file changes again.
            logger.warning('label %s stays as it was: %s', label.name, error)
            newer = replace(label, signature=signature)
        else:
            logger.info('label %s was read again: %d rows', label.name, newer.table.num_rows)
        self._labels[label.name] = newer
        return newer

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != '_lock'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())


def _read(name: str, source: _Source) -> Label:
    # Arrow's functions take a while to import, and most clients have no labels.
    from amp.config.label_file import read_label

    try:
        # Before the file is read: one replaced meanwhile is then read again, never taken for the newest.
        signature = _signature(source.path)
        table = read_label(source.path, source.binary_columns)
        content = content_of(source.path)
    except FileNotFoundError as error:
        folder = source.path.parent
        hint = 'relative paths are looked for in label_dir or AMP_LABEL_DIR'
        raise LabelFileNotFoundError(
            f'there is no label file {source.path}',
            hint=hint if folder.is_dir() else f'the folder {folder} does not exist',
            path=str(source.path),
        ) from error
    return Label(name, source.path, table, signature, source.given, content)


def content_of(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _signature(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
