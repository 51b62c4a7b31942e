"""A folder of keys and values as a destination of amp."""

from amp_loader_shelf.shelf_loader import ShelfConfig, ShelfLoader

__all__ = ['ShelfConfig', 'ShelfLoader']
