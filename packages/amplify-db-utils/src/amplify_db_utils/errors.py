"""The errors of the store, each one also the built-in error that its users would look for.

StoreError
├── TableNotFound   KeyError, RuntimeError   the name is not a table here
├── SchemaConflict  ValueError               a table cannot become what is asked
├── BadRecord       ValueError               records that do not fit the table; nothing of the call was written
├── BadFilter       ValueError               a filter, column list or select that means nothing
├── DamagedData     OSError                  a file that the table needs is gone or cannot be read
├── StorageUnavailable  OSError              the storage does not answer for now, in spite of retries
└── CommitConflict                           other writers were faster, for as long as we were willing to try
"""

from __future__ import annotations


class StoreError(Exception):
    """The root of every error that this package raises on its own account."""


class TableNotFound(StoreError, KeyError, RuntimeError):  # noqa: N818
    """No table of that name: it was neither created nor registered here."""

    def __init__(self, name: object) -> None:
        super().__init__(f'table {name!r} is not registered here; create_table() makes one')

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the text in quotes


class SchemaConflict(StoreError, ValueError):  # noqa: N818
    """The table exists and cannot become what is asked; nothing was changed."""


class BadRecord(StoreError, ValueError):  # noqa: N818
    """A record does not fit the table; nothing of the call was written."""


class BadFilter(StoreError, ValueError):  # noqa: N818
    """A filter, a column list or a select that means nothing for this table."""


class DamagedData(StoreError, OSError):  # noqa: N818
    """A data file of the table is gone or cannot be read."""


class StorageUnavailable(StoreError, OSError):  # noqa: N818
    """The storage did not answer, or was too busy, however often it was asked: it may in a while."""


class CommitConflict(StoreError):  # noqa: N818
    """Other writers kept committing first; nothing of the call is visible."""
