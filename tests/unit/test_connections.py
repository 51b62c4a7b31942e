"""Names of connections: every place that says something, key by key, and no secret in any text."""

from __future__ import annotations

import re
import time
import traceback

import pytest

from amp import Client
from amp.config.connection_manager import ConnectionManager
from amp.config.source import source, token_for
from amp.errors import ConfigError, redact
from amp.streaming.resilience import ResilienceConfig

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


def test_a_named_server_is_not_filled_up_with_the_url_of_another(places, monkeypatch):
    project, user = places
    project.write_text('[connections.cache]\nloader = "redis"\nhost = "127.0.0.1"\nport = 7001\n')
    monkeypatch.setenv('REDIS_URL', 'redis://:hush@production:7002/3')
    assert ConnectionManager().get('cache').config() == {'host': '127.0.0.1', 'port': 7001}
    user.write_text('[connections.cache]\nurl = "redis://:hush@production:7002/3"\n')
    assert ConnectionManager().get('cache').config() == {'host': '127.0.0.1', 'port': 7001}
    project.write_text('[connections.cache]\nhost = "elsewhere"\n')
    with pytest.raises(ConfigError, match='does not say its loader'):
        ConnectionManager().get('cache')
    project.write_text('[connections.cache]\nloader = "redis"\nttl = 5\n')
    user.unlink()
    assert ConnectionManager().get('cache').config() == {'ttl': 5, 'url': 'redis://:hush@production:7002/3'}


@pytest.mark.parametrize(
    ('url', 'weaker'),
    [
        ('redis://stronger/3', 'db = 5'),
        ('duckdb:///stronger.db', 'path = "weaker.db"'),
        ('postgresql://stronger/db?user=me&sslmode=require', 'user = "you"\nsslmode = "disable"'),
    ],
)
def test_what_a_url_says_is_not_said_again_by_a_weaker_place(places, url, weaker):
    places[0].write_text(f'[connections.x]\nurl = "{url}"\n')
    places[1].write_text(f'[connections.x]\n{weaker}\n')
    assert ConnectionManager().get('x').config() == {'url': url}


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
        ('cmd:', 'command for a secret is empty'),
        ('cmd:echo "', 'did not run: No closing quotation'),
        ("cmd:printf 'h\\377'", 'what printf printed is not text'),
        ('file:\0', 'cannot be read'),
        ('file:~nobody-of-this-name/x', 'cannot be read'),
    ],
)
def test_a_secret_that_is_not_there_is_one_sentence(reference, told):
    with pytest.raises(ConfigError, match=told):
        secret(reference)


def test_a_secret_in_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / 'secret'
    file.write_bytes(b'hush\xff\n')
    file.chmod(0o600)
    with pytest.raises(ConfigError, match='is not text') as raised:
        secret(f'file:{file}')
    assert 'hu' + 'sh' not in ''.join(traceback.format_exception(raised.value))
    assert raised.value.__context__ is None
    file.write_bytes(b'hush\nsomething else \xff')
    assert secret(f'file:{file}') == 'hush'


def test_a_secret_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / 'secret'
    file.write_text('hush')
    file.chmod(0o644)
    with pytest.raises(ConfigError, match='others may read') as raised:
        secret(f'file:{file}')
    assert 'hush' not in str(raised.value)


def test_a_folder_of_somebody_else_runs_no_commands(places, tmp_path, monkeypatch):
    project, user = places
    text = f'[connections.pg]\nloader = "postgresql"\npassword = "cmd:touch {tmp_path}/ran"\n'
    project.write_text(text)
    with pytest.raises(ConfigError, match='is a command'):
        ConnectionManager().get('pg').config()
    assert not (tmp_path / 'ran').exists()
    found = ConnectionManager().get('pg')
    monkeypatch.chdir('/')
    with pytest.raises(ConfigError, match='is a command'):
        found.config()
    assert not (tmp_path / 'ran').exists()
    monkeypatch.chdir(project.parent)
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


def test_tables_inside_a_connection_are_merged_key_by_key_too(places, monkeypatch):
    project, user = places
    project.write_text(
        '[connections.pg]\nurl = "postgresql://me@host/db"\n[connections.pg.resilience]\npreset = "production"\n'
    )
    user.write_text(
        '[connections.pg]\nhost = "elsewhere"\npassword = "env:PW"\n'
        '[connections.pg.resilience]\npreset = "off"\nretry = {max_retries = 9}\n'
    )
    monkeypatch.setenv('PW', 'hush')
    found = ConnectionManager().get('pg')
    assert found.config() == {
        'url': 'postgresql://me@host/db',
        'password': 'hush',
        'resilience': {'preset': 'production', 'retry': {'max_retries': 9}},
    }
    assert found.settings['resilience.preset'].origin == str(project)
    assert found.settings['resilience.retry.max_retries'].origin == str(user)
    monkeypatch.setenv('AMP_CONN_PG', '{"resilience": "patient"}')
    assert ConnectionManager().get('pg').config()['resilience'] == 'patient'


def test_secrets_in_tables_inside_are_read_and_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv('HUSH', 'hush')
    manager = ConnectionManager()
    config = {
        'root': 'file:///data/lake',
        'storage_options': {'aws_secret_access_key': 'env:HUSH', 'account_key': 'hush'},
        'catalog_config': {'uri': 'postgresql://me:hush@host/db', 'header.Authorization': 'Bearer hush'},
    }
    manager.configure('lake', 'deltalake', config)
    found = manager.get('lake')
    assert found.config()['storage_options'] == {'aws_secret_access_key': 'hush', 'account_key': 'hush'}
    assert found.config()['root'] == 'file:///data/lake'
    assert 'hush' not in f'{found} {[setting.shown for setting in found.settings.values()]}'


def test_no_loader_shows_the_secrets_of_its_configuration():
    catalog = {'type': 'rest', 'credential': 'id:hush', 's3.secret-access-key': 'hush', 'header.Authorization': 'hush'}
    with Client('grpc://localhost:1') as client:
        client.configure_connection('lake', 'iceberg', {'catalog_config': catalog})
        loader = client.make_loader('lake')
    assert loader.config.catalog_config == catalog
    assert 'hush' not in f'{loader!r} {loader.config!r}'


def test_the_loader_is_that_of_the_url_wherever_it_stands(places, monkeypatch):
    places[0].write_text('[connections.my-db]\nurl = "duckdb:///x.db"\n')
    monkeypatch.setenv('AMP_CONN_MY_DB', '{"resilience": "off"}')
    assert ConnectionManager().names() == ['my-db']
    assert ConnectionManager().get('my-db').loader == 'duckdb'
    places[0].write_text('[connections.x]\nurl = "env:SOMEWHERE"\n')
    with pytest.raises(ConfigError, match='its loader cannot be told'):
        ConnectionManager().get('x')


def test_a_preset_from_a_file_reaches_the_loader(places, tmp_path):
    places[0].write_text('[connections.a]\nurl = "duckdb:///a.db"\nresilience = "production"\n')
    with Client('grpc://localhost:1') as client:
        assert client.make_loader('a').attempts.config == ResilienceConfig.from_config('production')
        assert client.make_loader('a', {'resilience': 'off'}).attempts.config == ResilienceConfig.from_config('off')
        by_url = client.make_loader('duckdb:///a.db?resilience=patient')
        assert by_url.attempts.config == ResilienceConfig.from_config('patient')
        with pytest.raises(ConfigError, match="no resilience preset 'wild'"):
            client.make_loader('duckdb:///a.db?resilience=wild')


# The server that is meant


def test_a_token_is_for_its_own_server_alone(places, monkeypatch):
    project, user = places
    monkeypatch.setenv('HUSH', 'hush')
    project.write_text('[source]\nurl = "grpc://theirs"\n')
    user.write_text('[source]\nurl = "grpc+tls://mine"\ntoken = "env:HUSH"\n')
    assert source()['url'].value == 'grpc://theirs'
    assert token_for('grpc://theirs') == (None, False)
    project.unlink()
    assert token_for('grpc+tls://mine') == ('hush', False)
    assert token_for('grpc+tls://other') == (None, False)
    user.write_text('[source]\nurl = "grpc+tls://mine"\nauth = true\n')
    assert token_for('grpc+tls://mine') == (None, True)


def test_a_folder_of_somebody_else_gets_no_login(places):
    places[0].write_text('[source]\nurl = "grpc+tls://theirs"\nauth = true\n')
    with pytest.raises(ConfigError, match='auth belongs into your own'):
        token_for('grpc+tls://theirs')


# Texts that must not hold a secret

HOSTILE = ['pa%40ss', 'p@ss:w/rd', 'пароль', 'a b&c', 'hush#x?y', '%zz', "';drop"]


@pytest.mark.parametrize('password', HOSTILE)
def test_no_password_of_a_url_is_in_an_error_a_repr_or_a_log(password, monkeypatch, caplog):
    url = f'postgresql://me:{password}@[bad/db?password={password}'
    monkeypatch.setenv('AMP_CONN_PG', url)
    told = []
    with Client('grpc://localhost:1') as client:
        for connection in ('pg', url):
            with pytest.raises(ConfigError) as raised:
                client.make_loader(connection)
            told += [*traceback.format_exception(raised.value), repr(client)]
        told += [
            repr(client.connection_manager.get('pg').settings),
            client.connection_manager.get('pg').settings['url'].shown,
        ]
    shown = ''.join(told) + caplog.text
    assert password not in shown
    assert not any(part in shown for part in re.split('[@:/ ]', password) if len(part) > 3)


@pytest.mark.parametrize('password', ['{}/x', '{}?x', '{}#x', '12/{}', '12?{}', '12#{}', '12/x={}', '[{}'])
@pytest.mark.parametrize(
    'start', ['postgresql://u:', 'redis://:', 'clickhouse://u:', 'snowflake://u:', 'iceberg+postgresql://u:']
)
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(start, password):
    secret = 's3cr' + '3t'
    url = f'{start}{password.format(secret)}@host/0'
    with Client('grpc://localhost:1') as client, pytest.raises(ConfigError, match='not a URL of a server') as raised:
        client.make_loader(url)
    told = f'{"".join(traceback.format_exception(raised.value))} {raised.value.__context__}'
    assert secret not in told
    assert 'percent-encode' in told


def test_an_at_sign_after_the_server_is_a_value_where_it_can_be_one():
    with Client('grpc://localhost:1') as client:
        loader = client.make_loader('postgresql://u:a%2Fb@host/db?application_name=a@b')
    assert (loader.config.password, loader.config.application_name) == ('a/b', 'a@b')


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('cannot reach postgresql://me:p@ss@host/db now', 'cannot reach postgresql://me:***@host/db now'),
        ('to postgresql://me/x:p@host/db now', 'to postgresql://me/x:***@host/db now'),
        ('grpc://a:1602 and pg://me:x@b', 'grpc://a:1602 and pg://me:***@b'),
        ("host=a password='two words' dbname=b", 'host=a password=*** dbname=b'),
        ("{'s3.secret-access-key': 'abc', 'region': 'x'}", "{'s3.secret-access-key': '***', 'region': 'x'}"),
        ('{"password": "abc"}', '{"password": \'***\'}'),
        ('refuses the token: it is old', 'refuses the token: it is old'),
        ('https://h/x?sig=1&sas_key=a b&z=1', 'https://h/x?sig=1&sas_key=***&z=1'),
    ],
)
def test_what_redact_takes_out(text, shown):
    assert redact(text) == shown


def test_a_variable_that_does_not_parse_keeps_its_password(monkeypatch):
    monkeypatch.setenv('AMP_CONN_PG', '{"password": "hush"')
    with pytest.raises(ConfigError, match='AMP_CONN_PG is neither') as raised:
        ConnectionManager().get('pg')
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_a_command_for_a_secret_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr('amp.config.secrets._SECONDS', 0.3)
    started = time.monotonic()
    with pytest.raises(ConfigError, match='no answer within 0') as raised:
        secret("cmd:sh -c 'printf hu%s sh; sleep 600'")
    assert time.monotonic() - started < 200
    assert 'hu' + 'sh' not in ''.join(traceback.format_exception(raised.value))


def test_a_command_that_fails_shows_nothing_it_said():
    with pytest.raises(ConfigError, match='ended with 3') as raised:
        secret("cmd:sh -c 'printf hu%s sh; printf hu%s sh >&2; exit 3'")
    assert 'hu' + 'sh' not in ''.join(traceback.format_exception(raised.value))


def test_a_file_that_does_not_parse_says_its_line(places):
    places[0].write_text('[connections.x]\nurl = "duckdb:///x.db"\nhost = \n')
    with pytest.raises(ConfigError, match='line 3'):
        ConnectionManager().get('x')
