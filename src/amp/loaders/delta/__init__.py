"""The rooms behind the loader of Delta Lake."""
