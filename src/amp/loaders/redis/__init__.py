"""The rooms behind the loader of Redis."""
