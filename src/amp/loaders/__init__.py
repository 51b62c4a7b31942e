"""Destinations: the contract that a loader keeps, the engine that drives it, and the loaders that come with amp."""

from amp.loaders.base import DataLoader
from amp.loaders.registry import LoaderRegistry, create_loader, get_available_loaders, get_loader_class
from amp.loaders.types import LabelJoinConfig, LoadConfig, LoadMode, LoadResult

__all__ = [
    'DataLoader',
    'LabelJoinConfig',
    'LoadConfig',
    'LoadMode',
    'LoadResult',
    'LoaderRegistry',
    'create_loader',
    'get_available_loaders',
    'get_loader_class',
]
