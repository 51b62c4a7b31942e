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
from collections.abc import Callable
from pathlib import Path

from amp.errors import ConfigError, MissingExtraError

__all__ = ['is_reference', 'looks_secret', 'resolve']

_SECONDS = 30
_SECRET_NAME = re.compile(r'pass(word|wd|phrase)?$|secret|token|private_key|api_key', re.IGNORECASE)


def looks_secret(key: str) -> bool:
    """True for a key whose value is not shown."""
    return bool(_SECRET_NAME.search(key))


def is_reference(value: object) -> bool:
    """True for a text that says where a secret is."""
    return isinstance(value, str) and value.partition(':')[0] in _READERS and ':' in value


def resolve(value: str) -> str:
    """The secret behind a reference. Raises ConfigError, which never holds the secret."""
    kind, _, rest = value.partition(':')
    found = _READERS[kind](rest)
    if not found:
        raise ConfigError(f'the secret {value!r} is empty')
    return found


def _from_environment(name: str) -> str:
    if name not in os.environ:
        raise ConfigError(f'the environment variable {name} is not set', hint='a connection names it for a secret')
    return os.environ[name]


def _from_file(text: str) -> str:
    path = Path(text).expanduser()
    try:
        mode = path.stat().st_mode
        if os.name == 'posix' and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f'others may read the secret in {path}', hint=f'chmod 600 {path}')
        return path.read_text().partition('\n')[0].strip()
    except OSError as error:
        raise ConfigError(f'the secret in {path} cannot be read: {error.strerror}') from error


def _from_command(text: str) -> str:
    try:
        words = shlex.split(text)
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 - the user's own command, no shell
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f'the command for a secret did not run: {type(error).__name__}') from error
    if done.returncode != 0:
        raise ConfigError(f'the command for a secret ended with {done.returncode}: {words[0]}')
    return done.stdout.partition('\n')[0].strip()


def _from_keyring(text: str) -> str:
    try:
        import keyring  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingExtraError('keyring', 'keyring') from error
    service, _, user = text.rpartition('/')
    found = keyring.get_password(service or 'amp', user)
    if found is None:
        raise ConfigError(f'the keyring has nothing for {text!r}', hint=f'keyring set {service or "amp"} {user}')
    return str(found)


_READERS: dict[str, Callable[[str], str]] = {
    'env': _from_environment,
    'file': _from_file,
    'cmd': _from_command,
    'keyring': _from_keyring,
}
