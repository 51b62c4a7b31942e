"""Names of connections: every place that says something, key by key, and no secret in any text."""

from __future__ import annotations

import pytest

from amp import Client
from amp.config.connection_manager import ConnectionManager
from amp.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A project folder and a user's file of their own, and none of the machine's variables."""
    project, user = tmp_path / 'project' / 'deep', tmp_path / 'user.toml'
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv('AMP_CONFIG', str(user))
    for name in ('POSTGRES_HOST', 'POSTGRES_PASSWORD', 'POSTGRES_DB', 'POSTGRES_USER', 'POSTGRES_PORT', 'REDIS_URL'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / 'project' / 'amp.toml', user


def test_keys_are_merged_one_by_one(places, monkeypatch):
    project, user = places
    project.write_text('[connections.pg]\nloader = "postgresql"\nhost = "project"\n')
    user.write_text(
        '[connections.pg]\nloader = "redis"\nhost = "user"\ndatabase = "chain"\n[connections.mine]\nurl = "duckdb:///x.db"\n'
    )
    monkeypatch.setenv('POSTGRES_PASSWORD', 'hush')
    monkeypatch.setenv('POSTGRES_DB', 'not this one')
    manager = ConnectionManager()
    assert manager.names() == ['mine', 'pg']
    found = manager.get('pg')
    assert found.loader == 'postgresql'
    assert found.config() == {'host': 'project', 'database': 'chain', 'password': 'hush'}
    origins = {key: setting.origin for key, setting in found.settings.items()}
    assert origins == {'host': str(project), 'database': str(user), 'password': 'POSTGRES_PASSWORD'}
    assert 'hush' not in repr(found)
    assert found.settings['password'].shown == '***'
    assert manager.get('mine').loader == 'duckdb'


def test_a_variable_is_above_files_and_the_program_above_all(places, monkeypatch):
    project, _ = places
    project.write_text('[connections.my-db]\nloader = "postgresql"\nhost = "file"\ndatabase = "d"\n')
    monkeypatch.setenv('AMP_CONN_MY_DB', '{"loader": "postgresql", "host": "variable"}')
    manager = ConnectionManager()
    assert manager.get('my-db').config() == {'host': 'variable', 'database': 'd'}
    manager.configure('my-db', 'postgresql', {'host': 'program'})
    assert manager.get('my-db').config()['host'] == 'program'
    monkeypatch.setenv('AMP_CONN_OTHER', 'postgresql://me:hush@host/db')
    other = manager.get('other')
    assert (other.loader, other.settings['url'].shown) == ('postgresql', 'postgresql://me:***@host/db')


def test_a_url_is_not_filled_up_with_another_server(monkeypatch):
    monkeypatch.setenv('AMP_CONN_PG', 'postgresql://me:hush@host/db')
    for name in ('POSTGRES_HOST', 'POSTGRES_PASSWORD', 'POSTGRES_DB', 'POSTGRES_PORT'):
        monkeypatch.setenv(name, '5')
    assert ConnectionManager().get('pg').config() == {'url': 'postgresql://me:hush@host/db'}


def secret(reference: str) -> str:
    manager = ConnectionManager()
    manager.configure('c', 'postgresql', {'password': reference})
    return manager.get('c').config()['password']


def test_secrets_are_read_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv('HUSH', 'from the environment')
    assert secret('env:HUSH') == 'from the environment'
    file = tmp_path / 'secret'
    file.write_text('from a file\nand more\n')
    file.chmod(0o600)
    assert secret(f'file:{file}') == 'from a file'
    assert secret("cmd:printf 'from a command\\nmore'") == 'from a command'


@pytest.mark.parametrize(
    ('reference', 'told'),
    [
        ('env:NOWHERE', 'NOWHERE is not set'),
        ('file:/no/where', 'cannot be read'),
        ('cmd:false', 'ended with 1'),
        ('cmd:no-such-program x', 'did not run'),
        ('cmd:true', 'is empty'),
    ],
)
def test_a_secret_that_is_not_there_is_one_sentence(reference, told):
    with pytest.raises(ConfigError, match=told):
        secret(reference)


def test_a_secret_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / 'secret'
    file.write_text('hush')
    file.chmod(0o644)
    with pytest.raises(ConfigError, match='others may read') as raised:
        secret(f'file:{file}')
    assert 'hush' not in str(raised.value)


def test_a_folder_of_somebody_else_runs_no_commands(places, tmp_path):
    project, user = places
    text = f'[connections.pg]\nloader = "postgresql"\npassword = "cmd:touch {tmp_path}/ran"\n'
    project.write_text(text)
    with pytest.raises(ConfigError, match='is a command'):
        ConnectionManager().get('pg').config()
    assert not (tmp_path / 'ran').exists()
    project.unlink()
    user.write_text(text.replace('touch', 'echo'))
    assert ConnectionManager().get('pg').config()['password']


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('[connections', 'cannot be read'),
        ('[conections.x]\nurl = "a"', "no section 'conections'"),
        ('[connections]\nx = 3', 'a connection is a section'),
        ('[source]\nhost = "x"', 'url and token'),
        ('[connections.x]\nhost = "h"', 'does not say its loader'),
    ],
)
def test_a_file_with_a_mistake_says_which(places, text, told):
    places[0].write_text(text)
    with pytest.raises(ConfigError, match=told):
        ConnectionManager().get('x')


def test_a_client_knows_the_names(places):
    places[0].write_text('[connections.mine]\nurl = "duckdb:///x.db"\n')
    with Client('grpc://localhost:1') as client:
        client.configure_connection('other', 'duckdb', {'path': 'y.db'})
        assert client.list_connections() == {'mine': 'duckdb', 'other': 'duckdb'}
        with pytest.raises(ConfigError, match="no connection 'third'"):
            client.make_loader('third')
