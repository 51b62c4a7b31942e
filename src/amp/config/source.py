"""`[source]` of amp.toml: the server that is meant when none is named, and how to be let in there.

[source]
url = "grpc+tls://amp.example.com"
token = "keyring:amp/me"            # or, in your own file only: auth = true
"""

from __future__ import annotations

from amp.config.files import config_files, user_file
from amp.config.secrets import Setting, resolved
from amp.errors import ConfigError

__all__ = ['source', 'token_for']


def source() -> dict[str, Setting]:
    """`url`, `token` and `auth`, as far as a file says them. A token goes with the URL of its own file.

    Raises ConfigError for a file that does not parse, and for `auth` where somebody else may have written it.
    """
    found: dict[str, Setting] = {}
    for file in config_files():
        settings = {
            key: Setting(key, value, str(file.path), is_foreign=not file.is_own) for key, value in file.source.items()
        }
        if 'auth' in settings and not file.is_own:
            # It sends the user's own login to a server that whoever wrote the file has chosen.
            raise ConfigError(f'{file.path}: auth belongs into your own {user_file()}', hint='or type --auth')
        if 'url' in found and 'url' in settings and settings['url'].value != found['url'].value:
            continue
        found = {**settings, **found}
    return found


def token_for(url: str) -> tuple[str | None, bool]:
    """The token for this server, and whether it is that of the login; (None, False) for any other server.

    Raises ConfigError for a secret that cannot be read.
    """
    found = source()
    if 'url' not in found or found['url'].value != url:
        return None, False
    token = resolved(found['token'], 'of [source]') if 'token' in found else None
    return (None if token is None else str(token)), 'auth' in found and bool(found['auth'].value)
