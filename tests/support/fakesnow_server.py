"""The fakesnow server with the statements that it lacks. Runs in an environment of its own: see `snowflake.py`.

    python fakesnow_server.py PORT

The loader speaks Snowflake's SQL and knows nothing of a stand-in. What is added here behaves as Snowflake's documentation
says, and only as far as the loader needs it:

* names and ids of transactions, `SHOW TRANSACTIONS`, `SYSTEM$ABORT_TRANSACTION`, `REMOVE`, `ALTER SESSION`; an aborted
  transaction leaves its session without one, so that later statements commit by themselves: the worst there could be;
* a lock that another transaction holds as the error that Snowflake gives;
* logins: the password of the tests, keys by `ALTER USER ... SET RSA_PUBLIC_KEY`, one OAuth token, and a role that may
  only read; a login that is wrong is answered with the codes that the driver documents;
* NUMBER(38,0) as 38 digits, BINARY(n), null timestamps as null;
* COPY with names that need quotes, into temporary tables, and with MATCH_BY_COLUMN_NAME = CASE_SENSITIVE.

What stays different, so that only an account can prove it: see docs/destinations/snowflake.md.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from string import Template
from typing import Any

import duckdb
import fakesnow.copy_into
import fakesnow.cursor
import fakesnow.info_schema
import fakesnow.server
import fakesnow.transforms.transforms
import jwt
import pyarrow as pa
import pyarrow.compute as pc
import uvicorn
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.transforms import stage
from snowflake.connector.errors import ProgrammingError
from starlette.requests import Request
from starlette.responses import JSONResponse

PASSWORD, TOKEN, READER = 'a-Secret-of-the-tests', 'a-token', 'AMP_READER'

_BEGIN = re.compile(r'\s*BEGIN(?:\s+(?:TRANSACTION|WORK))?(?:\s+NAME\s+(\w+))?\s*;?\s*$', re.IGNORECASE)
_END = re.compile(r'\s*(COMMIT|ROLLBACK)\s*;?\s*$', re.IGNORECASE)
_SHOW = re.compile(r'\s*SHOW\s+TRANSACTIONS\s*$', re.IGNORECASE)
_ABORT = re.compile(r'\s*SELECT\s+SYSTEM\$ABORT_TRANSACTION\((\d+)\)\s*$', re.IGNORECASE)
_REMOVE = re.compile(r"\s*REMOVE\s+'?@(?P<stage>(?:\"[^\"]+\"|[\w.])+)/(?P<path>[^']*)'?\s*$", re.IGNORECASE)
_ALTER_SESSION = re.compile(r'\s*ALTER\s+SESSION\s+SET\s', re.IGNORECASE)
_KEY = re.compile(r"\s*ALTER\s+USER\s+(\w+)\s+SET\s+RSA_PUBLIC_KEY\s*=\s*'([^']+)'\s*$", re.IGNORECASE)
_CHANGES = re.compile(r'\s*(CREATE|ALTER\s+TABLE|INSERT|COPY|PUT|DELETE|UPDATE|MERGE|TRUNCATE)\b', re.IGNORECASE)
_BINARY = re.compile(r'\bBINARY\(\d+\)')
_QUOTED_STAGE = re.compile(r"FROM '@\"(\w+)\"'")
_CURRENT = re.compile(r'CURRENT_TRANSACTION\(\)', re.IGNORECASE)

_ids = itertools.count(1_700_000_000_000)
_open: dict[int, tuple[str, Any]] = {}
_guard = threading.Lock()
_keys: dict[str, str] = {}
_plain_execute = FakeSnowflakeCursor.execute
_plain_parse = fakesnow.server.parse_one
_plain_to_sf = fakesnow.server.to_sf
_plain_text_lengths = fakesnow.info_schema.insert_text_lengths_sql
_plain_login = fakesnow.server.login_request


async def _login(request: Request) -> JSONResponse:
    body = await request.body()
    if request.headers.get('Content-Encoding') == 'gzip':
        body = gzip.decompress(body)
    refusal = _refusal(json.loads(body)['data'])
    if refusal is not None:
        code, message = refusal
        return JSONResponse({'success': False, 'code': code, 'message': message, 'data': {}})
    answer = await _plain_login(request)
    made = fakesnow.server.sessions[json.loads(bytes(answer.body))['data']['token']]
    made.only_reads = request.query_params.get('roleName') == READER
    # As with an account: who names a database that is not there is logged in, and has none.
    made.is_nowhere = str(request.query_params.get('databaseName', '')).startswith('NO_SUCH')
    return answer


def _refusal(login: dict[str, Any]) -> tuple[str, str] | None:
    kind = str(login.get('AUTHENTICATOR', 'SNOWFLAKE')).upper()
    if kind == 'OAUTH':
        return None if login.get('TOKEN') == TOKEN else ('390303', 'Invalid OAuth access token.')
    if kind == 'SNOWFLAKE_JWT':
        user = str(login.get('LOGIN_NAME')).upper()
        try:
            jwt.decode(login['TOKEN'], _keys[user], algorithms=['RS256'])
        except (jwt.InvalidTokenError, KeyError):
            return '390144', 'JWT token is invalid.'
        return None
    return None if login.get('PASSWORD') == PASSWORD else ('390100', 'Incorrect username or password was specified.')


def _execute(self: Any, command: str, *args: Any, **kwargs: Any) -> Any:
    connection = self._conn
    if (begun := _BEGIN.match(command)) is not None:
        result = _plain_execute(self, 'BEGIN', *args, **kwargs)
        with _guard:
            connection.transaction = next(_ids)
            _open[connection.transaction] = (begun[1] or '', connection)
        return result
    if getattr(connection, 'only_reads', False) and _CHANGES.match(command):
        raise ProgrammingError(msg='Insufficient privileges to operate on schema', errno=3001, sqlstate='42501')
    if (given := _KEY.match(command)) is not None:
        _keys[given[1].upper()] = f'-----BEGIN PUBLIC KEY-----\n{given[2]}\n-----END PUBLIC KEY-----\n'
    command = _rewritten(connection, command)
    try:
        result = _plain_execute(self, command, *args, **kwargs)
    except duckdb.TransactionException as error:
        raise ProgrammingError(msg=f'locked by another transaction: {error}', errno=625, sqlstate='57014') from error
    except (duckdb.Error, AssertionError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise ProgrammingError(msg=f'{type(error).__name__}: {error}', errno=100038, sqlstate='22018') from error
    if _END.match(command):
        _forget(connection)
    return result


def _rewritten(connection: Any, command: str) -> str:
    if getattr(connection, 'is_nowhere', False):
        return 'SELECT NULL'
    if _SHOW.match(command):
        with _guard:
            rows = [f'SELECT {number} AS "id", \'{name}\' AS "name"' for number, (name, _) in _open.items()]
        return ' UNION ALL '.join([*rows, 'SELECT 0 AS "id", \'\' AS "name"'])
    if (aborted := _ABORT.match(command)) is not None:
        with _guard:
            _, owner = _open.get(int(aborted[1]), ('', None))
        if owner is not None:
            owner._duck_conn.rollback()
            owner._in_transaction = False
            _forget(owner)
        return "SELECT 'Aborted' AS status"
    if (removed := _REMOVE.match(command)) is not None:
        _remove(connection, removed['stage'], removed['path'])
        return "SELECT 'removed' AS status"
    if _ALTER_SESSION.match(command) or _KEY.match(command):
        return "SELECT 'Statement executed successfully.' AS status"
    command = _QUOTED_STAGE.sub(r'FROM @\1', _BINARY.sub('BINARY', command))
    current = getattr(connection, 'transaction', None)
    return _CURRENT.sub('NULL' if current is None else f"'{current}'", command)


def _forget(connection: Any) -> None:
    with _guard:
        _open.pop(getattr(connection, 'transaction', None), None)
        connection.transaction = None


def _remove(connection: Any, name: str, path: str) -> None:
    database, schema, stage_name = stage.parts_from_var(name, connection.database, connection.schema)
    folder = os.path.join(stage.internal_dir(f'{database}.{schema}.{stage_name}'), path)  # noqa: PTH118
    for root, _, files in os.walk(folder):
        for file in files:
            os.remove(os.path.join(root, file))  # noqa: PTH107, PTH118


def _parse(sql: str) -> Any:
    ours = (_SHOW, _ABORT, _REMOVE, _ALTER_SESSION, _KEY)
    if _BEGIN.match(sql):
        return _plain_parse('BEGIN')
    return _plain_parse(
        'SELECT 1'
        if any(pattern.match(sql) for pattern in ours)
        else _CURRENT.sub('NULL', _QUOTED_STAGE.sub(r'FROM @\1', _BINARY.sub('BINARY', sql)))
    )


def _describe(table: Any, duck: Any, database: str | None, schema: str | None) -> list[tuple[str, str]]:
    # A temporary table lies in a database of its own.
    names = (table.catalog, table.db, table.name) if table.db else (table.name,)
    quoted = '.'.join('"' + str(name).replace('"', '""') + '"' for name in names if name)
    return [(row[0], row[1]) for row in duck.execute(f'DESCRIBE {quoted}').fetchall()]


def _target_columns(table: Any, duck: Any, database: str | None, schema: str | None) -> list[str]:
    return [name for name, _ in _describe(table, duck, database, schema)]


def _text_lengths(catalog: str, schema: str, table: str, lengths: list[tuple[str, int]]) -> str:
    escaped = [(name.replace("'", "''"), size) for name, size in lengths]
    return _plain_text_lengths(catalog, schema, table.replace("'", "''"), escaped)


class _Escaped(Template):
    """The sentences of fakesnow, with names that hold a quote."""

    def substitute(self, *args: Any, **names: Any) -> str:
        return super().substitute(*args, **{key: str(name).replace("'", "''") for key, name in names.items()})


def _to_sf(table: pa.Table, rowtype: Any) -> pa.Table:
    made = _plain_to_sf(table, rowtype)
    for i, column in enumerate(table.columns):
        if pa.types.is_timestamp(column.type) and column.null_count:
            struct = made.column(i).combine_chunks()
            valid = pc.is_valid(column).combine_chunks()
            nulled = pa.StructArray.from_arrays(struct.flatten(), fields=list(struct.type), mask=pc.invert(valid))
            made = made.set_column(i, made.schema.field(i), nulled)
    return made


def main(port: int) -> None:
    changed: list[tuple[Any, str, Callable[..., Any] | None]] = [
        (FakeSnowflakeCursor, 'execute', _execute),
        (fakesnow.server, 'parse_one', _parse),
        (fakesnow.copy_into, '_describe_table', _describe),
        (fakesnow.copy_into, '_get_table_columns', _target_columns),
        (fakesnow.server, 'to_sf', _to_sf),
        (fakesnow.info_schema, 'insert_text_lengths_sql', _text_lengths),
        (fakesnow.transforms.transforms, 'NUMBER_38_0', None),
    ]
    for owner, name, replacement in changed:
        setattr(owner, name, replacement)
    for name, value in vars(fakesnow.cursor).items():
        if isinstance(value, Template) and name.startswith('SQL_') and name != 'SQL_COPY_ROWS':
            setattr(fakesnow.cursor, name, _Escaped(value.template))
    describe = fakesnow.transforms.transforms
    describe.SQL_DESCRIBE_TABLE = _Escaped(describe.SQL_DESCRIBE_TABLE.template)
    login = next(route for route in fakesnow.server.routes if route.endpoint is _plain_login)
    fakesnow.server.app.router.routes.insert(0, type(login)(login.path, _login, methods=['POST']))
    logging.getLogger('fakesnow.server').setLevel(logging.CRITICAL)
    uvicorn.run(fakesnow.server.app, host='127.0.0.1', port=port, log_level='error')


if __name__ == '__main__':
    main(int(sys.argv[1]))
