"""The error tree: every failure that amp raises on purpose is one of these.

    AmpError                       exit code 1
    ├── ConfigError                3   a name, URL, option or key that cannot be meant (also a ValueError)
    │   └── MissingExtraError          a driver that is not installed (also an ImportError)
    ├── SourceError                4   the Amp server, or the way to it
    │   ├── ConnectError               unreachable, dropped, timed out: trying again may help
    │   ├── AuthError                  the token is missing, wrong or expired
    │   ├── QueryError                 the server refuses the SQL
    │   └── IncompleteResultError      a result that ended without its completion batch
    ├── DestinationError           5   the place where rows land
    │   ├── LoadError                  a load that failed; carries its LoadResult
    │   ├── SchemaError                a column that the destination cannot hold exactly, or that has changed
    │   └── StaleEpochError            another process has taken the stream
    └── IntegrityError             6   what arrived or what is stored breaks a rule
        ├── ProtocolError              metadata that does not parse, or ranges that do not fit together
        ├── ReorgTooDeepError          a reorg below the history that is kept
        └── VerifyError                rows and recorded history disagree

Each carries `hint` (what to do about it) and `context` (facts: endpoint, query, table, range, ...), and none ever
carries a password: whoever raises puts `redact(url)` in the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amp.loaders.types import LoadResult

__all__ = [
    'AmpError',
    'AuthError',
    'ConfigError',
    'ConnectError',
    'DestinationError',
    'IncompleteResultError',
    'IntegrityError',
    'LoadError',
    'MissingExtraError',
    'ProtocolError',
    'QueryError',
    'ReorgTooDeepError',
    'SchemaError',
    'SourceError',
    'StaleEpochError',
    'VerifyError',
    'redact',
]

_SCHEME = r'(?P<scheme>[a-z][a-z0-9+.\-]*://)'
_USER = r'(?P<user>[^:@\s]*)'
_HUSHED = r'(?P<key>[\w.-]*(?:password|passwd|secret|token|credential|(?:private|api|account|access|sas)[_-]?key)[\w-]*'
# A password may hold an @: it ends at the last one of its word.
_USERINFO = re.compile(rf'{_SCHEME}{_USER}:(?P<password>\S*)@', re.IGNORECASE)
_SECRET_PARAMETER = re.compile(rf'\b{_HUSHED})=(?P<value>\'[^\']*\'|"[^"]*"|[^&\s]+)', re.IGNORECASE)
_SECRET_ITEM = re.compile(rf'\b{_HUSHED}["\']\s*:\s*)(?P<value>\'[^\']*\'|"[^"]*")', re.IGNORECASE)
# Where the text is a URL and nothing else, a password may hold spaces too.
_ONE_URL = re.compile(rf'^{_SCHEME}(?:(?!://).)*$', re.IGNORECASE | re.DOTALL)
_WHOLE_USERINFO = re.compile(rf'^{_SCHEME}{_USER}:(?P<password>.*)@', re.IGNORECASE | re.DOTALL)
_WHOLE_PARAMETER = re.compile(rf'(?<=[?&]){_HUSHED})=(?P<value>[^&]+)', re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with the passwords of URLs and the values of secret-looking parameters replaced by `***`."""
    if _ONE_URL.match(text):
        text = _WHOLE_USERINFO.sub(r'\g<scheme>\g<user>:***@', text)
        text = _WHOLE_PARAMETER.sub(r'\g<key>=***', text)
    text = _USERINFO.sub(r'\g<scheme>\g<user>:***@', text)
    text = _SECRET_PARAMETER.sub(r'\g<key>=***', text)
    return _SECRET_ITEM.sub(r"\g<key>'***'", text)


class AmpError(Exception):
    """The root of the tree. `str()` is one sentence; `hint` says what to do; `context` holds the facts."""

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None, **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = {key: value for key, value in context.items() if value is not None}

    def __str__(self) -> str:
        return f'{self.message} ({self.hint})' if self.hint else self.message


class ConfigError(AmpError, ValueError):
    """A name, URL, option or key that cannot be meant."""

    exit_code = 3


class MissingExtraError(ConfigError, ImportError):
    """A driver that is not installed; the hint names the extra that brings it."""

    def __init__(self, extra: str, driver: str) -> None:
        super().__init__(
            f'{extra} needs the package {driver!r}, which is not installed',
            hint=f"pip install 'amp-python[{extra}]'",
            extra=extra,
            driver=driver,
        )


class SourceError(AmpError):
    """The Amp server, or the way to it. Context: endpoint, query, code (the gRPC status)."""

    exit_code = 4


class ConnectError(SourceError):
    """Unreachable, dropped or timed out: trying again may help."""

    retryable = True


class AuthError(SourceError):
    """The token is missing, wrong or expired."""


class QueryError(SourceError):
    """The server refuses the SQL, now and the next time."""


class IncompleteResultError(SourceError):
    """A result that ended without its completion batch: what arrived is not all there is."""

    retryable = True


class DestinationError(AmpError):
    """The place where rows land. Context: table, loader."""

    exit_code = 5


class LoadError(DestinationError):
    """A load that failed for good. `result` is the LoadResult that says how far it came."""

    def __init__(
        self, message: str, *, result: LoadResult | None = None, hint: str | None = None, **context: object
    ) -> None:
        super().__init__(message, hint=hint, **context)
        self.result = result


class SchemaError(DestinationError, ValueError):
    """A column that the destination cannot hold exactly, or a table whose columns differ."""


class StaleEpochError(DestinationError):
    """Another process has taken the stream; this one must not write to it again."""


class IntegrityError(AmpError):
    """What arrived, or what is stored, breaks a rule."""

    exit_code = 6


class ProtocolError(IntegrityError, ValueError):
    """Metadata that does not parse, or ranges that do not fit together. Context: rule, ranges."""


class ReorgTooDeepError(IntegrityError):
    """A reorg below the history that is kept for undoing."""


class VerifyError(IntegrityError):
    """Rows and recorded history disagree."""
