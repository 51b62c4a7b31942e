"""`amp conn`, `amp config`, `amp plan` and `amp doctor`, as they are typed."""

from __future__ import annotations

import json
import os

import duckdb
import pytest
from typer.testing import CliRunner

from amp.cli.app import app
from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from tests.support.command_line import amp

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture(scope='module')
def server():
    with LocalAmp.simulate(seed=8, blocks=300, logs_per_block=4) as running:
        yield running


def test_a_name_is_added_used_shown_and_removed(tmp_path, server):
    own = {'AMP_CONFIG': str(tmp_path / 'user.toml')}
    added = amp('conn', 'add', 'mine', 'duckdb:///chain.db', cwd=tmp_path, **own)
    assert added.returncode == 0, added.stderr
    assert amp('conn', 'test', 'mine', cwd=tmp_path, **own).returncode == 0
    loaded = amp(
        'load', server.url, 'SELECT * FROM eth_rpc.blocks', '--to', 'mine', '-t', 'blocks', cwd=tmp_path, **own
    )
    assert loaded.returncode == 0, loaded.stderr
    shown = amp('config', 'show', '--origin', cwd=tmp_path, **own).stdout.decode()
    assert 'url = duckdb:///chain.db' in shown
    assert 'amp.toml' in shown
    assert amp('conn', 'remove', 'mine', cwd=tmp_path, **own).returncode == 0
    gone = amp('conn', 'test', 'mine', cwd=tmp_path, **own)
    assert gone.returncode == 3
    assert b"no connection 'mine'" in gone.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in, with a user's file beside it that says nothing, and no variable of the machine."""
    user = tmp_path / 'user' / 'amp.toml'
    user.parent.mkdir()
    user.touch()
    for name in [name for name in os.environ if name.startswith(('AMP_', 'POSTGRES_', 'PG', 'REDIS_'))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('AMP_CONFIG', str(user))
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'here'


def typed(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    'arguments',
    [
        ('postgresql://me:hush@host/db',),
        ('--loader', 'postgresql', '-s', 'password=hush'),
        ('--loader', 'postgresql', '-s', 'password=4711'),
        ('--loader', 'postgresql', '-s', 'url=postgresql://me:hush@host/db'),
        ('deltalake:///lake', '-s', 'storage_options={"AWS_SECRET_ACCESS_KEY": "hush"}'),
        ('iceberg:///lake', '-s', 'catalog_config={"uri": "postgresql://me:hush@host/db"}'),
        ('iceberg:///lake', '-s', 'catalog_config={"header.Authorization": "Bearer hush"}'),
        ('iceberg:///lake', '-s', 'catalog_config={"uris": ["postgresql://me:hush@host/db"]}'),
        ('iceberg:///lake', '-s', 'catalog_config.uri=postgresql://me:hush@host/db'),
    ],
)
def test_a_secret_is_never_written_in_clear(folder, arguments):
    refused = typed('conn', 'add', 'mine', *arguments)
    assert refused.exit_code == 3
    assert 'not written to a file in clear' in refused.stderr
    assert 'env:NAME, file:PATH, cmd:COMMAND or keyring:SERVICE/USER' in refused.stderr
    assert '***' not in refused.stderr
    assert 'hush' not in refused.output
    assert not (folder / 'amp.toml').exists()


def test_where_a_secret_is_may_be_written(folder):
    settings = ('password=env:PW', 'resilience={"preset": "off"}')
    added = typed('conn', 'add', 'pg', 'postgresql://me@host/db', *(f'--set={text}' for text in settings))
    assert added.exit_code == 0, added.output
    added = typed('conn', 'add', 'ch', '--loader', 'clickhouse', '-s', 'host=h', '-s', 'user=me')
    assert added.exit_code == 0, added.output
    shown = typed('config', 'show').stdout
    assert 'password = env:PW' in shown
    assert 'resilience.preset = off' in shown


def test_a_connection_is_not_replaced_by_accident(folder):
    (folder / 'amp.toml').write_text('[connections.a]\nurl = "duckdb:///x.db"\nresilience = "production"\n')
    before = (folder / 'amp.toml').read_text()
    refused = typed('conn', 'add', 'a', 'duckdb:///y.db')
    assert refused.exit_code == 3
    assert "has a connection 'a' already" in refused.stderr
    assert '--force' in refused.stderr
    assert (folder / 'amp.toml').read_text() == before
    assert typed('conn', 'add', 'b', 'duckdb:///z.db').exit_code == 0
    assert typed('conn', 'add', 'a', 'duckdb:///y.db', '--force').exit_code == 0
    assert typed('config', 'show').stdout.splitlines() == [
        'a  duckdb', '  url = duckdb:///y.db', 'b  duckdb', '  url = duckdb:///z.db',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (('foo://bar',), "there is no loader 'foo'"),
        (('--loader', 'postgres_', '-s', 'host=h'), "there is no loader 'postgres_'"),
        (('postgresql://h/db', '-s', 'bogus=1'), "postgresql has no key 'bogus'"),
        (('--loader', 'redis', '-s', 'hots=h'), "redis has no key 'hots'"),
        (('duckdb:///x.db', '-s', 'resilience={"preset": null}'), 'null is no value'),
    ],
)
def test_what_cannot_be_meant_is_not_written(folder, arguments, told):
    refused = typed('conn', 'add', 'x', *arguments)
    assert refused.exit_code == 3
    assert told in refused.stderr
    assert not (folder / 'amp.toml').exists()


def test_nothing_is_added_to_a_file_that_does_not_parse(folder):
    (folder / 'amp.toml').write_text('[connections.x\n')
    refused = typed('conn', 'add', 'a', 'duckdb:///x.db')
    assert refused.exit_code == 3
    assert 'cannot be read' in refused.stderr
    assert (folder / 'amp.toml').read_text() == '[connections.x\n'


def test_one_wrong_name_does_not_hide_the_others(folder, monkeypatch):
    (folder / 'amp.toml').write_text('[connections.a]\nurl = "duckdb:///x.db"\n[connections.b]\nhost = "h"\n')
    monkeypatch.setenv('AMP_CONN_Q', 'garbage hush')
    monkeypatch.setenv('AMP_CONN_EMPTY', '')
    for arguments in (('conn', 'list'), ('config', 'show')):
        shown = typed(*arguments)
        assert shown.exit_code == 3
        assert shown.stdout.splitlines()[0] == 'a  duckdb'
        assert "wrong: b: the connection 'b' does not say its loader" in shown.stderr
        assert 'wrong: q: AMP_CONN_Q is neither a URL nor a JSON object' in shown.stderr
        assert 'empty' not in shown.output
        assert 'hush' not in shown.output
    found = [json.loads(line) for line in typed('conn', 'list', '--json').stdout.splitlines()]
    assert [(entry['name'], entry['loader']) for entry in found] == [('a', 'duckdb'), ('b', None), ('q', None)]


def test_a_plan_touches_nothing(tmp_path, server):
    sql = 'SELECT block_num, address, data FROM eth_rpc.logs'
    done = amp('plan', server.url, sql, '--to', 'duckdb:///chain.db', '-t', 'logs', '--json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [c['there'] for c in plan['columns']] == ['UBIGINT', 'BLOB', 'BLOB']
    assert plan['estimated_rows'] == 1_200
    assert (plan['exists'], plan['blocks'][0]['end']) == (False, 299)
    assert not list(tmp_path.iterdir())
    told = amp('plan', server.url, sql, '--to', 'duckdb:///chain.db', '-t', 'logs', cwd=tmp_path).stdout.decode()
    assert 'about 1,200 in all blocks' in told
    assert 'CREATE TABLE IF NOT EXISTS "main"."logs" ("block_num" UBIGINT, "address" BLOB, "data" BLOB)' in told


def planned(server, sql, *arguments) -> dict:
    done = CliRunner().invoke(app, ['plan', server.url, sql, *arguments, '--json'])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize('url', ['lmdb:///x', 'deltalake:///x', 'parquet:///x', 'iceberg:///x', 'duckdb:///x/y.db'])
def test_a_plan_makes_no_folder(tmp_path, server, url, monkeypatch):
    monkeypatch.setenv('AMP_CONFIG', str(tmp_path / 'user.toml'))
    monkeypatch.setenv('AMP_CONN_PLACE', url)
    monkeypatch.chdir(tmp_path)
    for to in (url, 'place'):
        assert planned(server, 'SELECT * FROM eth_rpc.blocks', '--to', to, '-t', 'b')['exists'] is False
        assert not list(tmp_path.iterdir())


def test_the_sql_of_a_plan_makes_the_table_that_a_load_makes(tmp_path, server):
    folder = tmp_path / 'labels'
    folder.mkdir()
    (folder / 'tokens.csv').write_text('address,symbol\n')
    options = ('--to', f'duckdb:///{tmp_path}/chain.db', '-t', 'logs', '--label', f'tokens={folder}/tokens.csv')
    sql = 'SELECT * FROM eth_rpc.logs'
    plan = planned(server, sql, *options)
    assert plan['columns'][-1] == {'name': 'symbol', 'arrow': 'string', 'there': 'VARCHAR'}
    assert CliRunner().invoke(app, ['load', server.url, sql, *options, '--preset', 'production']).exit_code == 0
    with duckdb.connect(str(tmp_path / 'chain.db')) as connection:
        connection.execute(plan['sql'].replace('"logs"', '"planned"'))
        described = [connection.execute(f'DESCRIBE {table}').fetchall() for table in ('logs', 'planned')]
        assert described[0] == described[1]
        connection.execute('ALTER TABLE logs DROP COLUMN symbol')
    again = planned(server, sql, *options)
    assert (again['exists'], again['sql'], again['missing_columns']) == (True, None, ['symbol'])
    assert CliRunner().invoke(app, ['load', server.url, sql, *options, '--preset', 'wild']).exit_code == 2


def test_the_doctor_finds_what_is_wrong_and_says_what_to_do(tmp_path, server):
    (tmp_path / 'user.toml').touch()
    own = {'AMP_CONFIG': str(tmp_path / 'user.toml')}
    well = amp('doctor', '--source', server.url, '--to', 'duckdb:///chain.db', cwd=tmp_path, **own)
    assert well.returncode == 0, well.stdout
    assert b'answered in' in well.stdout
    ill = amp('doctor', '--source', 'grpc://127.0.0.1:1', '--to', 'duckdb:////no/where/x.db', cwd=tmp_path, **own)
    assert ill.returncode == 1
    assert ill.stdout.count(b'WRONG') == 2
    assert ill.stdout.count(b'->') == 2


def examined(*arguments):
    """What `amp doctor` finds wrong, and its exit code."""
    done = typed('doctor', '--json', *arguments)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, [(check['what'], check['found']) for check in found if not check['ok']]


def test_the_doctor_asks_the_server_that_the_commands_ask(folder, monkeypatch, server):
    assert examined() == (0, [])
    (folder / 'amp.toml').write_text(f'[source]\nurl = "{server.url}"\n')
    assert examined() == (0, [])
    monkeypatch.setenv('AMP_URL', 'grpc://127.0.0.1:1')
    code, [(what, found)] = examined()
    assert (code, what) == (1, 'server')
    assert 'grpc://127.0.0.1:1: cannot reach' in found
    assert examined('--source', server.url) == (0, [])


def test_the_doctor_goes_on_after_each_finding(folder, monkeypatch):
    secret = folder / 'pw'
    secret.write_bytes(b'hush\xff')
    secret.chmod(0o600)
    (folder / 'amp.toml').write_text(
        f'[connections.a]\nurl = "postgresql://h/db"\npassword = "file:{secret}"\n[connections.b]\nhost = "h"\n'
    )
    monkeypatch.setenv('AMP_CONN_C', '{"loader": "redis", "host": "h", "password": "cmd:"}')
    monkeypatch.setenv('AMP_CONFIG', str(folder / 'nowhere.toml'))
    hidden = 'hu' + 'sh'
    code, wrong = examined('--to', f'postgresql://u:{hidden}/x@h/db', '--to', 'a')
    assert code == 1
    assert [what for what, _ in wrong] == ['configuration'] * 4 + ['destination'] * 2
    told = [found for _, found in wrong]
    assert f'AMP_CONFIG names {folder / "nowhere.toml"}, which is no file' in told[0]
    assert f'a: the secret in {secret} is not text' in told[1]
    assert "b: the connection 'b' does not say its loader" in told[2]
    assert 'c: the command for a secret is empty' in told[3]
    assert 'not a URL of a server' in told[4]
    assert 'is not text' in told[5]
    assert hidden not in str(wrong)
    assert 'AMP_CONFIG names' in typed('config', 'show').stderr


def test_the_doctor_looks_at_permissions(tmp_path, monkeypatch, postgresql_test_config):
    config, role = postgresql_test_config, 'amp_doctor'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('AMP_URL', raising=False)
    user = tmp_path / 'user.toml'
    monkeypatch.setenv('AMP_CONFIG', str(user))
    user.write_text('[connections.x]\nloader = "postgresql"\nhost = "h"\ndatabase = "d"\npassword = "hush"\n')
    user.chmod(0o644)
    with create_loader('postgresql', {**config, 'schema': 'amp_doctor'}) as owner:
        owner.run('CREATE SCHEMA IF NOT EXISTS amp_doctor')
        owner.run(f'DROP ROLE IF EXISTS {role}')
        owner.run(f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
        try:
            own = {**config, 'schema': 'amp_doctor', 'user': role, 'password': 'hush'}
            monkeypatch.setenv('AMP_CONN_PG', json.dumps({'loader': 'postgresql', **own}))
            done = CliRunner().invoke(app, ['doctor', '--to', 'pg', '--json'])
            found = [json.loads(line) for line in done.stdout.splitlines()]
            wrong = [(check['what'], check['remedy']) for check in found if not check['ok']]
            assert [what for what, _ in wrong] == ['permissions', 'permissions']
            assert wrong[0][1].startswith(f'chmod 600 {user}')
            assert wrong[1][1] == f'GRANT USAGE, CREATE ON SCHEMA "amp_doctor" TO "{role}"'
            assert 'hush' not in done.output
            owner.run(wrong[1][1])
            user.chmod(0o600)
            assert CliRunner().invoke(app, ['doctor', '--to', 'pg']).exit_code == 0
        finally:
            owner.run('DROP SCHEMA amp_doctor CASCADE')
            owner.run(f'DROP ROLE {role}')


def test_what_is_configured_is_shown_with_its_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('AMP_CONFIG', str(tmp_path / 'user.toml'))
    (tmp_path / 'user.toml').write_text(
        '[source]\nurl = "grpc+tls://host"\ntoken = "hush"\n[connections.x]\nurl = "duckdb:///x.db"\n'
        '[connections.x.resilience]\npreset = "production"\nretry = {max_retries = 9}\n'
    )
    shown = CliRunner().invoke(app, ['config', 'show', '--origin']).stdout
    assert 'token = ***' in shown
    assert f'resilience.preset = production   # {tmp_path}/user.toml' in shown
    assert f'resilience.retry.max_retries = 9   # {tmp_path}/user.toml' in shown
    assert 'hush' not in shown
    (tmp_path / 'amp.toml').write_text('[connections.x]\nurl = "duckdb:///x.db"\nport = port\n')
    refused = CliRunner().invoke(app, ['conn', 'list'])
    assert refused.exit_code == 3
    assert 'line 3' in refused.stderr
