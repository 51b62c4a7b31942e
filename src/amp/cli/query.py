"""`amp query`: the answer to one question, on the screen, in a pipe or in a file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from amp.cli.console import OutputError, command, interruptible, note, paint
from amp.cli.inputs import Auth, Sql, Token, Url, server_and_sql
from amp.cli.kinds import BINARY, Format, format_of
from amp.cli.server import open_client

if TYPE_CHECKING:
    import pyarrow as pa

    from amp.cli.formats import Writer
    from amp.query import Query

__all__ = ['query']

_SCREEN_ROWS = 40
_ENDLESS = frozenset({Format.jsonl, Format.csv, Format.arrow})


@command
def query(
    url: Url = None,
    sql: Sql = None,
    form: Annotated[
        Format | None,
        typer.Option(
            '--format', '-f', help='Default: by the name of --output, else a table on a terminal and jsonl in a pipe.'
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option('--output', '-o', help='A file; it appears when it is complete, or not at all.')
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option(
            '--stream', help='Follow the chain until Ctrl-C, which also completes --output. Reorgs are told on stderr.'
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option('--limit', '-n', min=1, help=f'Stop after so many rows (a table: {_SCREEN_ROWS}).')
    ] = None,
    token: Token = None,
    auth: Auth = False,
) -> None:
    """Ask a question and print or save the answer.

    Bytes are 0x hex, decimals exact (text in JSON), times ISO 8601. To a pipe goes data alone.
    """
    chosen = _choose(form, output, streaming=streaming)
    url, text = server_and_sql(url, sql)

    started = time.monotonic()
    with interruptible(), open_client(url, token, auth=auth) as client, contextlib.ExitStack() as stack:
        asked = client.sql(text)
        if chosen is Format.table:
            _show(asked, limit or _SCREEN_ROWS, started)
            return
        batches = stack.enter_context(contextlib.closing(_followed(asked) if streaming else _all(asked)))
        sink = stack.enter_context(_file(output, streaming=streaming) if output else _stdout())
        rows = _write(asked, batches, chosen, sink, limit, regular=_is_regular(output), flush=streaming)
    if output is not None:
        note(f'{paint(f"{rows:,} rows", "bold")} in {output} ({_size(output)}), {time.monotonic() - started:.1f} s')


def _choose(form: Format | None, output: Path | None, *, streaming: bool) -> Format:
    """The format that is meant. Raises a usage error for one that does not fit."""
    if output is not None and form is None:
        form = format_of(output)
        if form is None:
            raise typer.BadParameter(f'the name {output.name!r} does not say which format; add --format')
    on_screen = output is None and sys.stdout.isatty()
    chosen = form or (Format.table if on_screen and not streaming else Format.jsonl)
    if chosen in BINARY and on_screen:
        raise typer.BadParameter(f'{chosen} is not for a screen; add --output FILE or a pipe')
    if chosen is Format.table and output is not None:
        raise typer.BadParameter('a table is for the screen; choose another --format for a file')
    if streaming and chosen not in _ENDLESS:
        raise typer.BadParameter(f'{chosen} has an end and a stream has none; choose jsonl, csv or arrow')
    return chosen


def _all(asked: Query) -> Generator[pa.RecordBatch, None, None]:
    yield from asked.stream()


def _followed(asked: Query) -> Generator[pa.RecordBatch, None, None]:
    """The batches of a streaming query; a reorg is told on stderr, for the rows are out already."""
    from amp.streaming.reorg import ReorgAwareStream

    with contextlib.closing(asked.responses(streaming=True)) as responses:
        for response in ReorgAwareStream(responses):
            for lost in response.invalidation_ranges:
                note(f'{paint("reorg:", "yellow")} rows of {lost} printed so far are no longer on the chain')
            if response.data is not None:
                yield response.data


def _write(
    asked: Query,
    batches: Iterator[pa.RecordBatch],
    form: Format,
    sink: IO[bytes],
    limit: int | None,
    *,
    regular: bool,
    flush: bool,
) -> int:
    """Write up to `limit` rows; the number written. A result is closed properly only when it has come whole."""
    from amp.cli.formats import open_writer

    writer: Writer | None = None
    rows = 0
    try:
        for batch in batches:
            writer = writer or open_writer(form, sink, batch.schema, seekable=regular)
            wanted = batch if limit is None else batch.slice(0, limit - rows)
            writer.write(wanted)
            rows += wanted.num_rows
            if flush:
                sink.flush()
            if rows == limit:
                break
    except KeyboardInterrupt:
        if flush and writer is not None:  # the only end that a stream has
            writer.close()
        raise
    (writer or open_writer(form, sink, asked.schema(), seekable=regular)).close()
    return rows


def _show(asked: Query, limit: int, started: float) -> None:
    from amp.cli.table import print_table

    kept: list[pa.RecordBatch] = []
    rows, more = 0, False
    with contextlib.closing(_all(asked)) as batches:
        for batch in batches:
            kept.append(batch.slice(0, limit - rows))
            more = batch.num_rows > limit - rows
            rows += kept[-1].num_rows
            if more:
                break
    schema = kept[0].schema if kept else asked.schema()
    hidden = print_table(schema, kept)
    if sys.stderr.isatty():
        count = f'the first {rows:,} rows' if more else f'{rows:,} row{"s" * (rows != 1)}'
        advice = ['-n N shows more rows'] * more + ['-f jsonl shows every column'] * bool(hidden)
        facts = [count, *[f'{hidden} columns hidden'] * bool(hidden), f'{time.monotonic() - started:.1f} s']
        note(paint(', '.join(facts) + ''.join(f'  ·  {text}' for text in advice), 'dim'))


def _is_regular(output: Path | None) -> bool:
    return output is not None and (not output.exists() or output.is_file())


@contextlib.contextmanager
def _stdout() -> Iterator[IO[bytes]]:
    sink = _Told(sys.stdout.buffer, 'to standard output')
    yield sink  # type: ignore[misc]  # as much of a file as the writers use
    sink.flush()


@contextlib.contextmanager
def _file(output: Path, *, streaming: bool) -> Iterator[IO[bytes]]:
    """A file beside `output` that takes its name when the block ends well, and is removed when it does not.

    Ctrl-C is the only end that a stream has, and a good one.
    """
    where = repr(str(output))
    if not _is_regular(output):
        with _telling(where), output.open('wb') as special:
            yield _Told(special, where)  # type: ignore[misc]
        return
    target = output.resolve()
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    ended: KeyboardInterrupt | None = None
    try:
        with _telling(where):
            file = part.open('wb')
        with file:
            sink = _Told(file, where)
            try:
                yield sink  # type: ignore[misc]
            except KeyboardInterrupt as interrupt:
                if not streaming:
                    raise
                ended = interrupt
            sink.flush()
        with _telling(where):
            part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    if ended is not None:
        raise ended


class _Told:
    """A sink whose refusals say which place refused; a broken pipe stays what it is."""

    def __init__(self, sink: IO[bytes], where: str) -> None:
        self._sink = sink
        self._where = where

    def write(self, data: bytes) -> int:
        with _telling(self._where):
            return self._sink.write(data)

    def flush(self) -> None:
        with _telling(self._where):
            self._sink.flush()


@contextlib.contextmanager
def _telling(where: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(where, error) from error


def _size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ('bytes', 'kB', 'MB'):
        if size < 1000:
            return f'{size:.0f} {unit}' if unit == 'bytes' else f'{size:.1f} {unit}'
        size /= 1000
    return f'{size:.1f} GB'
