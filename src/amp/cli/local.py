"""The local Amp, whose engine is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amp.errors import ConfigError

if TYPE_CHECKING:
    from amp.devserver import LocalAmp

__all__ = ['import_devserver']

_ENGINE = frozenset({'datafusion', 'eth_hash', 'Crypto', 'numpy', 'fastapi', 'uvicorn', 'pydantic'})


def import_devserver() -> type[LocalAmp]:
    """The class LocalAmp. Raises ConfigError when its engine is not installed."""
    try:
        from amp.devserver import LocalAmp
    except ModuleNotFoundError as error:
        driver = (error.name or '').partition('.')[0]
        if driver not in _ENGINE:
            raise
        raise ConfigError(
            f'the local Amp needs the package {driver!r}, which is not installed',
            hint="pip install 'amp-python[serve]'",
        ) from error
    return LocalAmp
