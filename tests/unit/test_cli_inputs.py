"""What is typed, and which columns of a table fit on a screen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from amp.cli.app import app
from amp.cli.inputs import key_values, server_and_sql
from amp.cli.table import _fitting

pytestmark = pytest.mark.unit


def test_options_are_json_where_they_are_json() -> None:
    assert key_values(['a=1', 'b=x=y', 'c=true', 'd=["k"]', 'e=']) == {
        'a': 1,
        'b': 'x=y',
        'c': True,
        'd': ['k'],
        'e': '',
    }
    with pytest.raises(typer.BadParameter, match='not key=value'):
        key_values(['nothing'])


def test_sql_comes_from_the_argument_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('AMP_URL', raising=False)
    (tmp_path / 'q.sql').write_text('\nSELECT 2\n')
    assert server_and_sql('grpc://x', 'SELECT 1') == ('grpc://x', 'SELECT 1')
    assert server_and_sql('grpc://x', f'@{tmp_path}/q.sql') == ('grpc://x', 'SELECT 2')
    with pytest.raises(typer.BadParameter, match='cannot read'):
        server_and_sql('grpc://x', '@nowhere.sql')
    with pytest.raises(typer.BadParameter, match='empty'):
        server_and_sql('grpc://x', ' \n')
    with pytest.raises(typer.BadParameter, match='AMP_URL'):
        server_and_sql('SELECT 1', None)
    with pytest.raises(typer.BadParameter, match='AMP_URL'):
        server_and_sql(None, None)
    monkeypatch.setenv('AMP_URL', 'grpc://y')
    with pytest.raises(typer.BadParameter, match='give the URL of the server and the SQL'):
        server_and_sql(None, None)
    assert server_and_sql('SELECT 1', None) == ('grpc://y', 'SELECT 1')


def test_columns_that_do_not_fit_leave_the_middle() -> None:
    assert _fitting([5, 5, 5], 80) == [0, 1, 2]
    shown = _fitting([10] * 13, 80)
    assert shown[0] == 0
    assert None in shown
    assert shown[-1] == 12
    assert sum(10 + 2 for index in shown if index is not None) + 3 <= 80
    assert _fitting([200, 5], 80) == [0, None]


def test_the_commands_are_there_before_anything_heavy_is() -> None:
    code = (
        'import sys; import amp.cli.app; '
        "print(sorted({'pyarrow', 'numpy', 'duckdb', 'datafusion', 'rich.live', 'amp.client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, check=True).stdout == b'[]\n'


def test_what_may_be_left_out_is_said_to_be_optional() -> None:
    main: Any = typer.main.get_command(app)
    for name in ('query', 'plan', 'load', 'stream', 'backfill'):
        usage = main.commands[name].get_usage(typer.Context(main.commands[name], info_name=name))
        assert usage.endswith('[URL] [SQL]'), usage
    usage = main.commands['ui'].get_usage(typer.Context(main.commands['ui'], info_name='ui'))
    assert usage.count('...') == 1, usage
