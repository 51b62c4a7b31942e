"""SQLite as a destination of amp."""

from amp_loader_sqlite.sqlite_loader import SQLiteConfig, SQLiteLoader

__all__ = ['SQLiteConfig', 'SQLiteLoader']
