#!/usr/bin/env python3
"""Load a range of blocks into Snowflake with several workers.

    python apps/snowflake_parallel_loader.py --query-file apps/queries/erc20_transfers.sql --table erc20_transfers

Run it again, after a crash or with another number of workers, and it loads what is missing: where each range ended is
kept in Snowflake itself, in `amp_stream_state`, committed together with its rows. Every option has a variable, so that
a container needs no arguments; who logs in is said by SNOWFLAKE_ACCOUNT and its siblings. The guide beside this file
tells the rest.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from amp import Client, LabelJoinConfig
from amp.backfill.plan import newest_block
from amp.cli.console import command, emit, interruptible, note
from amp.errors import ConfigError, LoadError
from amp.loaders.settings import StreamSettings
from amp.loaders.types import LoadResult
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor

CONNECTION = 'snowflake'
_LOGINS = ('SNOWFLAKE_PASSWORD', 'SNOWFLAKE_PRIVATE_KEY', 'SNOWFLAKE_TOKEN', 'SNOWFLAKE_AUTHENTICATOR')
_TELL_SECONDS = 5.0


@dataclass(frozen=True)
class Label:
    """A CSV or Parquet file that is joined with every row. `key` names its column, `join` that of the query."""

    path: Path
    key: str | None = None
    join: str | None = None
    keep_all: bool = False

    def add_to(self, client: Client) -> list[str | LabelJoinConfig]:
        """Read the file now, so that one that is missing or wrong is told before anything is loaded."""
        name = self.path.name.partition('.')[0]
        client.add_label(name, self.path)
        if self.join is None and self.key is None:
            return [name]
        own = self.key or self.join
        return [LabelJoinConfig(name, own, self.join or own, 'left' if self.keep_all else 'inner')]


@dataclass(frozen=True)
class Load:
    """One run of the loader."""

    query: str
    table: str
    min_block: int = 0
    max_block: int | None = None
    workers: int = 4
    partition_size: int | None = None
    block_column: str = 'block_num'
    follow: bool = False
    name: str | None = None
    label: Label | None = None
    detect_gaps: bool = True
    stop_on_error: bool = False
    snowflake: dict[str, Any] = field(default_factory=dict)

    def run(self, client: Client, settings: StreamSettings | None = None) -> tuple[Any, Iterator[LoadResult]]:
        """The progress of the load, and its results as they come: one for each partition that is committed."""
        client.configure_connection(CONNECTION, 'snowflake', self.snowflake)
        end = self.max_block
        if end is None and not self.follow:
            end = newest_block(client, self.query) + 1
        config = ParallelConfig(
            self.workers,
            'query',
            min_block=self.min_block,
            max_block=end,
            partition_size=self.partition_size,
            block_column=self.block_column,
            stop_on_error=self.stop_on_error,
        )
        options: dict[str, Any] = {'settings': settings or StreamSettings()}
        if self.label is not None:
            options['label_config'] = self.label.add_to(client)
        if self.name is not None:
            options['name'] = self.name
        runner = ParallelStreamExecutor(client, config, query=self.query, connection=CONNECTION, destination=self.table)
        return runner.progress, runner.load_with_resume_optimization(detect_gaps=self.detect_gaps, **options)


def check_variables(environment: Iterable[str]) -> None:
    """Raises ConfigError that names every variable that is missing."""
    there = set(environment)
    if f'AMP_CONN_{CONNECTION.upper()}' in there:
        return
    missing = [name for name in ('SNOWFLAKE_ACCOUNT', 'SNOWFLAKE_USER', 'SNOWFLAKE_DATABASE') if name not in there]
    if not there.intersection(_LOGINS):
        missing.append(f'one of {", ".join(_LOGINS)}')
    if missing:
        raise ConfigError(
            f'not set: {"; ".join(missing)}',
            hint='set them, or AMP_CONN_SNOWFLAKE to a URL such as snowflake://user@account/database/schema',
        )


def read_query(path: Path) -> str:
    """The SQL of a file. Raises ConfigError for one that is not there, no text, or empty."""
    try:
        text = path.read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is not text'
        raise ConfigError(f'the query file {str(path)!r} cannot be read: {reason}') from error
    if not text:
        raise ConfigError(f'the query file {str(path)!r} is empty')
    return text


def tell(progress: Any, results: Iterator[LoadResult], *, as_json: bool = False) -> tuple[int, list[LoadResult]]:
    """Say how far it is, every few seconds; the rows that were loaded, and the partitions that were not."""
    rows, failed, began = 0, [], time.monotonic()
    told = began
    for result in results:
        if not result.success:
            failed.append(result)
            note(
                f'failed  blocks {result.metadata["start_block"]} to {result.metadata["end_block"] - 1}: {result.error}'
            )
            continue
        rows += result.rows_loaded
        now = time.monotonic()
        if as_json:
            emit('commit', rows=result.rows_loaded, total_rows=rows, blocks_left=progress.blocks_left)
        elif now - told >= _TELL_SECONDS:
            told = now
            eta = progress.seconds_left
            left = f'{progress.blocks_left:,} blocks left' + (f', about {eta:,.0f} s' if eta is not None else '')
            note(f'{rows:,} rows  {rows / (now - began):,.0f}/s  {left}')
    return rows, failed


@command
def main(
    server: Annotated[str, typer.Option(envvar='AMP_URL', help='The Amp server.')],
    table: Annotated[str, typer.Option(envvar='AMP_TABLE', help='The table to load into; made when it is not there.')],
    query_file: Annotated[Path | None, typer.Option(envvar='AMP_QUERY_FILE', help='The SQL, in a file.')] = None,
    query: Annotated[str | None, typer.Option(envvar='AMP_QUERY', help='The SQL itself.')] = None,
    min_block: Annotated[int, typer.Option(envvar='AMP_MIN_BLOCK', min=0, help='The first block.')] = 0,
    max_block: Annotated[
        int | None, typer.Option(envvar='AMP_MAX_BLOCK', help='The first block not to load; default: up to the head.')
    ] = None,
    workers: Annotated[int, typer.Option(envvar='AMP_WORKERS', min=1, help='How many load at a time.')] = 4,
    partition_size: Annotated[
        int | None, typer.Option(envvar='AMP_PARTITION_SIZE', min=1, help='Blocks; default: found while it runs.')
    ] = None,
    block_column: Annotated[
        str, typer.Option(envvar='AMP_BLOCK_COLUMN', help='The column of the query that has the number of the block.')
    ] = 'block_num',
    follow: Annotated[bool, typer.Option('--follow', envvar='AMP_FOLLOW', help='Then follow the chain.')] = False,
    name: Annotated[
        str | None, typer.Option(envvar='AMP_STREAM_NAME', help='What the state is kept under; default: the table.')
    ] = None,
    detect_gaps: Annotated[bool, typer.Option(envvar='AMP_DETECT_GAPS', help='Fill holes of earlier runs.')] = True,
    stop_on_error: Annotated[
        bool, typer.Option('--stop-on-error', envvar='AMP_STOP_ON_ERROR', help='End all workers at the first failure.')
    ] = False,
    label_csv: Annotated[
        Path | None, typer.Option(envvar='AMP_LABEL_CSV', help='Labels; relative to AMP_LABEL_DIR when that is set.')
    ] = None,
    label_key: Annotated[str | None, typer.Option(envvar='AMP_LABEL_KEY', help='The key column of the labels.')] = None,
    label_join: Annotated[str | None, typer.Option(envvar='AMP_LABEL_JOIN', help='The column of the query.')] = None,
    label_left: Annotated[bool, typer.Option('--label-left', envvar='AMP_LABEL_LEFT', help='Keep all rows.')] = False,
    loading_method: Annotated[
        str, typer.Option(envvar='AMP_LOADING_METHOD', help='stage, insert, pandas or snowpipe_streaming.')
    ] = 'stage',
    preserve_reorg_history: Annotated[
        bool,
        typer.Option(
            '--preserve-reorg-history',
            envvar='AMP_PRESERVE_REORG_HISTORY',
            help='Mark rows that a reorg takes back instead of deleting them.',
        ),
    ] = False,
    token: Annotated[str | None, typer.Option(envvar='AMP_AUTH_TOKEN', help='The bearer token of the server.')] = None,
    metrics: Annotated[str | None, typer.Option(envvar='AMP_METRICS', help='Answer Prometheus on HOST:PORT.')] = None,
    as_json: Annotated[bool, typer.Option('--json', help='One JSON event a line on standard output.')] = False,
) -> None:
    """Load a range of blocks into Snowflake with several workers; run it again and it goes on."""
    from amp.cli.inputs import answering_metrics

    check_variables(os.environ)
    if (query is None) == (query_file is None):
        raise ConfigError('give --query-file (AMP_QUERY_FILE) or --query (AMP_QUERY), one of them')
    load = Load(
        query if query is not None else read_query(query_file or Path()),
        table,
        min_block=min_block,
        max_block=max_block,
        workers=workers,
        partition_size=partition_size,
        block_column=block_column,
        follow=follow,
        name=name,
        label=Label(label_csv, label_key, label_join, label_left) if label_csv is not None else None,
        detect_gaps=detect_gaps,
        stop_on_error=stop_on_error,
        snowflake={
            'loading_method': loading_method,
            'preserve_reorg_history': preserve_reorg_history,
            'pool_size': workers,
        },
    )
    with interruptible() as stop, answering_metrics(metrics), Client(server, auth_token=token) as client:
        began = time.monotonic()
        progress, results = load.run(client, StreamSettings(stop=stop))
        with closing(results):  # type: ignore[type-var]
            rows, failed = tell(progress, results, as_json=as_json)
        seconds = time.monotonic() - began
        if as_json:
            emit('summary', rows=rows, seconds=round(seconds, 3), failed=len(failed))
        else:
            note(f'done  {rows:,} rows in {seconds:.1f} s into {table}')
    if failed:
        raise LoadError(
            f'{len(failed)} partitions were not loaded', hint='run the same again: it loads what is missing'
        )


if __name__ == '__main__':
    sys.exit(typer.run(main))
