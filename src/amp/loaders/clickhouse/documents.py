"""The documents of streams in ClickHouse, replaced by compare-and-set though there are no transactions.

A document is a row with a version; the highest one counts. Each version is inserted with a deduplication token of its
own, and of two inserts with one token the server keeps the first: so one of any number of writers has the version, and
reading it back says which. A token is never used for two things, so that the server forgets old ones does no harm: who
comes that late finds higher versions.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import pyarrow as pa

from amp.errors import DestinationError
from amp.loaders.clickhouse.session import UNKNOWN_TABLE, Session, code_of, literal, quote
from amp.loaders.points import reached

__all__ = ['DOCUMENTS', 'ClickHouseDocuments']

DOCUMENTS = '_amp_documents'
_TOKENS = 10_000
_MOST_LOST_VERSIONS = 8


@dataclass(frozen=True)
class _Kept:
    """A version of a document; version 0 stands for none."""

    version: int = 0
    writer: str = ''
    text: str | None = None


class ClickHouseDocuments:
    """The table of documents in the database of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._table = quote(session.config.database, DOCUMENTS)
        self._seen: dict[str, _Kept] = {}

    def create(self) -> None:
        """Make the table; harmless when it is there."""
        durable = ', fsync_after_insert = 1, fsync_part_directory = 1' if self._session.config.durable else ''
        self._session.do(
            f'CREATE TABLE IF NOT EXISTS {self._table} (key String, version UInt64, writer String, previous String, '
            "text String, written_at DateTime64(3, 'UTC') DEFAULT now64(3)) "
            'ENGINE = ReplacingMergeTree(version) ORDER BY key '
            f'SETTINGS non_replicated_deduplication_window = {_TOKENS}{durable}'
        )

    def read(self, key: str) -> str | None:
        """The text of a document; None when there is none."""
        return self._newest(key).text

    def write(self, key: str, text: str, expected: str | None) -> bool:
        """Durably replace `expected` by `text`; False when something else is there."""
        known = self._seen.get(key, _Kept())
        if known.text != expected:
            known = self._newest(key)
        if known.text != expected:
            return False
        if not known.version:
            self.create()
        writer = secrets.token_hex(8)
        for version in range(known.version + 1, known.version + 1 + _MOST_LOST_VERSIONS):
            reached('document.before')
            self._insert(key, version, writer, known.writer, text)
            reached('document.inserted')
            won = self._has_won(key, version, writer)
            if won is not None:
                if won:
                    self._seen[key] = _Kept(version, writer, text)
                else:
                    self._seen.pop(key, None)
                return won
        raise DestinationError('a document of a stream cannot be written', hint=f'look at the table {DOCUMENTS}')

    def _newest(self, key: str) -> _Kept:
        try:
            rows = self._session.run(
                f'SELECT version, writer, text FROM {self._table} WHERE key = {literal(key)} '
                'ORDER BY version DESC LIMIT 1 SETTINGS select_sequential_consistency = 1'
            )
        except DestinationError as error:
            if code_of(error) != UNKNOWN_TABLE:
                raise
            rows = []
        self._seen[key] = _Kept(*rows[0]) if rows else _Kept()
        return self._seen[key]

    def _insert(self, key: str, version: int, writer: str, previous: str, text: str) -> None:
        row = pa.table(
            {
                'key': [key],
                'version': pa.array([version], pa.uint64()),
                'writer': [writer],
                'previous': [previous],
                'text': [text],
            }
        )
        token = f'{hashlib.sha256(key.encode()).hexdigest()[:32]}:{version}'
        self._session.insert(self._table, row, token)

    def _has_won(self, key: str, version: int, writer: str) -> bool | None:
        """Whether `version` is the writer's; None when it is nobody's: a server died between token and row."""
        rows = self._session.run(
            f'SELECT version, writer, previous FROM {self._table} WHERE key = {literal(key)} AND version >= {version} '
            'ORDER BY version SETTINGS select_sequential_consistency = 1'
        )
        if not rows:
            return None
        lowest, _, its_previous = rows[0]
        if lowest == version:
            return all(found[1] == writer for found in rows if found[0] == version)
        # Merged away by the version that replaced it, which names whom it replaced.
        return bool(lowest == version + 1 and its_previous == writer)
