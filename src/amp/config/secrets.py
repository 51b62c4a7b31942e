"""Secrets by reference: where they are, never what they are, stands in a file.

env:NAME            an environment variable
file:PATH           the first line of a file that only its owner may read
cmd:COMMAND ...     the first line of what a command prints (no shell: quote as a shell would)
keyring:SERVICE/USER   the system's keyring, through the package `keyring`
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amp.errors import ConfigError, MissingExtraError, redact

__all__ = ['Setting', 'clear_secret', 'is_reference', 'looks_secret', 'resolve', 'resolved']

_SECONDS = 30
_SECRET_NAME = re.compile(
    r'pass(word|wd|phrase|code)?$|secret|token|credential|authorization|cookie|connection_string'
    r'|(private|api|account|access|sas)[_-]?key$',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Setting:
    """One value and where it came from; `path` are the names that lead to it. Its repr shows no secret.

    `is_foreign`: it was read from a file that somebody else may have written, so a command in it is not run.
    """

    key: str
    value: Any = field(repr=False)
    origin: str
    path: tuple[str, ...] = ()
    is_foreign: bool = False

    @property
    def shown(self) -> str:
        """The value for a person: a reference as it is, a secret as ***."""
        if is_reference(self.value, self.key):
            return str(self.value)
        return '***' if looks_secret(self.key) and self.value else redact(str(self.value))


def looks_secret(key: str) -> bool:
    """True for a key whose value is not shown."""
    return bool(_SECRET_NAME.search(key))


def clear_secret(values: Mapping[str, Any]) -> str | None:
    """The first key (of a table inside: `table.key`) whose value is a secret in clear, or a text that holds one."""
    return next((key for key, value in _leaves(values) if _is_clear(key, value)), None)


def _is_clear(key: str, value: object) -> bool:
    if isinstance(value, bool) or not value or is_reference(value, key):
        return False
    return looks_secret(key) or redact(str(value)) != str(value)


def _leaves(value: object, key: str = '') -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield from _leaves(inside, f'{key}.{name}'.removeprefix('.'))
    elif isinstance(value, list):
        for inside in value:
            yield from _leaves(inside, key)
    else:
        yield key, value


def is_reference(value: object, key: str = 'secret') -> bool:
    """True for a text that says where a secret is. `file://` is one only for a key that looks secret: see there."""
    if not isinstance(value, str) or ':' not in value:
        return False
    # A table's place is often a URL of this form.
    is_place = value.startswith('file://') and not looks_secret(key)
    return value.partition(':')[0] in _READERS and not is_place


def resolve(value: str) -> str:
    """The secret behind a reference. Raises ConfigError, which never holds the secret."""
    kind, _, rest = value.partition(':')
    found = _READERS[kind](rest)
    if not found:
        raise ConfigError(f'the secret {value!r} is empty')
    return found


def resolved(setting: Setting, where: str) -> Any:
    """The value itself. Raises ConfigError, which says `where` it is; also for a command in a project's file."""
    if not is_reference(setting.value, setting.key):
        return setting.value
    if str(setting.value).startswith('cmd:') and setting.is_foreign:
        # A folder that somebody else wrote must not run commands just because it was entered.
        raise ConfigError(
            f'{setting.key} {where} is a command in {setting.origin}, which is not run',
            hint='commands for secrets belong into your own amp.toml: amp conn add --user',
        )
    return resolve(setting.value)


def _from_environment(name: str) -> str:
    if name not in os.environ:
        raise ConfigError(f'the environment variable {name} is not set', hint='a connection names it for a secret')
    return os.environ[name]


def _from_file(text: str) -> str:
    try:
        path = Path(text).expanduser()
        is_open = os.name == 'posix' and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
        raw = b'' if is_open else path.read_bytes()
    except OSError as error:
        raise ConfigError(f'the secret in {text} cannot be read: {error.strerror}') from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f'the secret in {text!r} cannot be read: {error}') from error
    if is_open:
        raise ConfigError(f'others may read the secret in {path}', hint=f'chmod 600 {path}')
    return _first_line(raw, f'the secret in {path}')


def _from_command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f'the command for a secret did not run: {error}') from error
    if not words:
        raise ConfigError('the command for a secret is empty', hint='cmd:COMMAND ARGUMENT ...')
    try:
        done = subprocess.run(words, capture_output=True, timeout=_SECONDS, check=False)  # noqa: S603 - the user's own command, no shell
    except subprocess.TimeoutExpired:
        done = None
    except (OSError, ValueError) as error:
        raise ConfigError(f'the command for a secret did not run: {type(error).__name__}') from error
    if done is None:
        # Not chained: what it has said so far may be the secret.
        raise ConfigError(
            f'the command for a secret gave no answer within {_SECONDS} s: {words[0]}',
            hint='does it wait for somebody?',
        )
    if done.returncode != 0:
        raise ConfigError(f'the command for a secret ended with {done.returncode}: {words[0]}')
    return _first_line(done.stdout, f'what {words[0]} printed')


def _first_line(raw: bytes, what: str) -> str:
    try:
        return raw.partition(b'\n')[0].decode().strip()
    except UnicodeDecodeError:
        pass
    # Not chained: the error of the decoder carries the bytes.
    raise ConfigError(f'{what} is not text', hint='the secret is the first line, in UTF-8')


def _from_keyring(text: str) -> str:
    try:
        import keyring  # type: ignore[import-not-found, unused-ignore]
        from keyring.errors import KeyringError  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingExtraError('keyring', 'keyring') from error
    service, _, user = text.rpartition('/')
    try:
        found = keyring.get_password(service or 'amp', user)
    except KeyringError as error:
        raise ConfigError(
            f'the keyring does not answer: {type(error).__name__}',
            hint='is it there and unlocked? keyring --list-backends; or use env:, file: or cmd:',
        ) from error
    if found is None:
        raise ConfigError(f'the keyring has nothing for {text!r}', hint=f'keyring set {service or "amp"} {user}')
    return str(found)


_READERS: dict[str, Callable[[str], str]] = {
    'env': _from_environment,
    'file': _from_file,
    'cmd': _from_command,
    'keyring': _from_keyring,
}
