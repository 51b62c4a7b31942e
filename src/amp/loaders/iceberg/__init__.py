"""The rooms behind the loader of Iceberg."""
