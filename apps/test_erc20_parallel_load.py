#!/usr/bin/env python3
"""Load ERC-20 transfers into Snowflake in parallel, then hold what arrived against the server.

    AMP_URL=grpc://host:1602 python apps/test_erc20_parallel_load.py --blocks 10000 --workers 4

A program, not a test of the suite: it needs an Amp server and an account. It loads the newest `--blocks` blocks into a
table of its own, asks the server for the same range, compares every row, and exits with 6 when one is lost or twice.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer
from snowflake_parallel_loader import CONNECTION, Load, check_variables, read_query, tell

from amp import Client
from amp.backfill.plan import newest_block
from amp.cli.console import command, interruptible, note
from amp.errors import IntegrityError, LoadError

QUERY = Path(__file__).with_name('queries') / 'erc20_transfers.sql'
KEY = ['block_num', 'log_index']


def last_blocks(client: Client, load: Load, blocks: int) -> Load:
    """The load of the newest `blocks` blocks."""
    head = newest_block(client, load.query)
    return replace(load, min_block=max(0, head + 1 - blocks), max_block=head + 1)


def load_and_read_back(client: Client, load: Load) -> pa.Table:
    """Run it; the rows of its blocks that are in the table then. Raises LoadError."""
    began = time.monotonic()
    progress, results = load.run(client)
    with closing(results):  # type: ignore[type-var]
        rows, failed = tell(progress, results)
    if failed:
        raise LoadError(f'{len(failed)} partitions were not loaded', hint='run the same again')
    seconds = time.monotonic() - began
    note(f'{rows:,} rows of blocks {load.min_block:,} to {(load.max_block or 0) - 1:,}')
    note(f'{load.workers} workers, {seconds:.1f} s, {rows / seconds:,.0f} rows/s')
    with client.make_loader(CONNECTION) as loader:
        stored = loader.scan(load.table).read_all()
    block = stored['block_num']
    return stored.filter(pc.and_(pc.greater_equal(block, load.min_block), pc.less(block, load.max_block)))


def compare(client: Client, load: Load, stored: pa.Table, wanted_sql: str) -> None:
    """Raises IntegrityError when a row is lost or twice. Rows are told apart by block and log index."""
    blocks = f'block_num >= {load.min_block} AND block_num < {load.max_block}'
    wanted = _keys(client.sql(f'SELECT {", ".join(KEY)} FROM ({wanted_sql}\n) AS q WHERE {blocks}').to_arrow())
    found = _keys(stored)
    once = found.group_by(KEY).aggregate([])
    lost = wanted.join(once, KEY, join_type='left anti').num_rows
    foreign = once.join(wanted, KEY, join_type='left anti').num_rows
    twice = found.num_rows - once.num_rows
    if lost or foreign or twice:
        raise IntegrityError(f'{lost} rows are lost, {foreign} are not of the server, {twice} are there again')
    note(f'every one of {wanted.num_rows:,} rows is there, once')


def _keys(rows: pa.Table) -> pa.Table:
    return pa.table({name: rows[name].cast(pa.int64()) for name in KEY})


@command
def main(
    server: Annotated[str, typer.Option(envvar='AMP_URL', help='The Amp server.')],
    blocks: Annotated[int, typer.Option(min=1, help='How many of the newest blocks.')] = 10_000,
    workers: Annotated[int, typer.Option(min=1, help='How many load at a time.')] = 4,
    partition_size: Annotated[int | None, typer.Option(min=1, help='Blocks; default: found while it runs.')] = None,
    table: Annotated[str, typer.Option(help='A table of its own.')] = 'erc20_parallel_load',
    loading_method: Annotated[
        str, typer.Option(envvar='AMP_LOADING_METHOD', help='stage, insert, pandas or snowpipe_streaming.')
    ] = 'stage',
    token: Annotated[str | None, typer.Option(envvar='AMP_AUTH_TOKEN', help='The bearer token of the server.')] = None,
) -> None:
    """Load the newest blocks' ERC-20 transfers in parallel, and compare every row with the server."""
    check_variables(os.environ)
    snowflake = {'loading_method': loading_method, 'pool_size': workers}
    load = Load(read_query(QUERY), table, workers=workers, partition_size=partition_size, snowflake=snowflake)
    with interruptible(), Client(server, auth_token=token) as client:
        load = last_blocks(client, load, blocks)
        compare(client, load, load_and_read_back(client, load), load.query)


if __name__ == '__main__':
    sys.exit(typer.run(main))
