"""The login that Amp's tools share: found, renewed in time, by one process at a time, and seen by nobody."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.flight as fl
import pytest

import amp
from amp.auth import AuthService, Login, LoginFile, LoginToken
from amp.streaming.types import BlockRange
from tests.support.command_line import amp as run_amp
from tests.support.command_line import environment, one_sentence
from tests.support.flight_servers import Answer, FlightServer, complete, rows, silence
from tests.support.token_server import USER, TokenServer

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

SOON = 200.0  # seconds: less than the five minutes in which a token is renewed


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    with TokenServer() as running:
        monkeypatch.setenv('HOME', str(tmp_path))
        monkeypatch.setenv('AMP_AUTH_URL', running.url)
        monkeypatch.setenv('AMP_CONFIG', str(tmp_path / 'amp.toml'))
        monkeypatch.delenv('AMP_AUTH_TOKEN', raising=False)
        yield running


def log_in(tokens: TokenServer, seconds: float | None = 3_600, mode: int = 0o600, **more: Any) -> Path:
    """The file as another tool has left it, its token good for so many seconds."""
    path = LoginFile().path
    path.parent.mkdir(parents=True, exist_ok=True)
    expiry = None if seconds is None else int((time.time() + seconds) * 1000)
    path.write_text(json.dumps({**tokens.issue(), 'expiry': expiry, **more}))
    path.chmod(mode)
    return path


def answering(tokens: TokenServer) -> FlightServer:
    """A server that takes the tokens that are valid now."""
    server = FlightServer(token=lambda given: given in tokens.valid)
    server.answers['q'] = Answer([complete(rows(0, 3))])
    return server


def refreshes(tokens: TokenServer) -> int:
    return tokens.calls.count('/api/v1/auth/refresh')


def no_secret_in(error: BaseException, *more: str) -> None:
    shown = ''.join([*traceback.format_exception(error), *more])
    assert 'access-' not in shown
    assert 'refresh-' not in shown


# Which token


def test_what_is_given_comes_before_the_variable_and_that_before_the_login(
    tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(tokens)
    with FlightServer() as server:
        server.answers['q'] = Answer([complete(rows(0, 1))])

        def sent(**options: Any) -> str | None:
            server.calls.clear()
            with amp.Client(server.url, **options) as client:
                client.sql('q').to_arrow()
            [header] = {call.headers.get('authorization') for call in server.calls}
            return header

        assert sent() is None
        assert sent(auth=True) == 'Bearer access-1'
        monkeypatch.setenv('AMP_AUTH_TOKEN', 'of-the-variable')
        assert sent(auth=True) == 'Bearer of-the-variable'
        assert sent(auth=True, auth_token='given') == 'Bearer given'
    assert tokens.calls == []


def test_a_login_is_not_sent_in_clear(tokens: TokenServer) -> None:
    with pytest.raises(amp.ConfigError, match='has no TLS'):
        amp.Client('grpc://amp.example.com', auth=True)
    with pytest.raises(amp.ConfigError, match='not https'):
        AuthService('http://auth.example.com')


# In time


@pytest.mark.parametrize(
    ('seconds', 'more', 'renewed'),
    [
        (3_600, {}, False),
        (SOON, {}, True),
        (-10, {}, True),
        (None, {}, True),
        (3_600, {'accounts': None}, True),
    ],
)
def test_it_is_renewed_when_it_is_due(tokens: TokenServer, seconds: float, more: dict[str, Any], renewed: bool) -> None:
    path = log_in(tokens, seconds, kept='by another tool', **more)
    with answering(tokens) as server, amp.Client(server.url, auth=True) as client:
        assert client.sql('q').to_arrow().num_rows == 3
        assert client.sql('q').to_arrow().num_rows == 3
    assert refreshes(tokens) == int(renewed)
    found = json.loads(path.read_text())
    assert found['kept'] == 'by another tool'
    assert found['accessToken'] in tokens.valid
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(path.parent.glob('.amp_cli_auth*'))
    if renewed:
        assert found['accounts'] == [USER, '0xabc']
        assert 3_500_000 < found['expiry'] - time.time() * 1000 <= 3_600_000


def test_a_service_that_keeps_the_refresh_token(tokens: TokenServer) -> None:
    path = log_in(tokens, SOON)
    tokens.rotates, tokens.expires_in = False, 1
    token = LoginToken()
    assert (token.current(), token.current()) == ('access-2', 'access-3')
    assert json.loads(path.read_text())['refreshToken'] == 'refresh-1'


def test_each_call_of_a_long_run_has_the_token_of_its_time(tokens: TokenServer) -> None:
    log_in(tokens)
    with answering(tokens) as server, amp.Client(server.url, auth=True) as client:
        client.sql('q').to_arrow()
        log_in(tokens)  # another tool logged in anew, and the token before is good no more
        client.sql('q').to_arrow()
    assert [call.headers['authorization'] for call in server.calls] == ['Bearer access-1'] * 2 + ['Bearer access-2'] * 2


def test_a_token_that_the_server_refuses_is_renewed_once(tokens: TokenServer) -> None:
    log_in(tokens)
    tokens.valid.clear()  # revoked, or the clocks differ: the file says that it is good
    with answering(tokens) as server, amp.Client(server.url, auth=True) as client:
        assert client.sql('q').to_arrow().num_rows == 3
    assert refreshes(tokens) == 1
    with FlightServer(token='another') as stubborn, amp.Client(stubborn.url, auth=True) as client:
        with pytest.raises(amp.AuthError, match='refuses the token') as raised:
            client.sql('q').to_arrow()
        assert len(stubborn.calls) == 2
    assert refreshes(tokens) == 2
    no_secret_in(raised.value, repr(client), repr(client.transport), str(raised.value.context))


def test_a_stream_whose_token_runs_out_goes_on_with_the_next(tokens: TokenServer, tmp_path: Path) -> None:
    log_in(tokens)

    def block(number: int) -> bytes:
        own = BlockRange('testnet', number, number, f'0x{number:064x}', f'0x{number - 1:064x}')
        numbers = {'start': number, 'end': number}
        ranges = [{'network': 'testnet', 'numbers': numbers, 'hash': own.hash, 'prev_hash': own.prev_hash}]
        return json.dumps({'ranges': ranges, 'ranges_complete': True}).encode()

    committed = threading.Event()

    def run_out(server: FlightServer) -> None:
        committed.wait(120)
        tokens.valid.clear()
        server.answers['q'] = Answer([[(rows(1, 1), block(8)), silence]])
        raise fl.FlightUnauthenticatedError('the token has run out')

    with answering(tokens) as server, amp.Client(server.url, auth=True) as client:
        server.answers['q'] = Answer([[(rows(0, 1), block(7)), run_out]])
        results = client.sql('q').load(f'duckdb:///{tmp_path}/x.db', 't', stream=True)
        assert next(results).rows_loaded == 1
        committed.set()
        assert next(results).rows_loaded == 1
        results.close()
    resumed = [call.headers for call in server.calls if 'amp-resume' in call.headers]
    assert json.loads(resumed[0]['amp-resume'])['testnet']['number'] == 7
    assert resumed[0]['authorization'] == 'Bearer access-2'


# By one at a time

RENEW = 'from amp.auth import LoginToken; print(LoginToken().current())'


def test_several_processes_and_threads_renew_once(tokens: TokenServer) -> None:
    log_in(tokens, -5)
    own = environment(HOME=str(Path.home()), AMP_AUTH_URL=tokens.url)
    processes = [
        subprocess.Popen([sys.executable, '-c', RENEW], stdout=subprocess.PIPE, env=own, text=True) for _ in range(3)
    ]
    token, found = LoginToken(), []
    threads = [threading.Thread(target=lambda: found.append(token.current())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    told = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert told | set(found) == tokens.valid == {'access-2'}
    assert refreshes(tokens) == 1


def test_a_tool_without_a_lock_that_was_faster(tokens: TokenServer) -> None:
    """Our refresh token is spent by the time that we send it; the file has the new login."""
    path = log_in(tokens, -5)
    stale = Login.from_json(path.read_text())

    class Late(AuthService):
        def refresh(self, login: Login) -> Login:
            path.write_text(json.dumps({**tokens.issue(), 'expiry': int((time.time() + 3_600) * 1000)}))
            return super().refresh(login)

    assert LoginToken(service=Late()).current() == 'access-2'
    assert stale.access_token == 'access-1'


def test_a_killed_process_leaves_lock_and_file_usable(tokens: TokenServer) -> None:
    path = log_in(tokens, -5)
    code = 'from amp.auth import LoginFile; import os\nwith LoginFile().locked(), LoginFile().replacing(): os._exit(9)'
    own = environment(HOME=str(Path.home()))
    assert subprocess.run([sys.executable, '-c', code], env=own, check=False, timeout=120).returncode == 9
    assert LoginToken().current() == 'access-2'
    assert json.loads(path.read_text())['accessToken'] == 'access-2'


def test_a_logout_during_a_renewal_is_one(tokens: TokenServer) -> None:
    path = log_in(tokens, -5)
    removed = []
    logout = threading.Thread(target=lambda: removed.append(LoginFile().remove()))

    class Slow(AuthService):
        def refresh(self, login: Login) -> Login:
            logout.start()
            logout.join(0.5)  # without the lock it is long over
            return super().refresh(login)

    assert LoginToken(service=Slow()).current() == 'access-2'
    logout.join(120)
    assert (removed, path.exists()) == ([True], False)
    assert LoginFile().remove() is False


# What goes wrong


@pytest.mark.parametrize('url', ['https://[', 'https://', 'https://host:99999', 'nonsense'])
def test_an_address_of_the_service_that_is_none(tokens: TokenServer, url: str) -> None:
    told = one_sentence(run('auth', 'login', AMP_AUTH_URL=url))
    assert 'the address of the login service is not a URL' in told


def test_a_service_whose_numbers_mean_nothing(tokens: TokenServer) -> None:
    log_in(tokens, -5)
    tokens.expires_in = float('inf')
    with pytest.raises(amp.ConnectError, match='cannot be read'):
        LoginToken().current()


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (None, 'nobody is logged in'),
        (b'', 'not a JSON object'),
        (b'{"accessToken": "access-9", ', 'not a JSON object'),
        (b'["access-9"]', 'not a JSON object'),
        (b'{"accessToken": "access-9"}', 'has no refreshToken'),
        (b'{"accessToken": 7, "refreshToken": "refresh-9", "userId": "u"}', 'has no accessToken'),
        (b'{"accessToken": "access-9", "refreshToken": "r", "userId": "u", "expiry": "soon"}', 'expiry is not'),
        (b'{"accessToken": "access-9", "refreshToken": "r", "userId": "u", "expiry": 1e999}', 'expiry is not'),
        (b'{"accessToken": "access-9", "refreshToken": "r", "userId": "u", "expiry": 1e300}', 'expiry is not'),
        (b'\xff\xfeaccess-9', 'not text'),
        (b'[' * 70_000, 'too large'),
        (b'[' * 60_000, 'not a JSON object'),
    ],
)
def test_a_file_that_cannot_be_used(tokens: TokenServer, content: bytes | None, told: str) -> None:
    path = LoginFile().path
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        path.chmod(0o600)
    with amp.Client('grpc://127.0.0.1:1', auth=True) as client, pytest.raises(amp.AuthError, match=told) as raised:
        client.sql('q').to_arrow()
    assert 'amp auth login' in str(raised.value.hint)
    assert raised.value.__cause__ is None
    no_secret_in(raised.value)


def test_a_file_of_others(tokens: TokenServer, caplog: pytest.LogCaptureFixture) -> None:
    path = log_in(tokens, mode=0o644)
    with caplog.at_level(logging.INFO, 'amp.auth'):
        assert LoginToken().current() == 'access-1'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert 'readable for others' in caplog.text
    path.chmod(0o620)
    with pytest.raises(amp.AuthError, match='others may write') as raised:
        LoginToken().current()
    assert 'chmod 600' in str(raised.value.hint)


def test_a_place_that_cannot_be_written_costs_no_token(tokens: TokenServer) -> None:
    path = log_in(tokens, -5)
    # A folder where the file beside it should be made: nobody, not even root, can write a file into a file.
    blocked = LoginFile(path / 'inside')
    with pytest.raises(amp.AuthError):
        blocked.write(Login('access-1', 'refresh-1', USER))
    assert refreshes(tokens) == 0


@pytest.mark.parametrize(
    ('answer', 'kind', 'told'),
    [
        ((401, {}, b'{"error_description": "access-1"}'), amp.AuthError, r'expired at .* refuses to renew .*HTTP 401'),
        ((403, {}, b''), amp.AuthError, 'HTTP 403'),
        ((400, {}, b'{"error": "refresh-1 is spent"}'), amp.AuthError, 'HTTP 400'),
        ((429, {'retry-after': '7'}, b''), amp.ConnectError, 'left alone for 7 s'),
        ((429, {'retry-after': '\u00b2'}, b''), amp.ConnectError, 'left alone for 60 s'),
        ((429, {'retry-after': '9' * 400}, b''), amp.ConnectError, 'left alone for 60 s'),
        ((500, {}, b'access-1'), amp.ConnectError, 'fails .HTTP 500'),
        ((200, {}, b'access-1'), amp.ConnectError, 'cannot be read'),
        ((200, {}, b'{"token": "access-2"}'), amp.ConnectError, 'cannot be read'),
        ((302, {'location': 'http://127.0.0.1:1/steal'}, b''), amp.ConnectError, 'HTTP 302'),
    ],
)
def test_a_service_that_does_not_renew(
    tokens: TokenServer, answer: tuple[int, dict[str, str], bytes], kind: type[amp.SourceError], told: str
) -> None:
    path = log_in(tokens, -5)
    before = path.read_bytes()
    tokens.answer = answer
    with pytest.raises(kind, match=told) as raised:
        LoginToken().current()
    assert raised.value.retryable is (kind is amp.ConnectError)
    no_secret_in(raised.value, str(raised.value.context))
    assert path.read_bytes() == before
    # A token that is good for a little longer is used meanwhile.
    log_in(tokens, SOON)
    assert LoginToken().current() == 'access-2'


def test_it_is_not_asked_again_before_it_said(tokens: TokenServer) -> None:
    log_in(tokens, -5)
    tokens.answer = (429, {'retry-after': '3000'}, b'')
    token = LoginToken()
    for _ in range(3):
        with pytest.raises(amp.ConnectError):
            token.current()
    assert refreshes(tokens) == 1


def test_a_token_of_somebody_else_is_not_taken(tokens: TokenServer) -> None:
    path = log_in(tokens, -5)
    tokens.user = 'c' + 'x' * 24
    with pytest.raises(amp.AuthError, match='of another user'):
        LoginToken().current()
    assert json.loads(path.read_text())['accessToken'] == 'access-1'


def test_a_service_that_is_down(tokens: TokenServer) -> None:
    log_in(tokens, -5)
    with pytest.raises(amp.ConnectError, match=r'cannot reach 127\.0\.0\.1:1') as raised:
        LoginToken(service=AuthService('http://127.0.0.1:1')).current()
    no_secret_in(raised.value)


def test_no_token_in_a_repr_or_a_log(tokens: TokenServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = log_in(tokens, SOON)
    token = LoginToken()
    token.current()
    shown = f'{token!r} {LoginFile()!r} {LoginFile().read()!r} {AuthService()!r} {caplog.text}'
    assert 'the login was renewed' in shown
    assert 'access-' not in shown
    assert 'refresh-' not in shown
    assert path.read_text() not in shown


# On the command line


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    own = {key: os.environ[key] for key in ('HOME', 'AMP_AUTH_URL', 'AMP_CONFIG')}
    return run_amp(*arguments, **{**own, **more})


def test_log_in_ask_see_and_log_out(tokens: TokenServer) -> None:
    tokens.pending = 2
    done = run('auth', 'login')
    assert done.returncode == 0, done.stderr
    assert b'ABCD-EFGH' in done.stderr
    path = LoginFile().path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())['userId'] == USER
    with answering(tokens) as server:
        asked = run('query', server.url, 'q', '--auth')
        assert asked.returncode == 0, asked.stderr
        (Path.home() / 'amp.toml').write_text(f'[source]\nurl = "{server.url}"\nauth = true\n')
        assert run('query', 'q').stdout == asked.stdout
    (Path.home() / 'amp.toml').unlink()
    assert json.loads(run('auth', 'status', '--json').stdout)['user'] == USER
    assert b'good until' in run('auth', 'status').stdout
    assert run('auth', 'logout').returncode == 0
    gone = run('auth', 'status')
    assert gone.returncode == 4
    assert 'nobody is logged in' in one_sentence(gone)
