"""The rooms behind the loader of ClickHouse."""
