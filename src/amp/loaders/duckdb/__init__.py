"""The rooms behind the loader of DuckDB."""
