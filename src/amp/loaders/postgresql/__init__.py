"""The rooms behind the loader of PostgreSQL."""
