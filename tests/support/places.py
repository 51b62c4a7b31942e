"""Every destination that has a network, with a proxy on the way: how to reach it through it, and without."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.s3 import BUCKET
from tests.support.tcp_proxy import TcpProxy

__all__ = ['PLACES', 'Place']


@dataclass(frozen=True)
class Place:
    """A destination behind a proxy. `commit` is in the bytes that commit a unit, `request` in the head of that request.

    Both may be empty: then what follows the point `commit.before` is meant. `few`: it is some kilobytes that a unit sends.
    `patient_uploads`: how long an upload may be silent is the client's own business, minutes for some.
    """

    loader: str
    proxy: TcpProxy
    through: Mapping[str, Any]
    direct: Mapping[str, Any]
    commit: bytes
    request: bytes = b''
    is_http: bool = False
    table: str = 'logs'
    few: bool = False
    patient_uploads: bool = False


def _name() -> str:
    return f'faults_{uuid.uuid4().hex[:12]}'


@contextmanager
def _postgresql(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    import psycopg

    config = servers('postgresql_test_config')
    schema, host, port = _name(), config['host'], config['port']
    settings = {k: config[k] for k in ('host', 'port', 'user', 'password')}
    with psycopg.connect(dbname=config['database'], autocommit=True, **settings) as admin:
        admin.execute(f'CREATE SCHEMA {schema}'.encode())
        with TcpProxy(f'{host}/.s.PGSQL.{port}' if host.startswith('/') else host, port) as proxy:
            direct = {**config, 'schema': schema}
            through = {
                **direct, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable', 'lock_timeout': 1, 'timeout': 2,
            }  # fmt: skip
            yield Place('postgresql', proxy, through, direct, b'COMMIT')
        admin.execute(f'DROP SCHEMA {schema} CASCADE'.encode())


@contextmanager
def _redis(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    config = {**servers('redis_test_config'), 'data_structure': 'hash'}
    with TcpProxy(config['host'], config['port']) as proxy:
        yield Place('redis', proxy, {**config, 'host': '127.0.0.1', 'port': proxy.port}, config, b'EXEC', table=_name())


@contextmanager
def _clickhouse(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader

    config = {**servers('clickhouse_test_config'), 'durable': False, 'compress': False}
    database = _name()
    with ClickHouseLoader(config) as admin:
        admin.session.do(f'CREATE DATABASE {database}')
        direct = {**config, 'database': database}
        with TcpProxy(config['host'], config['port']) as proxy:
            through = {**direct, 'host': '127.0.0.1', 'port': proxy.port, 'timeout': 2}
            yield Place('clickhouse', proxy, through, direct, b'"intent":null', is_http=True)
        admin.session.do(f'DROP DATABASE {database} SYNC')


@contextmanager
def _snowflake(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    direct = {**servers('snowflake_test_config'), 'schema': _name().upper()}
    with TcpProxy(direct['host'], direct['port']) as proxy:
        through = {**direct, 'host': '127.0.0.1', 'port': proxy.port, 'network_timeout': 3, 'login_timeout': 5}
        # What the driver sends is compressed, so the commit is known by its moment alone.
        yield Place('snowflake', proxy, through, direct, b'', is_http=True)


def _s3(servers: Callable[[str], Any]) -> tuple[dict[str, str], TcpProxy]:
    options = servers('s3_test_options')
    server = urlsplit(options['AWS_ENDPOINT_URL'])
    return options, TcpProxy(server.hostname or '', server.port or 0)


@contextmanager
def _deltalake(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    options, network = _s3(servers)
    root = _name()
    with network as proxy:
        direct = {'root': f's3://{BUCKET}/{root}', 'storage_options': options}
        far = {
            **options,
            'AWS_ENDPOINT_URL': f'http://127.0.0.1:{proxy.port}',
            'timeout': '2s',
            'connect_timeout': '2s',
        }
        through = {**direct, 'storage_options': far}
        commit = f'PUT /{BUCKET}/{root}/logs/_delta_log/'.encode()
        yield Place('deltalake', proxy, through, direct, commit, commit, is_http=True)


@contextmanager
def _parquet(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    options, network = _s3(servers)
    root = _name()
    with network as proxy:
        direct = {
            'root': f's3://{BUCKET}/{root}',
            's3_endpoint': options['AWS_ENDPOINT_URL'],
            's3_access_key': options['AWS_ACCESS_KEY_ID'],
            's3_secret_key': options['AWS_SECRET_ACCESS_KEY'],
        }
        through = {**direct, 's3_endpoint': f'http://127.0.0.1:{proxy.port}'}
        commit = f'PUT /{BUCKET}/{root}/logs/_delta_log/'.encode()
        yield Place('parquet', proxy, through, direct, commit, commit, is_http=True, patient_uploads=True)


@contextmanager
def _iceberg(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    """Data on S3 behind the proxy, the catalog beside the loader."""
    options, network = _s3(servers)
    with network as proxy:
        catalog = {
            'type': 'sql',
            'uri': f'sqlite:///{folder / "catalog.db"}',
            's3.endpoint': options['AWS_ENDPOINT_URL'],
            's3.access-key-id': options['AWS_ACCESS_KEY_ID'],
            's3.secret-access-key': options['AWS_SECRET_ACCESS_KEY'],
            's3.region': options['AWS_REGION'],
        }
        direct = {'warehouse': f's3://{BUCKET}/{_name()}', 'catalog_config': catalog}
        far = {**catalog, 's3.endpoint': f'http://127.0.0.1:{proxy.port}', 's3.request-timeout': '2'}
        through = {**direct, 'catalog_config': far}
        yield Place('iceberg', proxy, through, direct, b'/metadata/', b'/metadata/', is_http=True, patient_uploads=True)


@contextmanager
def _iceberg_catalog(servers: Callable[[str], Any], folder: Path) -> Iterator[Place]:
    """Data beside the loader, the catalog in PostgreSQL behind the proxy: its COMMIT is the commit."""
    config = servers('postgresql_test_config')
    host, port = config['host'], config['port']
    with TcpProxy(f'{host}/.s.PGSQL.{port}' if host.startswith('/') else host, port) as proxy:

        def by(where: str) -> dict[str, Any]:
            secret = f':{config["password"]}' if config.get('password') else ''
            uri = f'postgresql+psycopg://{config["user"]}{secret}@{where}/{config["database"]}'
            return {'type': 'sql', 'uri': uri, 'name': catalog}

        catalog = _name()
        near = f'/?host={host}' if host.startswith('/') else f'{host}:{port}'
        warehouse = f'file://{folder / "lake"}'
        yield Place(
            'iceberg',
            proxy,
            {'warehouse': warehouse, 'catalog_config': by(f'127.0.0.1:{proxy.port}')},
            {'warehouse': warehouse, 'catalog_config': by(near)},
            b'COMMIT',
            few=True,
        )


PLACES: dict[str, Callable[[Callable[[str], Any], Path], Any]] = {
    'postgresql': _postgresql,
    'redis': _redis,
    'clickhouse': _clickhouse,
    'snowflake': _snowflake,
    'deltalake': _deltalake,
    'parquet': _parquet,
    'iceberg': _iceberg,
    'iceberg-catalog': _iceberg_catalog,
}
