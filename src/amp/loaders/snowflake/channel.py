"""Snowpipe Streaming: rows as lines of JSON through a channel, which commits by itself some seconds later.

The protocol is the one of Snowflake's REST endpoints (`/v2/streaming`): a channel of the table's default pipe is
opened, rows are appended under an offset token that rises, and the channel says up to which token rows are committed.
There is no transaction to put rows and state in, so what is exactly-once here is undo by ids: the token is the id of
the rows, a unit is done when the channel says that its last token is, and what no done unit names is deleted.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as encoded
from urllib.parse import urlencode

import pyarrow as pa

from amp.errors import ConfigError, DestinationError
from amp.loaders.by_id import UndoById
from amp.loaders.points import reached
from amp.loaders.snowflake.config import SnowflakeConnectionConfig
from amp.loaders.snowflake.types import VARIANT, joined, json_objects, landings, name_in, wire_of
from amp.loaders.sql import quote
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import Claim, StreamInfo, StreamJob, Unit
from amp.streaming.ledger import MAX_COUNTER, IdRun, StreamKey, StreamState, Undo

if TYPE_CHECKING:
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__ = ['Channel', 'ChannelStreams']

# One request may carry 16 MB; JSON is at most some times as large as what it is made of.
_LINES_BYTES = 4 * 1024**2
_LINES_ROWS = 16_384
_FIRST_LOOK, _LONGEST_PAUSE = 0.05, 1.0
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_TOKEN_SECONDS = 3000.0


class ChannelStreams:
    """Undo by ids, with the channel's word for what is durable."""

    def __init__(self, loader: SnowflakeLoader) -> None:
        self._loader = loader

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the schema remembers, whichever way it is kept."""
        return self._loader.list_streams()

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch, and delete what no done unit names."""
        with self._loader.explained(key.table):
            self._loader.ensure_streams()
            self._by_id = UndoById(self._loader, self._loader.documents)
            state = self._by_id.open_stream(key, claim, after)
        # Another epoch is another channel: rows of the one before cannot come under the ids of this one.
        self._loader.use_channel(key.table, f'amp-{state.number}-{state.epoch}')
        return state

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> Unit:
        """A unit that waits for the channel before it is done."""
        if job.key_columns:
            raise ConfigError(
                'snowpipe_streaming appends; it cannot replace rows by key', hint="loading_method='stage' can"
            )
        channel = self._loader.channel(job.key.table, anew=False)
        if channel.broken:
            raise _failed(
                'the channel broke, and with it what was on its way; the stream is opened anew', retryable=True
            )
        with self._loader.explained(job.key.table):
            unit = self._by_id.begin(job, state, first_id, undo)
        return _Waiting(self._loader, job.key.table, channel, unit)


class _Waiting:
    """A unit of undo by ids, whose rows are durable when the channel says so."""

    def __init__(self, loader: SnowflakeLoader, table: str, channel: Channel, unit: Any) -> None:
        self._loader = loader
        self._table = table
        self._channel = channel
        self._unit = unit
        self._first: int | None = None

    @property
    def rows_undone(self) -> int:
        return int(self._unit.rows_undone)

    def write(self, batch: pa.RecordBatch) -> int:
        if self._first is None and batch.num_rows:
            self._first = int(_first_id(batch))
        return int(self._unit.write(batch))

    def commit(self, state: StreamState) -> None:
        self._channel.wait()
        reached('channel.committed')
        with self._loader.explained(self._table):
            self._unit.commit(state)

    def rollback(self) -> None:
        # What is on its way must have arrived before it is deleted: a later unit is done above its ids, and would show
        # it. Where that cannot be known no unit begins again before the stream was opened anew, which sweeps.
        if self._channel.broken:
            return
        try:
            self._channel.wait()
            with self._loader.explained(self._table):
                if self._first is not None:
                    # Ids rise, and this unit is the newest: whatever is above its first row is its own.
                    newest = self._first | MAX_COUNTER
                    self._loader._delete_runs(self._table, [IdRun(self._first, newest)])
        except DestinationError:
            self._channel.broken = True


@dataclass
class _Access:
    """Where to append, and the token that opens it. `until` is of the monotonic clock."""

    url: str
    token: str = field(repr=False)
    until: float = 0.0


class Channel:
    """An open channel of the default pipe of a table. Not shared between threads."""

    def __init__(self, config: SnowflakeConnectionConfig, table: str, name: str) -> None:
        stored = name_in(table)
        if quote(stored) != f'"{stored}"' or stored != stored.upper():
            raise ConfigError(
                f'the table {table!r} needs quotes, and the default pipe of such a table has no name to call it by',
                hint="a name of lower-case letters, digits and underscores, or loading_method='stage'",
            )
        self._config = config
        self._access: _Access | None = None
        self._name = name
        names = (config.database or '', config.schema, f'{stored}-STREAMING')
        self._path = '/'.join(f'{kind}/{encoded(n, safe="")}' for kind, n in zip(_KINDS, names, strict=True))
        self._sent: str | None = None
        self.broken = False
        self._count = 0
        opened = self._call('PUT', f'/v2/streaming/{self._path}/channels/{encoded(name, safe="")}', b'{}')
        self._continuation = _next(opened)

    def append(self, batch: pa.RecordBatch) -> int:
        """Send rows; their number. They are durable when `wait` returns."""
        landed = landings(batch.schema)
        nested = {name_in(landing.name) for landing in landed if landing.column == VARIANT}
        wire = wire_of(batch, landed)
        tx_id = _first_id(batch) if TX_ID in batch.schema.names and batch.num_rows else '0'
        rows = max(1, min(_LINES_ROWS, wire.num_rows * _LINES_BYTES // max(4 * wire.nbytes, 1)))
        for at in range(0, wire.num_rows, rows):
            self._append(joined(json_objects(wire.slice(at, rows), nested), '\n'), tx_id)
        return batch.num_rows

    def wait(self) -> None:
        """Return when everything that was sent is durable. Raises DestinationError when it is not, or not in time."""
        deadline = time.monotonic() + self._config.network_timeout
        pause = _FIRST_LOOK
        while self._sent is not None:
            status = self._status()
            if int(status.get('rows_errors') or status.get('row_error_count') or 0):
                raise _failed(f'Snowpipe refused rows: {status.get("last_error_message") or "no reason given"}')
            if status.get('last_committed_offset_token') == self._sent:
                self._sent = None
                return
            if time.monotonic() > deadline:
                raise _failed('Snowpipe did not commit in time', retryable=True)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _append(self, lines: bytes, tx_id: str) -> None:
        self._count += 1
        token = f'{tx_id}:{self._count}'
        query = urlencode({'continuationToken': self._continuation, 'offsetToken': token})
        path = f'/v2/streaming/data/{self._path}/channels/{encoded(self._name, safe="")}/rows?{query}'
        reached('channel.before_append')
        # Unless it is answered, nobody knows whether the rows will come.
        self.broken = True
        answer = self._call('POST', path, lines, 'application/x-ndjson')
        self.broken = False
        self._continuation = _next(answer)
        self._sent = token
        reached('channel.appended')

    def _status(self) -> dict[str, Any]:
        path = f'/v2/streaming/{self._path}:bulk-channel-status'
        answer = self._call('POST', path, json.dumps({'channel_names': [self._name]}).encode())
        found: dict[str, Any] = answer.get('channel_statuses', {}).get(self._name) or {}
        return found

    def _call(self, method: str, path: str, body: bytes, kind: str = 'application/json') -> dict[str, Any]:
        access = self._access
        if access is None or time.monotonic() > access.until:
            access = self._access = _access(self._config)
        answer = _request(self._config, method, access.url + path, body, kind, access.token)
        return dict(json.loads(answer)) if answer.strip() else {}


def _next(answer: dict[str, Any]) -> str:
    """The token that the next request must show."""
    if 'next_continuation_token' not in answer:
        raise _failed('Snowpipe answered without a continuation token')
    return str(answer['next_continuation_token'])


def _first_id(batch: pa.RecordBatch) -> str:
    """The id of the rows of a batch, which is one."""
    return joined(batch.column(TX_ID)[0:1].cast(pa.string()), '').decode()


_KINDS = ('databases', 'schemas', 'pipes')


def _access(config: SnowflakeConnectionConfig) -> _Access:
    """Ask the account for the host that takes rows, and for a token of it."""
    url = config.streaming_url or f'https://{config.host or f"{config.account}.snowflakecomputing.com"}'
    token = _login_token(config)
    told = json.loads(_request(config, 'GET', f'{url}/v2/streaming/hostname', None, 'application/json', token))
    host = str(told['hostname'])
    form = urlencode({'grant_type': 'urn:ietf:params:oauth:grant-type:jwt-bearer', 'scope': host}).encode()
    answer = _request(config, 'POST', f'{url}/oauth/token', form, 'application/x-www-form-urlencoded', token)
    # The answer is the token itself, or an object with it.
    scoped = json.loads(answer)['token'] if answer.lstrip().startswith('{') else answer.strip()
    return _Access(host if '://' in host else f'https://{host}', scoped, time.monotonic() + _TOKEN_SECONDS)


def _login_token(config: SnowflakeConnectionConfig) -> str:
    if config.token:
        return config.token
    if config.private_key is None:
        raise ConfigError(
            'snowpipe_streaming logs in with a key or a token, not with a password', hint='set private_key or token'
        )
    return config.jwt()


def _request(
    config: SnowflakeConnectionConfig, method: str, url: str, body: bytes | None, kind: str, token: str
) -> str:
    headers = {
        'Authorization': f'Bearer {token}',
        'Content-Type': kind,
        'X-Snowflake-Authorization-Token-Type': 'OAUTH' if config.token else 'KEYPAIR_JWT',
        'User-Agent': 'amp',
    }
    request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 - https, but for a local stand-in
    try:
        with urllib.request.urlopen(request, timeout=config.login_timeout) as answer:  # noqa: S310
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(300).decode(errors='replace')
        raise _failed(f'Snowpipe answered {error.code}: {told}', retryable=error.code in _TRANSIENT) from None
    except OSError as error:
        reason = getattr(error, 'reason', error)
        raise _failed(f'Snowpipe at {config.account} cannot be reached: {reason}', retryable=True) from None


def _failed(message: str, *, retryable: bool = False) -> DestinationError:
    error = DestinationError(message, hint='a stream goes on from what is committed' if retryable else None)
    error.retryable = retryable
    return error
