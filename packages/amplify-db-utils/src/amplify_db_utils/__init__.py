"""A small append-only columnar store over DuckDB and Parquet; its public names arrive with its first release."""

__all__: list[str] = []
