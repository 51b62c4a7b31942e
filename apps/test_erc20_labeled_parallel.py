#!/usr/bin/env python3
"""Load ERC-20 transfers with the names of their tokens into Snowflake in parallel, then hold them against the server.

    AMP_URL=grpc://host:1602 python apps/test_erc20_labeled_parallel.py --label-csv tokens.csv --blocks 10000

A program, not a test of the suite. `tokens.csv` has a column `address` and whatever else it knows of a token, such as
`symbol` and `decimals`; `scripts/token_labels.py` makes one. Every transfer is kept; those of unknown tokens have nulls.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from snowflake_parallel_loader import Label, Load, check_variables, read_query
from test_erc20_parallel_load import QUERY, compare, last_blocks, load_and_read_back

from amp import Client
from amp.cli.console import command, interruptible, note


@command
def main(
    server: Annotated[str, typer.Option(envvar='AMP_URL', help='The Amp server.')],
    label_csv: Annotated[Path, typer.Option(envvar='AMP_LABEL_CSV', help='A CSV or Parquet file of tokens.')],
    label_key: Annotated[str, typer.Option(envvar='AMP_LABEL_KEY', help='The key column of the labels.')] = 'address',
    blocks: Annotated[int, typer.Option(min=1, help='How many of the newest blocks.')] = 10_000,
    workers: Annotated[int, typer.Option(min=1, help='How many load at a time.')] = 4,
    partition_size: Annotated[int | None, typer.Option(min=1, help='Blocks; default: found while it runs.')] = None,
    table: Annotated[str, typer.Option(help='A table of its own.')] = 'erc20_labeled_parallel',
    loading_method: Annotated[
        str, typer.Option(envvar='AMP_LOADING_METHOD', help='stage, insert, pandas or snowpipe_streaming.')
    ] = 'stage',
    token: Annotated[str | None, typer.Option(envvar='AMP_AUTH_TOKEN', help='The bearer token of the server.')] = None,
) -> None:
    """Load the newest blocks' ERC-20 transfers with labels, and compare every row with the server."""
    check_variables(os.environ)
    load = Load(
        read_query(QUERY),
        table,
        workers=workers,
        partition_size=partition_size,
        label=Label(label_csv, label_key, 'token_address', keep_all=True),
        snowflake={'loading_method': loading_method, 'pool_size': workers},
    )
    with interruptible(), Client(server, auth_token=token) as client:
        load = last_blocks(client, load, blocks)
        stored = load_and_read_back(client, load)
        compare(client, load, stored, load.query)
        known = set(client.sql(load.query).schema().names)
        labels = [name for name in stored.column_names if name not in known]
        for name in labels:
            note(f'{name}: {stored.num_rows - stored[name].null_count:,} of {stored.num_rows:,} rows have it')


if __name__ == '__main__':
    sys.exit(typer.run(main))
