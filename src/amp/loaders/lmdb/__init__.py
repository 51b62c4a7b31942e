"""The rooms behind the loader of LMDB."""
