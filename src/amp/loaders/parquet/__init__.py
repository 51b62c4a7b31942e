"""The rooms behind the loader of the Parquet store."""
