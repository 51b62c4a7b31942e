"""How the Snowflake loader is told where to go, who logs in and how rows travel."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from amp.config.urls import config_from_url
from amp.errors import ConfigError, redact

__all__ = ['METHODS', 'SnowflakeConnectionConfig', 'config_of_url']

METHODS = ('stage', 'insert', 'pandas', 'snowpipe_streaming')
_MEGABYTE = 1024**2
_JWT_SECONDS = 3540


@dataclass(frozen=True)
class SnowflakeConnectionConfig:
    """Where the tables are, who logs in, and how rows travel.

    Login by `password`, by `private_key` (the text of a PEM, or the path of one; `private_key_passphrase`), or by
    `token` (OAuth; another `authenticator` of the driver may be named). `loading_method`: `stage`, `insert`, `pandas`
    or `snowpipe_streaming`. `pool_size`: sessions for units and uploads, beside the one for everything else.
    `file_mb`: the size at which a staged Parquet file is closed and uploaded. `preserve_reorg_history` keeps rows that
    a reorg took off the chain, marked. `host`, `port`, `protocol` and `streaming_url` are for other ways to the account.
    """

    account: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    schema: str = 'PUBLIC'
    warehouse: str | None = None
    role: str | None = None
    private_key: str | None = field(default=None, repr=False)
    private_key_passphrase: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    authenticator: str | None = None
    loading_method: str = 'stage'
    pool_size: int = 4
    file_mb: int = 128
    preserve_reorg_history: bool = False
    lock_timeout: int = 30
    login_timeout: int = 60
    network_timeout: int = 600
    application: str = 'amp'
    host: str | None = None
    port: int | None = None
    protocol: str | None = None
    streaming_url: str | None = None

    def __post_init__(self) -> None:
        if self.loading_method not in METHODS:
            raise ConfigError(
                f'there is no loading_method {self.loading_method!r}', hint=f'methods: {", ".join(METHODS)}'
            )
        if self.pool_size < 1 or self.file_mb < 1:
            raise ConfigError('pool_size and file_mb are at least 1')
        if self.preserve_reorg_history and self.loading_method == 'snowpipe_streaming':
            raise ConfigError(
                'preserve_reorg_history needs transactions, which snowpipe_streaming has not',
                hint="loading_method='stage'",
            )
        if not (self.password or self.private_key or self.token or self.authenticator):
            raise ConfigError('snowflake needs a login', hint='one of password, private_key, token, authenticator')

    @property
    def file_bytes(self) -> int:
        """`file_mb` in bytes."""
        return self.file_mb * _MEGABYTE

    @property
    def place(self) -> str:
        """The account and schema, for messages."""
        return f'{self.account}/{self.database}/{self.schema}'

    def key_bytes(self) -> bytes | None:
        """The private key as DER, for the driver. Raises ConfigError, without a word of the key."""
        if self.private_key is None:
            return None
        from cryptography.hazmat.primitives import serialization

        try:
            text = self.private_key
            pem = text.encode() if '-----BEGIN' in text else Path(text).expanduser().read_bytes()
            secret = self.private_key_passphrase.encode() if self.private_key_passphrase else None
            key = serialization.load_pem_private_key(pem, secret)
        except OSError as error:
            raise ConfigError('the file that private_key names cannot be read', hint=error.strerror) from None
        except (ValueError, TypeError):
            raise ConfigError(
                'private_key is no PEM that can be read', hint='check the text and private_key_passphrase'
            ) from None
        return key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def jwt(self) -> str:
        """A token that the private key signs, for the doors that are not the driver's. Raises ConfigError."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import padding, rsa

        der = self.key_bytes()
        key = serialization.load_der_private_key(der, None) if der is not None else None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ConfigError('private_key is no RSA key, which is the kind that Snowflake takes')
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        # The name of the account alone: without its region, in upper case, as the documentation of such tokens wants it.
        who = f'{self.account.partition(".")[0]}.{self.user}'.upper()
        fingerprint = base64.b64encode(hashlib.sha256(public).digest()).decode()
        now = int(time.time())
        claims = {'iss': f'{who}.SHA256:{fingerprint}', 'sub': who, 'iat': now, 'exp': now + _JWT_SECONDS}
        parts = [_encoded(json.dumps(part).encode()) for part in ({'alg': 'RS256', 'typ': 'JWT'}, claims)]
        signature = key.sign('.'.join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return '.'.join([*parts, _encoded(signature)])

    def login(self) -> dict[str, Any]:
        """The keywords of the driver's `connect`."""
        given: dict[str, Any] = {
            'account': self.account,
            'user': self.user,
            'password': self.password,
            'private_key': self.key_bytes(),
            'token': self.token,
            'authenticator': self.authenticator or ('oauth' if self.token else None),
            'database': self.database,
            'schema': self.schema,
            'warehouse': self.warehouse,
            'role': self.role,
            'host': self.host,
            'port': self.port,
            'protocol': self.protocol,
        }
        return {key: value for key, value in given.items() if value is not None}


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b'=').decode()


def config_of_url(url: str) -> dict[str, Any]:
    """`snowflake://user:password@account/database/schema?warehouse=...` as a configuration. Raises ConfigError."""
    given = config_from_url(url, SnowflakeConnectionConfig, None)
    parts = urlsplit(url)
    if 'host' not in dict(parse_qsl(parts.query)):
        given.pop('host', None)
    names = [part for part in str(given.pop('database', '')).split('/') if part]
    if len(names) > 2:
        raise ConfigError(
            f'{redact(url)!r} names more than a database and a schema',
            hint='snowflake://user@account/database/schema',
        )
    named = {'account': parts.hostname, **dict(zip(('database', 'schema'), names, strict=False))}
    return {**{key: value for key, value in named.items() if value}, **given}
