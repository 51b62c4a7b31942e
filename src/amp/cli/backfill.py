"""`amp backfill`: history with several workers, a map of it while it runs, and then the stream."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp.cli.console import command, interruptible, note, paint
from amp.cli.inputs import AsJson, Auth, Metrics, Sql, Token, Url, answering_metrics, key_values, server_and_sql
from amp.cli.labels import Joins, KeepAll, Labels, Reload, add_labels, typed_labels
from amp.cli.load import Name, Options, Preset, TableName, To, with_preset
from amp.cli.progress import Reporter, progress_row
from amp.cli.server import open_client

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from types import TracebackType

    from amp.backfill.executor import ParallelStreamExecutor
    from amp.loaders.types import LoadResult

__all__ = ['backfill']

_WIDTH = 50
_LOOK = {0: ('█', 'green'), 1: ('·', 'dim'), 2: ('▒', 'cyan'), 3: ('✗', 'red')}
_TABLE_OF = re.compile(r'\bfrom\s+([\w."/@-]+)', re.IGNORECASE)


@command
def backfill(
    url: Url = None,
    sql: Sql = None,
    *,
    to: To,
    table: TableName,
    workers: Annotated[int, typer.Option('--workers', '-w', min=1, help='How many workers.')] = 4,
    first: Annotated[int, typer.Option('--from', min=0, help='The first block.')] = 0,
    end: Annotated[
        int | None, typer.Option('--end', min=1, help='The first block that is not loaded any more; default: the head.')
    ] = None,
    follow: Annotated[bool, typer.Option('--follow', help='Then follow the chain from the very next block.')] = False,
    block_column: Annotated[str, typer.Option(help='The column of the query that holds the block.')] = 'block_num',
    partition_size: Annotated[
        int | None, typer.Option(min=1, help='Blocks a partition; default: found while it runs.')
    ] = None,
    reorg_buffer: Annotated[int, typer.Option(min=0, help='Blocks below the head that the stream brings.')] = 200,
    processes: Annotated[bool, typer.Option('--processes', help='Workers are processes, not threads.')] = False,
    dask: Annotated[str | None, typer.Option('--dask', metavar='ADDRESS', help='Workers of a Dask cluster.')] = None,
    ray: Annotated[str | None, typer.Option('--ray', metavar='ADDRESS', help='Workers of a Ray cluster.')] = None,
    stop_on_error: Annotated[bool, typer.Option('--stop-on-error', help='End at the first failed partition.')] = False,
    name: Name = None,
    label: Labels = None,
    join: Joins = None,
    left: KeepAll = False,
    label_reload: Reload = False,
    option: Options = None,
    preset: Preset = None,
    token: Token = None,
    auth: Auth = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Load history with several workers; run it again and it loads only what is missing.

    Each partition is one commit. Stop it with Ctrl-C or kill it: nothing is lost and nothing is loaded twice.
    """
    if follow and end is not None:
        raise typer.BadParameter('--follow goes on from the head, so it has no --end')
    if end is not None and first >= end:
        raise typer.BadParameter(f'--from {first} is not below --end {end}')
    if sum([processes, dask is not None, ray is not None]) > 1:
        raise typer.BadParameter('--processes, --dask and --ray are three places where workers run: choose one')
    labels = typed_labels(label, join, left=left, reload=label_reload)
    options: dict[str, Any] = {**key_values(option or []), **with_preset(preset)}
    if name:
        options['name'] = name
    url, text = server_and_sql(url, sql)
    from amp.backfill.executor import ParallelStreamExecutor
    from amp.backfill.plan import newest_block
    from amp.errors import redact
    from amp.loaders.settings import StreamSettings
    from amp.streaming.parallel import ParallelConfig

    with interruptible() as stop, contextlib.ExitStack() as stack:
        stack.enter_context(answering_metrics(metrics))
        client = stack.enter_context(open_client(url, token, auth=auth))
        options |= {'settings': StreamSettings(stop=stop), **add_labels(client, labels)}
        config = ParallelConfig(
            workers,
            _table_name(text),
            min_block=first,
            max_block=end if end is not None or follow else newest_block(client, text) + 1,
            partition_size=partition_size,
            block_column=block_column,
            stop_on_error=stop_on_error,
            reorg_buffer=reorg_buffer,
            executor=_executor(stack, workers, processes=processes, dask=dask, ray=ray),
        )
        runner = ParallelStreamExecutor(client, config, query=text, connection=to, destination=table)
        reporter = stack.enter_context(_MapReporter(f'{table} → {redact(to)}', runner, as_json=as_json))
        results = stack.enter_context(contextlib.closing(runner.load_with_resume_optimization(**options)))
        failed = _drain(results, reporter)
        if failed:
            raise _incomplete(failed)


def _drain(results: Any, reporter: _MapReporter) -> list[LoadResult]:
    failed = []
    for result in results:
        if result.success:
            reporter.add(result)
        else:
            failed.append(result)
            blocks = f'{result.metadata["start_block"]:,} to {result.metadata["end_block"] - 1:,}'
            reporter.event('failed', **result.metadata, error=result.error)
            note(f'{paint("failed", "red")}  blocks {blocks}: {result.error}')
    return failed


def _incomplete(failed: list[LoadResult]) -> Exception:
    from amp.errors import LoadError

    count = 'one partition was' if len(failed) == 1 else f'{len(failed)} partitions were'
    return LoadError(
        f'{count} not loaded',
        result=failed[0],
        hint='run the same again: it loads what is missing',
    )


def _table_name(sql: str) -> str:
    found = _TABLE_OF.search(sql)
    return found.group(1) if found else 'query'


def _executor(
    stack: contextlib.ExitStack, workers: int, *, processes: bool, dask: str | None, ray: str | None
) -> Executor | None:
    if dask is not None:
        from amp.backfill.dask_pool import DaskExecutor

        return stack.enter_context(DaskExecutor(dask))
    if ray is not None:
        from amp.backfill.ray_pool import RayExecutor

        return stack.enter_context(RayExecutor(ray))
    if processes:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        # Never forked: drivers break in a forked child.
        return stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context('spawn')))
    return None


class _MapReporter(Reporter):
    """A reporter that shows the map of ranges as long as the backfill runs."""

    def __init__(self, title: str, runner: ParallelStreamExecutor, *, as_json: bool) -> None:
        super().__init__(title, as_json=as_json)
        self._progress = runner.progress

    def _render(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        progress = self._progress
        cells = progress.cells(_WIDTH)
        left = progress.blocks_left
        if not cells:
            return progress_row(self._title, ['asking what there is to do'], self.tally.seconds)
        if left == 0 and not progress.failed:
            return super()._render()
        ribbon = ''.join(f'[{_LOOK[cell][1]}]{_LOOK[cell][0]}[/]' for cell in cells)
        figures = [f'[bold]{self.tally.rows:,}[/] rows', f'{self.tally.recent_rate:,.0f}/s', f'{left:,} blocks left']
        if progress.failed:
            figures.append(f'[red]{progress.failed} failed[/]')
        eta = progress.seconds_left
        if eta is not None:
            figures.append(f'about {_duration(eta)} more')
        return Group(
            progress_row(self._title, [' [dim]·[/] '.join(figures)], self.tally.seconds),
            Text.from_markup(f'  [dim]{progress.start:,}[/] {ribbon} [dim]{progress.end:,}[/]'),
        )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        if self._progress.there and not self._as_json:
            note(f'  {paint("before", "dim")}    {self._progress.there:,} blocks were there already')


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f'{max(seconds, 1):.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'
